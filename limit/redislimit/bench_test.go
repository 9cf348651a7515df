package redislimit_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"

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
