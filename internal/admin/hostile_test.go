package admin_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/levee-net/levee/internal/admin"
	"github.com/levee-net/levee/leveetest"
)

const theToken = "correct-horse-battery-staple"

// tokenFile has the token in it.
func tokenFile(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func loaded(t *testing.T) *admin.Token {
	t.Helper()
	token := &admin.Token{File: tokenFile(t, theToken+"\n")}
	if err := token.Load(); err != nil {
		t.Fatal(err)
	}
	return token
}

// A fortress is a server with all defences, and a count of what has been done at its door.
type fortress struct {
	*admin.Server
	done    atomic.Int64
	address string
	ca      *leveetest.CA
}

func newFortress(t *testing.T, change func(*fortress)) *fortress {
	t.Helper()
	f := &fortress{ca: leveetest.NewCA(t)}
	do := func() bool { f.done.Add(1); return true }
	f.Server = &admin.Server{
		Metrics: prometheus.NewRegistry(), Log: slog.New(slog.DiscardHandler), Token: loaded(t), Hosts: []string{"levee.example.com"},
		API: admin.API{
			Status:  func() admin.Status { return admin.Status{} },
			End:     func(uint64) bool { return do() },
			EndAll:  func(admin.Query) (int, error) { do(); return 1, nil },
			Drain:   func() admin.Status { do(); return admin.Status{} },
			Reload:  func(context.Context) (admin.Generation, error) { do(); return admin.Generation{}, nil },
			Upgrade: func(context.Context) (admin.Upgrade, error) { do(); return admin.Upgrade{}, nil },
			Ban: func(string, time.Duration, string) (admin.Ban, error) {
				do()
				return admin.Ban{}, nil
			},
			Lift:        func(string) (bool, error) { return do(), nil },
			DrainServer: func(string, string, bool) bool { return do() },
		},
	}
	if change != nil {
		change(f)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f.address = l.Addr().String()
	served := make(chan error, 1)
	go func() { served <- f.Serve(l) }()
	t.Cleanup(func() {
		f.Close()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return f
}

// send sends bytes as they are, and returns the answer's status, 0 if there is none.
func (f *fortress) send(t *testing.T, text string) (status int, header http.Header, body string) {
	t.Helper()
	c, err := net.Dial("tcp", f.address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return exchange(t, c, text)
}

func exchange(t *testing.T, c net.Conn, text string) (status int, header http.Header, body string) {
	t.Helper()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	_, _ = io.WriteString(c, text) // who has been refused half way may have closed
	answer, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return 0, nil, ""
	}
	defer answer.Body.Close()
	content, _ := io.ReadAll(answer.Body)
	return answer.StatusCode, answer.Header, string(content)
}

// A raw request is one that an operator may make, and what is hostile about it.
type raw struct {
	method, target, host, authorization, kind, body string
	headers                                         []string
}

func good() raw {
	return raw{method: "POST", target: "/api/v1/drain", host: "127.0.0.1", authorization: "Bearer " + theToken, kind: "application/json", body: "{}"}
}

func (r raw) String() string {
	lines := []string{r.method + " " + r.target + " HTTP/1.1", "Connection: close"}
	for _, h := range [][2]string{{"Host", r.host}, {"Authorization", r.authorization}, {"Content-Type", r.kind}} {
		if h[1] != "" {
			lines = append(lines, h[0]+": "+h[1])
		}
	}
	lines = append(lines, r.headers...)
	if !strings.Contains(strings.Join(r.headers, "\n"), "Content-Length") && !strings.Contains(strings.Join(r.headers, "\n"), "Transfer-Encoding") {
		lines = append(lines, "Content-Length: "+strconv.Itoa(len(r.body)))
	}
	return strings.Join(lines, "\r\n") + "\r\n\r\n" + r.body
}

func with(change func(*raw)) raw {
	r := good()
	change(&r)
	return r
}

func header(lines ...string) raw { return with(func(r *raw) { r.headers = lines }) }
func target(path string) raw     { return with(func(r *raw) { r.target = path }) }
func withToken(value string) raw { return with(func(r *raw) { r.authorization = value }) }
func method(name, path string) raw {
	return with(func(r *raw) { r.method, r.target = name, path })
}

var hostile = map[string]raw{
	"a rebound name":                      with(func(r *raw) { r.host = "evil.example" }),
	"a rebound name with a port":          with(func(r *raw) { r.host = "evil.example:9180" }),
	"a name that begins as an address":    with(func(r *raw) { r.host = "127.0.0.1.evil.example" }),
	"a name that begins as ours":          with(func(r *raw) { r.host = "levee.example.com.evil.example" }),
	"a name that ends as ours":            with(func(r *raw) { r.host = "evil-levee.example.com" }),
	"no name":                             with(func(r *raw) { r.host = "" }),
	"two names":                           header("Host: evil.example"),
	"a name in the target":                target("http://evil.example/api/v1/drain"),
	"a foreign origin":                    header("Origin: http://evil.example"),
	"an origin on another port":           header("Origin: http://127.0.0.1:1"),
	"an origin of nowhere":                header("Origin: null"),
	"an origin in TLS, which this is not": header("Origin: https://127.0.0.1"),
	"a cross-site fetch":                  header("Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: no-cors"),
	"a same-site fetch":                   header("Sec-Fetch-Site: same-site"),
	"a cross-site form":                   header("Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: document"),
	"text":                                with(func(r *raw) { r.kind = "text/plain" }),
	"a form":                              with(func(r *raw) { r.kind = "application/x-www-form-urlencoded" }),
	"no type":                             with(func(r *raw) { r.kind = "" }),
	"no type and no body":                 with(func(r *raw) { r.kind, r.body = "", "" }),
	"a double slash":                      target("//api/v1/drain"),
	"a double slash within":               target("/api//v1/drain"),
	"a detour":                            target("/api/v1/x/../drain"),
	"a detour in disguise":                target("/api/v1/x/%2e%2e/drain"),
	"a detour past what needs no token":   with(func(r *raw) { r.target, r.authorization = "/livez/../api/v1/drain", "" }),
	"a detour past it in disguise":        with(func(r *raw) { r.target, r.authorization = "/livez/%2e%2e/api/v1/drain", "" }),
	"a dot":                               target("/api/v1/./drain"),
	"an escaped letter":                   target("/api/v1/%64rain"),
	"an escaped slash":                    target("/api/v1%2fdrain"),
	"a backslash":                         target(`/api/v1\drain`),
	"a parameter in the path":             target("/api/v1/drain;x=1"),
	"another case":                        target("/API/V1/DRAIN"),
	"a trailing slash":                    target("/api/v1/drain/"),
	"a null byte":                         target("/api/v1/drain%00"),
	"something in the query":              target("/api/v1/drain?now=1"),
	"another method":                      method("GET", "/api/v1/drain"),
	"another method, as a header has it":  with(func(r *raw) { r.method, r.headers = "GET", []string{"X-HTTP-Method-Override: POST"} }),
	"another method, as the query has it": with(func(r *raw) { r.method, r.target = "GET", "/api/v1/drain?_method=POST" }),
	"a header that makes it another":      with(func(r *raw) { r.target, r.headers = "/api/v1/status", []string{"X-HTTP-Method-Override: DELETE"} }),
	"a target in a header": with(func(r *raw) {
		r.method, r.target, r.headers = "GET", "/livez", []string{"X-Original-URL: /api/v1/drain"}
	}),
	"a method in small letters": method("post", "/api/v1/drain"),
	"CONNECT":                   method("CONNECT", "/api/v1/drain"),
	"TRACE":                     method("TRACE", "/api/v1/status"),
	"a preflight": with(func(r *raw) {
		r.method, r.headers = "OPTIONS", []string{"Origin: http://evil.example", "Access-Control-Request-Method: POST"}
	}),
	"a huge body":                    with(func(r *raw) { r.body = "{" + strings.Repeat(" ", 1<<20) + "}" }),
	"a huge body that is said to be": header("Content-Length: 99999999999"),
	"a huge body in chunks": with(func(r *raw) {
		r.headers, r.body = []string{"Transfer-Encoding: chunked"}, "2000\r\n"+strings.Repeat(" ", 0x2000)+"\r\n2\r\n{}\r\n0\r\n\r\n"
	}),
	"a huge header":                 header("X-Filler: " + strings.Repeat("x", 64<<10)),
	"many headers":                  header("X-F: " + strings.Repeat("x\r\nX-F: ", 8<<10) + "x"),
	"two lengths":                   header("Content-Length: 2", "Content-Length: 20"),
	"a length of less than nothing": header("Content-Length: -1"),
	"a length and chunks, of which one lies": with(func(r *raw) {
		r.headers, r.body = []string{"Content-Length: 5", "Transfer-Encoding: chunked"}, "0\r\n\r\nPOST /api/v1/drain HTTP/1.1\r\n\r\n"
	}),
	"a space before the colon":         header("X-A : b"),
	"a key too many":                   with(func(r *raw) { r.body = `{"now": true}` }),
	"a list":                           with(func(r *raw) { r.body = `[]` }),
	"two bodies":                       with(func(r *raw) { r.body = `{}{}` }),
	"no token":                         withToken(""),
	"an empty token":                   withToken("Bearer "),
	"a wrong token":                    withToken("Bearer wrong-horse-battery-staple"),
	"a token's beginning":              withToken("Bearer " + theToken[:len(theToken)-1]),
	"a token with more behind it":      withToken("Bearer " + theToken + "x"),
	"a token in another case":          withToken("Bearer " + strings.ToUpper(theToken)),
	"a token without a scheme":         withToken(theToken),
	"a token in another scheme":        withToken("Digest " + theToken),
	"a token as a user's name":         withToken("Basic " + base64.StdEncoding.EncodeToString([]byte(theToken+":"))),
	"a wrong password":                 withToken("Basic " + base64.StdEncoding.EncodeToString([]byte("levee:"+theToken[1:]))),
	"a password that is no base64":     withToken("Basic " + theToken),
	"two tokens, of which one is good": header("Authorization: Bearer wrong-horse-battery-staple"),
	"a token in the query": with(func(r *raw) {
		r.authorization, r.target = "", "/api/v1/drain?token="+theToken+"&access_token="+theToken
	}),
	"a token in the body": with(func(r *raw) { r.authorization, r.body = "", `{"access_token": "`+theToken+`"}` }),
	"a cookie with the token": with(func(r *raw) {
		r.authorization, r.headers = "", []string{"Cookie: token=" + theToken + "; levee=" + theToken}
	}),
	"a token in a header of its own": with(func(r *raw) { r.authorization, r.headers = "", []string{"X-Levee-Token: " + theToken} }),
	"a password that a browser sends from another site": with(func(r *raw) {
		r.authorization = "Basic " + base64.StdEncoding.EncodeToString([]byte("levee:"+theToken))
		r.headers = []string{"Origin: http://evil.example", "Sec-Fetch-Site: cross-site"}
	}),
	"a client that says whose it is": with(func(r *raw) {
		r.authorization, r.headers = "", []string{"X-Forwarded-For: 127.0.0.1", "X-Forwarded-User: root"}
	}),
	"all connections":              method("DELETE", "/api/v1/connections"),
	"all connections, by a trick":  method("DELETE", "/api/v1/connections?listener="),
	"a filter that is not known":   method("DELETE", "/api/v1/connections?listener=main&shard=3"),
	"a filter that is there twice": method("DELETE", "/api/v1/connections?listener=main&listener=other"),
	"a query that is no query":     method("DELETE", "/api/v1/connections?listener=main;client=10.0.0.1"),
	"a number that is none":        method("DELETE", "/api/v1/connections/1e3"),
	"a number with zeros":          method("DELETE", "/api/v1/connections/007"),
	"a number below zero":          method("DELETE", "/api/v1/connections/-1"),
	"a number beyond all":          method("DELETE", "/api/v1/connections/18446744073709551617"),
}

func TestNoHostileRequestIsAnsweredAndNothingChanges(t *testing.T) {
	f := newFortress(t, nil)
	refused := 0
	for name, r := range hostile {
		f.Server.Forgive() // else they would be refused for being many
		status, header, body := f.send(t, r.String())
		if status >= 200 && status < 400 {
			t.Errorf("%s: %d %s", name, status, body)
			continue
		}
		if done := f.done.Load(); done != 0 {
			t.Fatalf("%s: it was done", name)
		}
		if strings.Contains(body, theToken) || strings.Contains(body, "evil.example") {
			t.Errorf("%s: %s", name, body)
		}
		if header.Get("Access-Control-Allow-Origin") != "" || header.Get("Set-Cookie") != "" {
			t.Errorf("%s: %v", name, header)
		}
		refused++
	}
	t.Logf("%d of %d hostile requests are refused", refused, len(hostile))
	if refused != len(hostile) || refused < 25 {
		t.Errorf("%d of %d are refused", refused, len(hostile))
	}
	// The same without what is hostile about it is done: so it was that.
	for _, r := range []raw{
		good(), with(func(r *raw) { r.body = "" }), with(func(r *raw) { r.host = "levee.example.com:9180" }), with(func(r *raw) { r.host = "LEVEE.example.com" }),
		header("Origin: http://127.0.0.1", "Sec-Fetch-Site: same-origin"), withToken("bearer " + theToken),
		withToken("Basic " + base64.StdEncoding.EncodeToString([]byte("whoever:"+theToken))),
		target("/api/v1/reload"), target("/api/v1/upgrade"), target("/api/v1/upstreams/db/servers/unix:%2Frun%2Fdb/drain"), method("DELETE", "/api/v1/connections/7"), method("DELETE", "/api/v1/connections?client=10.0.0.1"),
	} {
		before := f.done.Load()
		if status, _, body := f.send(t, r.String()); status < 200 || status > 299 || f.done.Load() != before+1 {
			t.Errorf("%v: %d %s", r, status, body)
		}
	}
}

func TestWhoShowsNoCertificateOrAStrangersIsRefused(t *testing.T) {
	f := newFortress(t, func(f *fortress) {
		f.Token = nil
		f.TLS = f.ca.ServerConfig("127.0.0.1")
		f.TLS.ClientAuth, f.TLS.ClientCAs = tls.VerifyClientCertIfGiven, f.ca.Pool()
		f.Client = func(state *tls.ConnectionState) error {
			if state.PeerCertificates[0].Subject.CommonName == "fired" {
				return errors.New("not any more")
			}
			return nil
		}
	})
	strange := leveetest.NewCA(t)
	for _, test := range []struct {
		name   string
		shows  []tls.Certificate
		want   int // of what changes something
		status int // of what anybody may ask
	}{
		{"none", nil, 403, 200},
		{"a stranger's", []tls.Certificate{strange.ClientCertificate("operator")}, 0, 0},
		{"one that is not let in any more", []tls.Certificate{f.ca.ClientCertificate("fired")}, 403, 200},
		{"an operator's", []tls.Certificate{f.ca.ClientCertificate("operator")}, 202, 200},
	} {
		ask := func(r raw) int {
			config := f.ca.ClientConfig("127.0.0.1")
			config.Certificates = test.shows
			config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { // whoever the server asks for
				if len(test.shows) == 0 {
					return new(tls.Certificate), nil
				}
				return &test.shows[0], nil
			}
			c, err := tls.Dial("tcp", f.address, config)
			if err != nil {
				return 0
			}
			defer c.Close()
			status, _, _ := exchange(t, c, r.String())
			return status
		}
		if got := ask(good()); got != test.want {
			t.Errorf("%s: %d, want %d", test.name, got, test.want)
		}
		if got := ask(method("GET", "/livez")); got != test.status {
			t.Errorf("%s: /livez: %d, want %d", test.name, got, test.status)
		}
		if got := ask(header("Origin: http://127.0.0.1")); got == 202 {
			t.Errorf("%s: a page that came in plaintext is let in", test.name)
		}
	}
	if done := f.done.Load(); done != 1 {
		t.Errorf("%d things were done, want 1", done)
	}
}

func TestAnybodyMayAskWhetherItLivesAndNothingElse(t *testing.T) {
	f := newFortress(t, nil)
	for path, want := range map[string]int{"/livez": 200, "/readyz": 503, "/metrics": 401, "/": 401, "/debug/pprof/": 401, "/api/v1/status": 401, "/api/v1/openapi.json": 401, "/nosuch": 401} {
		status, header, _ := f.send(t, with(func(r *raw) { r.method, r.target, r.authorization = "GET", path, "" }).String())
		if status != want {
			t.Errorf("%s: %d, want %d", path, status, want)
		}
		if asked := header.Get("WWW-Authenticate"); (status == 401) != (asked == `Basic realm="levee", charset="UTF-8"`) {
			t.Errorf("%s: %q", path, asked)
		}
	}
}

func TestEveryAnswerIsHardened(t *testing.T) {
	f := newFortress(t, nil)
	for _, r := range []raw{
		good(), method("GET", "/livez"), method("GET", "/metrics"), method("GET", "/nosuch"), method("PUT", "/livez"), withToken(""), target("//"),
		with(func(r *raw) { r.host = "evil.example" }), method("GET", "/api/v1/status"), method("GET", "/api/v1/openapi.json"), method("GET", "/debug/pprof/"),
	} {
		_, header, _ := f.send(t, r.String())
		for name, want := range map[string]string{
			"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY", "Referrer-Policy": "no-referrer",
			"Cross-Origin-Resource-Policy": "same-origin", "Cross-Origin-Opener-Policy": "same-origin",
		} {
			if got := header.Get(name); got != want {
				t.Errorf("%s %s: %s: %q", r.method, r.target, name, got)
			}
		}
		if csp := header.Get("Content-Security-Policy"); !strings.Contains(csp, "frame-ancestors 'none'") || !strings.Contains(csp, "default-src 'none'") {
			t.Errorf("%s %s: %q", r.method, r.target, csp)
		}
	}
}

func TestWhoGuessesHasToWaitAndKeepsNobodyElseOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := leveetest.Listen()
		s := &admin.Server{Metrics: prometheus.NewRegistry(), Log: slog.New(slog.DiscardHandler), Token: loaded(t)}
		s.API.Status = func() admin.Status { return admin.Status{} }
		served := make(chan error, 1)
		go func() { served <- s.Serve(l) }()
		defer func() { s.Close(); <-served }()
		try := func(from, token string) int {
			c, err := l.DialFrom(t.Context(), netip.MustParseAddrPort(from))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			status, _, _ := exchange(t, c, with(func(r *raw) { r.method, r.target, r.authorization = "GET", "/api/v1/status", "Bearer "+token }).String())
			return status
		}
		tries := func(n int, from string) (tried int) {
			for range n {
				if try(from, "wrong-horse-battery-staple") == 401 {
					tried++
				}
			}
			return tried
		}
		if n := tries(50, "192.0.2.1:1"); n != 10 {
			t.Errorf("%d guesses were looked at, want 10", n)
		}
		if status := try("192.0.2.1:1", theToken); status != 429 {
			t.Errorf("the right one among so many: %d", status)
		}
		if status := try("192.0.2.2:1", theToken); status != 200 {
			t.Errorf("somebody else: %d", status)
		}
		if n := tries(20, "[2001:db8::1]:1") + tries(20, "[2001:db8::2]:1"); n != 10 {
			t.Errorf("%d guesses from one network were looked at, want 10", n)
		}
		time.Sleep(time.Second) // virtual time
		if n := tries(10, "192.0.2.1:1"); n != 1 {
			t.Errorf("%d guesses were looked at a second later, want 1", n)
		}
		time.Sleep(time.Minute) // virtual time
		if status := try("192.0.2.1:1", theToken); status != 200 {
			t.Errorf("a minute later: %d", status)
		}
		want := `
# HELP levee_admin_refused_total Requests to the admin port that were refused, by what was wrong with them.
# TYPE levee_admin_refused_total counter
levee_admin_refused_total{reason="body"} 0
levee_admin_refused_total{reason="certificate"} 0
levee_admin_refused_total{reason="host"} 0
levee_admin_refused_total{reason="method"} 0
levee_admin_refused_total{reason="no_token"} 0
levee_admin_refused_total{reason="path"} 0
levee_admin_refused_total{reason="site"} 0
levee_admin_refused_total{reason="too_often"} 80
levee_admin_refused_total{reason="wrong_token"} 21
`
		if err := testutil.CollectAndCompare(s, strings.NewReader(want)); err != nil {
			t.Error(err)
		}
	})
}

// However many guess, what is remembered of them is bounded.
func TestGuessersAreRememberedInBoundedRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := leveetest.Listen()
		s := &admin.Server{Metrics: prometheus.NewRegistry(), Log: slog.New(slog.DiscardHandler), Token: loaded(t)}
		served := make(chan error, 1)
		go func() { served <- s.Serve(l) }()
		defer func() { s.Close(); <-served }()
		for i := range 1100 {
			c, err := l.DialFrom(t.Context(), netip.MustParseAddrPort("10.0."+strconv.Itoa(i/256)+"."+strconv.Itoa(i%256)+":1"))
			if err != nil {
				t.Fatal(err)
			}
			status, _, _ := exchange(t, c, withToken("Bearer wrong-horse-battery-staple").String())
			c.Close()
			if want := 401; status != want && i < 1024+10 || i >= 1024+10 && status != 429 {
				t.Fatalf("guesser %d: %d", i, status)
			}
		}
		if n := s.Guessers(); n != 1025 { // and the one place that all others share
			t.Errorf("%d are remembered", n)
		}
	})
}

func TestATokenFileThatIsNoSecretIsRefused(t *testing.T) {
	for content, want := range map[string]string{
		"":                               "at least 16 characters",
		"short":                          "at least 16 characters, this has 5",
		strings.Repeat("x", 513):         "at most 512 characters",
		strings.Repeat("x", 600):         "larger than",
		"two words that are long enough": "one line of printable ASCII without spaces",
		"first-line-is-long\nsecond":     "one line",
		"schlüssel-schlüssel":            "one line of printable ASCII",
	} {
		if _, err := admin.ReadToken(tokenFile(t, content)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", content, err)
		}
	}
	for _, content := range []string{theToken, theToken + "\n", theToken + "\r\n"} {
		if got, err := admin.ReadToken(tokenFile(t, content)); err != nil || got != theToken {
			t.Errorf("%q: %q, %v", content, got, err)
		}
	}
	if _, err := admin.ReadToken(t.TempDir()); err == nil {
		t.Error("a folder is taken")
	}
	if runtime.GOOS == "windows" {
		t.Log("who may read a file is not a matter of mode bits here")
		return
	}
	open := tokenFile(t, theToken)
	if err := os.Chmod(open, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := admin.ReadToken(open); err == nil || !strings.Contains(err.Error(), "can be read by every user (mode 0644)") {
		t.Errorf("%v", err)
	}
	if err := os.Chmod(open, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := admin.ReadToken(open); err != nil {
		t.Errorf("a group's: %v", err)
	}
}

func TestATokenChangesWithItsFileAndStaysWhenThatIsBroken(t *testing.T) {
	f := newFortress(t, nil)
	problems := make(chan error, 10)
	changes := make(chan struct{}, 10)
	f.Token.Problem = func(err error) { problems <- err }
	f.Token.Changed = func() { changes <- struct{}{} }
	ctx, cancel := context.WithCancel(t.Context())
	watched := make(chan error, 1)
	go func() { watched <- f.Token.Watch(ctx) }()
	defer func() { cancel(); <-watched }()
	put := func(content string) {
		t.Helper()
		if err := os.WriteFile(f.Token.File+".new", []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(f.Token.File+".new", f.Token.File); err != nil {
			t.Fatal(err)
		}
	}
	status := func(token string) int {
		got, _, _ := f.send(t, with(func(r *raw) { r.method, r.target, r.authorization = "GET", "/api/v1/status", "Bearer "+token }).String())
		return got
	}
	put("short")
	if err := <-problems; !strings.Contains(err.Error(), "at least 16") {
		t.Error(err)
	}
	if got := status(theToken); got != 200 {
		t.Errorf("the token of before: %d", got)
	}
	const another = "another-horse-battery-staple"
	put(another)
	<-changes
	if got := status(theToken); got != 401 {
		t.Errorf("the token of before: %d", got)
	}
	if got := status(another); got != 200 {
		t.Errorf("the new one: %d", got)
	}
}
