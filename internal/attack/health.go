package attack

import (
	"fmt"
	"time"
)

// Health is what the well-behaved client felt for some time.
type Health struct {
	All         Numbers // of the following two
	RoundTrips  Numbers // on the connection that it keeps
	Connections Numbers // new ones, each with a round trip
	Lag         Numbers // doing nothing: how late its own timers were, which says how busy its machine was
}

// OK is the share of what it tried that went well, or 1 if it tried nothing.
func (h Health) OK() float64 {
	if h.All.Tried == 0 {
		return 1
	}
	return 1 - float64(h.All.Failed)/float64(h.All.Tried)
}

// Numbers are about things that were tried.
type Numbers struct {
	Tried, Failed int64
	P50, P99, Max time.Duration // of all of them: what has failed took at least as long as until then
	FirstError    string        // of the first that failed
}

// A series is what was tried, as it is counted. It is not safe for concurrent use.
type series struct {
	took       durations
	failed     int64
	firstError string
}

func (s *series) record(took time.Duration, err error) {
	s.took.record(took)
	if err == nil {
		return
	}
	s.failed++
	if s.firstError == "" {
		s.firstError = err.Error()
	}
}

func (s *series) numbers() Numbers {
	return Numbers{
		Tried: s.took.total, Failed: s.failed, FirstError: s.firstError,
		P50: s.took.quantile(0.5), P99: s.took.quantile(0.99), Max: s.took.max,
	}
}

// What a server has to keep to while it is attacked.
const (
	wantOK    = 0.999
	wantTimes = 3 // the idle p99
)

// Judge says what the well-behaved client has to complain of: that less than 99.9 %
// of what it tried went well during or after an attack, or that its p99 during the
// attack was more than three times that of an idle server. Round trips and new
// connections count together: of the latter alone there are so few that their p99 would
// be the slowest of all.
//
// An idle server's p99 is taken for floor at least. An answer over loopback takes a
// tenth of a millisecond, and three times that is nothing: on a machine that server,
// attackers and client share, one of them waits for a slice of a processor's time now
// and then, which is some 3 ms by Linux and 10 ms by Go's scheduler.
func Judge(idle, during, after Health, floor time.Duration) (complaints []string) {
	if ok := during.OK(); ok < wantOK {
		complaints = append(complaints, fmt.Sprintf("%s of the probe went well: %s", percent(ok), during.All.FirstError))
	}
	if ok := after.OK(); ok < wantOK {
		complaints = append(complaints, fmt.Sprintf("%s of the probe went well after it: %s", percent(ok), after.All.FirstError))
	}
	if limit := wantTimes * max(idle.All.P99, floor); during.All.P99 > limit {
		complaints = append(complaints, fmt.Sprintf("p99 %s, above %s", round(during.All.P99), round(limit)))
	}
	return complaints
}

func percent(share float64) string { return fmt.Sprintf("%.2f %%", float64(int(share*1e4))/100) }
