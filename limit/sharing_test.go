package limit

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/levee-net/levee"
)

// redis is a Shared in memory, which counts open connections. It can be slow, and it can fail.
type redis struct {
	mu    sync.Mutex
	open  map[string]int
	asked int
	delay time.Duration
	fail  error
}

func newRedis() *redis { return &redis{open: make(map[string]int)} }

func name(c Claim) string { return c.Limit + " " + c.Key }

func (r *redis) Claim(ctx context.Context, claims []Claim) (refused int, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked++
	if r.delay > 0 {
		r.mu.Unlock()
		select {
		case <-time.After(r.delay):
		case <-ctx.Done():
		}
		r.mu.Lock()
	}
	if ctx.Err() != nil {
		return -1, ctx.Err()
	}
	if r.fail != nil {
		return -1, r.fail
	}
	for i, c := range claims {
		if c.Most > 0 && r.open[name(c)] >= c.Most {
			return i, nil
		}
	}
	for _, c := range claims {
		r.open[name(c)]++
	}
	return -1, nil
}

func (r *redis) Release(claims []Claim) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range claims {
		if r.open[name(c)]--; r.open[name(c)] == 0 {
			delete(r.open, name(c))
		}
	}
}

// arrives has a connection come in and ask the other machines.
func arrives(ctx context.Context, g *Gate, addr string) (*pass, string) {
	p, refusal := come(g, netip.MustParseAddr(addr))
	if refusal != nil {
		return nil, refusal.Cause.Error()
	}
	if refusal := (*waiter)(p).Await(ctx, nil); refusal != nil {
		p.Leave(nil, levee.End{Reason: refusal.Reason})
		return nil, refusal.Cause.Error()
	}
	return p, ""
}

func machines(n int, shared Shared, limits Limits) (gates []*Gate, scopes []*Scope) {
	limits.Shared = true
	for range n {
		s := &Scope{Name: "public", Clients: []*Clients{{Limits: limits}}}
		scopes = append(scopes, s)
		gates = append(gates, &Gate{Scopes: []*Scope{s}, Shared: shared})
	}
	return gates, scopes
}

func TestMachinesCountTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRedis()
		g, s := machines(2, r, Limits{Connections: 3, Rate: Rate{PerSecond: 10}})
		var held []*pass
		for i, want := range []string{"", "", "", "limit public.client.shared", "limit public.client.shared"} {
			p, by := arrives(t.Context(), g[i%2], "192.0.2.1")
			if by != want {
				t.Fatalf("%d: %q; want %q", i, by, want)
			}
			if p != nil {
				held = append(held, p)
			}
		}
		if want := map[string]int{"public.client 192.0.2.1/32": 3}; !maps.Equal(r.open, want) {
			t.Errorf("the others count %v; want %v", r.open, want)
		}
		leaves(held[0])
		// Until the refusal is not remembered any more.
		time.Sleep(time.Second) // virtual time
		if _, by := arrives(t.Context(), g[1], "192.0.2.1"); by != "" {
			t.Errorf("when one has left: %q", by)
		}
		wants(t, s[0], "public.client.shared", 2, 1, 0)
		wants(t, s[1], "public.client.shared", 2, 1, 0)
	})
}

func TestIPv6NetworksCountTogetherToo(t *testing.T) {
	r := newRedis()
	g, _ := machines(1, r, Limits{Connections: 3})
	_, _ = arrives(t.Context(), g[0], "2001:db8:1:2::3")
	keys := slices.Sorted(maps.Keys(r.open))
	if want := "public.client 2001:db8:1:2::/64, public.client 2001:db8:1::/48, public.client 2001:db8:1::/56"; strings.Join(keys, ", ") != want {
		t.Errorf("%q; want %q", keys, want)
	}
}

func TestWithoutAnAnswerAMachineDecidesAlone(t *testing.T) {
	for name, ails := range map[string]func(*redis){
		"slow":   func(r *redis) { r.delay = time.Hour },
		"broken": func(r *redis) { r.fail = errors.New("out of reach") },
	} {
		synctest.Test(t, func(t *testing.T) {
			r := newRedis()
			g, _ := machines(1, r, Limits{Connections: 2})
			ails(r)
			begin := time.Now()
			for i, want := range []string{"", "", "limit public.client.connections"} {
				if _, by := arrives(t.Context(), g[0], "192.0.2.1"); by != want {
					t.Errorf("%s, %d: %q; want %q", name, i, by, want)
				}
			}
			if took := time.Since(begin); took > 100*time.Millisecond {
				t.Errorf("%s: two connections waited %s", name, took)
			}
			stats := g[0].Stats().Shared
			if stats.Asked != 2 || stats.Failed != 2 || stats.LastError == nil || stats.FailingSince.IsZero() {
				t.Errorf("%s: %+v", name, stats)
			}
			r.delay, r.fail = 0, nil
			_, _ = arrives(t.Context(), g[0], "192.0.2.2")
			if stats := g[0].Stats().Shared; stats.LastError != nil || !stats.FailingSince.IsZero() {
				t.Errorf("%s, and well again: %+v", name, stats)
			}
		})
	}
}

// holder is a redis that takes note of those who came in without its answer.
type holder struct{ *redis }

func (h holder) Hold(claims []Claim) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, c := range claims {
		h.open[name(c)]++
	}
}

func TestWhoCameInWithoutAnAnswerIsHeldAndGivenBack(t *testing.T) {
	r := newRedis()
	g, _ := machines(1, holder{r}, Limits{Connections: 2})
	r.fail = errors.New("out of reach")
	p, by := arrives(t.Context(), g[0], "192.0.2.1")
	if by != "" || r.open["public.client 192.0.2.1/32"] != 1 {
		t.Fatalf("%q; %v", by, r.open)
	}
	leaves(p)
	if len(r.open) > 0 {
		t.Errorf("left over: %v", r.open)
	}
}

func TestAConnectionThatEndsWhileItWaitsGivesBackWhatItGets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRedis()
		r.delay = 10 * time.Millisecond
		g, _ := machines(1, r, Limits{Connections: 2})
		p, _ := come(g[0], netip.MustParseAddr("192.0.2.1"))
		asked := make(chan *levee.Refusal)
		go func() { asked <- (*waiter)(p).Await(t.Context(), nil) }() // ends with the answer
		synctest.Wait()
		leaves(p)
		if refusal := <-asked; refusal != nil {
			t.Error(refusal)
		}
		if len(r.open) > 0 {
			t.Errorf("left over: %v", r.open)
		}
		// And one whose context ends is no failure of the others'.
		ctx, cancel := context.WithCancel(t.Context())
		p, _ = come(g[0], netip.MustParseAddr("192.0.2.1"))
		go func() { asked <- (*waiter)(p).Await(ctx, nil) }() // ends with ctx
		synctest.Wait()
		cancel()
		<-asked
		if stats := g[0].Stats().Shared; stats.Failed != 0 {
			t.Errorf("%+v", stats)
		}
	})
}

func TestAFloodThatIsRefusedIsNotAskedAbout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRedis()
		g, s := machines(2, r, Limits{Connections: 2})
		for range 2 {
			_, _ = arrives(t.Context(), g[0], "192.0.2.1")
		}
		asked := r.asked
		for range 1000 {
			if _, by := arrives(t.Context(), g[1], "192.0.2.1"); by != "limit public.client.shared" {
				t.Fatal(by)
			}
		}
		if n := r.asked - asked; n != 1 {
			t.Errorf("asked %d times", n)
		}
		if _, by := arrives(t.Context(), g[1], "192.0.2.2"); by != "" {
			t.Errorf("another is refused: %s", by)
		}
		wants(t, s[1], "public.client.shared", 1, 1000, 0)
		time.Sleep(verdictHolds) // virtual time
		asked = r.asked
		_, _ = arrives(t.Context(), g[1], "192.0.2.1")
		if r.asked == asked {
			t.Error("it is never asked about again")
		}
	})
}

func TestWhatIsRememberedOfRefusalsIsBounded(t *testing.T) {
	s := new(sharing)
	for i := range uint64(3 * maxVerdicts) {
		s.remember(question{tag: i + 1}, time.Now())
	}
	if n := len(s.verdicts); n > maxVerdicts {
		t.Errorf("%d refusals are remembered", n)
	}
}

func TestSharedLimitsInShadowRefuseNobody(t *testing.T) {
	r := newRedis()
	g, s := machines(2, holder{r}, Limits{Connections: 2, Mode: Shadow})
	var held []*pass
	for i := range 4 {
		p, by := arrives(t.Context(), g[i%2], "192.0.2.1")
		if by != "" {
			t.Fatalf("%d: %s", i, by)
		}
		held = append(held, p)
	}
	wants(t, s[0], "public.client.shared", 1, 0, 1)
	wants(t, s[1], "public.client.shared", 1, 0, 1)
	if n := r.open["public.client 192.0.2.1/32"]; n != 4 {
		t.Errorf("the others count %d open; want 4", n)
	}
	for _, p := range held {
		leaves(p)
	}
	if len(r.open) > 0 {
		t.Errorf("left over: %v", r.open)
	}
}

// A limit in Shadow that is used up must not keep one that is enforced from being asked about, nor the other way round.
func TestShadowAndEnforcedLimitsAreAskedAboutApart(t *testing.T) {
	r := newRedis()
	scope := func() *Scope {
		return &Scope{
			Name: "public", Limits: Limits{Connections: 1, Shared: true, Mode: Shadow},
			Clients: []*Clients{{Limits: Limits{Connections: 2, Shared: true}}},
		}
	}
	for i, want := range []string{"", "", "limit public.client.shared"} {
		_, by := arrives(t.Context(), &Gate{Scopes: []*Scope{scope()}, Shared: r}, "192.0.2.1")
		if by != want {
			t.Errorf("%d: %q; want %q", i, by, want)
		}
	}
	if want := map[string]int{"public ": 1, "public.client 192.0.2.1/32": 2}; fmt.Sprint(r.open) != fmt.Sprint(want) {
		t.Errorf("the others count %v; want %v", r.open, want)
	}
}

func TestOnlySharedLimitsMakeAConnectionWait(t *testing.T) {
	s := &Scope{Limits: Limits{Connections: 1}}
	admitted, _ := (&Gate{Scopes: []*Scope{s}, Shared: newRedis()}).Admit(nil)
	if _, waits := admitted.(levee.Waiter); waits {
		t.Error("it waits for nothing")
	}
	s.Set(Limits{Connections: 10, Shared: true})
	admitted, _ = (&Gate{Scopes: []*Scope{s}, Shared: newRedis()}).Admit(nil)
	if _, waits := admitted.(levee.Waiter); !waits {
		t.Error("the others are not asked")
	}
}
