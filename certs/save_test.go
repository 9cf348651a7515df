package certs_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/levee-net/levee/certs"
)

func save(t testing.TB, tickets *certs.Tickets) []byte {
	t.Helper()
	saved, err := tickets.Save()
	if err != nil {
		t.Fatal(err)
	}
	return saved
}

func TestSessionsResumeInAnotherProcess(t *testing.T) {
	for name, rotate := range map[string]time.Duration{"the same": 0, "spelt out": 8 * time.Hour, "another": time.Hour, "none": -1} {
		t.Run(name, func(t *testing.T) {
			each(t, func(t *testing.T, version uint16) {
				synctest.Test(t, func(t *testing.T) {
					resumes := name == "the same" || name == "spelt out"
					ca := newAuthority(t, "ca")
					serves := func(tickets *certs.Tickets) *certs.Server {
						return &certs.Server{GetCertificate: fixed(ca.server("a.test")), Tickets: tickets}
					}
					before := new(certs.Tickets)
					old := serves(before).Config()
					first := newVisitor(t, ca, version, "a.test")
					first.visits(old, false)
					time.Sleep(9 * time.Hour) // virtual time
					second := newVisitor(t, ca, version, "a.test")
					second.visits(old, false)

					now := &certs.Tickets{Rotate: rotate}
					server := serves(now).Config()
					stranger := newVisitor(t, ca, version, "a.test")
					stranger.visits(server, false) // it has keys already
					if err := now.Restore(save(t, before)); err != nil {
						t.Fatal(err)
					}
					first.visits(server, resumes)
					second.visits(server, resumes)
					third := newVisitor(t, ca, version, "a.test")
					third.visits(server, false)
					third.visits(old, resumes) // which uses the same key

					last := newVisitor(t, ca, version, "a.test")
					last.visits(old, false)
					time.Sleep(24 * time.Hour) // virtual time
					last.visits(server, false) // its key is as old as it would be in the process that made it
				})
			})
		})
	}
}

func TestKeysThatAreSharedAreNotHandedOn(t *testing.T) {
	file := put(t, t.TempDir(), "secret", secret(t))
	for _, tickets := range []*certs.Tickets{loadTickets(t, file), {File: file}, {Rotate: -1}} {
		if saved := save(t, tickets); saved != nil {
			t.Errorf("%d bytes", len(saved))
		}
	}
	ca := newAuthority(t, "ca")
	get := fixed(ca.server("a.test"))
	one, other := loadTickets(t, file), loadTickets(t, file)
	if err := other.Restore(save(t, new(certs.Tickets))); err != nil {
		t.Fatal(err)
	}
	v := newVisitor(t, ca, 0, "a.test")
	v.visits((&certs.Server{GetCertificate: get, Tickets: one}).Config(), false)
	v.visits((&certs.Server{GetCertificate: get, Tickets: other}).Config(), true)
}

// savedSeeds are what Save writes, as a test reads it.
type savedSeeds struct {
	Version int
	State   struct {
		Rotate time.Duration
		Seeds  map[int64][]byte
	}
}

func TestKeysThatAreNoneAreRefused(t *testing.T) {
	epoch := time.Now().UnixNano() / int64(8*time.Hour)
	seed := func(content string) string {
		return fmt.Sprintf(`{"version":1,"state":{"rotate":28800000000000,"seeds":{"%d":"%s"}}}`, epoch, content)
	}
	for text, want := range map[string]string{
		seed("AAAA"): fmt.Sprintf("session tickets: the key of epoch %d is not one", epoch),
		seed("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="): fmt.Sprintf("session tickets: the key of epoch %d is not one", epoch),
		`{"version":2}`:               "session tickets: saved state is of version 2",
		strings.Repeat(" ", 64<<10+1): "session tickets: 65537 bytes of saved state",
	} {
		if err := new(certs.Tickets).Restore([]byte(text)); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%.80s: %v, want %s", text, err, want)
		}
	}
	if err := new(certs.Tickets).Restore(nil); err != nil {
		t.Error(err)
	}
}

// Whatever is restored, what is saved then are keys of now and of the two periods before, of 32 bytes that are not all alike.
func FuzzRestoreTickets(f *testing.F) {
	saved, _ := new(certs.Tickets).Save()
	f.Add(saved)
	f.Add(bytes.Replace(saved, []byte(`"seeds":{"`), []byte(`"seeds":{"1`), 1))
	f.Add([]byte(`{"version":1,"state":{"rotate":28800000000000,"seeds":{"0":"AAAA"}}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		tickets := new(certs.Tickets)
		_ = tickets.Restore(b)
		var got savedSeeds
		if err := json.Unmarshal(save(t, tickets), &got); err != nil {
			t.Fatal(err)
		}
		epoch := time.Now().UnixNano() / int64(8*time.Hour)
		if len(got.State.Seeds[epoch]) == 0 && len(got.State.Seeds[epoch-1]) == 0 { // it may be a moment ago
			t.Fatalf("there is no key for new tickets: %+v", got)
		}
		for e, seed := range got.State.Seeds {
			different := make(map[byte]bool)
			for _, c := range seed {
				different[c] = true
			}
			if e > epoch || e < epoch-3 || len(seed) != 32 || len(different) < 8 {
				t.Fatalf("epoch %d of %d: %x", e, epoch, seed)
			}
		}
	})
}
