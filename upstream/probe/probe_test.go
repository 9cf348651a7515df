package probe_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/levee-net/levee/upstream/probe"
)

const closed = "closed by the server: EOF"

func TestSendExpectFindsWhatItExpectsHoweverTheAnswerIsCut(t *testing.T) {
	check(t, probe.SendExpect([]byte("stats\r\n"), []byte("STAT pid")), "stats\r\n", []dialogue{
		{"STAT pid 1\r\n", ""},
		{"noise STAT STAT pid", ""},
		{strings.Repeat("x", 16<<10-8) + "STAT pid", ""},
		{strings.Repeat("x", 16<<10-7) + "STAT pid", "an answer of more than 16384 bytes"},
		{"ERROR\x1b[2J\r\n", `closed by the server: "STAT pid" is not in the answer "ERROR\x1b[2J\r\n": EOF`},
		{"", `closed by the server: "STAT pid" is not in the answer "": EOF`},
	})
	check(t, probe.SendExpect(nil, []byte("220 ")), "", []dialogue{{"220 mail.example.com ESMTP\r\n", ""}})
}

func TestSendExpectWithNothingToExpectWaitsForNothing(t *testing.T) {
	check(t, probe.SendExpect([]byte("x"), nil), "x", []dialogue{{"", ""}})
}

func TestPostgresTellsTroubleFromARefusedLogin(t *testing.T) {
	const (
		startup = "\x00\x00\x00\x27\x00\x03\x00\x00user\x00levee\x00database\x00inventory\x00\x00"
		letIn   = "R\x00\x00\x00\x08\x00\x00\x00\x00"
		ready   = "S\x00\x00\x00\x08a\x00b\x00K\x00\x00\x00\x0c12345678Z\x00\x00\x00\x05I"
	)
	full := pgError("SFATAL", "VFATAL", "C53300", "Msorry, too many clients already")
	check(t, probe.Postgres("", "inventory"), startup, []dialogue{
		{letIn + ready, ""},
		{letIn + "N\x00\x00\x00\x05\x00" + ready, ""},
		{"R\x00\x00\x00\x08\x00\x00\x00\x03", ""},                      // a password in plaintext
		{"R\x00\x00\x00\x17\x00\x00\x00\x0aSCRAM-SHA-256\x00\x00", ""}, // SCRAM
		{pgError("C28P01", "Mpassword authentication failed"), ""},
		{pgError("C28000", "Mno pg_hba.conf entry for host"), ""},
		{letIn + pgError("C3D000", "Mdatabase \"x\" does not exist"), ""},
		{letIn + pgError("C42501", "Mpermission denied for database"), ""},

		{pgError("C57P03", "Mthe database system is starting up"), "57P03: the database system is starting up"},
		{full, "53300: sorry, too many clients already"},
		{letIn + full, "53300: sorry, too many clients already"}, // those that are kept for superusers
		{pgError("C08P01", "Mno such\x1b database"), "08P01: no such  database"},
		{pgError("Mno code"), ": no code"},

		{"", closed},
		{letIn, closed},
		{letIn[:6], "closed by the server: unexpected EOF"},
		{"R\x00\x00\x00\x04", "the answer is not PostgreSQL's"},
		{"E\x00\x00\x00\x07C28", "the answer is not PostgreSQL's"},
		{"Q\x00\x00\x00\x04", "the answer is not PostgreSQL's"},
		{strings.Repeat("N\x00\x00\x10\x04"+strings.Repeat("x", 4096), 16), "an answer of more than 65536 bytes"},
	})
}

func TestPostgresQuotesWhatIsNotItsProtocol(t *testing.T) {
	for says, want := range map[string]string{
		"Ecould not fork new process: out of memory\n\x00": `"Ecould not fork new process: out of memory\n"`,
		"HTTP/1.1 400 Bad Request\r\n":                     `"HTTP/1.1 400 Bad Request\r\n"`,
	} {
		got := text(probe.Postgres("", "")(t.Context(), &script{says: strings.NewReader(says)}))
		if want := "the answer is not PostgreSQL's: " + want; got != want {
			t.Errorf("got %s", got)
		}
	}
}

func TestPostgresEndsTheSessionThatItBegan(t *testing.T) {
	s := says("R\x00\x00\x00\x08\x00\x00\x00\x00Z\x00\x00\x00\x05I", 1<<20)
	if err := probe.Postgres("a", "")(t.Context(), s); err != nil || s.asked.String() != "\x00\x00\x00\x10\x00\x03\x00\x00user\x00a\x00\x00X\x00\x00\x00\x04" {
		t.Errorf("%v after %q", err, s.asked.String())
	}
}

// pgError is an ErrorResponse.
func pgError(fields ...string) string {
	body := strings.Join(fields, "\x00") + "\x00\x00"
	return "E\x00\x00\x00" + string(rune(4+len(body))) + body
}

const greeting = "\x4a\x00\x00\x00\x0a" + // as MySQL 8.0 sends it
	"8.0.36\x00\x0b\x00\x00\x00challeng\x00\xff\xff\xff\x02\x00\xff\xdf\x15\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00" +
	"echallenge12\x00caching_sha2_password\x00"

func TestMySQLTellsTroubleFromARefusedLogin(t *testing.T) {
	full := mysqlError(0, 1040, "#08004Too many connections")
	denied := mysqlError(2, 1045, "#28000Access denied for user 'levee'@'10.0.0.1' (using password: NO)")
	check(t, probe.MySQL(""), "", []dialogue{
		{greeting + "\x07\x00\x00\x02\x00\x00\x00\x02\x00\x00\x00", ""}, // let in
		{greeting + denied, ""},
		{greeting + "\x02\x00\x00\x02\xfex" + strings.Replace(denied, "\x02\xff", "\x04\xff", 1), ""}, // after another plugin
		{greeting + "\x02\x00\x00\x02\x01\x04", ""},                                                   // more to ask
		{"\x06\x00\x00\x00\x0a5.1\x00\x01" + denied, ""},                                              // a greeting without a plugin

		{full, "1040: Too many connections"},
		{mysqlError(0, 1040, "Too many connections"), "1040: Too many connections"},
		{mysqlError(0, 1129, "Host '10.0.0.1' is blocked\x00"), "1129: Host '10.0.0.1' is blocked"},
		{greeting + mysqlError(2, 1053, "#08S01Server shutdown in progress"), "1053: Server shutdown in progress"},
		{greeting + strings.Repeat("\x01\x00\x00\x02\xfe", 5), "the answer is not MySQL's"},

		{"", closed},
		{greeting, closed},
		{greeting[:20], "closed by the server: unexpected EOF"},
		{"\x00\x00\x00\x00", "the answer is not MySQL's"},
		{"\x01\x00\x00\x00\x09", "the answer is not MySQL's"},
		{"\x02\x00\x00\x00\xff\x10", "the answer is not MySQL's"},
		{"SSH-2.0-OpenSSH\r\n", "the answer is not MySQL's"},
	})
}

// A connection that ends without an answer to the greeting counts against max_connect_errors.
func TestMySQLAnswersTheGreeting(t *testing.T) {
	const login = "\x01\x82\x08\x00\x00\x00\x00\x01\x2d" +
		"\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00" +
		"probe\x00\x00caching_sha2_password\x00"
	s := says(greeting+"\x02\x00\x00\x02\xfex\x07\x00\x00\x04\x00\x00\x00\x02\x00\x00\x00", 1<<20)
	err := probe.MySQL("probe")(t.Context(), s)
	want := string(rune(len(login))) + "\x00\x00\x01" + login + "\x00\x00\x00\x03" + "\x01\x00\x00\x00\x01"
	if got := s.asked.String(); err != nil || got != want {
		t.Errorf("%v after\n%q, want\n%q", err, got, want)
	}
}

func mysqlError(n byte, code uint16, message string) string {
	return string([]byte{byte(3 + len(message)), 0, 0, n, 0xff, byte(code), byte(code >> 8)}) + message
}

func TestRedisTellsTroubleFromAPasswordThatNobodyGave(t *testing.T) {
	const noauth = "-NOAUTH Authentication required.\r\n"
	trouble := []dialogue{
		{"-LOADING Redis is loading the dataset in memory\r\n", "answered LOADING Redis is loading the dataset in memory"},
		{"-MASTERDOWN Link with MASTER is down\r\n", "answered MASTERDOWN Link with MASTER is down"},
		{"-ERR max number of clients reached\r\n", "answered ERR max number of clients reached"},
		{"+PONGO\x1b\r\n", "answered +PONGO"},
		{"+PONG", closed},
		{"+PONG\n", "the answer is not Redis's"},
		{"\r\n", "the answer is not Redis's"},
		{"$4\r\nPONG\r\n", "the answer is not Redis's"},
		{strings.Repeat("+", 100<<10), "the answer is not Redis's"},
		{"", closed},
	}
	check(t, probe.Redis(""), "*1\r\n$4\r\nPING\r\n", append(trouble, dialogue{"+PONG\r\n", ""}, dialogue{noauth, ""}))

	const asked = "*2\r\n$4\r\nAUTH\r\n$6\r\nsecret\r\n*1\r\n$4\r\nPING\r\n"
	check(t, probe.Redis("secret"), asked, []dialogue{
		{"+OK\r\n+PONG\r\n", ""},
		{"-ERR AUTH called without any password configured\r\n+PONG\r\n", ""},
		{"-WRONGPASS invalid username-password pair\r\n" + noauth, "answered WRONGPASS invalid username-password pair"},
		{"+OK\r\n-LOADING Redis is loading\r\n", "answered LOADING Redis is loading"},
		{"+OK\r\n" + noauth, "answered NOAUTH Authentication required."},
		{"+OK\r\n", closed},
		{"-" + strings.Repeat("x", 4093) + "\r\n+PONG\r\n", ""},
		{"-" + strings.Repeat("x", 4094) + "\r\n+PONG\r\n", "the answer is not Redis's"},
	})
}

func TestHTTPWantsAStatusInTheRange(t *testing.T) {
	const asked = "GET / HTTP/1.1\r\nHost: localhost\r\nUser-Agent: levee\r\nConnection: close\r\n\r\n"
	check(t, probe.HTTP(probe.Request{}), asked, []dialogue{
		{"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n", ""},
		{"HTTP/1.0 204 No Content\r\n\r\n", ""},
		{"HTTP/1.1 399 \r\nTransfer-Encoding: chunked\r\n\r\nffff\r\n", ""},
		{"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", ""},
		{"HTTP/1.1 503 Service Unavailable\r\n\r\n", "status 503, not 200 to 399"},
		{"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", "status 101, not 200 to 399"},
		{"HTTP/1.1 200 OK\r\n", "closed by the server: unexpected EOF"},
		{"SSH-2.0-OpenSSH\r\n", `malformed HTTP response "SSH-2.0-OpenSSH"`},
		{"", "closed by the server: unexpected EOF"},
	})
	narrow := probe.Request{Method: http.MethodHead, Path: "healthz?deep=1", Host: "db.example.com", MinStatus: 500, MaxStatus: 500}
	check(t, probe.HTTP(narrow), "HEAD /healthz?deep=1 HTTP/1.1\r\nHost: db.example.com\r\n", []dialogue{
		{"HTTP/1.1 500 Internal Server Error\r\n\r\n", ""},
		{"HTTP/1.1 200 OK\r\n\r\n", "status 200, not 500 to 500"},
	})
	check(t, probe.HTTP(probe.Request{Method: "A B"}), "", []dialogue{{"", `net/http: invalid method "A B"`}})
}

func TestHTTPAnswerIsReadInBounds(t *testing.T) {
	endless := &script{says: io.MultiReader(strings.NewReader("HTTP/1.1 200 OK\r\n"), header{})}
	err := probe.HTTP(probe.Request{})(t.Context(), endless)
	if got := text(err); got != "an answer of more than 65536 bytes" {
		t.Errorf("got %s", got)
	}
}

// header is a header without an end.
type header struct{}

func (header) Read(p []byte) (int, error) { return copy(p, "X-Header: more and more\r\n"), nil }

// every is each kind of probe.
var every = map[string]probe.Probe{
	"SendExpect": probe.SendExpect([]byte("a"), []byte("b")),
	"Postgres":   probe.Postgres("", ""),
	"MySQL":      probe.MySQL(""),
	"Redis":      probe.Redis("secret"),
	"HTTP":       probe.HTTP(probe.Request{}),
}

func TestSilentServerIsGivenUpWhenTheContextEnds(t *testing.T) {
	for name, p := range every {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const timeout = 2 * time.Second
				ctx, cancel := context.WithTimeout(t.Context(), timeout)
				defer cancel()
				began := time.Now()
				err := p(ctx, silent(t))
				if !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(began) != timeout {
					t.Errorf("%v after %v", err, time.Since(began))
				}

				reason := errors.New("no longer wanted")
				ctx, leave := context.WithCancelCause(t.Context())
				time.AfterFunc(time.Second, func() { leave(reason) })
				began = time.Now()
				if err := p(ctx, silent(t)); !errors.Is(err, reason) || time.Since(began) != time.Second {
					t.Errorf("%v after %v", err, time.Since(began))
				}

				began = time.Now()
				if err := p(context.Background(), silent(t)); !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(began) != 10*time.Second {
					t.Errorf("%v after %v", err, time.Since(began))
				}
			})
		})
	}
}

// silent is a connection to a server that reads and says nothing.
func silent(t *testing.T) net.Conn {
	c, server := net.Pipe()
	go func() { _, _ = io.Copy(io.Discard, server) }() // until c is closed
	t.Cleanup(func() { c.Close() })
	return c
}

func TestProbesAskEachConnectionAnew(t *testing.T) {
	p := probe.Redis("")
	for range 3 {
		c, server := net.Pipe()
		go func() {
			r := bufio.NewReader(server)
			for range 3 {
				_, _ = r.ReadString('\n')
			}
			_, _ = io.WriteString(server, "+PONG\r\n")
		}() // until the probe has its answer
		if err := p(t.Context(), c); err != nil {
			t.Error(err)
		}
		c.Close()
	}
}
