package redislimit_test

import (
	"context"
	"fmt"
	"regexp"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/levee-net/levee/limit"
	"github.com/levee-net/levee/limit/redislimit"
)

// BenchmarkClaim has connections of 10,000 clients come and go, each with a rate and a number, as many at a time as
// it is named for.
func BenchmarkClaim(b *testing.B) {
	for _, at := range []int{1, 100, 1000} {
		b.Run(fmt.Sprint(at), func(b *testing.B) {
			redis := startRedis(b)
			l := &redislimit.Limits{Client: connect(b, redis.socket()), Timeout: patience}
			run(b, l)
			eventually(b, "limits are shared", func() bool { return l.State().Err == nil })
			before := l.Stats()
			var next atomic.Int64
			b.ReportAllocs()
			b.SetParallelism(at)
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					key := fmt.Sprint("2001:db8::", next.Add(1)%10_000, "/64")
					claims := []limit.Claim{{Limit: "client.connections", Key: key, Most: 1000}, {Limit: "client.rate", Key: key, Rate: 1e5, Burst: 1000}}
					if refused, err := l.Claim(context.Background(), claims); err != nil || refused >= 0 {
						b.Error(refused, err)
					}
					l.Release(claims)
				}
			})
			s := l.Stats()
			b.ReportMetric(float64(s.Claims-before.Claims)/float64(s.RoundTrips-before.RoundTrips), "claims/trip")
		})
	}
}

// BenchmarkMachines has connections come to several machines that share a Redis, as many at a time as it says, and tells what
// they cost Redis, which has one processor: a model of many machines stands on that. Of the clients each is at one machine,
// or has one connection at every machine, as a large network behind one address may.
func BenchmarkMachines(b *testing.B) {
	for _, c := range []struct {
		machines, at int
		everywhere   bool
	}{{1, 2, false}, {1, 200, false}, {10, 200, false}, {100, 200, false}, {100, 2000, false}, {10, 200, true}, {100, 200, true}} {
		name := fmt.Sprintf("machines=%d/at=%d", c.machines, c.at)
		if c.everywhere {
			name += "/everywhere"
		}
		b.Run(name, func(b *testing.B) { benchmarkMachines(b, c.machines, c.at, c.everywhere) })
	}
}

func benchmarkMachines(b *testing.B, n, at int, everywhere bool) {
	redis := startRedis(b)
	machines, clients := make([]*redislimit.Limits, n), 10_000
	if everywhere {
		clients = 100
	}
	claims := func(client int64) []limit.Claim {
		key := fmt.Sprint("2001:db8::", client%int64(clients), "/64")
		return []limit.Claim{{Limit: "client.connections", Key: key, Most: 100_000}, {Limit: "client.rate", Key: key, Rate: 1e5, Burst: 1000}}
	}
	for i := range machines {
		machines[i] = &redislimit.Limits{Client: connect(b, redis.socket()), Timeout: patience}
		run(b, machines[i])
		eventually(b, "limits are shared", func() bool { return machines[i].State().Err == nil })
		for client := range clients {
			if everywhere {
				machines[i].Hold(claims(int64(client)))
			}
		}
	}
	trips := func() (all uint64) {
		for _, l := range machines {
			all += l.Stats().RoundTrips
		}
		return all
	}
	before, spent := trips(), redis.cpu()
	var who, next atomic.Int64
	b.SetParallelism(max(at/2, 1)) // for two processors
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		l := machines[int(who.Add(1))%n]
		for pb.Next() {
			c := claims(next.Add(1))
			if refused, err := l.Claim(context.Background(), c); err != nil || refused >= 0 {
				b.Error(refused, err)
			}
			l.Release(c)
		}
	})
	b.StopTimer()
	b.ReportMetric(float64(b.N)/float64(trips()-before), "claims/trip")
	b.ReportMetric(float64(redis.cpu()-spent)/float64(time.Microsecond)/float64(b.N), "redis-µs/claim")
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "claims/s")
}

// BenchmarkTelling has a machine tell Redis of the connections that it has, as it does when that has lost its memory: one for
// each client.
func BenchmarkTelling(b *testing.B) {
	redis := startRedis(b)
	l := &redislimit.Limits{Client: connect(b, redis.socket()), Timeout: patience}
	run(b, l)
	eventually(b, "limits are shared", func() bool { return l.State().Err == nil })
	spent := redis.cpu()
	b.ResetTimer()
	for i := range b.N {
		l.Hold([]limit.Claim{open(10, fmt.Sprint("2001:db8::", i, "/64"))})
	}
	eventually(b, "Redis knows all", func() bool {
		keys, err := redis.do("DBSIZE").AsInt64()
		return err == nil && keys == int64(b.N)+1
	})
	b.StopTimer()
	b.ReportMetric(float64(redis.cpu()-spent)/float64(time.Microsecond)/float64(b.N), "redis-µs/client")
}

// cpu is what the server has used.
func (s *server) cpu() (used time.Duration) {
	info, err := s.do("INFO", "cpu").ToString()
	if err != nil {
		s.t.Error(err)
	}
	for _, found := range regexp.MustCompile(`used_cpu_(?:sys|user):([0-9.]+)`).FindAllStringSubmatch(info, -1) {
		seconds, _ := strconv.ParseFloat(found[1], 64)
		used += time.Duration(seconds * float64(time.Second))
	}
	return used
}
