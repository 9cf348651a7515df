//go:build unix

package redislimit_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/levee-net/levee/limit"
	"github.com/levee-net/levee/limit/redislimit"
)

const lostKey = "3"

// mishaps are what may happen to Redis at any time.
var mishaps = []func(*server){
	func(s *server) { s.do("FLUSHALL") },
	func(s *server) { s.do("SCRIPT", "FLUSH") },
	func(s *server) { s.do("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes") },
	func(s *server) { s.do("DEL", "{levee:limit}:live") },
	func(s *server) { s.do("DEL", "{levee:limit}:open:4:open:"+lostKey) },
	func(s *server) { s.do("CLIENT", "PAUSE", "30") },
	func(s *server) { s.do("CLIENT", "PAUSE", "120", "WRITE") },
	func(s *server) {
		s.signal(syscall.SIGSTOP)
		<-time.After(80 * time.Millisecond)
		s.signal(syscall.SIGCONT)
	},
}

func TestCountsComeOutRightWhateverHasHappened(t *testing.T) {
	redis := startRedis(t)
	const keys = 10
	var machines []*redislimit.Limits
	var held [2][keys]atomic.Int64
	over := make(chan struct{})
	var all sync.WaitGroup
	for m := range held {
		l := &redislimit.Limits{Client: connect(t, redis.socket())}
		run(t, l)
		machines = append(machines, l)
		for range 3 {
			all.Go(func() { churn(l, &held[m], over) })
		}
	}
	for range 15 {
		<-time.After(rand.N(400 * time.Millisecond))
		mishaps[rand.IntN(len(mishaps))](redis)
	}
	close(over)
	all.Wait()

	for _, l := range machines {
		eventually(t, "limits are shared", func() bool { return l.State().Err == nil })
		hold(t, l, 1, open(1000, lostKey)) // whose count was lost alone, and is put right by the next connection
		l.Release([]limit.Claim{open(1000, lostKey)})
		t.Logf("%+v", l.Stats())
		if s := l.Stats(); s.Granted == 0 || s.Alone == 0 {
			t.Errorf("that was no test: %+v", s)
		}
	}
	var got, want [keys][]int64
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("Redis knows %v, there are %v", got, want)
		}
	})
	eventually(t, "Redis knows what there is", func() bool {
		for k := range keys {
			want[k] = nil
			for m := range held {
				if n := held[m][k].Load(); n > 0 {
					want[k] = append(want[k], n)
				}
			}
			slices.Sort(want[k])
			got[k] = redis.living(strconv.Itoa(k))
		}
		return slices.EqualFunc(got[:], want[:], slices.Equal[[]int64])
	})
	for m, l := range machines {
		for k := range keys {
			for range held[m][k].Load() {
				l.Release([]limit.Claim{open(1, strconv.Itoa(k))})
			}
		}
	}
	eventually(t, "nothing is left", func() bool {
		for k := range keys {
			if len(redis.living(strconv.Itoa(k))) > 0 {
				return false
			}
		}
		return machines[0].Stats().Keys+machines[1].Stats().Keys == 0
	})
}

// living returns the counts of the machines that are alive, in their order.
func (s *server) living(key string) (counts []int64) {
	s.t.Helper()
	all, err := s.do("HGETALL", "{levee:limit}:open:4:open:"+key).AsIntMap()
	if err != nil {
		s.t.Fatal(err)
	}
	for name, n := range all {
		if until, err := s.do("ZSCORE", "{levee:limit}:live", name).AsFloat64(); err == nil && until > float64(time.Now().UnixMicro()) {
			counts = append(counts, n)
		}
	}
	slices.Sort(counts)
	return counts
}

// churn opens and closes connections until it is over.
func churn(l *redislimit.Limits, held *[10]atomic.Int64, over chan struct{}) {
	for {
		select {
		case <-over:
			return
		case <-time.After(rand.N(2 * time.Millisecond)):
		}
		k := rand.IntN(len(held))
		claims := []limit.Claim{open(1000, fmt.Sprint(k)), {Limit: "r", Key: fmt.Sprint(k), Rate: 1e6, Burst: 1000}}
		if rand.IntN(2) == 0 {
			if n := held[k].Load(); n > 0 && held[k].CompareAndSwap(n, n-1) {
				l.Release(claims)
			}
			continue
		}
		refused, err := l.Claim(context.Background(), claims)
		if err != nil {
			l.Hold(claims)
		}
		if refused < 0 {
			held[k].Add(1)
		}
	}
}
