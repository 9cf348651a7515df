package e2e

import (
	"io"
	"net"
	"slices"
	"testing"
	"time"
)

// slowConfig is of a server that gives clients little time to arrive.
func slowConfig(t *testing.T) string {
	t.Helper()
	return write(t, "levee.yaml", `version: 1
admin: {listen: 127.0.0.1:0}
listeners:
  - name: main
    listen: ["127.0.0.1:0"]
    proxy_protocol: {from: [127.0.0.2]}
    tls: {mode: optional, development: true}
    timeouts: {arrival: 3s, proxy_header: 1s, sniff: 2s}
    routes:
      - {match: {protocol: http}, handler: hello}
      - {handler: discard}
`)
}

// from dials from an address of this machine.
func from(t *testing.T, local, address string) net.Conn {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(local)}, Timeout: patience}
	c, err := d.DialContext(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(patience))
	return c
}

// dribble writes text byte by byte, over twice the limit, and returns how long the server
// took that.
func dribble(c net.Conn, first, text string, limit time.Duration) time.Duration {
	began := time.Now()
	ended := make(chan struct{})
	go func() { // ends with the connection
		defer close(ended)
		_, _ = io.Copy(io.Discard, c)
	}()
	_, _ = io.WriteString(c, first)
	var each <-chan time.Time
	if text != "" {
		pace := time.NewTicker(2 * limit / time.Duration(len(text)))
		defer pace.Stop()
		each = pace.C
	}
	for {
		select {
		case <-ended:
			return time.Since(began)
		case <-each:
			if text != "" {
				_, _ = io.WriteString(c, text[:1])
				text = text[1:]
			}
		}
	}
}

func TestTheSlowAreReapedAndAProbeBesideThemNoticesNothing(t *testing.T) {
	p := start(t, "serve", "-c", slowConfig(t))
	address := p.address()
	goes := tlsClients["go"]
	hello := string(goes.hello(t))
	ways := []struct {
		what, local, first, dribble string
		limit                       time.Duration
	}{
		{"a PROXY header", "127.0.0.2", "", "PROXY TCP6 2001:db8::1 2001:db8::2 65535 65535\r\n", time.Second},
		{"silent before a PROXY header", "127.0.0.2", "", "", time.Second},
		{"silent", "127.0.0.1", "", "", 2 * time.Second},
		{"the first bytes", "127.0.0.1", "", "PRI * HTTP/2.0\r\n", 2 * time.Second},
		{"silent behind a PROXY header", "127.0.0.2", "PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n", "", 2 * time.Second},
		{"a record of a hello", "127.0.0.1", "", hello, 3 * time.Second},
		{"half a hello", "127.0.0.1", hello[:700], "", 3 * time.Second},
		{"silent behind its hello", "127.0.0.1", hello, "", 3 * time.Second},
	}
	const each = 20
	type reaped struct {
		what         string
		after, limit time.Duration
	}
	ends := make(chan reaped, each*len(ways))
	alone := probeFor(t, address, 500*time.Millisecond, nil)
	for _, way := range ways {
		for range each {
			c := from(t, way.local, address)
			go func() { ends <- reaped{way.what, dribble(c, way.first, way.dribble, way.limit), way.limit} }() // ends with c
		}
	}
	all := make(chan struct{})
	go func() { // ends with the connections, whose time is limited
		defer close(all)
		for range cap(ends) {
			if r := <-ends; r.after < r.limit*9/10 || r.after > r.limit*11/10 {
				t.Errorf("%s: it ended after %v, want %v", r.what, r.after, r.limit)
			}
		}
	}()
	beside := probeFor(t, address, 0, all)
	t.Logf("a probe took %v alone, and %v beside %d slow ones (medians)", alone, beside, cap(ends))
	if beside > 4*alone+5*time.Millisecond { // the machine is shared
		t.Errorf("a probe takes %v, and took %v alone", beside, alone)
	}
}

// probeFor asks again and again until the time is up, or until is closed, and returns the
// median of how long an answer took.
func probeFor(t *testing.T, address string, d time.Duration, until <-chan struct{}) time.Duration {
	t.Helper()
	var late <-chan time.Time
	if d > 0 {
		late = time.After(d)
	}
	pace := time.NewTicker(20 * time.Millisecond)
	defer pace.Stop()
	var took []time.Duration
	for {
		select {
		case <-late:
		case <-until:
		case <-pace.C:
			began := time.Now()
			if status, _ := get(t, "http://"+address+"/"); status != 200 {
				t.Fatalf("the probe got %d", status)
			}
			took = append(took, time.Since(began))
			continue
		}
		slices.Sort(took)
		return took[len(took)/2]
	}
}

// Garbage ends the connection by the byte that makes it garbage.
func TestGarbageIsRefusedAtOnce(t *testing.T) {
	address := start(t, "serve", "-c", slowConfig(t)).address()
	for what, garbage := range map[string]struct{ local, text string }{
		"no PROXY header":            {"127.0.0.2", "PROX_"},
		"no PROXY header at all":     {"127.0.0.2", "G"},
		"a PROXY header of nobody's": {"127.0.0.1", "PROXY "},
		"a TLS version that is none": {"127.0.0.1", "\x16\x99\x99\x00\x05"},
		"no hello":                   {"127.0.0.1", "\x16\x03\x01\x00\x04\x02\x00\x00\x00"},
		"a hello with nothing in it": {"127.0.0.1", "\x16\x03\x01\x00\x04\x01\x00\x00\x00"},
	} {
		var took []time.Duration
		for range 5 {
			c := from(t, garbage.local, address)
			for i := range len(garbage.text) - 1 {
				send(t, c, garbage.text[i:i+1])
			}
			began := time.Now()
			_, _ = io.WriteString(c, garbage.text[len(garbage.text)-1:])
			_, _ = io.Copy(io.Discard, c) // an alert, perhaps, and the end
			took = append(took, time.Since(began))
		}
		if slices.Sort(took); took[len(took)/2] > promptly {
			t.Errorf("%s: it ends after %v", what, took)
		}
	}
}
