package limit

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/levee-net/levee"
)

// moved returns how many bytes n connections that are never short of them move in a time, each with a pacer of its own.
func moved(d time.Duration, pacers ...levee.Pacer) (total int64, each []int64) {
	var wg sync.WaitGroup
	each = make([]int64, len(pacers))
	end := time.Now().Add(d)
	for i, p := range pacers {
		wg.Go(func() {
			for time.Now().Before(end) {
				n := p.Chunk()
				each[i] += int64(n)
				time.Sleep(p.Spend(n)) // virtual time
			}
		})
	}
	wg.Wait()
	for _, n := range each {
		total += n
	}
	return total, each
}

func TestABucketKeepsToItsRate(t *testing.T) {
	for _, perSecond := range []int64{1000, 64 << 10, 10e6, 1e9, 40e9} {
		synctest.Test(t, func(t *testing.T) {
			seconds := int64(20)
			if perSecond > 1e7 {
				seconds = 2
			}
			got, _ := moved(time.Duration(seconds)*time.Second, NewBucket(perSecond))
			if want := seconds * perSecond; got < want-want/50-4096 || got > want+want/50+2*4096 {
				t.Errorf("%d a second: moved %d; want %d", perSecond, got, want)
			}
		})
	}
}

func TestManyShareABucketEvenly(t *testing.T) {
	for _, n := range []int{2, 10, 1000} {
		synctest.Test(t, func(t *testing.T) {
			const perSecond = 100e6
			b := NewBucket(perSecond)
			pacers := make([]levee.Pacer, n)
			for i := range pacers {
				pacers[i] = b
			}
			got, each := moved(30*time.Second, pacers...)
			if got < 29*perSecond || got > 33*perSecond { // what is owed at the end has been moved
				t.Errorf("%d moved %d; want %d", n, got, int64(30*perSecond))
			}
			least, most := each[0], each[0]
			for _, m := range each {
				least, most = min(least, m), max(most, m)
			}
			if most > 2*least {
				t.Errorf("of %d, one moved %d and one %d", n, least, most)
			}
		})
	}
}

func TestABucketsChunkIsWhatCanBeMovedWithoutMakingOthersWait(t *testing.T) {
	for perSecond, want := range map[int64]int{1: 4 << 10, 80_000: 4 << 10, 1e6: 50_000, 1e9: 512 << 10, 0: 512 << 10, -1: 512 << 10} {
		if got := NewBucket(perSecond).Chunk(); got != want {
			t.Errorf("%d a second: %d; want %d", perSecond, got, want)
		}
	}
}

func TestABucketIsEarnedInAPauseButNotForLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := NewBucket(1e6)
		time.Sleep(time.Hour) // virtual time
		if wait := b.Spend(50_000); wait != 0 {
			t.Errorf("50 ms' worth after an hour: wait %s", wait)
		}
		if wait := b.Spend(10_000); wait != 10*time.Millisecond {
			t.Errorf("10 ms' worth more: wait %s", wait)
		}
		b.Set(1e7)
		if wait := b.Spend(10_000); wait != 11*time.Millisecond {
			t.Errorf("at ten times the rate: wait %s", wait)
		}
		b.Set(0)
		if wait := b.Spend(1 << 30); wait != 0 {
			t.Errorf("without a rate: wait %s", wait)
		}
	})
}

func pacersOf(p *pass) (in, out levee.Pacer) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.extraLocked().in.pacer(), p.extraLocked().out.pacer()
}

func TestAConnectionKeepsToAllThatItHasAPartIn(t *testing.T) {
	for _, c := range []struct {
		name                    string
		connection, client, all int64
		connections             int
		want                    int64
	}{
		{"the connection's", 1e5, 1e6, 1e7, 3, 3e5},
		{"the client's", 1e6, 1e6, 1e7, 4, 1e6},
		{"the scope's", 1e6, 1e6, 5e5, 4, 5e5},
		{"none", 0, 0, 0, 1, 0},
	} {
		for _, of := range []kind{up, down} {
			synctest.Test(t, func(t *testing.T) {
				bandwidth := func(n int64) Bandwidth {
					if of == up {
						return Bandwidth{Up: n}
					}
					return Bandwidth{Down: n}
				}
				g := &Gate{Scopes: []*Scope{{
					Connection: bandwidth(c.connection), Limits: Limits{Bandwidth: bandwidth(c.all)},
					Clients: []*Clients{{Limits: Limits{Bandwidth: bandwidth(c.client)}}},
				}}}
				var pacers []levee.Pacer
				for range c.connections {
					in, out := pacersOf(comes(t, g, "192.0.2.1"))
					if of == down {
						in, out = out, in
					}
					if out != nil {
						t.Errorf("%s, %s: the other direction is paced", c.name, kindWords[of])
					}
					if in != nil {
						pacers = append(pacers, in)
					}
				}
				if c.want == 0 {
					if len(pacers) > 0 {
						t.Errorf("%s: paced", c.name)
					}
					return
				}
				if got, _ := moved(20*time.Second, pacers...); got < 19*c.want || got > 21*c.want {
					t.Errorf("%s, %s: moved %d; want %d", c.name, kindWords[of], got, 20*c.want)
				}
			})
		}
	}
}

// Who leaves and comes again finds its debts where they were.
func TestBandwidthIsOwedAcrossConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &Gate{Scopes: []*Scope{{Clients: []*Clients{{Limits: Limits{Bandwidth: Bandwidth{Down: 1e6}}}}}}}
		p := comes(t, g, "192.0.2.1")
		time.Sleep(time.Second) // virtual time
		_, out := pacersOf(p)
		out.Spend(1e6)
		leaves(p)
		_, out = pacersOf(comes(t, g, "192.0.2.1"))
		if wait := out.Spend(1000); wait < 900*time.Millisecond {
			t.Errorf("wait %s; want that for the connection before", wait)
		}
		_, out = pacersOf(comes(t, g, "192.0.2.2"))
		if wait := out.Spend(1000); wait != 0 {
			t.Errorf("another client waits %s", wait)
		}
	})
}

func TestBandwidthInShadowSlowsNobodyDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &Clients{Limits: Limits{Bandwidth: Bandwidth{Up: 1000}, Mode: Shadow}}
		s := &Scope{Name: "public", Clients: []*Clients{c}}
		in, _ := pacersOf(comes(t, &Gate{Scopes: []*Scope{s}}, "192.0.2.1"))
		if n := in.Chunk(); n != maxChunk {
			t.Errorf("chunk %d", n)
		}
		for range 10 {
			if wait := in.Spend(1e6); wait != 0 {
				t.Fatalf("wait %s", wait)
			}
		}
		wants(t, s, "public.client.up", 0, 0, 10)
		c.Set(Limits{Bandwidth: Bandwidth{Up: 1000}})
		if wait := in.Spend(1000); wait < time.Second || wait > 2*time.Second {
			t.Errorf("enforced from now on: wait %s", wait)
		}
		wants(t, s, "public.client.up", 0, 1, 10)
	})
}

func TestABucketLosesNothingWhoeverSpendsAtTheSameTime(t *testing.T) {
	b := NewBucket(1e6)
	var wg sync.WaitGroup
	var longest atomic.Int64
	for range 8 {
		wg.Go(func() {
			for range 1000 {
				wait := int64(b.Spend(1000))
				for old := longest.Load(); wait > old && !longest.CompareAndSwap(old, wait); old = longest.Load() {
				}
			}
		})
	}
	begin := time.Now()
	wg.Wait()
	took := time.Since(begin)
	if got := time.Duration(longest.Load()); got > 8*time.Second || got < 8*time.Second-50*time.Millisecond-took {
		t.Errorf("8 MB at 1 MB a second are owed for %s", got)
	}
}

func BenchmarkSpend(b *testing.B) {
	for _, what := range []string{"alone", "shared"} {
		b.Run(what, func(b *testing.B) {
			one := NewBucket(1e12)
			b.RunParallel(func(pb *testing.PB) {
				mine := one
				if what == "alone" {
					mine = NewBucket(1e12)
				}
				for pb.Next() {
					mine.Spend(16 << 10)
				}
			})
		})
	}
	for _, parts := range []int{0, 1, 5} {
		b.Run(fmt.Sprintf("parts=%d", parts), func(b *testing.B) {
			s := new(shares)
			s.add(1e12)
			l := &law{epoch: time.Now(), times: [widths]float64{1}}
			l.set(Limits{Bandwidth: Bandwidth{Up: 1e12}})
			for range parts {
				s.rest = append(s.rest, share{law: l, earned: new(atomic.Int64), of: up})
			}
			for b.Loop() {
				_ = s.Chunk()
				s.Spend(16 << 10)
			}
		})
	}
}
