package levee

import (
	"encoding/hex"
	"errors"
	"strings"
)

// TraceParentTLV is the type of the TLV that has a [TraceParent] in a PROXY v2 header, in the
// text of [TraceParent.String]. It is out of the range that section 2.2.7 of the PROXY
// protocol leaves to applications, 0xE0 to 0xEF, in which clouds have taken 0xE0, 0xEA and 0xEE.
const TraceParentTLV = 0xE1

// A TraceParent is where something stands in a distributed trace: the traceparent of W3C Trace
// Context (https://www.w3.org/TR/trace-context/), without the flags that nobody here asks
// for. The zero value is none.
type TraceParent struct {
	TraceID [16]byte // of the whole trace
	SpanID  [8]byte  // of the span that others are children of
	Sampled bool     // that span is recorded, and the children should be
}

// IsValid reports whether there is one: neither id is all zeros.
func (t TraceParent) IsValid() bool { return t.TraceID != [16]byte{} && t.SpanID != [8]byte{} }

// String returns the traceparent in version 00, such as
// "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", or "" for none.
func (t TraceParent) String() string {
	if !t.IsValid() {
		return ""
	}
	text := make([]byte, 0, traceParentSize)
	text = append(text, "00-"...)
	text = hex.AppendEncode(text, t.TraceID[:])
	text = append(text, '-')
	text = hex.AppendEncode(text, t.SpanID[:])
	if t.Sampled {
		return string(append(text, "-01"...))
	}
	return string(append(text, "-00"...))
}

const (
	traceParentSize = 55   // of version 00, and of what later versions begin with
	noVersion       = 0xff // section 3.2.2.1: invalid
)

var errTraceParent = errors.New("not a traceparent")

// ParseTraceParent reads a traceparent of version 00, or what this has in common with a later
// version. The error does not quote the text, which may be a stranger's.
func ParseTraceParent(s string) (TraceParent, error) {
	var version, flags [1]byte
	var t TraceParent
	if len(s) < traceParentSize || s[2] != '-' || s[35] != '-' || s[52] != '-' {
		return TraceParent{}, errTraceParent
	}
	for _, field := range []struct {
		to   []byte
		text string
	}{{version[:], s[:2]}, {t.TraceID[:], s[3:35]}, {t.SpanID[:], s[36:52]}, {flags[:], s[53:55]}} {
		if !decodeLower(field.to, field.text) {
			return TraceParent{}, errTraceParent
		}
	}
	rest := s[traceParentSize:]
	switch {
	case !t.IsValid(), version[0] == noVersion:
		return TraceParent{}, errTraceParent
	case version[0] == 0 && (rest != "" || flags[0] > 3): // sampled and random are all the flags that it knows
		return TraceParent{}, errTraceParent
	case rest != "" && rest[0] != '-':
		return TraceParent{}, errTraceParent
	}
	t.Sampled = flags[0]&1 != 0
	return t, nil
}

// decodeLower decodes hexadecimal digits of which no letter is a capital (section 3.2.2.3).
func decodeLower(to []byte, text string) bool {
	if strings.ContainsAny(text, "ABCDEF") {
		return false
	}
	_, err := hex.Decode(to, []byte(text))
	return err == nil
}

// TraceParent returns what the connection is a part of, by the PROXY header in which a source
// in Server.ProxyFrom has said so, or none. What was malformed is none.
func (c *Conn) TraceParent() TraceParent {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.extra == nil || c.extra.parent == nil {
		return TraceParent{}
	}
	return *c.extra.parent
}

func (c *Conn) setTraceParent(t TraceParent) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.extraLocked().parent = &t
}
