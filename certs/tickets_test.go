package certs_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/levee-net/levee/certs"
)

// A visitor has a session cache, and tells whether he has resumed.
type visitor struct {
	t      *testing.T
	client *tls.Config
}

func newVisitor(t *testing.T, ca *authority, version uint16, name string) *visitor {
	return &visitor{t, &tls.Config{RootCAs: ca.pool(), ServerName: name, MaxVersion: version, ClientSessionCache: tls.NewLRUClientSessionCache(1)}}
}

// visits expects to resume, or not to.
func (v *visitor) visits(server *tls.Config, resumes bool) {
	v.t.Helper()
	if m, err := meet(server, v.client); err != nil || m.server.DidResume != resumes {
		v.t.Errorf("resumed %t, %v; want %t", m.server.DidResume, err, resumes)
	}
}

func secret(t testing.TB) []byte {
	t.Helper()
	b := make([]byte, 32)
	rand.Read(b)
	return b
}

func loadTickets(t testing.TB, file string) *certs.Tickets {
	t.Helper()
	tickets := &certs.Tickets{File: file}
	if err := tickets.Load(); err != nil {
		t.Fatal(err)
	}
	return tickets
}

func TestServersWithTheSameSecretResumeEachOthersSessions(t *testing.T) {
	each(t, func(t *testing.T, version uint16) {
		ca, dir := newAuthority(t, "ca"), t.TempDir()
		get := fixed(ca.server("a.test", "b.test"))
		file := put(t, dir, "secret", secret(t))
		policy := func(ca *authority) *certs.Clients {
			clients := &certs.Clients{Optional: true, CAs: []string{put(t, t.TempDir(), "ca.pem", ca.pem())}}
			if err := clients.Load(); err != nil {
				t.Fatal(err)
			}
			return clients
		}
		one := (&certs.Server{GetCertificate: get, Tickets: loadTickets(t, file), Context: "x"}).Config()
		for name, c := range map[string]struct {
			server  *certs.Server
			resumes bool
		}{
			"the same secret": {&certs.Server{Tickets: loadTickets(t, file), Context: "x"}, true},
			"another secret":  {&certs.Server{Tickets: loadTickets(t, put(t, dir, "other", secret(t))), Context: "x"}, false},
			"another context": {&certs.Server{Tickets: loadTickets(t, file), Context: "y"}, false},
			"a policy":        {&certs.Server{Tickets: loadTickets(t, file), Context: "x", Clients: policy(ca)}, false},
			"random keys":     {&certs.Server{Context: "x"}, false},
			"not loaded":      {&certs.Server{Tickets: &certs.Tickets{File: file}, Context: "x"}, false},
			"no tickets":      {&certs.Server{Tickets: &certs.Tickets{File: file, Rotate: -1}, Context: "x"}, false},
		} {
			t.Run(name, func(t *testing.T) {
				c.server.GetCertificate = get
				v := newVisitor(t, ca, version, "a.test")
				v.visits(one, false)
				v.visits(one, true)
				v.visits(c.server.Config(), c.resumes)
			})
		}
		t.Run("policies", func(t *testing.T) {
			tickets := loadTickets(t, file)
			a := (&certs.Server{GetCertificate: get, Tickets: tickets, Clients: policy(ca)}).Config()
			same := (&certs.Server{GetCertificate: get, Tickets: tickets, Clients: policy(newAuthority(t, "another"))}).Config()
			v := newVisitor(t, ca, version, "a.test")
			v.visits(a, false)
			v.visits(a, true)
			v.visits(same, false)
		})
	})
}

func TestASecretMayComeFromAnywhere(t *testing.T) {
	each(t, func(t *testing.T, version uint16) {
		synctest.Test(t, func(t *testing.T) {
			ca := newAuthority(t, "ca")
			get := fixed(ca.server("a.test"))
			var shared atomic.Pointer[[]byte] // nil when it is out of reach
			share := func(secret []byte) { shared.Store(&secret) }
			share(secret(t))
			ask := func(ctx context.Context) ([]byte, error) {
				if _, bounded := ctx.Deadline(); !bounded {
					t.Error("it may take for ever")
				}
				if s := shared.Load(); s != nil {
					return *s, nil
				}
				return nil, errors.New("out of reach")
			}
			var problems []string
			begin := func() (server *tls.Config, tickets *certs.Tickets) {
				tickets = &certs.Tickets{Secret: ask, Interval: time.Minute, Problem: func(err error) { problems = append(problems, err.Error()) }}
				if err := tickets.Load(); err != nil {
					t.Fatal(err)
				}
				return (&certs.Server{GetCertificate: get, Tickets: tickets}).Config(), tickets
			}
			one, watched := begin()
			other, _ := begin()
			v := newVisitor(t, ca, version, "a.test")
			v.visits(one, false)
			v.visits(other, true)

			ctx, stop := context.WithCancel(t.Context())
			ended := make(chan error)
			go func() { ended <- watched.Watch(ctx) }()
			synctest.Wait()
			shared.Store(nil)
			time.Sleep(2 * time.Minute) // virtual time
			synctest.Wait()
			if want := []string{"session ticket secret: out of reach"}; !slices.Equal(problems, want) {
				t.Errorf("told %q, want %q once", problems, want)
			}
			v.visits(one, true) // by what is in force
			share(secret(t))
			time.Sleep(time.Minute) // virtual time
			synctest.Wait()
			v.visits(one, false)
			stop()
			<-ended
		})
	})
}

// RFC 6066 section 3.
func TestATicketIsForOneName(t *testing.T) {
	each(t, func(t *testing.T, version uint16) {
		ca := newAuthority(t, "ca")
		server := (&certs.Server{GetCertificate: fixed(ca.server("a.test", "b.test"))}).Config()
		v := newVisitor(t, ca, version, "a.test")
		v.client.ClientSessionCache = oneForAll{v.client.ClientSessionCache}
		v.visits(server, false)
		v.visits(server, true)
		v.client.ServerName = "b.test"
		v.visits(server, false)
		v.visits(server, true)
	})
}

// oneForAll is the cache of a client that takes any ticket anywhere.
type oneForAll struct{ tls.ClientSessionCache }

func (c oneForAll) Get(string) (*tls.ClientSessionState, bool) { return c.ClientSessionCache.Get("") }
func (c oneForAll) Put(_ string, s *tls.ClientSessionState)    { c.ClientSessionCache.Put("", s) }

func TestKeysRotate(t *testing.T) {
	file := put(t, t.TempDir(), "secret", secret(t))
	for name, path := range map[string]string{"random": "", "shared": file} {
		t.Run(name, func(t *testing.T) {
			each(t, func(t *testing.T, version uint16) {
				synctest.Test(t, func(t *testing.T) {
					ca := newAuthority(t, "ca")
					tickets := loadTickets(t, path)
					server := (&certs.Server{GetCertificate: fixed(ca.server("a.test")), Tickets: tickets}).Config()
					young, old := newVisitor(t, ca, version, "a.test"), newVisitor(t, ca, version, "a.test")
					young.visits(server, false)
					old.visits(server, false)
					time.Sleep(2*8*time.Hour - time.Second) // virtual time
					young.visits(server, true)
					time.Sleep(8*time.Hour + 2*time.Second) // virtual time
					old.visits(server, false)
					young.visits(server, true)           // by the ticket that it was given then
					time.Sleep(365 * 24 * time.Hour / 2) // virtual time
					young.visits(server, false)
				})
			})
		})
	}
}

func TestASecretMustBeOne(t *testing.T) {
	dir := t.TempDir()
	for name, c := range map[string]struct {
		content []byte
		want    string
	}{
		"empty":   {nil, "0 bytes"},
		"short":   {secret(t)[:31], "31 bytes"},
		"zeros":   {make([]byte, 64), "not random"},
		"letters": {bytes.Repeat([]byte("abc\n"), 100), "not random"},
		"huge":    {bytes.Repeat(secret(t), 1<<12), "larger than"},
	} {
		file := put(t, dir, "secret", secret(t))
		tickets := loadTickets(t, file)
		ca := newAuthority(t, "ca")
		server := (&certs.Server{GetCertificate: fixed(ca.server("a.test")), Tickets: tickets}).Config()
		v := newVisitor(t, ca, tls.VersionTLS13, "a.test")
		v.visits(server, false)
		put(t, dir, "secret", c.content)
		for _, tickets := range []*certs.Tickets{tickets, {File: file}} {
			if err := tickets.Load(); err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), file) {
				t.Errorf("%s: %v", name, err)
			}
		}
		v.visits(server, true) // by the old one
	}
}

func TestAChangedSecretEndsOldTickets(t *testing.T) {
	ca, dir := newAuthority(t, "ca"), t.TempDir()
	tickets := &certs.Tickets{File: put(t, dir, "secret", secret(t)), Interval: time.Millisecond}
	if err := tickets.Load(); err != nil {
		t.Fatal(err)
	}
	watch(t, tickets.Watch)
	server := (&certs.Server{GetCertificate: fixed(ca.server("a.test")), Tickets: tickets}).Config()
	v := newVisitor(t, ca, tls.VersionTLS13, "a.test")
	v.visits(server, false)
	v.visits(server, true)
	put(t, dir, "secret", secret(t))
	late := time.Now().Add(15 * time.Second)
	for {
		m, err := meet(server, v.client)
		if err != nil || time.Now().After(late) {
			t.Fatalf("resumed still: %v", err)
		}
		if !m.server.DidResume {
			break
		}
	}
	v.visits(server, true)
}

func TestASharedSecretThatWasNeverThereIsNotKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var there atomic.Bool
		content := secret(t)
		var told []error
		tickets := &certs.Tickets{
			Interval: time.Minute,
			Problem:  func(err error) { told = append(told, err) },
			Secret: func(context.Context) ([]byte, error) {
				if !there.Load() {
					return nil, errors.New("out of reach")
				}
				return content, nil
			},
		}
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- tickets.Watch(ctx) }()
		synctest.Wait()
		there.Store(true)
		time.Sleep(time.Minute) // virtual time
		synctest.Wait()
		there.Store(false)
		time.Sleep(time.Minute) // virtual time
		synctest.Wait()
		if len(told) != 2 || errors.Is(told[0], certs.ErrKept) || !errors.Is(told[1], certs.ErrKept) {
			t.Errorf("told %v, want a first that keeps nothing, and one that does", told)
		}
		stop()
		<-ended
	})
}
