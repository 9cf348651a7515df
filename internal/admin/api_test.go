package admin_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/levee-net/levee/internal/admin"
	"github.com/levee-net/levee/leveetest"
)

// A keeper keeps bans as the API tells it to.
type keeper struct {
	mu     sync.Mutex
	bans   map[string]admin.Ban
	called int // with Ban or Lift
}

func (k *keeper) api() admin.API {
	k.bans = make(map[string]admin.Ban)
	return admin.API{
		Limits: func() admin.Limits {
			return admin.Limits{Limits: []admin.Limit{{Name: "main.client.rate", Mode: "shadow", Setting: "50/s, burst 100", Allowed: 7, WouldRefuse: 3}}}
		},
		Overload: func() admin.Overload {
			return admin.Overload{Mode: "on", Pressure: "none", Load: map[string]float64{"memory": 0.25}}
		},
		Bans: func(most int) admin.Bans {
			k.mu.Lock()
			defer k.mu.Unlock()
			all := admin.Bans{Active: len(k.bans), Bans: []admin.Ban{}}
			for _, b := range k.bans {
				all.Bans = append(all.Bans, b)
			}
			all.Bans = all.Bans[:min(most, len(all.Bans))]
			return all
		},
		Ban: func(prefix string, d time.Duration, why string) (admin.Ban, error) {
			k.mu.Lock()
			defer k.mu.Unlock()
			k.called++
			if prefix == "" {
				return admin.Ban{}, errors.New("prefix: is empty")
			}
			b := admin.Ban{Prefix: prefix, Until: time.Unix(1_800_000_000, 0).UTC().Add(d), Why: why}
			k.bans[prefix] = b
			return b, nil
		},
		Lift: func(prefix string) (bool, error) {
			k.mu.Lock()
			defer k.mu.Unlock()
			k.called++
			if prefix == "junk" {
				return false, errors.New("junk is not a prefix")
			}
			_, found := k.bans[prefix]
			delete(k.bans, prefix)
			return found, nil
		},
	}
}

// calls returns how often something was to change, and what there is then.
func (k *keeper) calls() (called, bans int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.called, len(k.bans)
}

func serveAPI(t *testing.T) (k *keeper, url string) {
	t.Helper()
	k = new(keeper)
	return k, serveWith(t, k.api())
}

func serveWith(t *testing.T, api admin.API) (url string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return serveOn(t, l, api)
}

func serveOn(t *testing.T, l net.Listener, api admin.API) (url string) {
	t.Helper()
	s := &admin.Server{Metrics: prometheus.NewRegistry(), Log: slog.New(slog.DiscardHandler), API: api}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Close()
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return "http://" + l.Addr().String()
}

// request sends a body as JSON unless a header says otherwise.
func request(t *testing.T, method, url, body string, header map[string]string) (status int, text string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	for name, value := range header {
		switch {
		case name == "Host":
			r.Host = value
		case value == "":
			r.Header.Del(name)
		default:
			r.Header.Set(name, value)
		}
	}
	client := &http.Client{
		Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	got, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer got.Body.Close()
	content, err := io.ReadAll(got.Body)
	if err != nil {
		t.Fatal(err)
	}
	return got.StatusCode, string(content)
}

const goodBan = `{"prefix": "192.0.2.0/24", "for": "10m", "why": "floods"}`

func TestABanIsMadeListedAndLifted(t *testing.T) {
	_, url := serveAPI(t)
	if status, body := request(t, "GET", url+"/api/v1/bans", "", nil); status != 200 || body != "{\n  \"active\": 0,\n  \"bans\": []\n}\n" {
		t.Errorf("%d %s", status, body)
	}
	status, body := request(t, "POST", url+"/api/v1/bans", goodBan, nil)
	var made admin.Ban
	if err := json.Unmarshal([]byte(body), &made); status != 201 || err != nil || made.Prefix != "192.0.2.0/24" || made.Why != "floods" || made.Until.Unix() != 1_800_000_600 {
		t.Fatalf("%d %s", status, body)
	}
	if status, body := request(t, "GET", url+"/api/v1/bans", "", nil); status != 200 || !strings.Contains(body, `"prefix": "192.0.2.0/24"`) || !strings.Contains(body, `"active": 1`) {
		t.Errorf("%d %s", status, body)
	}
	if status, body := request(t, "DELETE", url+"/api/v1/bans/192.0.2.0/24", "", nil); status != 204 || body != "" {
		t.Errorf("%d %s", status, body)
	}
	if status, body := request(t, "DELETE", url+"/api/v1/bans/192.0.2.0%2F24", "", nil); status != 404 || !strings.Contains(body, `\"192.0.2.0/24\" is not banned`) {
		t.Errorf("%d %s", status, body)
	}
}

func TestLimitsAndOverloadAreTold(t *testing.T) {
	_, url := serveAPI(t)
	status, body := request(t, "GET", url+"/api/v1/limits", "", nil)
	var limits admin.Limits
	if err := json.Unmarshal([]byte(body), &limits); status != 200 || err != nil || len(limits.Limits) != 1 || limits.Limits[0].WouldRefuse != 3 || limits.Limits[0].Setting != "50/s, burst 100" {
		t.Errorf("%d %v %s", status, err, body)
	}
	if status, body := request(t, "GET", url+"/api/v1/overload", "", nil); status != 200 || !strings.Contains(body, `"memory": 0.25`) {
		t.Errorf("%d %s", status, body)
	}
}

func TestWhatIsNotThereIsNotServed(t *testing.T) {
	url := serveWith(t, admin.API{})
	for _, path := range []string{"/api/v1/limits", "/api/v1/bans", "/api/v1/overload"} {
		if status, _ := request(t, "GET", url+path, "", nil); status != 404 {
			t.Errorf("%s: %d", path, status)
		}
	}
}

// The API must change nothing at the word of somebody who is not an operator, or who says nothing that makes sense.
func TestHostileRequestsChangeNothing(t *testing.T) {
	type headers map[string]string
	k, url := serveAPI(t)
	host := strings.TrimPrefix(url, "http://")
	for _, c := range []struct {
		name, method, path, body string
		header                   headers
		want                     int
	}{
		{"another site's page", "POST", "/api/v1/bans", goodBan, headers{"Sec-Fetch-Site": "cross-site"}, 403},
		{"another site's form that navigates", "POST", "/api/v1/bans", goodBan, headers{"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}, 403},
		{"a page of another port", "POST", "/api/v1/bans", goodBan, headers{"Sec-Fetch-Site": "same-site"}, 403},
		{"another site's page in an old browser", "POST", "/api/v1/bans", goodBan, headers{"Origin": "http://evil.example"}, 403},
		{"a page of another port in an old browser", "POST", "/api/v1/bans", goodBan, headers{"Origin": "http://127.0.0.1:1"}, 403},
		{"a page of nowhere", "POST", "/api/v1/bans", goodBan, headers{"Origin": "null"}, 403},
		{"another scheme", "POST", "/api/v1/bans", goodBan, headers{"Origin": "https://" + host}, 403},
		{"a browser that contradicts itself", "POST", "/api/v1/bans", goodBan, headers{"Sec-Fetch-Site": "same-origin", "Origin": "http://evil.example"}, 403},
		{"a rebound name", "POST", "/api/v1/bans", goodBan, headers{"Host": "evil.example"}, 403},
		{"a rebound name with its own origin", "POST", "/api/v1/bans", goodBan, headers{"Host": "evil.example", "Origin": "http://evil.example"}, 403},
		{"another site's page that lifts", "DELETE", "/api/v1/bans/192.0.2.0/24", "", headers{"Sec-Fetch-Site": "cross-site"}, 403},
		{"a rebound name that lifts", "DELETE", "/api/v1/bans/192.0.2.0/24", "", headers{"Host": "evil.example:80"}, 403},
		{"a preflight", "OPTIONS", "/api/v1/bans", "", headers{"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}, 403},
		{"a form", "POST", "/api/v1/bans", "prefix=192.0.2.0/24", headers{"Content-Type": "application/x-www-form-urlencoded"}, 415},
		{"a form that looks like JSON", "POST", "/api/v1/bans", goodBan, headers{"Content-Type": "text/plain"}, 415},
		{"no type", "POST", "/api/v1/bans", goodBan, headers{"Content-Type": ""}, 415},
		{"a type that begins alike", "POST", "/api/v1/bans", goodBan, headers{"Content-Type": "application/json-patch+json"}, 415},
		{"nothing", "POST", "/api/v1/bans", "", nil, 400},
		{"something that is not JSON", "POST", "/api/v1/bans", "{", nil, 400},
		{"a list", "POST", "/api/v1/bans", "[" + goodBan + "]", nil, 400},
		{"two bans", "POST", "/api/v1/bans", goodBan + goodBan, nil, 400},
		{"a key too many", "POST", "/api/v1/bans", `{"prefix": "192.0.2.1", "for": "1m", "forever": true}`, nil, 400},
		{"a number for a prefix", "POST", "/api/v1/bans", `{"prefix": 7, "for": "1m"}`, nil, 400},
		{"a number for a time", "POST", "/api/v1/bans", `{"prefix": "192.0.2.1", "for": 10}`, nil, 400},
		{"no time", "POST", "/api/v1/bans", `{"prefix": "192.0.2.1"}`, nil, 400},
		{"a body that is too large", "POST", "/api/v1/bans", `{"prefix": "192.0.2.1", "for": "1m", "why": "` + strings.Repeat("x", 4096) + `"}`, nil, 413},
		{"a body that goes on", "POST", "/api/v1/bans", goodBan + strings.Repeat(" ", 8192), nil, 413},
		{"a ban by GET", "GET", "/api/v1/bans/192.0.2.0/24", "", nil, 405},
		{"a ban by PUT", "PUT", "/api/v1/bans", goodBan, nil, 405},
		{"all bans lifted", "DELETE", "/api/v1/bans", "", nil, 307},
		{"all bans lifted, by the other path", "DELETE", "/api/v1/bans/", "", nil, 400},
		{"a path that is not clean", "POST", "/api/v1//bans", goodBan, nil, 404},
		{"a path that goes up", "POST", "/api/v1/x/../bans", goodBan, nil, 404},
		{"a path that goes on", "POST", "/api/v1/bans/", goodBan, nil, 405},
		{"limits that are written", "POST", "/api/v1/limits", "{}", nil, 405},
	} {
		t.Run(c.name, func(t *testing.T) {
			status, body := request(t, c.method, url+c.path, c.body, c.header)
			if status != c.want {
				t.Errorf("%d, want %d: %s", status, c.want, body)
			}
			if called, bans := k.calls(); called != 0 || bans != 0 {
				t.Fatalf("it was done: %d calls, %d bans", called, bans)
			}
			if strings.Contains(body, "evil.example") {
				t.Errorf("a stranger's name comes back: %s", body)
			}
		})
	}
}

func TestOperatorsFromAPageOfTheAdminPortsOwnMayChangeThings(t *testing.T) {
	for _, header := range []map[string]string{
		{"Sec-Fetch-Site": "same-origin", "Origin": "HOST"}, {"Origin": "HOST"}, {"Sec-Fetch-Site": "none"}, {"Content-Type": "application/json; charset=utf-8"},
	} {
		k, url := serveAPI(t)
		if header["Origin"] != "" {
			header["Origin"] = url
		}
		if status, body := request(t, "POST", url+"/api/v1/bans", goodBan, header); status != 201 {
			t.Errorf("%v: %d %s", header, status, body)
		}
		if _, bans := k.calls(); bans != 1 {
			t.Errorf("%v: %d bans", header, bans)
		}
	}
}

func TestWhatTheAskerGotWrongIsTold(t *testing.T) {
	_, url := serveAPI(t)
	if status, body := request(t, "POST", url+"/api/v1/bans", `{"for": "1m"}`, nil); status != 400 || body != "{\n  \"error\": \"prefix: is empty\"\n}\n" {
		t.Errorf("%d %s", status, body)
	}
	if status, body := request(t, "POST", url+"/api/v1/bans", `{"prefix": "192.0.2.1", "for": "soon"}`, nil); status != 400 || !strings.Contains(body, `for: \"soon\" is not a duration`) {
		t.Errorf("%d %s", status, body)
	}
	if status, body := request(t, "DELETE", url+"/api/v1/bans/junk", "", nil); status != 400 || !strings.Contains(body, "junk is not a prefix") {
		t.Errorf("%d %s", status, body)
	}
}

// Connections that ask nothing must not keep an operator out.
func TestQuietConnectionsMakeRoomForOperators(t *testing.T) {
	leveetest.CheckLeaks(t)
	_, url := serveAPI(t)
	address := strings.TrimPrefix(url, "http://")
	var quiet []net.Conn
	for range 200 {
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		quiet = append(quiet, c)
	}
	if status, _ := request(t, "GET", url+"/livez", "", nil); status != 200 {
		t.Errorf("/livez: %d", status)
	}
	closed := 0
	for _, c := range quiet[:200-64] { // each of them was dropped before the answer
		c.SetReadDeadline(time.Now().Add(10 * time.Second))
		if _, err := c.Read(make([]byte, 1)); errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) {
			closed++
		}
	}
	if closed != 200-64 {
		t.Errorf("%d of the first %d were closed", closed, 200-64)
	}
	last := quiet[199]
	last.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(last, "GET /livez HTTP/1.0\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if answer, err := io.ReadAll(last); err != nil || !bytes.HasPrefix(answer, []byte("HTTP/1.0 200")) {
		t.Errorf("the last of them: %q, %v", answer, err)
	}
}

// A short listener has no file for its first connections.
type shortListener struct {
	net.Listener
	mu   sync.Mutex
	left int
}

func (l *shortListener) Accept() (net.Conn, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.left > 0 {
		l.left--
		return nil, &net.OpError{Op: "accept", Net: "tcp", Err: syscall.EMFILE}
	}
	return l.Listener.Accept()
}

func TestOperatorsAreAnsweredAsSoonAsThereIsAFile(t *testing.T) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	url := serveOn(t, &shortListener{Listener: inner, left: 12}, admin.API{}) // net/http would wait for 10 seconds in all
	began := time.Now()
	if status, _ := request(t, "GET", url+"/livez", "", nil); status != 200 {
		t.Errorf("/livez: %d", status)
	}
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("took %v", took)
	}
}
