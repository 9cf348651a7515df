package route_test

import (
	"crypto/tls"
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

const (
	postgresStartup = "\x00\x00\x00\x12\x00\x03\x00\x00user\x00al\x00\x00\x00"
	postgresRefusal = "E\x00\x00\x00\x48SFATAL\x00VFATAL\x00C28000\x00Mthis server takes encrypted connections only\x00\x00"
)

// A step of a dialogue: what the client sends, byte by byte, and the answer that it waits for.
type step struct{ send, answer string }

// converse goes through the steps.
func converse(t *testing.T, c net.Conn, steps ...step) {
	t.Helper()
	for _, step := range steps {
		for _, b := range []byte(step.send) {
			c.Write([]byte{b})
			synctest.Wait()
		}
		answer := make([]byte, len(step.answer))
		if _, err := io.ReadFull(c, answer); string(answer) != step.answer || err != nil {
			t.Errorf("to %q it answered %q, %v, want %q", step.send, answer, err, step.answer)
		}
	}
}

func postgresRouter(ca *leveetest.CA, required bool) *route.Router {
	return &route.Router{StartTLS: route.PostgresTLS, RequireTLS: required, TLS: ca.ServerConfig("*.test"), Routes: []route.Route{
		{Match: route.All(route.Postgres, route.SNI("a.test")), Handler: named("a")},
		{Match: route.SNI("through.test"), Passthrough: true, Handler: passing(ca, "through")},
		{Match: route.Postgres, Handler: named("else")},
		httpRoute,
	}}
}

func TestAPostgresClientBeginsTLSByItsRequest(t *testing.T) {
	ca := leveetest.NewCA(t)
	for _, required := range []bool{false, true} {
		for what, steps := range map[string][]step{
			"a request":                  {{postgresTLS, "S"}},
			"first by GSSAPI":            {{postgresGSS, "N"}, {postgresTLS, "S"}},
			"at once":                    nil,
			"at once, after it by GSS …": {{postgresGSS, "N"}},
		} {
			synctest.Test(t, func(t *testing.T) {
				s := serveRoutes(t, postgresRouter(ca, required))
				for name, want := range map[string]string{"a.test": "a", "b.test": "else"} {
					raw := s.dial(t)
					converse(t, raw, steps...)
					c := tls.Client(raw, ca.ClientConfig(name))
					io.WriteString(c, postgresStartup)
					c.CloseWrite()
					if got, err := io.ReadAll(c); string(got) != fmt.Sprintf("%s %q", want, postgresStartup) || err != nil {
						t.Errorf("%s, %s: %q, %v", what, name, got, err)
					}
				}
			})
		}
	}
}

func TestPlaintextOfAPostgresClientIsLeftAsItIsOrRefusedInItsWords(t *testing.T) {
	ca := leveetest.NewCA(t)
	synctest.Test(t, func(t *testing.T) {
		s := serveRoutes(t, postgresRouter(ca, false))
		for text, want := range map[string]string{
			postgresStartup: "else", postgresCancel: "else", "GET / HTTP/1.1\r\n": "http",
		} {
			if got := ask(t, s, strings.Split(text, "")...); got != fmt.Sprintf("%s %q", want, text) {
				t.Errorf("%q: %q", text, got)
			}
			<-s.ends
		}
		c := s.dial(t)
		converse(t, c, step{postgresGSS, "N"})
		io.WriteString(c, postgresStartup)
		c.CloseWrite()
		if got, err := io.ReadAll(c); string(got) != fmt.Sprintf("else %q", postgresStartup) || err != nil {
			t.Errorf("after GSS: %q, %v", got, err)
		}
		<-s.ends
	})
	synctest.Test(t, func(t *testing.T) {
		s := serveRoutes(t, postgresRouter(ca, true))
		for text, answer := range map[string]string{postgresStartup: postgresRefusal, postgresCancel: "", "GET / HTTP/1.1\r\n": "", "\x00\x01": ""} {
			c := s.dial(t)
			io.WriteString(c, text)
			if got, _ := io.ReadAll(c); string(got) != answer {
				t.Errorf("%q: %q, want %q", text, got, answer)
			}
			if end := wantEnd(t, s, levee.NoRoute, route.ErrPlaintext); end.Duration > time.Second {
				t.Errorf("%q: after %v", text, end.Duration)
			}
		}
	})
}

// What comes between the request and the hello could be taken for something that came
// encrypted: CVE-2021-23214.
func TestNothingInPlaintextGetsBehindAPostgresClientsRequest(t *testing.T) {
	ca := leveetest.NewCA(t)
	for _, required := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			s := serveRoutes(t, postgresRouter(ca, required))
			for _, ahead := range []string{postgresStartup, "x", hello("a.test")} {
				c := s.dial(t)
				io.WriteString(c, postgresTLS+ahead)
				if got, _ := io.ReadAll(c); len(got) != 0 {
					t.Errorf("%q: %q", ahead, got)
				}
				wantEnd(t, s, levee.NoRoute, nil)
			}
			for _, next := range []string{postgresStartup, postgresTLS, "GET / HTTP/1.1\r\n"} {
				c := s.dial(t)
				converse(t, c, step{postgresTLS, "S"})
				io.WriteString(c, next)
				if got, _ := io.ReadAll(c); len(got) != 0 {
					t.Errorf("%q: %q", next, got)
				}
				wantEnd(t, s, levee.NoRoute, route.ErrPlaintext)
			}
		})
	}
}

func TestAPostgresDialogueIsBounded(t *testing.T) {
	ca := leveetest.NewCA(t)
	synctest.Test(t, func(t *testing.T) {
		s := serveRoutes(t, postgresRouter(ca, false))
		c := s.dial(t)
		converse(t, c, step{postgresGSS, "N"})
		io.WriteString(c, postgresGSS)
		if got, err := io.ReadAll(c); len(got) != 0 || err != nil {
			t.Errorf("%q, %v", got, err)
		}
		wantEnd(t, s, levee.NoRoute, nil)

		for _, steps := range [][]step{nil, {{postgresTLS[:7], ""}}, {{postgresTLS, "S"}}, {{postgresGSS, "N"}}} {
			c := s.dial(t)
			converse(t, c, steps...)
			if end := wantEnd(t, s, levee.ArrivalTimeout, nil); end.Duration.Round(time.Second) != 5*time.Second {
				t.Errorf("%v: after %v", steps, end.Duration)
			}
		}
		s.dial(t).Close()
		wantEnd(t, s, levee.NoRoute, route.ErrNoMatch)
		c = s.dial(t)
		converse(t, c, step{postgresTLS, "S"})
		c.Close()
		wantEnd(t, s, levee.ClientAborted, io.EOF)
	})
}

func TestAPostgresPassthroughBeginsWithTheHello(t *testing.T) {
	ca := leveetest.NewCA(t)
	config := ca.ClientConfig("through.test")
	config.InsecureSkipVerify = true // the handler's certificate is for another name
	synctest.Test(t, func(t *testing.T) {
		s := serveRoutes(t, postgresRouter(ca, true))
		raw := s.dial(t)
		converse(t, raw, step{postgresTLS, "S"})
		if got, err := askTLS(raw, config); got != `through through "hi"` || err != nil {
			t.Errorf("%q, %v", got, err)
		}
		if end := <-s.ends; errors.Is(end.Err, route.ErrNoMatch) {
			t.Error(end.Err)
		}
	})
}
