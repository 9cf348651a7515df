package app

import (
	"context"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/internal/admin"
	"github.com/levee-net/levee/internal/config"
	"github.com/levee-net/levee/overload"
)

// relief keeps the front well when there is more to do than can be done.
type relief struct {
	cfg        *config.Overload
	controller *overload.Controller // nil if it is off
}

func (g *generation) relieve() *relief {
	cfg := &g.cfg.Overload
	r := &relief{cfg: cfg}
	if cfg.Mode == config.ModeOn {
		r.controller, _ = keep(g, "overload "+cfg.AcceptDelay.String(), func(p *part) (*overload.Controller, error) {
			c := &overload.Controller{AcceptDelay: cfg.AcceptDelay, Logger: g.log, Changed: g.told.record.overloaded}
			p.run = func(ctx context.Context, running *sync.WaitGroup) {
				c.AdjustMemoryLimit = g.adjustsGC
				running.Go(func() { g.runRelief(ctx, c) })
			}
			return c, nil
		})
	}
	return r
}

// runRelief presses the servers until ctx ends: when the one before has taken all pressure away.
func (f *front) runRelief(ctx context.Context, c *overload.Controller) {
	f.relieving.Lock()
	defer f.relieving.Unlock()
	c.Run(ctx)
}

// pressed has the servers relieved that there are now.
func (f *front) pressed() {
	c := f.now.Load().relief.controller
	if c == nil {
		return
	}
	var servers []*levee.Server
	for _, l := range f.every() {
		servers = append(servers, l.server)
	}
	c.Serve(servers...)
}

// limitMemory tells Go's runtime how much memory there is. It is for a process that serves.
func (f *front) limitMemory() {
	if f.first.Overload.MemoryLimit == config.MemoryAuto {
		f.adjustsGC = overload.SetMemoryLimit(f.log)
	}
}

func (r *relief) state() overload.State {
	if r.controller == nil {
		return overload.State{}
	}
	return r.controller.State()
}

// told is what operators are told of it.
func (r *relief) told() admin.Overload {
	s := r.state()
	told := admin.Overload{
		Mode: r.cfg.Mode, Pressure: s.Pressure.String(), TurnedAway: s.TurnedAway,
		Since: s.Since, Load: make(map[string]float64),
	}
	if !s.Since.IsZero() {
		told.Cause = s.Cause.String()
	}
	if r.controller != nil {
		for _, input := range overload.Inputs() {
			told.Load[input.String()] = s.Loads[input]
		}
	}
	return told
}

// overloadMetrics tells at each scrape what is short.
type overloadMetrics struct{ front *front }

var (
	pressureDesc = prometheus.NewDesc("levee_overload_level",
		"The pressure that servers are under: 0 none, 1 short_idle, 2 no_linger, 3 refuse_new, 4 pause_reads, 5 shed_idle.", nil, nil)
	turnedAwayDesc = prometheus.NewDesc("levee_overload_turned_away_ratio",
		"The share of newcomers that is turned away as there are more than can be served.", nil, nil)
	loadDesc = prometheus.NewDesc("levee_overload_load",
		"How much of something is taken, by input. Of memory and files 1 is all that there is; of the others what is aimed at.", []string{"input"}, nil)
)

// Describe implements prometheus.Collector.
func (m *overloadMetrics) Describe(ch chan<- *prometheus.Desc) {
	ch <- pressureDesc
	ch <- turnedAwayDesc
	ch <- loadDesc
}

// Collect implements prometheus.Collector.
func (m *overloadMetrics) Collect(ch chan<- prometheus.Metric) {
	relief := m.front.now.Load().relief
	s := relief.state()
	ch <- prometheus.MustNewConstMetric(pressureDesc, prometheus.GaugeValue, float64(s.Pressure))
	ch <- prometheus.MustNewConstMetric(turnedAwayDesc, prometheus.GaugeValue, s.TurnedAway)
	if relief.controller == nil {
		return
	}
	for _, input := range overload.Inputs() {
		ch <- prometheus.MustNewConstMetric(loadDesc, prometheus.GaugeValue, s.Loads[input], input.String())
	}
}
