package telemetry

import (
	"fmt"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/levee-net/levee/internal/saved"
)

// Durations are histograms of how long something took, one for each value of a label. They are classic and native at
// once, as those of [Metrics] are, and go on in the process that goes on in place of this one. Their methods may be called from
// any goroutine.
//
// The values have to be few, and nothing that strangers choose.
type Durations struct {
	name, help, label string
	classic           []time.Duration

	mu  sync.RWMutex
	all map[string]*histogram // by the label's value
}

// NewDurations returns durations with classic buckets up to each of the bounds, which ascend, and registers them.
func NewDurations(registry prometheus.Registerer, name, help, label string, classic ...time.Duration) *Durations {
	d := &Durations{name: name, help: help, label: label, classic: classic, all: make(map[string]*histogram)}
	registry.MustRegister(d)
	return d
}

// Add has a value of the label be there, with nothing observed if it is new.
func (d *Durations) Add(value string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.all[value] == nil {
		d.all[value] = newHistogram(d.name, d.help, prometheus.Labels{d.label: value}, d.classic...)
	}
}

// Remove forgets a value, and what was observed of it.
func (d *Durations) Remove(value string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.all, value)
}

// Observe counts a duration of a value, if that was added.
func (d *Durations) Observe(value string, took time.Duration) {
	d.mu.RLock()
	h := d.all[value]
	d.mu.RUnlock()
	if h != nil {
		h.observe(took)
	}
}

// Save returns what has been observed, for Restore in the process that goes on in place of this one.
func (d *Durations) Save() ([]byte, error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	state := make(map[string]savedHistogram, len(d.all))
	for value, h := range d.all {
		state[value] = h.save()
	}
	return saved.Write(savedVersion, state)
}

// Restore adds what another process has observed of the values that are there, in place of what an earlier
// Restore has added; see [Metrics.Restore]. An error changes nothing.
func (d *Durations) Restore(b []byte) error {
	state, _, err := saved.Read[map[string]savedHistogram](b, savedVersion, mostSaved)
	if err != nil {
		return fmt.Errorf("%s: %w", d.name, err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for value, h := range d.all {
		h.inherit(state[value])
	}
	return nil
}

// Describe implements prometheus.Collector. It tells of nothing, as the values come and go.
func (*Durations) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (d *Durations) Collect(ch chan<- prometheus.Metric) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	for _, h := range d.all {
		h.Collect(ch)
	}
}
