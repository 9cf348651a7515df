package handlers_test

import (
	"bufio"
	"bytes"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/levee-net/levee/internal/handlers"
)

// FuzzPage holds the page against net/http: what it takes for a request has to be
// one there, of the same extent and with the same answer, and what it refuses has to
// be refused there, but for what stricterThanNetHTTP lists.
func FuzzPage(f *testing.F) {
	for _, c := range conversations {
		f.Add([]byte(c.sent), uint64(1))
	}
	for _, in := range []string{
		"GET / HTTP/1.1\r\nHost: a\r\nTE: chunked\r\nTrailer: b\r\nPragma: no-cache\r\n\r\n",
		"GET ?a HTTP/1.1\r\nHost: a\r\n\r\n",
		"GET //a HTTP/1.1\r\nHost: a\r\n\r\n",
		"GET a:b HTTP/1.1\r\nHost: a\r\n\r\n",
		"GET http://[::1%25a]:80/# HTTP/1.1\r\nHost: a\r\n\r\n",
		"CONNECT /a HTTP/1.1\r\nHost: a\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n content-length: 6\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: a\r\nA: b\r\n \r\n\r\n",
		"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n",
		"HEAD\r\n",
		"\n\n\r\nHEAD ",
		"HEAD / HTTP/1.1\r\nHost: a\r\nA: b\r\n c\r\n\r\n",
	} {
		f.Add([]byte(in), uint64(2))
	}
	o := newOracle(f)
	f.Fuzz(func(t *testing.T, in []byte, seed uint64) {
		whole := stepOneByOne(t, in)
		checkReplies(t, whole)
		checkSplits(t, in, whole, seed)
		for _, r := range whole {
			if r.taken == nil {
				o.checkRest(t, r)
			} else {
				o.checkTaken(t, r)
			}
		}
	})
}

// An answered request is what Step made of one.
type answered struct {
	taken []byte // nil if it was refused
	rest  []byte // what came from its beginning on
	reply []byte // empty if it is incomplete
	end   bool
}

// stepOneByOne has each request answered by a Step of its own, and returns them with
// what became of the rest.
func stepOneByOne(t *testing.T, in []byte) (requests []answered) {
	full := make([]byte, 64<<10) // so that Step stops after one
	for {
		n, reply, err := handlers.HelloPage.Step(nil, slices.Clip(in), 0, full)
		reply = reply[len(full):]
		if n < 0 || n > len(in) || err != nil && err != io.EOF || (n > 0 || err != nil) != (len(reply) > 0) {
			t.Fatalf("Step took %d of %q, answered %q, %v", n, in, reply, err)
		}
		r := answered{rest: in, reply: reply, end: err != nil}
		if n > 0 {
			r.taken = in[:n]
		}
		requests = append(requests, r)
		in = in[n:]
		if n == 0 || err != nil {
			return requests
		}
	}
}

// checkReplies checks that a client can tell the replies apart.
func checkReplies(t *testing.T, requests []answered) {
	var all []byte
	for _, r := range requests {
		all = append(all, r.reply...)
	}
	b := bufio.NewReader(bytes.NewReader(all))
	for _, r := range requests {
		if len(r.reply) == 0 {
			continue
		}
		line, _, _ := bytes.Cut(afterEmptyLines(r.rest), []byte("\n"))
		method, _, isMethod := strings.Cut(string(line), " ")
		if !isMethod {
			method = ""
		}
		reply, err := http.ReadResponse(b, &http.Request{Method: method})
		if err != nil {
			t.Fatalf("the reply to %q is %q: %v", r.rest, r.reply, err)
		}
		body, err := io.ReadAll(reply.Body)
		if (reply.StatusCode == 200) != (r.taken != nil) || reply.Close != r.end || (method != "HEAD") != (len(body) > 0) ||
			reply.ContentLength < 1 || err != nil {
			t.Fatalf("the reply to %q is %q: %v", r.rest, r.reply, err)
		}
		if date, err := http.ParseTime(reply.Header.Get("Date")); err != nil || time.Since(date).Abs() > time.Minute {
			t.Fatalf("the reply to %q is of %q: %v", r.rest, reply.Header.Get("Date"), err)
		}
	}
	if rest, _ := io.ReadAll(b); len(rest) > 0 {
		t.Fatalf("%q follows the replies to %q", rest, requests[0].rest)
	}
}

// afterEmptyLines returns in without the empty lines that are allowed before a request.
func afterEmptyLines(in []byte) []byte {
	for range 2 {
		if line, rest, _ := bytes.Cut(in, []byte("\n")); len(line) == 0 || string(line) == "\r" {
			in = rest
		}
	}
	return in
}

// checkSplits checks that the bytes get the same replies however they come.
func checkSplits(t *testing.T, in []byte, whole []answered, seed uint64) {
	var want []byte
	for _, r := range whole {
		want = append(want, r.reply...)
	}
	pieces := rand.New(rand.NewPCG(seed, 0))
	longest := 1 + pieces.IntN(len(in)+1)
	if len(in) < 500 && seed%4 == 0 {
		longest = 1
	}
	var e engine
	var err error
	for rest := in; len(rest) > 0 && err == nil; {
		n := min(len(rest), 1+pieces.IntN(longest))
		err = e.receive(rest[:n])
		rest = rest[n:]
	}
	if undated(e.written) != undated(want) || err != nil && err != io.EOF || (err != nil) != whole[len(whole)-1].end {
		t.Fatalf("in pieces %q gets %q, %v, whole %q", in, e.written, err, want)
	}
}

// checkTaken checks what was answered by a page.
func (o *oracle) checkTaken(t *testing.T, r answered) {
	// net/http allows empty lines behind a POST only.
	lines := len(r.taken) - len(afterEmptyLines(r.taken))
	taken := r.taken[lines:]
	b := bufio.NewReader(bytes.NewReader(r.rest[lines:]))
	request, err := http.ReadRequest(b)
	if err != nil {
		t.Fatalf("%q was answered: %v", r.taken, err)
	}
	asked := request.Header.Get("Expect") != "" && request.ProtoAtLeast(1, 1) && request.ContentLength > 0
	body, err := io.ReadAll(request.Body)
	rest, _ := io.ReadAll(b)
	if extent := len(r.rest) - lines - len(rest); extent != len(taken) || err != nil && !asked {
		t.Fatalf("%q was taken for a request, net/http takes %d bytes: %v", taken, extent, err)
	}
	if len(body) > len(taken) {
		t.Fatalf("a body of %d bytes in %d", len(body), len(taken))
	}
	// Not what the reply there says: to net/http the keep-alive of HTTP/1.0 outweighs a close beside it.
	if end := request.Close || asked; end != r.end {
		t.Fatalf("after %q, the end: %v, want %v", r.taken, r.end, end)
	}
	if status := o.ask(t, taken); status != http.StatusOK {
		t.Fatalf("%q was answered, net/http says %d", r.taken, status)
	}
}

// stricterThanNetHTTP is what we refuse and net/http may answer.
var stricterThanNetHTTP = map[string]string{
	"400 Bad Request: both Transfer-Encoding and Content-Length": "net/http goes by the former, as RFC 9112, 6.3 lets it",
	"400 Bad Request: Transfer-Encoding in HTTP/1.0":             "net/http ignores it, which RFC 9112, 6.1 calls faulty framing",
	"411 Length Required":                                          "chunked bodies are not read",
	"413 Request Entity Too Large":                                 "large bodies are not read",
	"414 Request URI Too Long":                                     "the oracle's limit is higher",
	"417 Expectation Failed":                                       "net/http is content with 100-continue among others",
	"431 Request Header Fields Too Large":                          "the oracle's limit is higher",
	"501 Not Implemented: no tunnel here":                          "net/http leaves CONNECT to the handler",
	"505 HTTP Version Not Supported: unsupported protocol version": "net/http leaves PRI * HTTP/2.0 to the handler",
}

// checkRest checks what was refused, or is not whole.
func (o *oracle) checkRest(t *testing.T, r answered) {
	if len(r.rest) == 0 || r.rest[0] == '\r' || r.rest[0] == '\n' { // see checkTaken
		return
	}
	if len(r.reply) == 0 {
		if isWhole(r.rest) {
			t.Fatalf("%q has no answer", r.rest)
		}
		return
	}
	asked := bytes.Clone(r.rest)
	if bytes.HasPrefix(asked, []byte("HEAD ")) {
		copy(asked, "BODY") // which has the reason
		_, r.reply, _ = handlers.HelloPage.Step(nil, asked, 0, nil)
	}
	_, reason, _ := strings.Cut(string(r.reply), "\r\n\r\n")
	if stricterThanNetHTTP[reason] != "" || reason == "400 Bad Request: malformed header field" && isFolded(asked) {
		return
	}
	if o.ask(t, asked) == http.StatusOK {
		t.Fatalf("%q was refused by %q, but not by net/http", asked, reason)
	}
}

// isWhole reports whether in begins with a request that net/http finds whole.
func isWhole(in []byte) bool {
	rest := bytes.NewReader(in)
	b := bufio.NewReader(rest)
	request, err := http.ReadRequest(b)
	if err != nil {
		return false
	}
	header := in[:len(in)-rest.Len()-b.Buffered()]
	_, err = io.Copy(io.Discard, request.Body)
	return err == nil && bytes.HasSuffix(header, []byte("\n")) // at the end of the stream lines need no end there
}

// isFolded reports whether a line continues the one before, which net/http allows and
// RFC 9112, 5.2 lets a server refuse.
func isFolded(in []byte) bool {
	return bytes.Contains(in, []byte("\n ")) || bytes.Contains(in, []byte("\n\t"))
}

// An oracle is net/http's server, with Hello.
type oracle struct {
	conns chan net.Conn
}

func newOracle(f *testing.F) *oracle {
	o := &oracle{make(chan net.Conn)}
	s := &http.Server{Handler: handlers.Hello, ErrorLog: log.New(io.Discard, "", 0)}
	served := make(chan error, 1)
	go func() { served <- s.Serve(o) }() // ends with o
	f.Cleanup(func() {
		close(o.conns)
		<-served
	})
	return o
}

// ask returns the status of the first reply to in, or 0 if there is none.
func (o *oracle) ask(t *testing.T, in []byte) (status int) {
	c := &recorded{sent: bytes.NewReader(in), closed: make(chan struct{})}
	o.conns <- c
	<-c.closed
	if len(c.got) == 0 {
		return 0
	}
	reply, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(c.got)), nil)
	if err != nil {
		t.Fatalf("net/http answers %q to %q: %v", c.got, in, err)
	}
	return reply.StatusCode
}

func (o *oracle) Accept() (net.Conn, error) {
	c, ok := <-o.conns
	if !ok {
		return nil, net.ErrClosed
	}
	return c, nil
}

func (o *oracle) Close() error   { return nil }
func (o *oracle) Addr() net.Addr { return &net.TCPAddr{} }

// A recorded connection has what a client sends, and gets what it is answered.
type recorded struct {
	net.Conn // for the methods that nobody calls
	sent     *bytes.Reader
	got      []byte
	once     sync.Once
	closed   chan struct{}
}

func (c *recorded) Read(p []byte) (int, error) { return c.sent.Read(p) }

func (c *recorded) Write(p []byte) (int, error) {
	c.got = append(c.got, p...)
	return len(p), nil
}

func (c *recorded) Close() error {
	c.once.Do(func() { close(c.closed) })
	return nil
}

func (c *recorded) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (c *recorded) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (c *recorded) SetReadDeadline(time.Time) error  { return nil }
func (c *recorded) SetWriteDeadline(time.Time) error { return nil }
func (c *recorded) SetDeadline(time.Time) error      { return nil }
