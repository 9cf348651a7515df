package app

import (
	"maps"
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

func TestCountsThatNobodyElseHandsOnGoOnInTheNextProcess(t *testing.T) {
	const name = "levee_reloads_total"
	process := func() (s *scraped, count func(result string, n int)) {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: "h"}, []string{"result"})
		s = &scraped{registry: prometheus.NewRegistry()}
		s.registry.MustRegister(c)
		count = func(result string, n int) { c.WithLabelValues(result).Add(float64(n)) }
		return s, count
	}
	tells := func(s *scraped, want map[string]float64) {
		t.Helper()
		families, err := s.Gather()
		if err != nil || len(families) != 1 {
			t.Fatal(families, err)
		}
		got := make(map[string]float64)
		for _, m := range families[0].GetMetric() {
			got[m.GetLabel()[0].GetValue()] = m.GetCounter().GetValue()
		}
		if !maps.Equal(got, want) {
			t.Errorf("%v, want %v", got, want)
		}
	}
	first, count := process()
	count("ok", 3)
	count("failed", 1)
	count(`a=" b`, 5)
	second, count2 := process()
	count2("ok", 1)
	count2("failed", 0)
	inherits(t, second, first)
	tells(second, map[string]float64{"ok": 4, "failed": 1})
	tells(second, map[string]float64{"ok": 4, "failed": 1})
	first.freeze()
	count("failed", 1) // while it drains
	tells(first, map[string]float64{"ok": 3, "failed": 1, `a=" b`: 5})
	inherits(t, second, first)
	tells(second, map[string]float64{"ok": 4, "failed": 2})
	third, count3 := process()
	count3("ok", 0)
	inherits(t, third, second)
	tells(third, map[string]float64{"ok": 4})
	if err := third.Restore([]byte(`{"version":9}`)); err == nil {
		t.Error("a version that is not known is taken")
	}
	tells(third, map[string]float64{"ok": 4})
}
