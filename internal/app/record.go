package app

import (
	"fmt"
	"time"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/internal/admin"
	"github.com/levee-net/levee/overload"
	"github.com/levee-net/levee/telemetry"
	"github.com/levee-net/levee/upstream"
)

// A record is the flight recorder, with words for what happens beside connections. A zero one
// records nothing.
type record struct{ *telemetry.Recorder }

func newRecord() record { return record{&telemetry.Recorder{Size: recordedEvents}} }

const recordedEvents = 1024 // some 800 KiB at most

// After implements admin.Events; Last is the Recorder's.
func (r record) After(id uint64, most int) (shown []admin.Event, lost uint64, more <-chan struct{}) {
	events, lost, more := r.Recorder.After(id, most)
	for i := range events {
		shown = append(shown, eventOf(&events[i]))
	}
	return shown, lost, more
}

func (r record) add(kind, format string, args ...any) {
	if r.Recorder != nil {
		r.Add(kind, fmt.Sprintf(format, args...))
	}
}

// The kinds of what happens beside connections, as admin.Event has them.
const (
	kindReload   = "reload"
	kindBan      = "ban"
	kindBreaker  = "breaker"
	kindHealth   = "health"
	kindOverload = "overload"
	kindDrain    = "drain"
	kindUpgrade  = "upgrade"
)

func (r record) reloaded(changed bool, generation int, err error) {
	switch {
	case err != nil:
		r.add(kindReload, "not reloaded; what was in force before is kept: %s", inOneLine(err))
	case changed:
		r.add(kindReload, "generation %d of the configuration is in force", generation)
	default:
		r.add(kindReload, "certificates, client policies, tickets and lists are read again")
	}
}

func (r record) upgraded(u *admin.Upgrade) {
	if u.Problem != "" {
		r.add(kindUpgrade, "not upgraded; this process goes on: %s", u.Problem)
		return
	}
	r.add(kindUpgrade, "process %d serves; %d connections have moved there, %d finish here", u.PID, u.Moved, u.Left)
}

func (r record) banned(n int64, mode string) {
	r.add(kindBan, "%d clients banned that were refused again and again (%s)", n, mode)
}

func (r record) bannedByHand(prefix string, d time.Duration, why string) {
	r.add(kindBan, "%s banned for %s: %s", prefix, shortDuration(d), why)
}

func (r record) unbanned(prefix string) { r.add(kindBan, "%s is not banned any more", prefix) }

func (r record) serverUp(upstream, server string) {
	r.add(kindHealth, "upstream %s: server %s is up", upstream, server)
}

func (r record) serverDown(upstream, server string, err error) {
	r.add(kindHealth, "upstream %s: server %s is down: %v", upstream, server, err)
}

func (r record) breakerChanged(name, server string, from, to upstream.BreakerState) {
	r.add(kindBreaker, "upstream %s: server %s: breaker %s, was %s", name, server, to, from)
}

func (r record) overloaded(s overload.State) {
	switch {
	case s.Since.IsZero():
		r.add(kindOverload, "no overload any more")
	case s.TurnedAway > 0:
		r.add(kindOverload, "overload: %s, by %s; %.0f %% of newcomers are turned away", s.Pressure, s.Cause, 100*s.TurnedAway)
	default:
		r.add(kindOverload, "overload: %s, by %s", s.Pressure, s.Cause)
	}
}

func (r record) draining(timeout time.Duration) {
	r.add(kindDrain, "draining, for %s at most", shortDuration(timeout))
}

func (r record) drained(of levee.DrainReport) {
	r.add(kindDrain, "drained: of the connections %d left, %d ended by themselves, %d were cut", of.Drained, of.Gone, of.Cut)
}

// eventOf shows an event as the admin API does.
func eventOf(e *telemetry.Event) admin.Event {
	shown := admin.Event{ID: e.ID, Time: e.Time, Kind: e.Kind, Text: e.Text}
	if e.Reason != 0 {
		shown.Reason = e.Reason.String()
	}
	if e.Ended != nil {
		shown.Conn, shown.Story = e.Ended.ID, storyOf(e.Ended)
	}
	return shown
}

func storyOf(c *telemetry.Ended) *admin.Story {
	s := &admin.Story{
		Connection: admin.Connection{
			ID: c.ID, Listener: c.Listener, Client: c.Client, Peer: c.Peer, Local: c.Local, Accepted: c.Accepted,
			Phase: phaseIn(c), Engine: c.Story.Engine, TLS: c.Story.TLSName(), SNI: c.Story.ServerName, ALPN: c.Story.ALPN,
			Route: c.Story.Route, Upstream: c.Story.Upstream, Server: c.Story.Server,
			In: c.Read, Out: c.Written, Idle: -1,
		},
		Reason: c.Reason.String(), Error: c.Err, Duration: c.Duration.Seconds(), Trace: c.TraceID,
		Phases: make([]admin.Phase, len(c.Spans)),
	}
	for i, span := range c.Spans {
		s.Phases[i] = admin.Phase{Name: span.Phase.String(), At: span.At.Seconds(), Took: span.Took.Seconds()}
	}
	if c.TCP != nil {
		s.RTT, s.Retrans = c.TCP.RTT.Seconds(), int64(c.TCP.Retransmits)
	}
	return s
}

// phaseIn returns how far a connection had come when it ended.
func phaseIn(c *telemetry.Ended) string {
	switch m := &c.Story.Moments; {
	case m.Draining > 0:
		return phaseDraining
	case m.Routed > 0:
		return phaseServing
	}
	return phaseArriving
}
