package route_test

import (
	"crypto/tls"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/leveetest"
	"github.com/levee-net/levee/route"
)

// What a client has, at most, for its arrival and for parts of it.
const (
	arrivalLimit = 3 * time.Second
	headerLimit  = time.Second
	sniffLimit   = 2 * time.Second
)

// A host is a server, and what a client that behaves does with it.
type host struct {
	levee.Server
	visit func(t *testing.T, s *server, ca *leveetest.CA) (string, error)
	want  string
}

// askOver asks over TLS.
func askOver(t *testing.T, s *server, ca *leveetest.CA) (string, error) {
	return askTLS(s.dial(t), ca.ClientConfig("a.test"))
}

// A slowness is a way to take one's time.
type slowness struct {
	host    func() *host
	proxied bool   // from where a PROXY header has to be sent
	sealed  bool   // the following over TLS
	first   string // comes at once
	dribble string // comes byte by byte, for longer than there is time
	limit   time.Duration
}

func waysToBeSlow(t *testing.T, ca *leveetest.CA) map[string]slowness {
	router := func() *host {
		return &host{levee.Server{Handler: &route.Router{TLS: ca.ServerConfig("*.test"), Routes: []route.Route{
			{Match: route.SSH, Handler: named("ssh")}, {Match: route.HTTP, Handler: named("web")}, {Match: route.Prefix("hi"), Handler: named("greeter")},
		}}}, askOver, `greeter "hi"`}
	}
	own := func() *host {
		return &host{levee.Server{TLSConfig: ca.ServerConfig("a.test"), Handler: named("own")}, askOver, `own "hi"`}
	}
	const preface = "PRI * HTTP/2.0\r\n"
	hello := string(helloOf(t, ca.ClientConfig("a.test")))
	records := ""
	for _, b := range messageIn([]byte(hello)) {
		records += "\x16\x03\x01\x00\x01" + string([]byte{b})
	}
	ways := map[string]slowness{
		"silent before its PROXY header":         {router, true, false, "", "", headerLimit},
		"a PROXY header of version 1":            {router, true, false, "", "PROXY TCP6 2001:db8::1 2001:db8::2 65535 65535\r\n", headerLimit},
		"a PROXY header of version 2":            {router, true, false, "", "\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c\x01\x02\x03\x04\x05\x06\x07\x08\x00\x01\x00\x02", headerLimit},
		"silent behind its PROXY header":         {router, true, false, "PROXY TCP4 198.51.100.7 192.0.2.2 1 2\r\n", "", sniffLimit},
		"silent":                                 {router, false, false, "", "", sniffLimit},
		"the first bytes":                        {router, false, false, "", preface, sniffLimit},
		"the first bytes over TLS":               {router, false, true, "", preface, sniffLimit},
		"a record of a hello":                    {router, false, false, "", hello, sniffLimit},
		"records of a byte":                      {router, false, false, "", records, sniffLimit},
		"half a hello":                           {router, false, false, hello[:100], "", sniffLimit},
		"silent behind its hello":                {router, false, false, hello, "", sniffLimit},
		"a handshake's record":                   {router, false, false, hello, "\x16\x03\x03\x10\x00" + strings.Repeat("x", 100), sniffLimit},
		"silent, TLS being the server's":         {own, false, false, "", "", arrivalLimit},
		"a hello, TLS being the server's":        {own, false, false, "", hello, arrivalLimit},
		"behind a hello, TLS being the server's": {own, false, false, hello, "", arrivalLimit},
	}
	for protocol, l := range languages {
		speaks := func() *host {
			return &host{levee.Server{Handler: l.router(ca, true)}, func(t *testing.T, s *server, ca *leveetest.CA) (string, error) {
				raw := l.greeted(t, s)
				converse(t, raw, l.begin...)
				return askTLS(raw, ca.ClientConfig("a.test"))
			}, `a "hi"`}
		}
		all := ""
		for _, step := range l.begin {
			all += step.send
		}
		ways[protocol+": silent"] = slowness{speaks, false, false, "", "", sniffLimit}
		ways[protocol+": a dialogue"] = slowness{speaks, false, false, "", all, sniffLimit}
		ways[protocol+": silent in mid-dialogue"] = slowness{speaks, false, false, all[:len(all)-1], "", sniffLimit}
		ways[protocol+": silent behind its request"] = slowness{speaks, false, false, all, "", sniffLimit}
	}
	return ways
}

// A client that is slow in any part of its arrival is reaped at the end of what that part
// may take, and those beside it are served as if it were not there.
func TestTheSlowAreReapedInEveryPartOfTheArrivalAndNobodyNotices(t *testing.T) {
	ca := leveetest.NewCA(t)
	for what, slow := range waysToBeSlow(t, ca) {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				host := slow.host()
				host.ProxyFrom = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
				host.ArrivalTimeout, host.ProxyHeaderTimeout, host.SniffTimeout = arrivalLimit, headerLimit, sniffLimit
				s := serve(t, &host.Server)
				from := netip.MustParseAddrPort("198.51.100.1:4000")
				if slow.proxied {
					from = netip.MustParseAddrPort("192.0.2.1:4000")
				}
				raw, err := s.DialFrom(t.Context(), from)
				if err != nil {
					t.Fatal(err)
				}
				over := make(chan struct{})
				go func() { // ends with raw
					defer close(over)
					slow.run(raw, ca)
				}()
				defer func() {
					raw.Close()
					<-over
				}()
				began := time.Now()
				var reaped levee.End
				for reaped.Reason == levee.ReasonNone && time.Since(began) < 2*slow.limit {
					time.Sleep(slow.limit / 25) // virtual time
					if len(s.ends) > 0 {
						reaped = <-s.ends
						break
					}
					came := time.Now()
					if got, err := host.visit(t, s, ca); got != host.want || err != nil || time.Since(came) != 0 {
						t.Errorf("beside it: %q, %v, after %v", got, err, time.Since(came))
					}
					if end := <-s.ends; end.Reason == levee.ArrivalTimeout { // the two may end at once
						reaped = end
					}
				}
				if reaped.Reason != levee.ArrivalTimeout || reaped.Duration < slow.limit*9/10 || reaped.Duration > slow.limit*11/10 {
					t.Errorf("it ends with %v, %v after %v, want that after %v", reaped.Reason, reaped.Err, reaped.Duration, slow.limit)
				}
			})
		})
	}
}

// run takes its time, and reads all that it is told.
func (s *slowness) run(raw net.Conn, ca *leveetest.CA) {
	c := raw
	if s.sealed {
		sealed := tls.Client(raw, ca.ClientConfig("a.test"))
		if sealed.Handshake() != nil {
			return
		}
		c = sealed
	}
	go func() { _, _ = io.Copy(io.Discard, c) }() // ends with raw
	_, _ = io.WriteString(c, s.first)
	for _, b := range []byte(s.dribble) {
		time.Sleep(2 * s.limit / time.Duration(len(s.dribble))) // virtual time
		if _, err := c.Write([]byte{b}); err != nil {
			return
		}
	}
}

// Over sockets, too, garbage is refused at once, with what there is to say about it.
func TestGarbageIsRefusedAtOnceOverSockets(t *testing.T) {
	ca := leveetest.NewCA(t)
	hosts := map[string]*route.Router{"hello": {TLS: ca.ServerConfig("*.test"), RequireTLS: true, Routes: []route.Route{elseRoute}}}
	garbage := map[string][]step{"hello": {{"x", ""}, {"\x16\x99", "\x15\x03\x03\x00\x02\x02\x32"}, {"\x16\x03\x01\x00\x04\x02", "\x15\x03\x03\x00\x02\x02\x32"}}}
	for protocol, l := range languages {
		hosts[protocol], garbage[protocol] = l.router(ca, true), l.refused
	}
	for what, router := range hosts {
		socket, err := levee.Listen(t.Context(), "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		srv := &levee.Server{Handler: router}
		go srv.Serve(t.Context(), socket)
		t.Cleanup(func() { srv.Close() })
		for _, garbage := range garbage[what] {
			raw, err := net.Dial("tcp", socket.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			l := languages[what]
			l.takeGreeting(t, raw)
			began := time.Now()
			io.WriteString(raw, garbage.send)
			got, err := io.ReadAll(raw)
			if took := time.Since(began); string(got) != garbage.answer || err != nil || took > time.Second { // far less than anybody has time for
				t.Errorf("%s, %q: %q, %v, after %v", what, garbage.send, got, err, took)
			}
			raw.Close()
		}
	}
}
