package telemetry_test

import (
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/levee-net/levee/telemetry"
)

// newDurations are of two ways.
func newDurations() (*telemetry.Durations, *prometheus.Registry) {
	registry := prometheus.NewPedanticRegistry()
	d := telemetry.NewDurations(registry, "way_seconds", "How long it took.", "way", time.Millisecond, time.Second)
	d.Add("one")
	d.Add("other")
	return d, registry
}

// observed are the histograms by their way.
func observed(t *testing.T, registry *prometheus.Registry) map[string]*dto.Histogram {
	t.Helper()
	all := make(map[string]*dto.Histogram)
	for _, f := range gather(t, registry) {
		if f.GetName() != "way_seconds" || f.GetHelp() != "How long it took." {
			t.Errorf("%v", f)
		}
		for _, m := range f.GetMetric() {
			all[m.GetLabel()[0].GetValue()] = m.GetHistogram()
		}
	}
	return all
}

func counts(h *dto.Histogram) (all [3]uint64) {
	for i, b := range h.GetBucket() {
		all[i] = b.GetCumulativeCount()
	}
	all[2] = h.GetSampleCount()
	return all
}

func TestDurationsAreCountedByTheirLabel(t *testing.T) {
	d, registry := newDurations()
	d.Observe("one", time.Microsecond)
	d.Observe("one", time.Minute)
	d.Observe("other", 500*time.Millisecond)
	d.Observe("nobody's", time.Second)
	d.Add("one") // is there
	all := observed(t, registry)
	if len(all) != 2 || counts(all["one"]) != [3]uint64{1, 1, 2} || counts(all["other"]) != [3]uint64{0, 1, 1} || all["other"].GetSampleSum() != .5 {
		t.Errorf("%v", all)
	}
	if all["one"].GetSchema() == 0 || len(all["one"].GetPositiveSpan()) == 0 {
		t.Errorf("it is not native: %v", all["one"])
	}
	d.Remove("one")
	d.Add("one")
	if all := observed(t, registry); counts(all["one"]) != [3]uint64{} {
		t.Errorf("%v", all)
	}
}

func TestDurationsGoOnInTheProcessAfterThisOne(t *testing.T) {
	before, _ := newDurations()
	before.Observe("one", time.Microsecond)
	before.Observe("other", 20*time.Millisecond)
	early, err := before.Save()
	if err != nil {
		t.Fatal(err)
	}
	before.Observe("one", time.Minute)
	late, err := before.Save()
	if err != nil {
		t.Fatal(err)
	}

	after, registry := newDurations()
	after.Remove("other") // it has been configured away
	after.Observe("one", 2*time.Millisecond)
	for _, step := range []struct {
		saved []byte
		want  [3]uint64
	}{{early, [3]uint64{1, 2, 2}}, {late, [3]uint64{1, 2, 3}}, {late, [3]uint64{1, 2, 3}}} {
		if err := after.Restore(step.saved); err != nil {
			t.Fatal(err)
		}
		if all := observed(t, registry); len(all) != 1 || counts(all["one"]) != step.want {
			t.Errorf("%v, want %v", all, step.want)
		}
	}
	for _, garbage := range []string{"{", `{"version":2}`, `{"version":1,"state":{"one":{"cells":{"x":1}}}}`} {
		if err := after.Restore([]byte(garbage)); err == nil {
			t.Errorf("%s is taken", garbage)
		}
	}
	if all := observed(t, registry); counts(all["one"]) != [3]uint64{1, 2, 3} {
		t.Errorf("garbage has changed it to %v", all)
	}
}
