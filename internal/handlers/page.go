package handlers

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/levee-net/levee"
)

// HelloPage is Hello for an event loop: it answers every HTTP/1 request with one
// page. It knows of HTTP what it takes to find where a request ends and whether
// another may follow; whatever is doubtful there it refuses, and closes.
//
// It holds a request, header and body, until it is whole, and answers none above 64
// KiB. Chunked bodies it does not take (411), nor CONNECT (501); a client that asks
// before it sends a body (Expect: 100-continue) gets its answer without.
var HelloPage = &page{named: "hello"}

type page struct {
	named
	date atomic.Pointer[date] // of the current second, as soon as somebody asks
}

type date struct {
	second int64
	text   string
}

const (
	helloText = "Hello from levee, in plaintext.\n"

	headerBound  = 16 << 10 // as Hello's server has it
	fieldBound   = 100      // Apache's LimitRequestFields; bounds what it costs to step through a header again
	requestBound = 64 << 10 // a form or two; it is all held until its end has come
	replyBound   = 64 << 10 // a large write's worth, and what a client that does not read can make us hold
	replyRoom    = 256      // more than one reply takes
)

// ServeTCP steps through what the connection brings.
func (p *page) ServeTCP(_ context.Context, c *levee.Conn) error { return levee.ServeSteps(c, p) }

// Step answers the whole requests at the beginning of in.
func (p *page) Step(_ *levee.Conn, in []byte, seen int, out []byte) (n int, reply []byte, err error) {
	date := p.now()
	for n < len(in) {
		var r request
		size, no := r.read(in[n:], seen)
		if no != nil {
			return n, no.append(out, date, r.head), io.EOF
		}
		if size == 0 {
			break
		}
		n += size
		out = r.answer(out, date)
		if r.last() {
			return n, out, io.EOF
		}
		if len(out) > replyBound-replyRoom {
			break
		}
		seen = 0 // that was about this request
	}
	return n, out, nil
}

// now returns what a Date field has now. When the second is over the first that
// notices makes the next; if two do, so be it.
func (p *page) now() string {
	now := time.Now()
	d := p.date.Load()
	if d == nil || d.second != now.Unix() {
		d = &date{now.Unix(), now.UTC().Format(http.TimeFormat)}
		p.date.Store(d)
	}
	return d.text
}

// A request is what of one concerns the answer and its own end.
type request struct {
	head       bool
	old        bool // HTTP/1.0
	hosts      int
	length     []byte // Content-Length; nil if there is none
	codings    int    // Transfer-Encoding fields
	coding     []byte // the value of the last of them
	close      bool
	keepAlive  bool
	asks       bool // Expect: 100-continue
	asksOther  bool
	unanswered bool // asks, and there is a body that it asks about
}

// read reads the request that in begins with and returns how many bytes it has, or
// 0 if it is not whole. The first seen bytes have been read before, in vain.
//
// Nobody remembers what was found in them: whether it was the header that had no
// end, or the body. So the lines are walked through again, by the speed of a search for
// their ends and no more than fieldBound of them; but what was looked at byte by byte is
// not again, for it was good.
//
// A request that comes in pieces is refused for the same reason as one that comes
// at once: every decision depends on no byte behind the one that made it possible.
func (r *request) read(in []byte, seen int) (size int, no *refusal) {
	b := in[:min(len(in), headerBound)]
	start := 0
	line, next := cutLine(b, start)
	for empty := 0; empty < 2 && next > 0 && len(line) == 0; empty++ { // RFC 9112, 2.2
		start = next
		line, next = cutLine(b, start)
	}
	if start < len(b) && b[start] != '\r' && !all(b[start:start+1], inToken) {
		return 0, badRequest("malformed request line") // a TLS ClientHello has no line's end to wait for
	}
	if next == 0 {
		if len(b) == headerBound {
			return 0, &refusal{http.StatusRequestURITooLong, ""}
		}
		return 0, nil
	}
	if no := r.readRequestLine(line, next <= seen); no != nil {
		return 0, no
	}
	end, no := headerEnd(b, next)
	if end == 0 {
		return 0, no
	}
	for line, next = cutLine(b, next); len(line) > 0; line, next = cutLine(b, next) {
		if no := r.readField(line, end <= seen); no != nil {
			return 0, no
		}
	}
	length, no := r.bodyLength()
	if no != nil {
		return 0, no
	}
	if length > requestBound-end {
		return 0, &refusal{http.StatusRequestEntityTooLarge, ""}
	}
	size = end + length
	if r.asks && length > 0 {
		// RFC 9110, 10.1.1: the final status at once, for the body has no say in it. A
		// client may send the body all the same, or not: nobody can tell what follows.
		r.unanswered = true
		size = min(size, len(in))
	}
	if size > len(in) {
		return 0, nil
	}
	return size, nil
}

// cutLine returns the line at b[at:] without its end, and where the next begins: 0 if
// it has no end. That is CRLF, or LF alone, as RFC 9112, 2.2 allows and people type.
func cutLine(b []byte, at int) (line []byte, next int) {
	i := bytes.IndexByte(b[at:], '\n')
	if i < 0 {
		return nil, 0
	}
	line, next = b[at:at+i], at+i+1
	if i > 0 && line[i-1] == '\r' {
		line = line[:i-1]
	}
	return line, next
}

// headerEnd returns where the header ends of which the fields begin at b[at:], or 0.
func headerEnd(b []byte, at int) (end int, no *refusal) {
	for range fieldBound + 1 {
		line, next := cutLine(b, at)
		switch {
		case next == 0 && len(b) < headerBound:
			return 0, nil
		case next == 0:
			return 0, &refusal{http.StatusRequestHeaderFieldsTooLarge, ""}
		case len(line) == 0:
			return next, nil
		}
		at = next
	}
	return 0, &refusal{http.StatusRequestHeaderFieldsTooLarge, ""}
}

func (r *request) readRequestLine(line []byte, good bool) *refusal {
	method, rest, isMethod := bytes.Cut(line, []byte(" "))
	target, version, _ := bytes.Cut(rest, []byte(" "))
	r.head = isMethod && string(method) == "HEAD"
	r.old = string(version) == "HTTP/1.0"
	switch {
	case good:
		return nil
	case !isMethod || len(method) == 0 || !all(method, inToken):
		return badRequest("malformed request line")
	case string(method) == "CONNECT":
		// RFC 9110, 9.3.6: a 200 would open a tunnel, and be no page.
		return &refusal{http.StatusNotImplemented, "no tunnel here"}
	case !isTarget(target):
		return badRequest("malformed request line")
	case !isVersion(version):
		return badRequest("malformed HTTP version")
	case version[len("HTTP/")] != '1': // a minor version above 1 is spoken to as 1.1: RFC 9110, 2.5
		return &refusal{http.StatusHTTPVersionNotSupported, "unsupported protocol version"}
	}
	return nil
}

// isTarget reports whether b can be what a request is for. Which it is makes no
// difference to the one page, so that only the plainest are told without help.
func isTarget(b []byte) bool {
	if len(b) > 0 && b[0] == '/' && all(b, inPlainTarget) {
		return true
	}
	_, err := url.ParseRequestURI(string(b))
	return err == nil
}

func isVersion(b []byte) bool {
	return len(b) == len("HTTP/1.1") && string(b[:5]) == "HTTP/" && isDigit(b[5]) && b[6] == '.' && isDigit(b[7])
}

func (r *request) readField(line []byte, good bool) *refusal {
	colon := bytes.IndexByte(line, ':')
	if !good && (colon < 1 || !all(line[:colon], inToken) || !all(line[colon+1:], inValue)) {
		return badRequest("malformed header field") // RFC 9112, 5.1 and 5.2: blanks before it or its colon, too
	}
	name, value := line[:colon], trim(line[colon+1:])
	switch {
	case isWord(name, "host"):
		return r.readHost(value)
	case isWord(name, "content-length"):
		return r.readLength(value)
	case isWord(name, "transfer-encoding"):
		r.codings++
		r.coding = value
	case isWord(name, "connection"):
		for word := range bytes.SplitSeq(value, []byte(",")) {
			word = trim(word)
			r.close = r.close || isWord(word, "close")
			r.keepAlive = r.keepAlive || isWord(word, "keep-alive")
		}
	case isWord(name, "expect"):
		r.asks = r.asks || isWord(value, "100-continue")
		r.asksOther = r.asksOther || len(value) > 0 && !isWord(value, "100-continue")
	}
	return nil
}

// readHost reads a Host field; RFC 9112, 3.2 has a server refuse more than one.
func (r *request) readHost(value []byte) *refusal {
	r.hosts++
	if r.hosts > 1 {
		return badRequest("too many Host headers")
	}
	if !all(value, inHost) {
		return badRequest("malformed Host header")
	}
	return nil
}

// readLength reads a Content-Length field; RFC 9110, 8.6 lets it be repeated.
func (r *request) readLength(value []byte) *refusal {
	if len(value) == 0 {
		return badRequest("malformed Content-Length header")
	}
	for _, c := range value {
		if !isDigit(c) {
			return badRequest("malformed Content-Length header")
		}
	}
	if r.length != nil && !bytes.Equal(r.length, value) {
		return badRequest("differing Content-Length headers")
	}
	r.length = value
	return nil
}

// bodyLength returns how long the body is, or anything above requestBound.
func (r *request) bodyLength() (length int, no *refusal) {
	switch {
	case r.hosts == 0 && !r.old:
		return 0, badRequest("missing required Host header")
	case r.codings > 0:
		return 0, r.refuseCoding()
	case r.asksOther:
		return 0, &refusal{http.StatusExpectationFailed, ""}
	}
	r.asks = r.asks && !r.old // RFC 9110, 10.1.1: whoever speaks HTTP/1.0 does not mean it
	for _, c := range r.length {
		if length <= requestBound {
			length = length*10 + int(c-'0')
		}
	}
	return length, nil
}

// refuseCoding says why a body whose length is not told beforehand is not taken:
// where it ends is what request smuggling lives on.
func (r *request) refuseCoding() *refusal {
	last := r.coding[bytes.LastIndexByte(r.coding, ',')+1:]
	switch {
	case r.length != nil: // RFC 9112, 6.3, 3
		return badRequest("both Transfer-Encoding and Content-Length")
	case r.old: // RFC 9112, 6.1
		return badRequest("Transfer-Encoding in HTTP/1.0")
	case !isWord(trim(last), "chunked"): // RFC 9112, 6.3, 4
		return badRequest("no end to the body")
	case r.codings == 1 && isWord(r.coding, "chunked"): // RFC 9112, 6.3: a server may
		return &refusal{http.StatusLengthRequired, ""}
	}
	return &refusal{http.StatusNotImplemented, "unsupported transfer encoding"} // RFC 9112, 6.1
}

// last reports whether the connection ends with the answer: RFC 9112, 9.3.
func (r *request) last() bool { return r.close || r.unanswered || r.old && !r.keepAlive }

// answer appends the page.
func (r *request) answer(out []byte, date string) []byte {
	out = append(out, "HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 32\r\nDate: "...)
	out = append(out, date...)
	switch {
	case r.last():
		out = append(out, "\r\nConnection: close\r\n\r\n"...)
	case r.old: // it would think that this is the end
		out = append(out, "\r\nConnection: keep-alive\r\n\r\n"...)
	default:
		out = append(out, "\r\n\r\n"...)
	}
	if !r.head {
		out = append(out, helloText...)
	}
	return out
}

// A refusal is why a request gets no page, and the connection ends.
type refusal struct {
	status int
	why    string // besides what the status says; may be empty
}

func badRequest(why string) *refusal { return &refusal{http.StatusBadRequest, why} }

// append appends the answer, in net/http's words.
func (no *refusal) append(out []byte, date string, head bool) []byte {
	text := strconv.Itoa(no.status) + " " + http.StatusText(no.status)
	out = append(out, "HTTP/1.1 "+text+"\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: "...)
	if no.why != "" {
		text += ": " + no.why
	}
	out = strconv.AppendInt(out, int64(len(text)), 10)
	out = append(out, "\r\nDate: "+date+"\r\nConnection: close\r\n\r\n"...)
	if !head {
		out = append(out, text...)
	}
	return out
}

// What a byte may be part of.
const (
	inToken       = 1 << iota // RFC 9110, 5.6.2
	inValue                   // of a header field: RFC 9110, 5.5
	inPlainTarget             // without %, which may be wrong; bytes above ASCII are sent and do no harm
	inHost                    // RFC 3986, 3.2.2, and the port
)

var bytesIn = func() (in [256]byte) {
	for c := range in {
		if c > ' ' && c != 0x7f {
			in[c] |= inValue | inPlainTarget
		}
		if isDigit(byte(c)) || 'a' <= c|0x20 && c|0x20 <= 'z' {
			in[c] |= inToken | inHost
		}
	}
	in[' '] |= inValue
	in['\t'] |= inValue
	in['%'] &^= inPlainTarget
	for _, c := range []byte("!#$%&'*+-.^_`|~") {
		in[c] |= inToken
	}
	for _, c := range []byte("!$%&'()*+,-.:;=[]_~") {
		in[c] |= inHost
	}
	return in
}()

func all(b []byte, in byte) bool {
	for _, c := range b {
		if bytesIn[c]&in == 0 {
			return false
		}
	}
	return true
}

// trim returns b without the blanks around it: RFC 9110, 5.6.3.
func trim(b []byte) []byte { return bytes.Trim(b, " \t") }

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

// isWord reports whether b is the word, which is in lower case. ASCII's cases alone are folded:
// to bytes.EqualFold the Kelvin sign is a k.
func isWord(b []byte, word string) bool {
	if len(b) != len(word) {
		return false
	}
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			c |= 0x20
		}
		if c != word[i] {
			return false
		}
	}
	return true
}
