package route_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/leveetest"
	"github.com/levee-net/levee/route"
)

func TestProtocolsAreKnownByTheirFirstBytes(t *testing.T) {
	const startup = "\x00\x00\x00\x09\x00\x03\x00\x00\x00"
	for name, test := range map[string]struct {
		match         route.Matcher
		yes, no, more []string
	}{
		"HTTP": {
			route.HTTP,
			[]string{"GET / HTTP/1.1\r\n", "PATCH ", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"},
			[]string{"get ", "GETX", "PRI * HTTP/1.1\r\n", "\x15\x03\x01"},
			[]string{"", "G", "PRI * HTTP/2.0\r", "\x16", "\x16GET "},
		},
		"SSH":   {route.SSH, []string{"SSH-2.0-x\r\n", "SSH-1.99-"}, []string{"ssh-", "\r\nSSH-"}, []string{"", "SSH", "\x16"}},
		"Redis": {route.Redis, []string{"*1\r\n$4\r\nPING\r\n", "*1000000\r\n$1", "PING\r\n", "ping\n", "Auth x", "HELLO 3\r\n", "INFO "}, []string{"*0\r\n", "*-1\r\n", "*x", "*12345678", "*1\n", "*1\r\n+", "*1\r\n$-1", "PINGS", "GET x", "HELO ", "$4\r\n", "+PONG"}, []string{"", "*", "*1", "*1\r\n", "*1\r\n$", "P", "ping", "HELLO", "\x16"}},
		"MQTT": {
			route.MQTT,
			[]string{"\x10\x0c\x00\x04MQTT\x04\x02", "\x10\x0d\x00\x04MQTT\x05", "\x10\x80\x01\x00\x06MQIsdp\x03", "\x10\xff\xff\xff\x7f\x00\x04MQTT\x04"},
			[]string{"\x20\x02", "\x10\x0c\x00\x04MQTT\x03", "\x10\x0c\x00\x06MQIsdp\x04", "\x10\x80\x80\x80\x80", "\x10\x0c\x00\x05", "\x11\x0c"},
			[]string{"", "\x10", "\x10\x80\x80\x80", "\x10\x0c\x00\x04MQTT", "\x16"},
		},
		"Postgres": {
			route.Postgres,
			[]string{startup, "\x00\x00\x27\x10\x00\x03\x00\x02", postgresTLS, postgresGSS, postgresCancel},
			[]string{"\x00\x01", "\x00\x00\x00\x08\x00\x02", "\x00\x00\x00\x08\x00\x03\x00\x00", "\x00\x00\x27\x11\x00\x03\x00\x00", "\x00\x00\x00\x09\x04\xd2\x16\x2f", "\x00\x00\x00\x08\x04\xd2\x16\x2e", "\x00\x00\x00\x08\x04\xd2\x17", "Q\x00"},
			[]string{"", "\x00", startup[:7], "\x16"},
		},
		"Prefix":     {route.Prefix("ab", "abc", "\x16\x03"), []string{"ab", "abd", "\x16\x03\x01"}, []string{"b", "ac"}, []string{"", "a", "\x16", "\x16\x02"}},
		"All":        {route.All(route.Prefix("ab"), route.Prefix("abc")), []string{"abc"}, []string{"abd", "b"}, []string{"", "ab"}},
		"All of no":  {route.All(), []string{""}, nil, nil},
		"Any":        {route.Any(route.Prefix("abc"), route.Prefix("ab")), []string{"ab"}, []string{"b"}, []string{"", "a"}},
		"Any of no":  {route.Any(), nil, []string{""}, nil},
		"Not":        {route.Not(route.Prefix("ab")), []string{"b", "ac"}, []string{"ab"}, []string{"", "a", "\x16"}},
		"TLS":        {route.TLS, nil, []string{"x", "\x16\x99", "\x16\x03\x01\x00\x04\x02"}, []string{"", "\x16", "\x16\x03\x01\x00\x04\x01\x00"}},
		"SNI":        {route.SNI("a.test"), []string{hello("a.test"), hello("A.TEST")}, []string{"x", "\x16\x99", hello("b.test"), hello("a.test.b.test"), hello("x.a.test")}, []string{"", "\x16", hello("a.test")[:40]}},
		"SNI *":      {route.SNI("b.test", "*.A.test"), []string{hello("b.test"), hello("x.a.test")}, []string{hello("a.test"), hello("x.y.a.test")}, nil},
		"SNIRegexp":  {route.SNIRegexp(`(db|db-\d+)\.test`), []string{hello("db.test"), hello("DB-12.test")}, []string{hello("db.test.evil"), hello("xdb.test"), "x"}, []string{"", "\x16"}},
		"SNIRegexp|": {route.SNIRegexp(`db|db\.test`), []string{hello("db.test"), hello("db")}, []string{hello("db.tes")}, nil},
		"SNIRegexp*": {route.SNIRegexp(`.*`), []string{hello("a.test")}, []string{string(helloWith(0xff00, ""))}, nil},
		"ALPN":       {route.ALPN("h2", "x"), []string{string(helloWith(16, "\x00\x03\x02h2")), string(helloWith(16, "\x00\x04\x01y\x01x"))}, []string{"x", hello("h2"), string(helloWith(16, "\x00\x03\x02h3"))}, []string{"", "\x16"}},
		"ClientCert": {route.ClientCert("x"), nil, []string{"x"}, []string{"", "\x16", hello("a.test")}},
	} {
		for v, texts := range [][]string{route.No: test.no, route.Yes: test.yes, route.More: test.more} {
			for _, text := range texts {
				if got := test.match(&route.Beginning{First: []byte(text)}); got != route.Verdict(v) {
					t.Errorf("%s says %v to %q, want %v", name, got, text, v)
				}
			}
		}
	}
}

// hello returns the records of a hello for name.
func hello(name string) string { return string(helloWith(0, nameList(name))) }

const (
	postgresTLS    = "\x00\x00\x00\x08\x04\xd2\x16\x2f"
	postgresGSS    = "\x00\x00\x00\x08\x04\xd2\x16\x30"
	postgresCancel = "\x00\x00\x00\x10\x04\xd2\x16\x2e\x00\x00\x00\x01\x00\x00\x00\x02"
)

// everyMatcher is every matcher of bytes.
var everyMatcher = map[string]route.Matcher{
	"HTTP": route.HTTP, "SSH": route.SSH, "Redis": route.Redis, "MQTT": route.MQTT, "Postgres": route.Postgres, "TLS": route.TLS,
	"Prefix": route.Prefix("PROXY ", "GET /x", "*1", "\x16\x03\x01\x00"), "SNI": route.SNI("a.test"), "SNIRegexp": route.SNIRegexp("a.*"), "ALPN": route.ALPN("h2"),
	"Not": route.Not(route.HTTP), "All": route.All(route.HTTP, route.Not(route.Prefix("GET /x"))), "Any": route.Any(route.SSH, route.Redis, route.SNI("b.test")),
	"ClientCert": route.ClientCert("x"),
}

var streams = []string{
	"GET /x HTTP/1.1\r\n", "PRI * HTTP/2.0\r\n\r\n", "SSH-2.0-x\r\n", "*12\r\n$4\r\nPING\r\n", "ping\r\n", "\x10\x80\x01\x00\x06MQIsdp\x03", "\x10\x0c\x00\x04MQTT\x05",
	"\x00\x00\x00\x09\x00\x03\x00\x00\x00", postgresTLS, postgresGSS, postgresCancel, hello("a.test"), hello("b.test"), string(helloWith(16, "\x00\x03\x02h2")), "PROXY TCP4 ", "x",
}

// checkVerdicts checks that a verdict is final, and the same however the stream is cut.
func checkVerdicts(t *testing.T, stream []byte, random *rand.Rand) {
	t.Helper()
	for name, match := range everyMatcher {
		byByte := make([]route.Verdict, 0, len(stream)+1)
		drip := new(route.Beginning)
		for n := range len(stream) + 1 {
			drip.First = stream[:n]
			v := match(drip)
			if n > 0 && byByte[n-1] != route.More && v != byByte[n-1] {
				t.Fatalf("%s says %v to %q and %v to one byte more", name, byByte[n-1], stream[:n-1], v)
			}
			byByte = append(byByte, v)
			if whole := match(&route.Beginning{First: stream[:n]}); whole != v {
				t.Fatalf("%s says %v to %q byte by byte, and %v at once", name, v, stream[:n], whole)
			}
		}
		cut := new(route.Beginning)
		for n := 0; n < len(stream); {
			n = min(len(stream), n+1+random.IntN(10))
			cut.First = slices.Clone(stream[:n]) // a Peek may return other memory
			if v := match(cut); v != byByte[n] {
				t.Fatalf("%s says %v to %q in pieces, and %v byte by byte", name, v, stream[:n], byByte[n])
			}
		}
	}
}

func TestVerdictsAreFinalAndTheSameForEveryCut(t *testing.T) {
	random := rand.New(rand.NewPCG(7, 8))
	for _, stream := range streams {
		checkVerdicts(t, []byte(stream), random)
		for range 100 {
			b := []byte(stream + streams[random.IntN(len(streams))])
			b[random.IntN(len(b))] = byte(random.Uint32())
			checkVerdicts(t, b, random)
		}
	}
}

func FuzzMatchers(f *testing.F) {
	for _, stream := range streams {
		f.Add([]byte(stream), uint64(1))
	}
	f.Fuzz(func(t *testing.T, stream []byte, seed uint64) {
		if len(stream) > 1000 {
			return // they decide by less
		}
		checkVerdicts(t, stream, rand.New(rand.NewPCG(seed, seed)))
	})
}

func TestSourceIsTheClientsAddress(t *testing.T) {
	prefixes := func(texts ...string) (all []netip.Prefix) {
		for _, text := range texts {
			all = append(all, netip.MustParsePrefix(text))
		}
		return all
	}
	synctest.Test(t, func(t *testing.T) {
		s := serve(t, &levee.Server{Handler: &route.Router{Routes: []route.Route{
			{Match: route.Source(prefixes("192.0.2.9/24", "2001:db8::/32")...), Handler: named("near")},
			{Match: route.Source(prefixes("::ffff:198.51.100.0/120")...), Handler: named("mapped")},
			{Match: route.Source(), Handler: named("nobody")},
			{Handler: named("far")},
		}}})
		for from, want := range map[string]string{
			"192.0.2.7:1": "near", "[2001:db8::1]:1": "near", "198.51.100.200:1": "mapped", "203.0.113.1:1": "far", "[2001:db9::1]:1": "far",
		} {
			c, err := s.DialFrom(t.Context(), netip.MustParseAddrPort(from))
			if err != nil {
				t.Fatal(err)
			}
			c.CloseWrite()
			if got, _ := io.ReadAll(c); string(got) != want+` ""` {
				t.Errorf("from %s: %s, want %s", from, got, want)
			}
		}
	})
}

func TestLocalPortIsTheOneConnectedTo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := &levee.Server{Handler: &route.Router{Routes: []route.Route{
			{Match: route.LocalPort(5432, 6432), Handler: named("db")},
			{Match: route.LocalPort(6379), Handler: named("cache")},
			{Handler: named("else")},
		}}}
		defer srv.Close()
		for port, want := range map[uint16]string{5432: "db", 6432: "db", 6379: "cache", 80: "else"} {
			l := leveetest.Network{Addr: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port)}.Listen()
			go srv.Serve(context.Background(), l)
			c, err := l.Dial(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			c.CloseWrite()
			if got, _ := io.ReadAll(c); string(got) != want+` ""` {
				t.Errorf("port %d: %s, want %s", port, got, want)
			}
		}
	})
}

func TestClientCertCountsOnlyWhereItWasVerified(t *testing.T) {
	ca, stranger := leveetest.NewCA(t), leveetest.NewCA(t)
	routes := []route.Route{
		{Match: route.ClientCert("spiffe://a.test/x"), Handler: named("by URI")},
		{Match: route.ClientCert("db.a.test"), Handler: named("by DNS name")},
		{Match: route.ClientCert("alice"), Handler: named("by name")},
		{Match: route.ClientCert(""), Handler: named("by nothing")},
		{Handler: named("else")},
	}
	for _, auth := range []tls.ClientAuthType{tls.VerifyClientCertIfGiven, tls.RequestClientCert} {
		config := ca.ServerConfig("a.test")
		config.ClientAuth = auth
		for _, srv := range []*levee.Server{
			{Handler: &route.Router{TLS: config, Routes: routes}},
			{TLSConfig: config, Handler: &route.Router{Routes: routes}},
		} {
			synctest.Test(t, func(t *testing.T) {
				s := serve(t, srv)
				for name, want := range map[string]string{
					"spiffe://a.test/x": "by URI", "DB.a.test": "by DNS name", "alice": "by name", "bob": "else", "spiffe://a.test/xy": "else",
				} {
					client := ca.ClientConfig("a.test")
					cert := ca.ClientCertificate(name)
					if auth == tls.RequestClientCert {
						cert, want = stranger.ClientCertificate(name), "else"
					}
					client.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil }
					if got, err := askTLS(s.dial(t), client); got != want+` "hi"` || err != nil {
						t.Errorf("%v, %s: %q, %v, want %s", auth, name, got, err, want)
					}
				}
				if got, err := askTLS(s.dial(t), ca.ClientConfig("a.test")); got != `else "hi"` || err != nil {
					t.Errorf("no certificate: %q, %v", got, err)
				}
			})
		}
	}
}

func TestWhatCannotBeAPatternPanics(t *testing.T) {
	for name, make := range map[string]func(){
		"SNI of an address":   func() { route.SNI("192.0.2.7") },
		"SNI of nothing":      func() { route.SNI("") },
		"SNI of two stars":    func() { route.SNI("*.*.test") },
		"SNIRegexp":           func() { route.SNIRegexp("(") },
		"SNIRegexp of two":    func() { route.SNIRegexp("a)|(b") },
		"Source of a zero":    func() { route.Source(netip.Prefix{}) },
		"Source among others": func() { route.Source(netip.MustParsePrefix("10.0.0.0/8"), netip.Prefix{}) },
	} {
		func() {
			defer func() {
				if value := recover(); value == nil || strings.Contains(fmt.Sprint(value), "runtime error") {
					t.Errorf("%s: %v", name, value)
				}
			}()
			make()
		}()
	}
}
