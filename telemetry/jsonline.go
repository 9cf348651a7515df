package telemetry

import (
	"math"
	"net"
	"net/netip"
	"strconv"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/levee-net/levee"
)

// A jsonLine is a line of log as a slog.JSONHandler writes it, with durations in seconds. It allocates nothing
// once it is as long as lines are. Keys are as they are: no key of an access log has to be quoted.
type jsonLine struct {
	b     []byte
	spans [mostSpans]levee.Span
}

func (l *jsonLine) begin(now time.Time, msg string) {
	l.b = append(l.b[:0], `{"time":"`...)
	l.b = now.AppendFormat(l.b, time.RFC3339Nano)
	l.b = append(l.b, `","level":"INFO"`...)
	l.word("msg", msg)
}

// end returns the line. It is gone with the next begin.
func (l *jsonLine) end() []byte {
	l.b = append(l.b, '}', '\n')
	return l.b
}

func (l *jsonLine) key(key string) {
	l.b = append(l.b, ',', '"')
	l.b = append(l.b, key...)
	l.b = append(l.b, '"', ':')
}

func (l *jsonLine) word(key, value string) {
	l.key(key)
	l.b = append(l.b, '"')
	l.b = appendEscaped(l.b, value)
	l.b = append(l.b, '"')
}

func (l *jsonLine) text(key, value string) {
	l.key(key)
	l.b = append(l.b, '"')
	l.b = appendPrintable(l.b, cut(value))
	l.b = append(l.b, '"')
}

func (l *jsonLine) count(key string, n int64) {
	l.key(key)
	l.b = strconv.AppendInt(l.b, n, 10)
}

func (l *jsonLine) address(key string, a net.Addr) {
	l.key(key)
	l.b = append(l.b, '"')
	l.b = appendAddress(l.b, a)
	l.b = append(l.b, '"')
}

func (l *jsonLine) took(key string, d time.Duration) {
	l.key(key)
	l.b = appendSeconds(l.b, d)
}

func (l *jsonLine) phases(key string, m levee.Moments, end time.Duration) {
	spans := m.Spans(l.spans[:0], end)
	if len(spans) == 0 {
		return
	}
	l.key(key)
	at := len(l.b)
	for _, s := range spans {
		l.took(s.Phase.String(), s.Took)
	}
	l.b[at] = '{' // in place of the first one's comma
	l.b = append(l.b, '}')
}

// appendAddress appends what a.String returns.
func appendAddress(b []byte, a net.Addr) []byte {
	if tcp, ok := a.(*net.TCPAddr); ok && tcp != nil && tcp.Zone == "" {
		if at := tcp.AddrPort(); at.IsValid() {
			return netip.AddrPortFrom(at.Addr().Unmap(), at.Port()).AppendTo(b)
		}
	}
	return appendEscaped(b, a.String())
}

// appendSeconds appends a number of seconds as encoding/json writes d.Seconds().
func appendSeconds(b []byte, d time.Duration) []byte {
	const digits = 9
	switch {
	case d == 0:
		return append(b, '0')
	case d < time.Microsecond || d >= time.Second:
		return appendFloat(b, d.Seconds())
	}
	// A decimal of so few digits is the shortest that stands for its float64, which is what is wanted.
	b = append(b, "0.000000000"...)
	at := len(b) - 1
	for range digits {
		b[at] += byte(d % 10)
		d /= 10
		at--
	}
	for b[len(b)-1] == '0' {
		b = b[:len(b)-1]
	}
	return b
}

// appendFloat is what encoding/json does with a float64 that is finite.
func appendFloat(b []byte, f float64) []byte {
	if abs := math.Abs(f); abs == 0 || abs >= 1e-6 && abs < 1e21 {
		return strconv.AppendFloat(b, f, 'f', -1, 64)
	}
	b = strconv.AppendFloat(b, f, 'e', -1, 64)
	if n := len(b); n >= 4 && b[n-4] == 'e' && b[n-3] == '-' && b[n-2] == '0' { // e-09
		b[n-2] = b[n-1]
		b = b[:n-1]
	}
	return b
}

// plainPrefix returns how much of s are printable characters that can stand in a JSON string as they are: mostly all of it.
func plainPrefix(s string) int {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' || c == '"' || c == '\\' {
			return i
		}
	}
	return len(s)
}

// appendPrintable appends what [printable] returns, escaped.
func appendPrintable(b []byte, s string) []byte {
	for {
		n := plainPrefix(s)
		if b = append(b, s[:n]...); n == len(s) {
			return b
		}
		r, size := utf8.DecodeRuneInString(s[n:])
		switch s = s[n+size:]; {
		case r == '"', r == '\\':
			b = append(b, '\\', byte(r))
		case unicode.IsPrint(r): // U+FFFD is, in place of what is no UTF-8
			b = utf8.AppendRune(b, r)
		default:
			b = append(b, '?')
		}
	}
}

// appendEscaped appends a string as slog does between quotation marks.
func appendEscaped(b []byte, s string) []byte {
	for {
		n := plainPrefix(s)
		if b = append(b, s[:n]...); n == len(s) {
			return b
		}
		r, size := utf8.DecodeRuneInString(s[n:])
		b, s = appendEscapedRune(b, r, size), s[n+size:]
	}
}

func appendEscapedRune(b []byte, r rune, size int) []byte {
	const hex = "0123456789abcdef"
	switch {
	case r == '"', r == '\\':
		return append(b, '\\', byte(r))
	case r == '\n':
		return append(b, '\\', 'n')
	case r == '\r':
		return append(b, '\\', 'r')
	case r == '\t':
		return append(b, '\\', 't')
	case r < ' ':
		return append(b, '\\', 'u', '0', '0', hex[r>>4], hex[r&15])
	case r == utf8.RuneError && size == 1: // no UTF-8
		return append(b, `\ufffd`...)
	case r == '\u2028', r == '\u2029': // ends of lines in JavaScript
		return append(b, '\\', 'u', '2', '0', '2', hex[r&15])
	}
	return utf8.AppendRune(b, r)
}
