package balance_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/levee-net/levee/upstream/internal/balance"
)

func BenchmarkPick(b *testing.B) {
	for _, kind := range balance.Kinds() {
		for _, n := range []int{3, 100, 1000} {
			b.Run(fmt.Sprintf("%v/servers=%d", kind, n), func(b *testing.B) {
				peers := servers(slices.Repeat([]float64{1}, n)...)
				for i, p := range peers {
					p.active.Store(int64(i % 7))
					p.latency.Store(int64(time.Millisecond))
				}
				picker := newPicker(kind, peers)
				b.ReportAllocs()
				for key := uint64(0); b.Loop(); key++ {
					picker.Pick(key, anyOf)
				}
			})
		}
	}
}

func BenchmarkNewMaglev(b *testing.B) {
	for _, n := range []int{3, 100, 1000} {
		b.Run(fmt.Sprintf("servers=%d", n), func(b *testing.B) {
			peers := servers(slices.Repeat([]float64{1}, n)...)
			b.ReportAllocs()
			for b.Loop() {
				newPicker(balance.Maglev, peers)
			}
		})
	}
}

func BenchmarkLatency(b *testing.B) {
	var l balance.Latency
	for b.Loop() {
		l.Observe(time.Millisecond)
		l.Value()
	}
}
