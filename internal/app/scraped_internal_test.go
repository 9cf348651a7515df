package app

import (
	"sync/atomic"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

func TestAProcessThatHasLeftItsCountsToAnotherTellsOfNoMore(t *testing.T) {
	var n atomic.Int64
	s := &scraped{registry: prometheus.NewRegistry()}
	s.registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "n", Help: "h"}, func() float64 { return float64(n.Load()) }))
	tells := func(want float64) {
		t.Helper()
		families, err := s.Gather()
		if err != nil || len(families) != 1 || families[0].GetMetric()[0].GetCounter().GetValue() != want {
			t.Errorf("%v, %v; want %v", families, err, want)
		}
	}
	n.Store(1)
	tells(1)
	s.freeze()
	n.Store(2)
	tells(1)
	s.thaw()
	tells(2)
}
