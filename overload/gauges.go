package overload

import (
	"cmp"
	"maps"
	"os"
	"runtime/metrics"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/levee-net/levee"
)

// senses are where loads come from.
type senses interface {
	look(now time.Time) Loads
}

// gauges are the senses of a process.
type gauges struct {
	*Controller
	memory    memory
	files     float64 // how many may be open; 0 if that is not known
	scheduler scheduler
	waits     map[*levee.Server]*waitGauges
}

func newGauges(c *Controller) *gauges {
	return &gauges{
		Controller: c,
		memory:     newMemory(c.AdjustMemoryLimit),
		files:      fileLimit(),
		waits:      make(map[*levee.Server]*waitGauges),
	}
}

func (g *gauges) look(now time.Time) (loads Loads) {
	loads[Memory] = g.memory.look()
	scheduler := portion(g.scheduler.look().Seconds(), cmp.Or(g.SchedulerDelay, 20*time.Millisecond).Seconds())
	open := openFiles()
	loads[Files] = portion(open, g.files)
	servers := g.servers()
	maps.DeleteFunc(g.waits, func(s *levee.Server, _ *waitGauges) bool { return !slices.Contains(servers, s) })
	for _, s := range servers {
		l := s.Load()
		if open == 0 {
			loads[Files] = max(loads[Files], portion(float64(l.Active), float64(l.MaxConns)))
		}
		waits := g.waits[s]
		if waits == nil {
			waits = new(waitGauges)
			g.waits[s] = waits
		}
		accept, wanted := waits.accept.look(now, l)
		handshake := waits.handshakes.look(now, l.HandshakeTurns, l.HandshakesWaiting).delay(handshakesLeast * l.MaxHandshakes)
		loads[AcceptQueue] = max(loads[AcceptQueue], wanted*portion(accept.Seconds(), cmp.Or(g.AcceptDelay, 500*time.Millisecond).Seconds()))
		loads[Scheduler] = max(loads[Scheduler], wanted*scheduler)
		loads[Arriving] = max(loads[Arriving], portion(float64(l.Arriving), float64(l.MaxArrivals)/2))
		loads[Handshakes] = max(loads[Handshakes], portion(handshake.Seconds(), cmp.Or(g.HandshakeDelay, 100*time.Millisecond).Seconds()))
	}
	return loads
}

// portion returns how much of the limit n is, 0 if there is none.
func portion(n, limit float64) float64 {
	if limit <= 0 {
		return 0
	}
	return n / limit
}

// openFiles returns how many files the process has open, 0 if that cannot be told without
// counting them. The kernel tells since Linux 6.2, as the size of a directory. It is all the
// same to it how many there are. The number that a new file would get is no measure: files are closed in
// any order, and the first gap may be anywhere.
func openFiles() float64 {
	info, err := os.Stat("/proc/self/fd")
	if err != nil {
		return 0
	}
	return float64(info.Size())
}

// fileLimit returns how many files the process may have open, 0 if that is not known.
func fileLimit() float64 {
	limits, err := os.ReadFile("/proc/self/limits")
	if err != nil {
		return 0
	}
	_, line, _ := strings.Cut(string(limits), "Max open files")
	fields := strings.Fields(line)
	if len(fields) == 0 {
		return 0
	}
	n, _ := strconv.ParseFloat(fields[0], 64) // "unlimited" is none
	return n
}

// How many have to wait for it to be a matter of how many they are. If fewer wait for long, something else keeps the server from
// its work, and to turn them away would not help.
const (
	crowdLeast      = 128 // to be accepted
	handshakesLeast = 10  // for each that is computed
)

// waitGauges are those of one server.
type waitGauges struct {
	accept     acceptGauge
	handshakes queueGauge
}

// A queueGauge estimates how long there is to wait in a queue.
type queueGauge struct {
	at     time.Time
	served int64
	length int
}

// look begins a new interval, and returns how it was with the one that ends. The first has no beginning, and nobody waits in it.
func (g *queueGauge) look(now time.Time, served int64, length int) (of queueing) {
	if !g.at.IsZero() {
		of = queueing{now.Sub(g.at), served - g.served, min(g.length, length)}
	}
	*g = queueGauge{now, served, length}
	return of
}

// queueing is how it was in a queue for a while.
type queueing struct {
	took     time.Duration
	served   int64
	standing int // who waited at both ends. A crowd that comes at once is gone by the second
}

// delay is how long it takes to serve those who stand there; 0 if they are less than a crowd, or nobody was served meanwhile, for
// whatever reason.
func (q queueing) delay(crowd int) time.Duration {
	if q.standing < crowd || q.served <= 0 {
		return 0
	}
	return q.took * time.Duration(q.standing) / time.Duration(q.served)
}

// An acceptGauge estimates how long newcomers wait to be accepted.
type acceptGauge struct {
	queue    queueGauge
	unwanted int64
	pauses   int64
	paused   bool
}

// look also tells the share of newcomers whom the Gate did not turn away. A flood that it refuses is
// the reason for what is short then, and to turn away others, who are few, would relieve nothing.
func (g *acceptGauge) look(now time.Time, l levee.Load) (delay time.Duration, wanted float64) {
	queue, unwanted := g.queue.look(now, l.Accepted, l.QueueLength), l.Unwanted-g.unwanted
	paused := g.paused || l.AcceptPauses > g.pauses
	g.unwanted, g.pauses, g.paused = l.Unwanted, l.AcceptPauses, l.AcceptsPaused > 0
	if queue.served <= 0 {
		return 0, 1
	}
	wanted = 1 - float64(unwanted)/float64(queue.served)
	if paused {
		return 0, wanted // they waited for others to leave, say: to turn some away does not change that
	}
	return queue.delay(crowdLeast), wanted
}

// scheduler tells how long goroutines wait for a processor.
type scheduler struct {
	sample []metrics.Sample
	before []uint64
}

// look returns the median since the last look: a queue of goroutines holds up all of them, and a
// collection of garbage, or a neighbour on the machine, only some.
func (s *scheduler) look() time.Duration {
	if s.sample == nil {
		s.sample = []metrics.Sample{{Name: "/sched/latencies:seconds"}}
	}
	metrics.Read(s.sample)
	if s.sample[0].Value.Kind() != metrics.KindFloat64Histogram {
		return 0
	}
	h := s.sample[0].Value.Float64Histogram()
	first := len(s.before) == 0
	if first {
		s.before = make([]uint64, len(h.Counts))
	}
	total := uint64(0)
	for i, n := range h.Counts {
		n, s.before[i] = n-s.before[i], n
		h.Counts[i] = n
		total += n
	}
	if first {
		return 0
	}
	return median(h, total)
}

// median returns the beginning of the bucket in which the median is.
func median(h *metrics.Float64Histogram, total uint64) time.Duration {
	beyond := total / 2
	for i, n := range slices.Backward(h.Counts) {
		if n > beyond {
			return time.Duration(max(0, h.Buckets[i]) * float64(time.Second))
		}
		beyond -= n
	}
	return 0
}
