package upstream

import (
	"context"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// crossing is a server of several addresses, each a host of the town.
func crossing(where town, names ...string) Server {
	s := Server{Name: "s"}
	for _, name := range names {
		s.Addresses = append(s.Addresses, where[name].address)
	}
	return s
}

func TestAnAddressThatHangsIsOvertakenAfterAMoment(t *testing.T) {
	bubble(t, func(t *testing.T) {
		where := newTown("a", "b", "c")
		where["a"].become(hangs)
		p := found(t, where, &Pool{}, crossing(where, "a", "b", "c"))
		began := time.Now()
		dial(t, p)
		if took := time.Since(began); took != stagger || where["c"].dialled() != 0 {
			t.Errorf("it took %v", took)
		}
		synctest.Wait()
	})
}

func TestAnAddressThatRefusesIsFollowedAtOnce(t *testing.T) {
	bubble(t, func(t *testing.T) {
		where := newTown("a", "b")
		where["a"].become(refuses)
		p := found(t, where, &Pool{}, crossing(where, "a", "b"))
		began := time.Now()
		dial(t, p)
		if took := time.Since(began); took != 0 {
			t.Errorf("it took %v", took)
		}
		if s := stats(t, p, "s"); s.Dials != 1 || s.Failures[Refused] != 0 {
			t.Errorf("stats are %+v", s)
		}
	})
}

func TestTheSlowerConnectionOfARaceIsClosed(t *testing.T) {
	bubble(t, func(t *testing.T) {
		where := newTown("a", "b")
		p := found(t, where, &Pool{}, crossing(where, "a", "b"))
		p.connect = func(_ context.Context, to address) (net.Conn, error) {
			if to.text == where["a"].address {
				rest(context.Background(), 2*stagger) // it is connected when it is too late
			}
			return where.connect(context.Background(), to)
		}
		winner := dial(t, p)
		advance(time.Second)
		where["a"].ends[0].SetDeadline(time.Now().Add(time.Second))
		if _, err := where["a"].ends[0].Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("the loser is open: %v", err)
		}
		where["b"].ends[0].Close()
		if _, err := winner.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("the winner is another: %v", err)
		}
	})
}

func TestWhenNoAddressAnswersTheFirstToFailIsTold(t *testing.T) {
	bubble(t, func(t *testing.T) {
		where := newTown("a", "b")
		where["a"].become(hangs)
		where["b"].become(refuses)
		p := found(t, where, &Pool{Tries: 1, DialTimeout: time.Second}, crossing(where, "a", "b"))
		mustFail(t, p, "upstream test: no server available: s: no answer within 1s: i/o timeout")
		where["a"].become(refuses)
		mustFail(t, p, "upstream test: no server available: s: 10.0.0.1:5432: connection refused")
	})
}

func TestFamiliesTakeTurns(t *testing.T) {
	for given, want := range map[string]string{
		"10.0.0.1:1 10.0.0.2:1 [::1]:1 [::2]:1 [::3]:1": "10.0.0.1:1 [::1]:1 10.0.0.2:1 [::2]:1 [::3]:1",
		"[::1]:1 [::2]:1 10.0.0.1:1":                    "[::1]:1 10.0.0.1:1 [::2]:1",
		"10.0.0.1:1":                                    "10.0.0.1:1",
		"unix:/a 10.0.0.1:1 10.0.0.2:1":                 "unix:/a 10.0.0.1:1 10.0.0.2:1",
		strings.Repeat("10.0.0.1:1 ", 100):              strings.Repeat("10.0.0.1:1 ", mostTargets),
	} {
		var addresses []address
		for text := range strings.FieldsSeq(given) {
			a, err := parseAddress(text)
			if err != nil {
				t.Fatal(err)
			}
			addresses = append(addresses, a)
		}
		var got []string
		for _, a := range interleave(addresses) {
			got = append(got, a.String())
		}
		if strings.Join(got, " ") != strings.TrimSpace(want) {
			t.Errorf("%s became %s", given, got)
		}
	}
}

func TestAHostIsLookedUpAtEachDial(t *testing.T) {
	p := &Pool{}
	p.start()
	a, err := parseAddress("localhost:5432")
	if err != nil {
		t.Fatal(err)
	}
	literal, _ := parseAddress("192.0.2.1:80")
	got, err := lookUp(t.Context(), []address{a, literal})
	if err != nil || len(got) < 2 || !got[0].socket.Addr().IsLoopback() || got[0].socket.Port() != 5432 || got[len(got)-1] != literal {
		t.Errorf("got %v, %v", got, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if got, err := lookUp(ctx, []address{a, literal}); err != nil || len(got) == 0 {
		t.Errorf("a host that is not found hides the others: %v, %v", got, err)
	}
}

// Whatever text an address is made of, it is one address or an error that quotes it.
func FuzzAddress(f *testing.F) {
	for _, text := range []string{
		"10.0.0.7:5432", "[2001:db8::7]:5432", "unix:/run/x", "db.example.com:5432", "[::1%lo]:1", "::1:1", ":1", "a:0", "[::ffff:1.2.3.4]:5",
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		a, err := parseAddress(text)
		if err != nil {
			return
		}
		if again, err := parseAddress(a.text); err != nil || again != a {
			t.Errorf("%q is %+v, which reads back as %+v, %v", text, a, again, err)
		}
		if a.path != "" {
			if a.host != "" || a.socket.IsValid() {
				t.Errorf("%q is %+v", text, a)
			}
			return
		}
		if a.socket.Port() == 0 || (a.host == "") != a.socket.Addr().IsValid() {
			t.Errorf("%q is %+v", text, a)
		}
		if socket, err := netip.ParseAddrPort(text); err == nil && socket.Port() != 0 && a.socket != netip.AddrPortFrom(socket.Addr().Unmap(), socket.Port()) {
			t.Errorf("%q is %v, not %v", text, a.socket, socket)
		}
	})
}
