package route_test

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"crypto/hpke"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/leveetest"
	"github.com/levee-net/levee/route"
)

// serveRoutes serves a router in a bubble.
func serveRoutes(t *testing.T, r *route.Router) *server {
	t.Helper()
	return serve(t, &levee.Server{Handler: r})
}

// say makes a handshake, says something and returns the answer.
func say(t *testing.T, s *server, config *tls.Config, text string) (string, error) {
	t.Helper()
	c := tls.Client(s.dial(t), config)
	if _, err := io.WriteString(c, text); err != nil {
		return "", err
	}
	c.CloseWrite()
	got, err := io.ReadAll(c)
	return string(got), err
}

func wantSaid(t *testing.T, s *server, config *tls.Config, text, want string) {
	t.Helper()
	if got, err := say(t, s, config, text); got != fmt.Sprintf("%s %q", want, text) || err != nil {
		t.Errorf("%s, %q: %q, %v, want %s", config.ServerName, text, got, err, want)
	}
	<-s.ends
}

// wantEnd wants the next connection to have ended for that reason, and of that error if it is not nil.
func wantEnd(t *testing.T, s *server, reason levee.CloseReason, err error) levee.End {
	t.Helper()
	end := <-s.ends
	if end.Reason != reason || err != nil && !errors.Is(end.Err, err) {
		t.Errorf("it ended with %v, %v, want %v, %v", end.Reason, end.Err, reason, err)
	}
	return end
}

func TestARouteWithAStricterPolicyIsNotToBeHadUnderAnothers(t *testing.T) {
	ca := leveetest.NewCA(t)
	lax, strict := ca.ServerConfig("*.test"), ca.ServerConfig("*.test")
	strict.ClientAuth = tls.RequireAndVerifyClientCert
	synctest.Test(t, func(t *testing.T) {
		s := serveRoutes(t, &route.Router{TLS: lax, Routes: []route.Route{
			{Match: route.All(route.SNI("a.test"), route.SSH), Handler: named("a's ssh")},
			{Match: route.SNI("b.test"), TLS: strict, Handler: named("b")},
			{Match: route.HTTP, TLS: strict, Handler: named("web of members")},
			{Match: route.HTTP, Passthrough: true, Handler: named("web elsewhere")},
			{Match: route.Prefix("x"), Handler: named("x")},
			{Handler: named("members"), TLS: strict},
		}})
		outsider, member := ca.ClientConfig("a.test"), ca.ClientConfig("b.test")
		member.Certificates = []tls.Certificate{ca.ClientCertificate("alice")}
		wantSaid(t, s, outsider, "SSH-2.0-x", "a's ssh")
		wantSaid(t, s, outsider, "xyz", "x")
		for _, text := range []string{"GET / HTTP/1.1\r\nHost: b.test\r\n\r\n", "y", ""} {
			if got, err := say(t, s, outsider, text); got != "" || err != nil {
				t.Errorf("%q: %s, %v", text, got, err)
			}
			wantEnd(t, s, levee.NoRoute, route.ErrNoMatch)
		}
		if got := ask(t, s, "GET /"); got != `web elsewhere "GET /"` {
			t.Errorf("in plaintext: %s", got)
		}
		<-s.ends
		if got := ask(t, s, "y"); got != "" {
			t.Errorf("in plaintext: %s", got)
		}
		wantEnd(t, s, levee.NoRoute, route.ErrNoMatch)
		wantSaid(t, s, member, "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n", "b")
		c := ca.ClientConfig("b.test")
		if got, err := say(t, s, c, "x"); got != "" || err == nil {
			t.Errorf("without a certificate: %q, %v", got, err)
		}
		wantEnd(t, s, levee.TLSFailed, nil)
		c.ServerName = "c.test" // for HTTP, which could be one of the members'
		if got, err := say(t, s, c, "GET /"); got != "" || err == nil {
			t.Errorf("without a certificate: %q, %v", got, err)
		}
		wantEnd(t, s, levee.TLSFailed, nil)
	})
}

func TestRoutesOfOneConfigurationShareItsHandshake(t *testing.T) {
	ca := leveetest.NewCA(t)
	own := ca.ServerConfig("*.test")
	synctest.Test(t, func(t *testing.T) {
		s := serveRoutes(t, &route.Router{TLS: ca.ServerConfig("*.test"), Routes: []route.Route{
			{Match: route.All(route.SNI("a.test"), route.HTTP), Handler: named("a's web")},
			{Match: route.SNI("a.test"), Handler: named("a")},
			{Match: route.All(route.SNI("b.test"), route.HTTP), TLS: own, Handler: named("b's web")},
			{Match: route.SNI("b.test"), TLS: own, Handler: named("b")},
			{Match: route.All(route.TLS, route.SSH), Handler: named("ssh")},
			{Match: route.Not(route.TLS), Handler: named("plain")},
		}})
		a, b := ca.ClientConfig("a.test"), ca.ClientConfig("b.test")
		wantSaid(t, s, a, "GET ", "a's web")
		wantSaid(t, s, a, "SSH-", "a")
		wantSaid(t, s, a, "", "a")
		wantSaid(t, s, b, "GET ", "b's web")
		wantSaid(t, s, b, "SSH-", "b")
		wantSaid(t, s, ca.ClientConfig("c.test"), "SSH-", "ssh")
		if got := ask(t, s, "GET "); got != `plain "GET "` {
			t.Error(got)
		}
	})
}

func TestARouteThatTerminatesNothingIsNotToBeHadByTerminating(t *testing.T) {
	ca := leveetest.NewCA(t)
	synctest.Test(t, func(t *testing.T) {
		s := serveRoutes(t, &route.Router{Routes: []route.Route{
			{Match: route.All(route.SNI("a.test"), route.SSH), TLS: ca.ServerConfig("a.test"), Handler: named("ssh")},
			{Handler: passing(ca, "as it is")},
		}})
		wantSaid(t, s, ca.ClientConfig("a.test"), "SSH-", "ssh")
		wantSaid(t, s, ca.ClientConfig("a.through.test"), "SSH-", "as it is through")
		if got, _ := say(t, s, ca.ClientConfig("a.test"), "GET /"); got != "" {
			t.Error(got)
		}
		wantEnd(t, s, levee.NoRoute, route.ErrNoMatch)
	})
}

// A route that lets TLS pass never learns what it carries.
func TestPassthroughIsForWhatTheHelloTells(t *testing.T) {
	ca := leveetest.NewCA(t)
	synctest.Test(t, func(t *testing.T) {
		s := serveRoutes(t, &route.Router{Routes: []route.Route{
			{Match: route.HTTP, Passthrough: true, Handler: named("web")},
			{Match: route.ClientCert("alice"), Passthrough: true, Handler: named("alice")},
			{Match: route.All(route.SNI("a.test"), route.SSH), Passthrough: true, Handler: named("ssh")},
			{Match: route.SNI("a.test"), Passthrough: true, Handler: passing(ca, "a")},
			{Match: route.SNI("b.through.test"), Handler: passing(ca, "b")},
		}})
		wantSaid(t, s, ca.ClientConfig("b.through.test"), "GET /", "b through")
		c := ca.ClientConfig("a.test")
		c.InsecureSkipVerify = true // the handler has no certificate for a.test
		wantSaid(t, s, c, "SSH-", "a through")
		if got := ask(t, s, "GET /"); got != `web "GET /"` {
			t.Error(got)
		}
	})
}

func TestRouterThatTerminatesNothingGivesTLSAsItIs(t *testing.T) {
	ca := leveetest.NewCA(t)
	raw := string(helloOf(t, ca.ClientConfig("a.test")))
	for _, test := range []struct {
		match route.Matcher
		yes   bool
	}{
		{nil, true},
		{route.TLS, true},
		{route.SNI("a.test"), true},
		{route.Prefix("\x16\x03"), true},
		{route.Not(route.HTTP), true},
		{route.Not(route.ClientCert("x")), true},
		{route.Any(route.HTTP, route.TLS), true},
		{route.All(route.HTTP, route.TLS), false},
		{route.HTTP, false},
		{route.Prefix("GET "), false},
		{route.ClientCert("x"), false},
		{route.SNI("b.test"), false},
		{route.Not(route.TLS), false},
	} {
		synctest.Test(t, func(t *testing.T) {
			s := serveRoutes(t, &route.Router{Routes: []route.Route{{Match: route.SSH}, {Match: test.match, Handler: named("it")}}})
			got := ask(t, s, raw[:100], raw[100:])
			switch {
			case test.yes && got != fmt.Sprintf("it %q", raw):
				t.Errorf("%q", got)
			case !test.yes && got != "\x15\x03\x03\x00\x02\x02\x70":
				t.Errorf("%q, want an alert", got)
			}
		})
	}
}

func TestPlaintextIsRefusedAtOnceWhereTLSIsRequired(t *testing.T) {
	ca := leveetest.NewCA(t)
	synctest.Test(t, func(t *testing.T) {
		s := serveRoutes(t, &route.Router{RequireTLS: true, TLS: ca.ServerConfig("a.test"), Routes: []route.Route{{Match: route.HTTP, Handler: named("web")}, elseRoute}})
		wantSaid(t, s, ca.ClientConfig("a.test"), "GET ", "web")
		for _, text := range []string{"G", "\x15\x03\x01\x00\x02\x01\x00" + hello("a.test"), "PROXY ", "\x80\x2e\x01"} {
			c := s.dial(t)
			io.WriteString(c, text)
			if end := wantEnd(t, s, levee.NoRoute, route.ErrPlaintext); end.Duration > time.Second {
				t.Errorf("%q: after %v", text, end.Duration)
			}
		}
		s.dial(t).Close()
		wantEnd(t, s, levee.ClientAborted, io.EOF)
		s.dial(t)
		if end := wantEnd(t, s, levee.ArrivalTimeout, nil); end.Duration.Round(time.Second) != 5*time.Second {
			t.Errorf("silence ends after %v", end.Duration)
		}
	})
}

func TestWhatBeginsAsTLSAndIsNoneIsRefusedAtOnce(t *testing.T) {
	ca := leveetest.NewCA(t)
	scattered := "" // a hello in records of a byte, more than anybody would send
	for range 14_000 {
		scattered += "\x16\x03\x01\x00\x01\x01"
	}
	for _, config := range []*tls.Config{nil, ca.ServerConfig("a.test")} {
		synctest.Test(t, func(t *testing.T) {
			s := serveRoutes(t, &route.Router{TLS: config, Routes: []route.Route{httpRoute, {Match: route.Source(), Passthrough: true}, elseRoute}})
			for what, text := range map[string]string{
				"another version": "\x16\x99", "no hello": "\x16\x03\x01\x00\x04\x02", "an empty record": "\x16\x03\x01\x00\x00", "a record too long": "\x16\x03\x01\x40\x01",
				"a message too long": "\x16\x03\x01\x00\x04\x01\x01\x00\x01", "garbage": "\x16\x03\x01\x00\x05\x01\x00\x00\x01x", "an address": hello("192.0.2.7"),
				"two names": string(helloWith(0, nameList("a.test", "b.test"))), "a NUL": hello("a.test\x00"), "not ASCII": hello("bücher.test"),
				"another record in between": "\x16\x03\x01\x00\x01\x01\x15\x03\x01\x00\x02\x01\x00", "records without end": "\x16\x03\x01\x00\x04\x01\x00\xff\xff" + scattered,
			} {
				c := s.dial(t)
				go io.WriteString(c, text) // ends with the test at the latest
				got, _ := io.ReadAll(c)
				if string(got) != "\x15\x03\x03\x00\x02\x02\x32" && what != "records without end" {
					t.Errorf("%s: %q, want an alert", what, got)
				}
				if end := wantEnd(t, s, levee.NoRoute, route.ErrBadHello); end.Duration > time.Second {
					t.Errorf("%s: after %v", what, end.Duration)
				}
			}
			c := s.dial(t)
			io.WriteString(c, hello("a.test")[:50])
			c.Close()
			wantEnd(t, s, levee.ClientAborted, route.ErrBadHello)

			c = s.dial(t)
			for _, b := range hello("a.test") {
				c.Write([]byte{byte(b)})
				time.Sleep(time.Second) // virtual time
			}
			if end := wantEnd(t, s, levee.ArrivalTimeout, nil); end.Duration.Round(time.Second) != 5*time.Second {
				t.Errorf("a drip ends after %v", end.Duration)
			}
		})
	}
}

func TestAClientThatNoRouteIsForIsToldByAnAlert(t *testing.T) {
	ca := leveetest.NewCA(t)
	synctest.Test(t, func(t *testing.T) {
		s := serveRoutes(t, &route.Router{TLS: ca.ServerConfig("*.test"), Routes: []route.Route{{Match: route.SNI("a.test"), Handler: named("a")}}})
		_, err := say(t, s, ca.ClientConfig("b.test"), "x")
		if err == nil || !strings.Contains(err.Error(), "unrecognized name") {
			t.Error(err)
		}
		wantEnd(t, s, levee.NoRoute, route.ErrNoMatch)
	})
}

func TestARouteRefusesAsSoonAsItMatches(t *testing.T) {
	ca := leveetest.NewCA(t)
	config := ca.ServerConfig("*.test")
	handshakes := 0
	config.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		handshakes++
		return nil, nil
	}
	synctest.Test(t, func(t *testing.T) {
		s := serveRoutes(t, &route.Router{TLS: config, Routes: []route.Route{
			{Match: route.SNI("a.test"), Refuse: true, Name: "blocked"},
			{Match: route.SNI("p.test"), Refuse: true, Passthrough: true},
			{Match: route.SSH, Refuse: true},
			{Handler: named("rest")},
		}})
		for _, name := range []string{"a.test", "p.test"} {
			_, err := say(t, s, ca.ClientConfig(name), "x")
			if err == nil || !strings.Contains(err.Error(), "access denied") || handshakes > 0 {
				t.Errorf("%s: %v after %d handshakes", name, err, handshakes)
			}
			end := wantEnd(t, s, levee.NoRoute, route.ErrRefused)
			if of, ok := errors.AsType[*route.Error](end.Err); ok != (name == "a.test") || ok && (of.Route != "blocked" || of.Error() != "route blocked: refused") {
				t.Error(end.Err)
			}
		}
		wantSaid(t, s, ca.ClientConfig("b.test"), "xyz", "rest")
		if got, err := say(t, s, ca.ClientConfig("b.test"), "SSH-2.0-x"); got != "" || err != nil {
			t.Errorf("inside of TLS: %q, %v", got, err)
		}
		wantEnd(t, s, levee.NoRoute, route.ErrRefused)
		if got := ask(t, s, "SSH-2.0-x"); got != "" {
			t.Errorf("in plaintext: %q", got)
		}
		wantEnd(t, s, levee.NoRoute, route.ErrRefused)
	})
}

func TestGarbageIsRefusedAsSoonAsAllHaveSaidNo(t *testing.T) {
	ca := leveetest.NewCA(t)
	synctest.Test(t, func(t *testing.T) {
		s := serveRoutes(t, &route.Router{TLS: ca.ServerConfig("*.test"), Routes: []route.Route{
			{Match: route.HTTP, Handler: named("web")},
			{Match: route.Postgres, Handler: named("db")},
			{Match: route.Redis, Handler: named("cache")},
			{Match: route.MQTT, Handler: named("queue")},
			{Match: route.SSH, Handler: named("shell")},
		}})
		for _, garbage := range []string{"\x00\x01", "x", "GETX", "\x10\xff\xff\xff\xff", "*x", "SSH_"} {
			io.WriteString(s.dial(t), garbage)
			if end := wantEnd(t, s, levee.NoRoute, route.ErrNoMatch); end.Duration > time.Second {
				t.Errorf("%q in plaintext: after %v", garbage, end.Duration)
			}
			io.WriteString(tls.Client(s.dial(t), ca.ClientConfig("a.test")), garbage)
			if end := wantEnd(t, s, levee.NoRoute, route.ErrNoMatch); end.Duration > time.Second {
				t.Errorf("%q over TLS: after %v", garbage, end.Duration)
			}
		}
	})
}

func TestBehindTheServersTLSRoutesGoByWhatItAgreedOn(t *testing.T) {
	ca := leveetest.NewCA(t)
	config := ca.ServerConfig("*.test")
	config.NextProtos = []string{"x", "y"}
	synctest.Test(t, func(t *testing.T) {
		s := serve(t, &levee.Server{TLSConfig: config, AllowPlaintext: true, Handler: &route.Router{RequireTLS: true, Routes: []route.Route{
			{Match: route.SNI("a.test"), TLS: ca.ServerConfig("a.test"), Handler: named("another's")},
			{Match: route.SNI("a.test"), Passthrough: true, Handler: named("elsewhere")},
			{Match: route.ALPN("y"), Handler: named("y")},
			{Match: route.SNI("b.test"), TLS: config, Handler: named("b")},
			{Match: route.HTTP, Handler: named("web")},
		}}})
		a, b := ca.ClientConfig("a.test"), ca.ClientConfig("B.Test")
		wantSaid(t, s, a, "GET /", "web")
		wantSaid(t, s, b, "GET /", "b")
		b.NextProtos = []string{"y", "x"}
		wantSaid(t, s, b, "", "b") // x was agreed on
		b.NextProtos = []string{"y"}
		wantSaid(t, s, b, "", "y")
		if got, _ := say(t, s, a, "z"); got != "" {
			t.Error(got)
		}
		wantEnd(t, s, levee.NoRoute, route.ErrNoMatch)
		if got := ask(t, s, "GET /"); got != "" {
			t.Error(got)
		}
		wantEnd(t, s, levee.NoRoute, route.ErrPlaintext)
	})
}

func TestTheProtocolAgreedOnDecidesBetweenRoutes(t *testing.T) {
	ca := leveetest.NewCA(t)
	config := ca.ServerConfig("a.test")
	config.NextProtos = []string{"x", "y"}
	synctest.Test(t, func(t *testing.T) {
		s := serveRoutes(t, &route.Router{TLS: config, Routes: []route.Route{
			{Match: route.ALPN("y"), Handler: named("y")},
			{Match: route.ALPN("x"), Handler: named("x")},
			{Match: route.ALPN("z"), TLS: ca.ServerConfig("a.test"), Handler: named("z")}, // agrees on none
		}})
		for want, offers := range map[string][]string{"x": {"y", "x"}, "y": {"y", "z"}, "z": {"z"}} {
			client := ca.ClientConfig("a.test")
			client.NextProtos = offers
			wantSaid(t, s, client, "", want)
		}
	})
}

// echConfig is a configuration of encrypted hellos, for the public name.
func echConfig(t *testing.T, public string) (config, list []byte, key tls.EncryptedClientHelloKey) {
	t.Helper()
	private, err := hpke.DHKEM(ecdh.X25519()).GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	secret, err := private.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	sized := func(b []byte) []byte { return append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...) }
	contents := []byte{1, 0, 0x20} // its number; X25519 with HKDF-SHA256
	contents = append(contents, sized(private.PublicKey().Bytes())...)
	contents = append(contents, sized([]byte{0, 1, 0, 1})...) // HKDF-SHA256, AES-128-GCM
	contents = append(contents, 32, byte(len(public)))
	contents = append(append(contents, public...), 0, 0)
	config = append([]byte{0xfe, 0x0d}, sized(contents)...)
	return config, sized(config), tls.EncryptedClientHelloKey{Config: config, PrivateKey: secret}
}

func TestAHandshakeThatAgreesOnAnotherNameThanTheHelloIsRefused(t *testing.T) {
	ca := leveetest.NewCA(t)
	config := ca.ServerConfig("*.test")
	_, list, key := echConfig(t, "a.test")
	config.EncryptedClientHelloKeys = []tls.EncryptedClientHelloKey{key}
	synctest.Test(t, func(t *testing.T) {
		s := serveRoutes(t, &route.Router{TLS: config, Routes: []route.Route{
			{Match: route.SNI("a.test"), Handler: named("a")},
			{Match: route.SNI("b.test"), Handler: named("b")},
		}})
		client := ca.ClientConfig("a.test")
		wantSaid(t, s, client, "x", "a")
		client.EncryptedClientHelloConfigList = list
		wantSaid(t, s, client, "x", "a")
		client.ServerName = "b.test" // and a.test for who looks from outside
		if got, _ := say(t, s, client, "x"); got != "" {
			t.Errorf("%q", got)
		}
		wantEnd(t, s, levee.NoRoute, route.ErrBadHello)
	})
}

func TestAPROXYHeaderIsRefusedUnlessItIsAskedFor(t *testing.T) {
	const v1, v2 = "PROXY TCP4 192.0.2.7 192.0.2.8 1 2\r\n", "\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c\x00"
	ca := leveetest.NewCA(t)
	client := ca.ClientConfig("a.test")
	synctest.Test(t, func(t *testing.T) {
		s := serveRoutes(t, &route.Router{TLS: ca.ServerConfig("a.test"), Routes: []route.Route{
			{Match: route.Not(route.Prefix("PROXY ", "P")), Handler: named("not p")},
			{Match: route.Any(route.Not(route.Prefix("PROXY ")), route.Prefix("P")), Handler: named("p")},
			elseRoute,
		}})
		for _, header := range []string{v1, v2} {
			for cut := range 13 {
				if got := ask(t, s, header[:cut], header[cut:]); got != "" {
					t.Errorf("%q + %q: %s", header[:cut], header[cut:], got)
				}
				wantEnd(t, s, levee.NoRoute, route.ErrProxyHeader)
			}
		}
		for text, want := range map[string]string{"PROXY": "p", "P": "p", "PROX\n": "p", "\r\n\r\n": "not p", "\r\n\r\n\x00\r\nQUIT\r": "not p", "": "not p"} {
			if got := ask(t, s, strings.Split(text, "")...); got != fmt.Sprintf("%s %q", want, text) {
				t.Errorf("%q: %s", text, got)
			}
			<-s.ends
		}
	})
	synctest.Test(t, func(t *testing.T) {
		s := serveRoutes(t, &route.Router{TLS: ca.ServerConfig("a.test"), Routes: []route.Route{httpRoute, elseRoute}})
		for _, header := range []string{v1, v2} {
			if got, _ := say(t, s, client, header); got != "" {
				t.Errorf("over TLS: %s", got)
			}
			wantEnd(t, s, levee.NoRoute, route.ErrProxyHeader)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		s := serveRoutes(t, &route.Router{TLS: ca.ServerConfig("a.test"), Routes: []route.Route{
			{Match: route.All(route.Prefix("PROXY "), route.LocalPort(1)), Handler: named("another port")},
			{Match: route.Prefix("PROXY TCP4 ", "\r\n\r\n\x00\r\nQUIT\n\x21"), Handler: named("asked")},
			httpRoute, elseRoute,
		}})
		wantSaid(t, s, client, v1, "asked")
		for header, want := range map[string]string{v1: "asked", v2: "asked", "PROXY UNKNOWN\r\n": ""} {
			got := ask(t, s, strings.Split(header, "")...)
			if want != "" {
				want = fmt.Sprintf("%s %q", want, header)
			}
			if got != want {
				t.Errorf("%q: %s", header, got)
			}
		}
	})
}

func TestRouterThatTerminatesWaitsForTheFirstByte(t *testing.T) {
	ca := leveetest.NewCA(t)
	synctest.Test(t, func(t *testing.T) {
		s := serveRoutes(t, &route.Router{Routes: []route.Route{
			{Handler: named("first")},
			{Handler: named("second"), TLS: ca.ServerConfig("a.test")},
		}})
		if got := ask(t, s, ""); got != `first ""` {
			t.Error(got)
		}
		<-s.ends
		s.dial(t)
		wantEnd(t, s, levee.ArrivalTimeout, nil)
	})
}

func TestAHandshakeThatFailsEndsAsOneAndNamesItsRoute(t *testing.T) {
	ca := leveetest.NewCA(t)
	config := ca.ServerConfig("a.test")
	config.MinVersion = tls.VersionTLS13
	synctest.Test(t, func(t *testing.T) {
		s := serveRoutes(t, &route.Router{Routes: []route.Route{{Match: route.SNI("a.test"), TLS: config, Name: "db", Handler: named("a")}}})
		client := ca.ClientConfig("a.test")
		client.MaxVersion = tls.VersionTLS12
		if _, err := say(t, s, client, "x"); err == nil || !strings.Contains(err.Error(), "protocol version") {
			t.Error(err)
		}
		if end := wantEnd(t, s, levee.TLSFailed, nil); end.Err == nil || !strings.HasPrefix(end.Err.Error(), "route db: ") {
			t.Error(end.Err)
		}
		c := s.dial(t) // a hello, and nothing after it
		c.Write(helloOf(t, ca.ClientConfig("a.test")))
		if end := wantEnd(t, s, levee.ArrivalTimeout, nil); end.Duration.Round(time.Second) != 5*time.Second {
			t.Errorf("after %v", end.Duration)
		}
	})
}

func TestRouterWithinARouterSeesTheSameConnection(t *testing.T) {
	ca := leveetest.NewCA(t)
	config := ca.ServerConfig("*.test")
	synctest.Test(t, func(t *testing.T) {
		inner := &route.Router{Routes: []route.Route{
			{Match: route.SNI("a.test"), TLS: config, Handler: named("its own")}, // of which the inner one knows nothing
			{Match: route.All(route.SNI("a.test"), route.SSH), Handler: named("a's ssh")},
			{Match: route.HTTP, Handler: named("web")},
		}}
		s := serveRoutes(t, &route.Router{TLS: config, Routes: []route.Route{{Match: route.HTTP, Handler: named("outer")}, {Handler: inner}}})
		wantSaid(t, s, ca.ClientConfig("a.test"), "SSH-2", "a's ssh")
		wantSaid(t, s, ca.ClientConfig("a.test"), "GET /", "outer")
		if got, _ := say(t, s, ca.ClientConfig("b.test"), "SSH-2"); got != "" {
			t.Error(got)
		}
		wantEnd(t, s, levee.NoRoute, route.ErrNoMatch)
	})
}

func TestRouterBehindMiddlewareTerminatesToo(t *testing.T) {
	ca := leveetest.NewCA(t)
	router := &route.Router{TLS: ca.ServerConfig("a.test"), RequireTLS: true, Routes: []route.Route{{Match: route.HTTP, Handler: named("web")}}}
	synctest.Test(t, func(t *testing.T) {
		s := serve(t, &levee.Server{Handler: levee.HandlerFunc(func(ctx context.Context, c *levee.Conn) error {
			return router.ServeTCP(ctx, c)
		})})
		wantSaid(t, s, ca.ClientConfig("a.test"), "GET /", "web")
		if got := ask(t, s, "GET /"); got != "" {
			t.Error(got)
		}
		wantEnd(t, s, levee.HandlerError, route.ErrPlaintext)
	})
}

// What lies behind the hello in the same segments is the handshake's and the handler's.
func TestNothingOfAConnectionIsLostToTheLook(t *testing.T) {
	ca := leveetest.NewCA(t)
	socket, err := levee.Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &levee.Server{Handler: byNames(ca, "a")}
	go srv.Serve(context.Background(), socket)
	t.Cleanup(func() { srv.Close() })
	text := bytes.Repeat([]byte("0123456789abcdef"), 20_000)
	for _, name := range []string{"a.test", "a.through.test"} {
		raw, err := net.Dial("tcp", socket.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		c := tls.Client(raw, ca.ClientConfig(name))
		go func() { // ends with c
			c.Write(text)
			c.CloseWrite()
		}()
		got, err := io.ReadAll(c)
		if err != nil || !bytes.Contains(got, text) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
		raw.Close()
	}
}
