package handlers_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/internal/handlers"
)

// An engine is what calls Step elsewhere, in its smallest form. It gives and takes
// memory that it then spoils, so that anything that was kept would show.
type engine struct {
	unread  []byte
	written []byte
	steps   int
}

// receive steps until there is no whole request left.
func (e *engine) receive(piece []byte) error {
	seen := len(e.unread)
	e.unread = append(e.unread, piece...)
	for {
		in, out := bytes.Clone(e.unread), append(make([]byte, 0, 64), "before"...)
		n, reply, err := handlers.HelloPage.Step(nil, in, seen, out)
		e.steps++
		switch {
		case n < 0 || n > len(in):
			return fmt.Errorf("Step took %d of %d bytes", n, len(in))
		case !bytes.HasPrefix(reply, []byte("before")):
			return errors.New("Step does not append")
		case err != nil && err != io.EOF:
			return fmt.Errorf("a page's connection ends with %w", err)
		case n == 0 && err == nil && len(reply) != len("before"):
			return fmt.Errorf("Step took nothing and answered %q", reply)
		case n > 0 && len(reply) == len("before"):
			return fmt.Errorf("Step took %q and answered nothing", in[:n])
		}
		e.written = append(e.written, reply[len("before"):]...)
		e.unread = e.unread[n:]
		seen = 0
		spoil(in)
		spoil(reply)
		if err != nil || n == 0 {
			return err
		}
	}
}

func spoil(b []byte) {
	b = b[:cap(b)]
	for i := range b {
		b[i] = '!'
	}
}

var dateLine = regexp.MustCompile(`\r\nDate: ([A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT)\r\n`)

// undated returns replies without their dates, which change.
func undated(replies []byte) string {
	return dateLine.ReplaceAllString(string(replies), "\r\n")
}

const (
	page      = "HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 32\r\n\r\nHello from levee, in plaintext.\n"
	pageClose = "HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 32\r\n" +
		"Connection: close\r\n\r\nHello from levee, in plaintext.\n"
	pageAlive = "HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 32\r\n" +
		"Connection: keep-alive\r\n\r\nHello from levee, in plaintext.\n"
	headOnly = "HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 32\r\n\r\n"
)

// refused returns the refusal that has this text.
func refused(text string) string {
	status, _, _ := strings.Cut(text, ": ")
	return fmt.Sprintf("HTTP/1.1 %s\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s",
		status, len(text), text)
}

const host = "Host: example.com\r\n"

// conversations are what a client sends, what it gets, and whether that is the end.
var conversations = []struct {
	name, sent, got string
	end             bool
}{
	{"nothing", "", "", false},
	{"GET", "GET / HTTP/1.1\r\n" + host + "\r\n", page, false},
	{"HEAD", "HEAD / HTTP/1.1\r\n" + host + "\r\n", headOnly, false},
	{
		"HEAD, refused", "HEAD / HTTP/1.1\r\n\r\n",
		strings.TrimSuffix(refused("400 Bad Request: missing required Host header"), "400 Bad Request: missing required Host header"), true,
	},
	{"HEAD, in lower case another method", "head / HTTP/1.1\r\n" + host + "\r\n", page, false},
	{"any method", "BREW /pot HTTP/1.1\r\n" + host + "\r\nDELETE /pot HTTP/1.1\r\n" + host + "\r\n", page + page, false},
	{"OPTIONS", "OPTIONS * HTTP/1.1\r\n" + host + "\r\n", page, false},
	{"CONNECT", "CONNECT 192.0.2.1:443 HTTP/1.1\r\n" + host + "\r\n", refused("501 Not Implemented: no tunnel here"), true},
	{
		"CONNECT, with what is for the tunnel", "CONNECT a:1 HTTP/1.1\r\n" + host + "\r\nGET / HTTP/1.1\r\n" + host + "\r\n",
		refused("501 Not Implemented: no tunnel here"), true,
	},
	{"any target", "GET /a?b=%41&c=% HTTP/1.1\r\n" + host + "\r\nGET http://example.com:80/%41 HTTP/1.1\r\n" + host + "\r\n" +
		"GET /\xc3\xa4 HTTP/1.1\r\n" + host + "\r\n", page + page + page, false},
	{"a target that is none", "GET example HTTP/1.1\r\n" + host + "\r\n", refused("400 Bad Request: malformed request line"), true},
	{"a target with a broken escape", "GET /%4 HTTP/1.1\r\n" + host + "\r\n", refused("400 Bad Request: malformed request line"), true},
	{"a target with a tab", "GET /a\tb HTTP/1.1\r\n" + host + "\r\n", refused("400 Bad Request: malformed request line"), true},
	{"no target", "GET  HTTP/1.1\r\n" + host + "\r\n", refused("400 Bad Request: malformed request line"), true},
	{"no method", " / HTTP/1.1\r\n" + host + "\r\n", refused("400 Bad Request: malformed request line"), true},
	{"two spaces", "GET /  HTTP/1.1\r\n" + host + "\r\n", refused("400 Bad Request: malformed HTTP version"), true},
	{"HTTP/0.9", "GET /\r\n", refused("400 Bad Request: malformed HTTP version"), true},
	{"another protocol, at once", "SSH-2.0-OpenSSH_9.7\r\n", refused("400 Bad Request: malformed request line"), true},
	{"TLS, at once", "\x16\x03\x01\x02\x00\x01", refused("400 Bad Request: malformed request line"), true},
	{
		"HTTP/2 with prior knowledge", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
		refused("505 HTTP Version Not Supported: unsupported protocol version"), true,
	},
	{"HTTP/3.7", "GET / HTTP/3.7\r\n\r\n", refused("505 HTTP Version Not Supported: unsupported protocol version"), true},
	{"HTTP/1.2", "GET / HTTP/1.2\r\n" + host + "\r\n", page, false},
	{"HTTP/1.10", "GET / HTTP/1.10\r\n" + host + "\r\n", refused("400 Bad Request: malformed HTTP version"), true},
	{"http/1.1", "GET / http/1.1\r\n" + host + "\r\n", refused("400 Bad Request: malformed HTTP version"), true},
	{
		"an upgrade that is not taken", "GET / HTTP/1.1\r\n" + host + "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: \r\n\r\n",
		page, false,
	},

	{"pipelined", "GET / HTTP/1.1\r\n" + host + "\r\nHEAD / HTTP/1.1\r\n" + host + "\r\nGET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n" +
		"GET / HTTP/1.0\r\n\r\nGET / HTTP/1.1\r\n" + host + "\r\n", page + headOnly + pageAlive + pageClose, true},
	{"close", "GET / HTTP/1.1\r\n" + host + "Connection: close\r\n\r\nGET / HTTP/1.1\r\n" + host + "\r\n", pageClose, true},
	{
		"close, among others", "GET / HTTP/1.1\r\n" + host + "connection: a\r\nCONNECTION: keep-alive,, b ,\tCLose \r\nConnection: c\r\n\r\n",
		pageClose, true,
	},
	{"close, as part of a word", "GET / HTTP/1.1\r\n" + host + "Connection: closed, enclose, close;a\r\nConnection-X: close\r\n\r\n", page, false},
	{"keep-alive", "GET / HTTP/1.1\r\n" + host + "Connection: keep-alive\r\n\r\n", page, false},
	{"HTTP/1.0", "GET / HTTP/1.0\r\n\r\n", pageClose, true},
	{"HTTP/1.0, keep-alive", "GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", pageAlive, false},
	{"HTTP/1.0, keep-alive with a Kelvin sign", "GET / HTTP/1.0\r\nConnection: \u212aeep-alive\r\n\r\n", pageClose, true},
	{"HTTP/1.0, undecided", "GET / HTTP/1.0\r\nConnection: keep-alive, close\r\n\r\n", pageClose, true},

	{"lines that end with LF", "GET / HTTP/1.1\nHost: a\n\nGET / HTTP/1.1\r\nHost: a\n\r\n", page + page, false},
	{"empty lines before a request", "\r\n\r\nGET / HTTP/1.1\r\n" + host + "\r\n\nGET / HTTP/1.1\r\n" + host + "\r\n", page + page, false},
	{"too many empty lines", "\r\n\r\n\r\nGET / HTTP/1.1\r\n" + host + "\r\n", refused("400 Bad Request: malformed request line"), true},
	{"a CR in a request line", "GET / HTTP/1.1\r\r\n" + host + "\r\n", refused("400 Bad Request: malformed HTTP version"), true},
	{"a CR in a field", "GET / HTTP/1.1\r\n" + host + "A: b\rC: d\r\n\r\n", refused("400 Bad Request: malformed header field"), true},
	{"a CR before an empty line", "GET / HTTP/1.1\r\n" + host + "\r\r\n\r\n", refused("400 Bad Request: malformed header field"), true},
	{"a NUL in a field", "GET / HTTP/1.1\r\n" + host + "A: \x00\r\n\r\n", refused("400 Bad Request: malformed header field"), true},
	{"a field above ASCII, with a tab", "GET / HTTP/1.1\r\n" + host + "A: \xff\t\xc3\xa4\r\nB:\r\n\r\n", page, false},
	{"a folded field", "GET / HTTP/1.1\r\n" + host + "A: b\r\n c\r\n\r\n", refused("400 Bad Request: malformed header field"), true},
	{"a blank before the fields", "GET / HTTP/1.1\r\n " + host + "\r\n", refused("400 Bad Request: malformed header field"), true},
	{"a blank before a colon", "GET / HTTP/1.1\r\nHost : a\r\n\r\n", refused("400 Bad Request: malformed header field"), true},
	{"a field without a colon", "GET / HTTP/1.1\r\n" + host + "A\r\n\r\n", refused("400 Bad Request: malformed header field"), true},
	{"a field without a name", "GET / HTTP/1.1\r\n" + host + ": a\r\n\r\n", refused("400 Bad Request: malformed header field"), true},

	{"no Host", "GET / HTTP/1.1\r\nA: b\r\n\r\n", refused("400 Bad Request: missing required Host header"), true},
	{"two Hosts", "GET / HTTP/1.1\r\nHost: a\r\nhost: a\r\n\r\n", refused("400 Bad Request: too many Host headers"), true},
	{"two Hosts, HTTP/1.0", "GET / HTTP/1.0\r\nHost: a\r\nhost: a\r\n\r\n", refused("400 Bad Request: too many Host headers"), true},
	{"a Host that is none", "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", refused("400 Bad Request: malformed Host header"), true},
	{"an empty Host", "GET / HTTP/1.1\r\nHost:\r\n\r\n", page, false},
	{"a Host in brackets", "GET / HTTP/1.1\r\nHost:\t[2001:db8::1]:80 \r\n\r\n", page, false},

	{"bodies", "POST / HTTP/1.1\r\n" + host + "Content-Length: 7\r\n\r\nGET /\n\nGET / HTTP/1.1\r\n" + host + "content-length: 2\r\n\r\n\r\n" +
		"HEAD / HTTP/1.1\r\n" + host + "Content-Length: 0\r\n\r\n", page + page + headOnly, false},
	{"a body that is not all there", "POST / HTTP/1.1\r\n" + host + "Content-Length: 7\r\n\r\n123456", "", false},
	{"a length told twice", "POST / HTTP/1.1\r\n" + host + "Content-Length: 1\r\nContent-Length: 1\r\n\r\nx", page, false},
	{
		"two lengths", "POST / HTTP/1.1\r\n" + host + "Content-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
		refused("400 Bad Request: differing Content-Length headers"), true,
	},
	{
		"two lengths, with the same value", "POST / HTTP/1.1\r\n" + host + "Content-Length: 1\r\nContent-Length: 01\r\n\r\nx",
		refused("400 Bad Request: differing Content-Length headers"), true,
	},
	{
		"a list of lengths", "POST / HTTP/1.1\r\n" + host + "Content-Length: 1, 1\r\n\r\nx",
		refused("400 Bad Request: malformed Content-Length header"), true,
	},
	{
		"a length with a sign", "POST / HTTP/1.1\r\n" + host + "Content-Length: +1\r\n\r\nx",
		refused("400 Bad Request: malformed Content-Length header"), true,
	},
	{
		"no length in its field", "POST / HTTP/1.1\r\n" + host + "Content-Length: \r\n\r\n",
		refused("400 Bad Request: malformed Content-Length header"), true,
	},
	{"a body that is too large", "POST / HTTP/1.1\r\n" + host + "Content-Length: 65536\r\n\r\n", refused("413 Request Entity Too Large"), true},
	{
		"a body that no int counts", "POST / HTTP/1.1\r\n" + host + "Content-Length: 1" + strings.Repeat("0", 100) + "\r\n\r\n",
		refused("413 Request Entity Too Large"), true,
	},
	{"chunked", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: Chunked\r\n\r\n0\r\n\r\n", refused("411 Length Required"), true},
	{
		"chunked and more", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: gzip,\tchunked\r\n\r\n",
		refused("501 Not Implemented: unsupported transfer encoding"), true,
	},
	{
		"chunked and more, in two fields", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n",
		refused("501 Not Implemented: unsupported transfer encoding"), true,
	},
	{
		"not chunked in the end", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked, identity\r\n\r\n",
		refused("400 Bad Request: no end to the body"), true,
	},
	{"no coding in its field", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding:\r\n\r\n", refused("400 Bad Request: no end to the body"), true},
	{
		"chunked, with a length", "POST / HTTP/1.1\r\n" + host + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		refused("400 Bad Request: both Transfer-Encoding and Content-Length"), true,
	},
	{
		"chunked, in HTTP/1.0", "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		refused("400 Bad Request: Transfer-Encoding in HTTP/1.0"), true,
	},

	{"asked before the body", "POST / HTTP/1.1\r\n" + host + "Content-Length: 2\r\nExpect: 100-Continue\r\n\r\n", pageClose, true},
	{"asked before a body that comes all the same", "POST / HTTP/1.1\r\n" + host + "Content-Length: 2\r\nExpect: 100-continue\r\n\r\nxx" +
		"GET / HTTP/1.1\r\n" + host + "\r\n", pageClose, true},
	{
		"asked before a body that is too large", "POST / HTTP/1.1\r\n" + host + "Content-Length: 70000\r\nExpect: 100-continue\r\n\r\n",
		refused("413 Request Entity Too Large"), true,
	},
	{"asked without a body", "GET / HTTP/1.1\r\n" + host + "Expect: 100-continue\r\n\r\n", page, false},
	{"asked in HTTP/1.0", "POST / HTTP/1.0\r\nContent-Length: 2\r\nConnection: keep-alive\r\nExpect: 100-continue\r\n\r\nxx", pageAlive, false},
	{"asked for something else", "GET / HTTP/1.1\r\n" + host + "Expect: 100-continue\r\nExpect: tea\r\n\r\n", refused("417 Expectation Failed"), true},

	{"100 fields", "GET / HTTP/1.1\r\n" + host + strings.Repeat("A:\r\n", 99) + "\r\n", page, false},
	{"101 fields", "GET / HTTP/1.1\r\n" + host + strings.Repeat("A:\r\n", 100), refused("431 Request Header Fields Too Large"), true},
}

func TestPageAnswersAsTheRFCsSay(t *testing.T) {
	for _, test := range conversations {
		t.Run(test.name, func(t *testing.T) {
			var e engine
			err := e.receive([]byte(test.sent))
			if got := undated(e.written); got != test.got || err != nil != test.end {
				t.Errorf("%q, %v, want %q", got, err, test.got)
			}
			if dates := len(dateLine.FindAll(e.written, -1)); dates != strings.Count(test.got, "HTTP/1.1 ") {
				t.Errorf("%d dates in %q", dates, e.written)
			}
		})
	}
}

func TestPageAnswersTheSameHoweverTheBytesCome(t *testing.T) {
	for _, test := range conversations {
		t.Run(test.name, func(t *testing.T) {
			for cut := range len(test.sent) {
				checkPieces(t, test.sent, test.got, test.end, cut)
			}
			checkPieces(t, test.sent, test.got, test.end, oneByOne(len(test.sent))...)
		})
	}
}

func oneByOne(n int) (cuts []int) {
	for i := range n {
		cuts = append(cuts, i)
	}
	return cuts
}

func checkPieces(t *testing.T, sent, want string, wantEnd bool, cuts ...int) {
	t.Helper()
	var e engine
	var err error
	from := 0
	for _, to := range append(cuts, len(sent)) {
		if err == nil {
			err = e.receive([]byte(sent[from:to]))
		}
		from = to
	}
	if got := undated(e.written); got != want || (err == io.EOF) != wantEnd || err != nil && !wantEnd {
		t.Fatalf("cut at %v: %q, %v, want %q", cuts, got, err, want)
	}
}

func TestPageBoundsWhatARequestMayTake(t *testing.T) {
	// Filled up to the given size, which is that of the whole request.
	line := func(size int) string {
		const before, after = "GET /", " HTTP/1.1\r\n" + host + "\r\n"
		return before + strings.Repeat("a", size-len(before)-len(after)) + after
	}
	header := func(size int) string {
		const before, after = "GET / HTTP/1.1\r\n" + host + "A: ", "\r\n\r\n"
		return before + strings.Repeat("a", size-len(before)-len(after)) + after
	}
	body := func(size int) string {
		header := "POST / HTTP/1.1\r\n" + host + "Content-Length: 65000\r\n\r\n"
		header = strings.Replace(header, "65000", fmt.Sprint(size-len(header)), 1)
		return header + strings.Repeat("\n", size-len(header))
	}
	const tooLarge = "431 Request Header Fields Too Large"
	for name, test := range map[string]struct{ sent, got string }{
		"the largest line":   {line(16 << 10), page},
		"a larger line":      {line(16<<10 + 1), refused(tooLarge)},
		"a line that is all": {line(16<<10 + 1 + len(host+"\r\n")), refused("414 Request URI Too Long")},
		"an endless line":    {"GET /" + strings.Repeat("a", 16<<10), refused("414 Request URI Too Long")},
		"the largest header": {header(16 << 10), page},
		"a larger header":    {header(16<<10 + 1), refused(tooLarge)},
		"an endless header":  {"GET / HTTP/1.1\r\n" + strings.Repeat("A:b\r\n", 60) + "A:" + strings.Repeat("b", 16<<10), refused(tooLarge)},
		"the largest body":   {body(64 << 10), page},
		"a larger body":      {body(64<<10 + 1), refused("413 Request Entity Too Large")},
	} {
		t.Run(name, func(t *testing.T) {
			end := test.got != page
			checkPieces(t, test.sent, test.got, end)
			checkPieces(t, test.sent, test.got, end, oneByOne(100)...)
			for _, cut := range []int{16<<10 - 1, 16 << 10, 16<<10 + 1, len(test.sent) - 1} {
				checkPieces(t, test.sent, test.got, end, min(cut, len(test.sent)))
			}
		})
	}
}

func TestPageStopsOnceItsReplyIsLarge(t *testing.T) {
	const requests = 2000
	var e engine
	if err := e.receive([]byte(strings.Repeat("GET / HTTP/1.1\r\nHost:\r\n\r\n", requests))); err != nil {
		t.Fatal(err)
	}
	if got := strings.Count(string(e.written), "HTTP/1.1 200 OK"); got != requests {
		t.Errorf("%d replies to %d requests", got, requests)
	}
	size := len(e.written) / requests
	if steps := 1 + requests/(64<<10/size); e.steps < steps || e.steps > steps+1 {
		t.Errorf("%d steps for %d bytes", e.steps, len(e.written))
	}
	in, out := []byte(strings.Repeat("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", requests)), make([]byte, 0, 64<<10)
	if _, reply, _ := handlers.HelloPage.Step(nil, in, 0, out); &reply[0] != &out[:1][0] || len(reply) < 60<<10 {
		t.Errorf("a reply of %d bytes does not fit into 64 KiB", len(reply))
	}
	// What is already in out counts too, but one request always gets through.
	if n, _, err := handlers.HelloPage.Step(nil, in, 0, out[:cap(out)]); n != len(in)/requests || err != nil {
		t.Errorf("Step behind 64 KiB took %d, %v, want 1 request", n, err)
	}
}

func TestPageTellsTheTimeOfEachAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for range 5 {
			var e engine
			if err := e.receive([]byte("GET / HTTP/1.1\r\n" + host + "\r\n")); err != nil {
				t.Fatal(err)
			}
			want := time.Now().UTC().Format(http.TimeFormat)
			if got := dateLine.FindSubmatch(e.written); got == nil || string(got[1]) != want {
				t.Errorf("%q, want %s", e.written, want)
			}
			time.Sleep(600 * time.Millisecond) // virtual time
		}
	})
}

func TestPageAnswersWithoutAllocating(t *testing.T) {
	const browser = "Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\nAccept-Encoding: gzip, br\r\n" +
		"User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0\r\nConnection: keep-alive\r\n"
	for name, in := range map[string]string{
		"a request":        "GET /index.html?a=b HTTP/1.1\r\n" + host + browser + "\r\n",
		"pipelined":        strings.Repeat("GET / HTTP/1.1\r\n"+host+"\r\n", 16),
		"HTTP/1.0":         "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
		"the last":         "GET / HTTP/1.1\r\n" + host + "Connection: close\r\n\r\n",
		"a body":           "POST / HTTP/1.1\r\n" + host + "Content-Length: 5\r\n\r\n12345",
		"part of a header": "GET / HTTP/1.1\r\n" + host,
		"part of a body":   "POST / HTTP/1.1\r\n" + host + "Content-Length: 5\r\n\r\n123",
	} {
		t.Run(name, func(t *testing.T) {
			in, out := []byte(in), make([]byte, 0, 64<<10)
			if allocs := testing.AllocsPerRun(1000, func() { handlers.HelloPage.Step(nil, in, 0, out) }); allocs != 0 {
				t.Errorf("%v allocations", allocs)
			}
		})
	}
}

func TestPageServesManyConnectionsAtOnce(t *testing.T) {
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			for range 500 {
				var e engine
				if err := e.receive([]byte("GET / HTTP/1.1\r\n" + host + "\r\n")); err != nil || undated(e.written) != page {
					t.Errorf("%q, %v", e.written, err)
				}
			}
		})
	}
	group.Wait()
}

func TestPageIsHellosInPlaintext(t *testing.T) {
	w := httptest.NewRecorder()
	handlers.Hello.ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
	var e engine
	if err := e.receive([]byte("GET / HTTP/1.1\r\n" + host + "\r\n")); err != nil {
		t.Fatal(err)
	}
	r, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(e.written)), nil)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(r.Body)
	if r.StatusCode != w.Code || string(body) != w.Body.String() || r.Header.Get("Content-Type") != w.Header().Get("Content-Type") || err != nil {
		t.Errorf("%v %q, %v, Hello has %d %v %q", r, body, err, w.Code, w.Header(), w.Body)
	}
}

// eachWay tests the page where a goroutine serves it, and where an event loop does.
func eachWay(t *testing.T, test func(t *testing.T, dial dialer, ends chan levee.End)) {
	t.Run("in memory", func(t *testing.T) {
		l, _, ends := serve(t, handlers.HelloPage)
		test(t, l.DialContext, ends)
	})
	t.Run("over TCP", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		ends := make(chan levee.End, 10)
		srv := &levee.Server{Handler: handlers.HelloPage, Trace: &levee.Trace{Closed: func(_ *levee.Conn, end levee.End) { ends <- end }}}
		served := make(chan error, 1)
		go func() { served <- srv.Serve(context.Background(), l) }() // ends with srv
		t.Cleanup(func() {
			srv.Close()
			<-served
		})
		test(t, func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", l.Addr().String())
		}, ends)
	})
}

type dialer func(ctx context.Context, network, address string) (net.Conn, error)

func TestPageKeepsAClientsConnection(t *testing.T) {
	eachWay(t, func(t *testing.T, dial dialer, ends chan levee.End) {
		client := &http.Client{Transport: &http.Transport{DialContext: dial}}
		for i, method := range []string{"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"} {
			var body io.Reader
			if method[0] == 'P' {
				body = strings.NewReader(strings.Repeat("x", 5000<<i))
			}
			request, err := http.NewRequestWithContext(t.Context(), method, "http://example.com/a?b", body)
			if err != nil {
				t.Fatal(err)
			}
			reply, err := client.Do(request)
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(reply.Body)
			want := "Hello from levee, in plaintext.\n"
			if method == "HEAD" {
				want = ""
			}
			if reply.StatusCode != 200 || string(got) != want || reply.ContentLength != 32 || reply.Close || err != nil {
				t.Errorf("%s: %v %q, %v", method, reply, got, err)
			}
		}
		client.CloseIdleConnections()
		if end := <-ends; end.Reason != levee.ClientClosed || end.Err != nil || len(ends) > 0 {
			t.Errorf("%+v", end)
		}
	})
}

func TestPageAnswersAClientThatAsksBeforeItSendsABody(t *testing.T) {
	eachWay(t, func(t *testing.T, dial dialer, _ chan levee.End) {
		client := &http.Client{Transport: &http.Transport{DialContext: dial, ExpectContinueTimeout: time.Hour}}
		request, err := http.NewRequestWithContext(t.Context(), "POST", "http://example.com/", strings.NewReader("not sent"))
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Expect", "100-continue")
		reply, err := client.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(reply.Body)
		if reply.StatusCode != 200 || string(got) != "Hello from levee, in plaintext.\n" || !reply.Close || err != nil {
			t.Errorf("%v %q, %v", reply, got, err)
		}
	})
}

func TestPageAnswersAPipelineInOrderAndThenLeaves(t *testing.T) {
	eachWay(t, func(t *testing.T, dial dialer, ends chan levee.End) {
		c, err := dial(t.Context(), "tcp", "example.com:80")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		// Ends with the text, or c.
		go io.WriteString(c, strings.Repeat("GET / HTTP/1.1\r\n"+host+"\r\nHEAD / HTTP/1.1\r\n"+host+"\r\n", 1000)+"GET / HTTP/1.0\r\n\r\n")
		got, err := io.ReadAll(c)
		if undated(got) != strings.Repeat(page+headOnly, 1000)+pageClose || err != nil {
			t.Errorf("%d bytes, %v", len(got), err)
		}
		if end := <-ends; end.Reason != levee.HandlerClosed || end.Err != nil {
			t.Errorf("%+v", end)
		}
	})
}

func BenchmarkPage(b *testing.B) {
	for name, in := range map[string]string{
		"alone":     "GET / HTTP/1.1\r\n" + host + "User-Agent: curl/8.5.0\r\nAccept: */*\r\n\r\n",
		"pipelined": strings.Repeat("GET / HTTP/1.1\r\n"+host+"\r\n", 16),
	} {
		b.Run(name, func(b *testing.B) {
			in, out := []byte(in), make([]byte, 0, 64<<10)
			b.ReportAllocs()
			for b.Loop() {
				handlers.HelloPage.Step(nil, in, 0, out)
			}
		})
	}
	// The dearest that a client can send byte by byte: what one more byte costs.
	b.Run("one more byte of a body", func(b *testing.B) {
		in := []byte("POST / HTTP/1.1\r\n" + host + "Content-Length: 40000\r\n" + strings.Repeat("A: "+strings.Repeat("a", 160)+"\r\n", 98) + "\r\n ")
		out := make([]byte, 0, 64<<10)
		b.ReportAllocs()
		for b.Loop() {
			handlers.HelloPage.Step(nil, in, len(in)-1, out)
		}
	})
}
