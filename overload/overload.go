// Package overload keeps servers well when there is more to do than can be done: those who
// are connected and behave are not to notice.
//
// A [Controller] looks ten times a second at what is short, and answers in two ways.
//
// What fills up and does not empty by itself, memory and open files, is answered by a
// [levee.Pressure] on the servers. A pressure comes at once when a load reaches its
// threshold, and goes a level at a time, when for half a second no load has come near (to 90 % of)
// it. A load of 1 is all that there is.
//
//	            short_idle  no_linger  refuse_new  pause_reads  shed_idle
//	memory            0.70       0.75        0.80         0.85       0.92
//	files             0.80       0.85        0.95            -       0.98
//
// To pause reads frees no files; but shed_idle includes it. No connection is shed once the load is
// below the threshold, though the pressure stays for its half a second.
//
// What is only a matter of time, newcomers that come faster than they can be served, is
// answered by turning away a share of them at the door ([levee.Server.TurnAway]): as many
// as need be for those who are let in not to wait, and not all of them, or the processors
// would be idle meanwhile. No level of pressure would help: an idle connection takes no
// processor. Here a load of 1 is what is aimed at.
//
//	accept_queue  how long newcomers wait to be accepted   500 ms
//	arriving      connections without a handler yet        half of MaxArrivals
//	handshakes    how long they wait to be computed        100 ms
//	scheduler     how long goroutines wait for a
//	              processor, the median                    20 ms
//
// The share that is let in falls by a third at most in a tenth of a second, is never less than a tenth, and grows by
// 15 % when there is room. So what is left of an overload is gone within two seconds of its end.
package overload

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/levee-net/levee"
)

// A Controller presses servers. The zero value of every field but Servers is a safe
// default; negative is off. They must not be changed once Run has been called.
type Controller struct {
	// Servers are pressed all alike: they share the process. For others see [Controller.Serve].
	Servers []*levee.Server

	// Interval is the time between two looks. Zero means 100 ms.
	Interval time.Duration

	// Calm is for how long loads must be well below the threshold of a pressure before it
	// goes. Zero means half a second: then all of it is gone within a second.
	Calm time.Duration

	// AdjustMemoryLimit has Run lower the Go runtime's memory limit by what the kernel
	// holds for the process, such as sockets' buffers: the collector does not know of them, and
	// would leave garbage lying where there is no room. It is what [SetMemoryLimit]
	// returns.
	AdjustMemoryLimit bool

	// AcceptDelay is how long newcomers may wait to be accepted before a share of them is
	// turned away. Zero means 500 ms: a crowd that comes at once, as after a deploy, is to be served.
	AcceptDelay time.Duration

	// HandshakeDelay is how long TLS handshakes may wait to be computed before a share of the newcomers is turned away. Ten for
	// each of MaxHandshakes may wait for any time. Zero means 100 ms.
	HandshakeDelay time.Duration

	// SchedulerDelay is how long half of the goroutines may wait for a processor before
	// newcomers are turned away. Zero means 20 ms.
	SchedulerDelay time.Duration

	// Logger is told of each pressure once, with what caused it, but at most once a
	// second. Nil means slog.Default().
	Logger *slog.Logger

	// Changed is called by Run whenever the pressure changes, and when newcomers begin to be turned
	// away, or are no more. It may be nil.
	Changed func(State)

	sense func(*Controller) senses // nil but in tests

	mu    sync.Mutex
	state State
	since []*levee.Server // what Serve was called with; nil if it was not
}

// State is what a controller has seen last, and done about it.
type State struct {
	Pressure   levee.Pressure
	TurnedAway float64   // the share of newcomers that is, 0 to 0.9
	Cause      Input     // of the last change
	Since      time.Time // it
	Loads      Loads
}

// State returns the present state. It may be called at any time, from several goroutines.
func (c *Controller) State() State {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state
}

// Run looks and presses until ctx ends, and then takes all pressure away. It is called once.
func (c *Controller) Run(ctx context.Context) {
	senses := c.senses()
	interval := cmp.Or(c.Interval, 100*time.Millisecond)
	l := ladder{calm: cmp.Or(c.Calm, 500*time.Millisecond)}
	r := ration{share: 1}
	log := changeLog{to: c.Logger}
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	defer c.press(levee.NoPressure)
	defer c.turnAway(0)
	pressed := c.servers()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-ticker.C:
			pressed = c.welcome(pressed, l.level, r.turnedAway())
			loads := senses.look(now)
			before, turnedAway := l.level, r.turnedAway()
			renew := l.look(now, loads)
			r.look(loads)
			if r.turnedAway() != turnedAway {
				c.turnAway(r.turnedAway())
			}
			if l.level != before || renew { // and not else: to press is to shed
				c.press(l.level)
			}
			log.look(now, c.note(now, l, r, loads))
		}
	}
}

func (c *Controller) senses() senses {
	if c.sense != nil {
		return c.sense(c)
	}
	return newGauges(c)
}

// Serve has the controller press these servers from now on, in place of those before. Those that it
// presses no more are relieved by the next look, and the others learn what there is. It may be
// called at any time, from several goroutines.
func (c *Controller) Serve(servers ...*levee.Server) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.since = append([]*levee.Server{}, servers...)
}

// welcome has those that are new pressed as the others are, and those that are no more relieved. It
// returns who is pressed now.
func (c *Controller) welcome(before []*levee.Server, p levee.Pressure, turnedAway float64) []*levee.Server {
	now := c.servers()
	for _, s := range now {
		if !slices.Contains(before, s) {
			s.Press(p)
			s.TurnAway(turnedAway)
		}
	}
	for _, s := range before {
		if !slices.Contains(now, s) {
			s.Press(levee.NoPressure)
			s.TurnAway(0)
		}
	}
	return now
}

// servers returns those that are to be pressed.
func (c *Controller) servers() []*levee.Server {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.since != nil {
		return c.since
	}
	return c.Servers
}

func (c *Controller) press(p levee.Pressure) {
	for _, s := range c.servers() {
		s.Press(p)
	}
}

func (c *Controller) turnAway(share float64) {
	for _, s := range c.servers() {
		s.TurnAway(share)
	}
}

// note notes what Run has done, and tells of it.
func (c *Controller) note(now time.Time, l ladder, r ration, loads Loads) State {
	c.mu.Lock()
	old, next := c.state, State{Pressure: l.level, TurnedAway: r.turnedAway(), Loads: loads}
	changed := next.Pressure != old.Pressure || (next.TurnedAway > 0) != (old.TurnedAway > 0)
	switch {
	case !changed:
		next.Cause, next.Since = old.Cause, old.Since
	case next.Pressure != old.Pressure:
		next.Cause, next.Since = l.cause, now
	default:
		next.Cause, next.Since = r.cause, now
	}
	c.state = next
	c.mu.Unlock()
	if changed && c.Changed != nil {
		c.Changed(next)
	}
	return next
}

// logInterval bounds how often a changing pressure is logged.
const logInterval = time.Second

// A changeLog logs what the pressure has become. What has come and gone since the last line is
// not told, but the last change always is.
type changeLog struct {
	to   *slog.Logger
	last time.Time
	told State
}

func (g *changeLog) look(now time.Time, s State) {
	same := s.Pressure == g.told.Pressure && (s.TurnedAway > 0) == (g.told.TurnedAway > 0)
	if same || !g.last.IsZero() && now.Sub(g.last) < logInterval {
		return
	}
	level := slog.LevelInfo
	if s.Pressure > g.told.Pressure || s.TurnedAway > 0 {
		level = slog.LevelWarn
	}
	g.last, g.told = now, s
	cmp.Or(g.to, slog.Default()).Log(context.Background(), level, "pressure", "level", s.Pressure.String(),
		"cause", s.Cause.String(), "load", s.Loads[s.Cause], "turned_away", s.TurnedAway)
}
