package e2e

import (
	"fmt"
	"math"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

// A soakResult is all that a soak has seen. What it comes to is judged from this alone.
type soakResult struct {
	Began    time.Time     `json:"began"`
	Duration time.Duration `json:"duration_ns"`
	Seed     uint64        `json:"seed"`
	Machine  string        `json:"machine"`
	Version  string        `json:"version"`
	Commit   string        `json:"commit"`
	Load     string        `json:"load_average"` // at the end

	Habits     []*deeds     `json:"clients"`
	Streams    int          `json:"streams"` // that last as long as the soak, through every upgrade
	StreamMiB  int64        `json:"stream_mib"`
	Broken     []string     `json:"broken_streams"`
	Complaints []complaint  `json:"complaints"` // excused or not
	Faults     []fault      `json:"faults"`
	Events     []happened   `json:"events"`
	Problems   []string     `json:"problems"` // an event that did not go as it should
	Samples    []soakSample `json:"samples"`
	Processes  int          `json:"most_processes"`
	Quiet      int          `json:"quiet_points"` // at which the counts were looked at
	Unbalanced []string     `json:"unbalanced"`
	Base       vitals       `json:"base"` // an idle process that has taken over from another, and has served somebody
	End        vitals       `json:"end"`  // after the last one

	Left    string    `json:"left,omitempty"` // the process's goroutines and files at the end, if there are too many
	Verdict []finding `json:"verdict"`
}

// Deeds are what clients of one habit have done.
type deeds struct {
	Habit       string `json:"habit"`
	Clients     int    `json:"clients"`
	Connections int64  `json:"connections"`
	Requests    int64  `json:"requests"` // that were answered right
	Bytes       int64  `json:"bytes"`    // there and back
	Slowest     int64  `json:"slowest_ns"`
	Excused     int    `json:"excused"`
	Failed      int    `json:"failed"`
}

// What may excuse a complaint. Nothing else does.
const (
	byNothing = ""
	byFault   = "fault" // of the upstream that the client's connection led to
	byDrain   = "drain" // of an old process, for TLS that it ends: told to leave between two requests
)

// A complaint is a well-behaved client's. Times are from the start of the soak.
type complaint struct {
	Habit   string        `json:"habit"`
	Began   time.Duration `json:"began_ns"` // the connection
	At      time.Duration `json:"at_ns"`
	Err     string        `json:"error"`
	Bears   string        `json:"bears"`
	Excused bool          `json:"excused"`
}

// A fault is what excuses those whom it has hit.
type fault struct {
	Kind  string        `json:"kind"`
	What  string        `json:"what"`
	From  time.Duration `json:"from_ns"`
	Until time.Duration `json:"until_ns"`
}

// notices is how long after a fault its victims may notice it at the latest: more than they ever pause.
const notices = 5 * time.Second

// excuses reports whether the complaint is about a connection that was there when the fault happened.
func (f fault) excuses(c complaint) bool {
	return c.Bears == f.Kind && c.Began <= f.Until && c.At >= f.From && c.At <= f.Until+notices
}

// happened is an event as it came.
type happened struct {
	At     time.Duration `json:"at_ns"`
	Took   time.Duration `json:"took_ns"`
	Kind   ordeal        `json:"kind"`
	Detail string        `json:"detail"`
}

// vitals are what a process holds.
type vitals struct {
	Goroutines int `json:"goroutines"`
	Files      int `json:"files"`  // other than pipes
	Pipes      int `json:"pipes"`  // which are kept for the next to need one
	Active     int `json:"active"` // connections
}

// A soakSample is what the process that served held at one time: the heap right after a collection, so that it is what lives.
type soakSample struct {
	At   time.Duration `json:"at_ns"`
	PID  int           `json:"pid"`
	Heap float64       `json:"heap_bytes"`
	RSS  float64       `json:"rss_bytes"`
	vitals
}

// A finding is one promise, and what became of it.
type finding struct {
	Promise string   `json:"promise"`
	Figure  string   `json:"figure"`
	Broken  []string `json:"broken,omitempty"`
	Skipped string   `json:"not_judged,omitempty"` // why
}

const (
	spare         = 8      // goroutines and files beyond the base at the end, such as idle connections of admin clients
	pipesKept     = 2 * 16 // ends of pipes that a loop keeps; a listener has one for each processor
	soakListeners = 8
	mostGrowth    = 1 << 20     // bytes in ten minutes
	settlesIn     = time.Minute // in which a soak, and a process, comes to what it needs
	longEnough    = 10 * time.Minute
)

// judge says what the soak comes to.
func (s *soakResult) judge() (good bool) {
	s.Verdict = []finding{
		s.judgeClients(), s.judgeStreams(), s.judgeEvents(), s.judgeProcesses(), s.judgeCounts(), s.judgeLeaks(),
		s.judgeGrowth("the heap that lives, of one process after the other", func(m soakSample) float64 { return m.Heap }),
		s.judgeGrowth("resident memory, of one process after the other", func(m soakSample) float64 { return m.RSS }),
		s.judgeLongest("the least heap that lives", func(m soakSample) float64 { return m.Heap }),
		s.judgeLongest("the least resident memory", func(m soakSample) float64 { return m.RSS }),
	}
	return !slices.ContainsFunc(s.Verdict, func(f finding) bool { return len(f.Broken) > 0 })
}

func (s *soakResult) judgeClients() finding {
	f := finding{Promise: "every request of a well-behaved client is answered right"}
	requests, connections, excused := int64(0), int64(0), 0
	byName := make(map[string]*deeds)
	for _, h := range s.Habits {
		requests, connections = requests+h.Requests, connections+h.Connections
		h.Excused, h.Failed = 0, 0
		byName[h.Habit] = h
		if h.Requests == 0 {
			f.Broken = append(f.Broken, h.Habit+": no request was answered")
		}
	}
	for i, c := range s.Complaints {
		if s.Complaints[i].Excused = slices.ContainsFunc(s.Faults, func(f fault) bool { return f.excuses(c) }); s.Complaints[i].Excused {
			excused++
			byName[c.Habit].Excused++
			continue
		}
		byName[c.Habit].Failed++
		f.Broken = append(f.Broken, fmt.Sprintf("%s, at %s, on a connection from %s: %s", c.Habit, short(c.At), short(c.Began), c.Err))
	}
	f.Figure = fmt.Sprintf("%d requests on %d connections; %d hit by an injected fault or told to leave between two requests; %d others failed", requests, connections, excused, len(s.Complaints)-excused)
	return f
}

func short(d time.Duration) string { return d.Round(time.Millisecond).String() }

func (s *soakResult) judgeStreams() finding {
	return finding{
		Promise: "streams that last as long as the soak arrive byte for byte",
		Figure:  fmt.Sprintf("%d streams, %d MiB, %d broken", s.Streams, s.StreamMiB, len(s.Broken)), Broken: s.Broken,
	}
}

func (s *soakResult) judgeEvents() finding {
	f := finding{Promise: "reloads and upgrades succeed", Broken: s.Problems}
	count := make(map[ordeal]int)
	for _, e := range s.Events {
		count[e.Kind]++
	}
	var all []string
	for _, kind := range []ordeal{reloads, upgrades, kills, resets, freezes, slows, rudes, floods} {
		all = append(all, fmt.Sprintf("%d × %s", count[kind], kind))
	}
	f.Figure = strings.Join(all, ", ")
	return f
}

func (s *soakResult) judgeProcesses() finding {
	f := finding{Promise: "there are never more than 2 processes", Figure: fmt.Sprintf("%d at most", s.Processes)}
	if s.Processes > 2 {
		f.Broken = append(f.Broken, f.Figure)
	}
	return f
}

func (s *soakResult) judgeCounts() finding {
	f := finding{Promise: "accepted = closed + active for each listener, and counts go on across upgrades", Figure: fmt.Sprintf("%d quiet points", s.Quiet), Broken: s.Unbalanced}
	if s.Quiet < 3 {
		f.Broken = append(f.Broken, "too few quiet points")
	}
	return f
}

func (s *soakResult) judgeLeaks() finding {
	f := finding{
		Promise: fmt.Sprintf("goroutines and files go back to base, within %d", spare),
		Figure: fmt.Sprintf("%d goroutines, then %d; %d files, then %d, and %d ends of pipes that are kept; %d connections are left",
			s.Base.Goroutines, s.End.Goroutines, s.Base.Files, s.End.Files, s.End.Pipes, s.End.Active),
	}
	if s.End.Goroutines > s.Base.Goroutines+spare {
		f.Broken = append(f.Broken, fmt.Sprintf("%d goroutines more", s.End.Goroutines-s.Base.Goroutines))
	}
	if s.End.Files > s.Base.Files+spare {
		f.Broken = append(f.Broken, fmt.Sprintf("%d files more", s.End.Files-s.Base.Files))
	}
	if s.End.Pipes > pipesKept*runtime.NumCPU()*soakListeners {
		f.Broken = append(f.Broken, fmt.Sprintf("%d ends of pipes", s.End.Pipes))
	}
	if s.End.Active != 0 {
		f.Broken = append(f.Broken, fmt.Sprintf("%d connections are counted that nobody has", s.End.Active))
	}
	return f
}

// judgeGrowth looks at a line through the first minutes of all processes, as if they were one: what a process hands on to the
// next must not become more. How they grow as they get older, the judge of the longest looks at.
func (s *soakResult) judgeGrowth(what string, of func(soakSample) float64) finding {
	var points []point
	first := s.firstSamples()
	for _, m := range s.Samples {
		if age := m.At - first[m.PID]; m.At >= settlesIn && age >= settlesIn/3 && age < settlesIn*3/2 {
			points = append(points, point{m.At.Seconds(), of(m)})
		}
	}
	return s.judgeSlope(what, points, 30)
}

// judgeLongest looks at the process that has lived longest, which is the last: no upgrade comes in the second half of a long soak.
// Once that has served for five minutes, it takes the least of every two: between those its heap goes up and down by whole tables
// of limits, of listeners that come and go.
func (s *soakResult) judgeLongest(what string, of func(soakSample) float64) finding {
	const window, grownUp = 2 * time.Minute, 5 * time.Minute
	first, least := s.firstSamples(), make(map[float64]float64) // by the window's number
	for _, m := range s.Samples {
		if age := m.At - first[m.PID]; m.PID == s.Samples[len(s.Samples)-1].PID && age >= grownUp {
			i := math.Floor(float64(m.At) / float64(window))
			if v, seen := least[i]; !seen || of(m) < v {
				least[i] = of(m)
			}
		}
	}
	var points []point
	for i, v := range least {
		points = append(points, point{i * window.Seconds(), v})
	}
	return s.judgeSlope(what+" in any two minutes, in one process", points, 4)
}

// firstSamples returns when each process was looked at first.
func (s *soakResult) firstSamples() map[int]time.Duration {
	first := make(map[int]time.Duration)
	for _, m := range s.Samples {
		if _, seen := first[m.PID]; !seen {
			first[m.PID] = m.At
		}
	}
	return first
}

func (s *soakResult) judgeSlope(what string, points []point, enough int) finding {
	f := finding{Promise: "memory does not grow by more than 1 MiB in 10 minutes: " + what}
	slope, deviation := slopeOf(points)
	f.Figure = fmt.Sprintf("%+.2f ± %.2f MiB, from %d samples", slope*600/(1<<20), deviation*600/(1<<20), len(points))
	switch {
	case s.Duration < longEnough*2:
		f.Skipped = fmt.Sprintf("a slope says something after %s", longEnough*2)
	case len(points) < enough:
		f.Broken = append(f.Broken, "too few samples")
	case (slope-2*deviation)*600 > mostGrowth: // what chance may do, from so few samples, is no growth
		f.Broken = append(f.Broken, f.Figure)
	}
	return f
}

type point struct{ x, y float64 }

// slopeOf is the least squares' slope, and its standard error.
func slopeOf(points []point) (slope, deviation float64) {
	n := float64(len(points))
	var x, y, xx, xy, rest float64
	for _, p := range points {
		x, y = x+p.x/n, y+p.y/n
	}
	for _, p := range points {
		xx += (p.x - x) * (p.x - x)
		xy += (p.x - x) * (p.y - y)
	}
	if xx == 0 || n <= 2 {
		return 0, math.Inf(1)
	}
	slope = xy / xx
	for _, p := range points {
		off := p.y - y - slope*(p.x-x)
		rest += off * off
	}
	return slope, math.Sqrt(rest / (n - 2) / xx)
}

// fine is a result of half an hour in which all is well.
func fine() *soakResult {
	s := &soakResult{Duration: 30 * time.Minute, Processes: 2, Quiet: 100, Base: vitals{Goroutines: 30, Files: 30}, End: vitals{Goroutines: 33, Files: 28}}
	s.Habits = []*deeds{{Habit: "a", Requests: 1}, {Habit: "b", Requests: 1}}
	s.Faults = []fault{{byFault, "kill", 100 * time.Second, 101 * time.Second}, {byDrain, "upgrade", 200 * time.Second, 205 * time.Second}}
	s.grows(0)
	return s
}

// grows has memory grow by so many bytes a second, in processes of three minutes each in the first half and one in the other,
// that begin at the same level. Each minute has a table that goes again.
func (s *soakResult) grows(by float64) {
	s.Samples = nil
	for at := time.Duration(0); at < s.Duration; at += 10 * time.Second {
		began := min(at.Truncate(3*time.Minute), s.Duration/2)
		extra := float64(1<<18)*math.Sin(at.Seconds()) + float64(8<<20)*float64(at/(30*time.Second)%2)
		if at > s.Duration-10*time.Second {
			extra += 8 << 20
		}
		of := (at - began).Seconds()
		s.Samples = append(s.Samples, soakSample{At: at, PID: int(began), Heap: 20<<20 + extra + by*of, RSS: 40<<20 + extra})
	}
}

func TestASoakIsJudgedByWhatItHasSeen(t *testing.T) {
	for what, c := range map[string]struct {
		change func(*soakResult)
		broken string // a word of what is said; none is a soak that is good
	}{
		"all is well": {func(*soakResult) {}, ""},
		"a client that nothing excuses": {func(s *soakResult) {
			s.Complaints = []complaint{{Habit: "a", Began: 90 * time.Second, At: 101 * time.Second, Err: "gone", Bears: byNothing}}
		}, "gone"},
		"a client that a fault has hit": {func(s *soakResult) {
			s.Complaints = []complaint{{Habit: "a", Began: 90 * time.Second, At: 101 * time.Second, Bears: byFault}}
		}, ""},
		"a client that came after the fault": {func(s *soakResult) {
			s.Complaints = []complaint{{Habit: "a", Began: 102 * time.Second, At: 103 * time.Second, Err: "gone", Bears: byFault}}
		}, "gone"},
		"a client that failed before the fault": {func(s *soakResult) {
			s.Complaints = []complaint{{Habit: "a", Began: 90 * time.Second, At: 99 * time.Second, Err: "gone", Bears: byFault}}
		}, "gone"},
		"a client that failed long after it": {func(s *soakResult) {
			s.Complaints = []complaint{{Habit: "a", Began: 90 * time.Second, At: 120 * time.Second, Err: "gone", Bears: byFault}}
		}, "gone"},
		"a client that is told to leave, for no reason": {func(s *soakResult) {
			s.Complaints = []complaint{{Habit: "a", Began: 90 * time.Second, At: 101 * time.Second, Err: "gone", Bears: byDrain}}
		}, "gone"},
		"a client that is told to leave by an old process": {func(s *soakResult) {
			s.Complaints = []complaint{{Habit: "b", Began: 90 * time.Second, At: 204 * time.Second, Bears: byDrain}}
		}, ""},
		"clients that have done nothing": {func(s *soakResult) { s.Habits[1].Requests = 0 }, "no request"},
		"a broken stream":                {func(s *soakResult) { s.Broken = []string{"torn"} }, "torn"},
		"a failed upgrade":               {func(s *soakResult) { s.Problems = []string{"no"} }, "no"},
		"a third process":                {func(s *soakResult) { s.Processes = 3 }, "3"},
		"a count that is wrong":          {func(s *soakResult) { s.Unbalanced = []string{"7 of 8"} }, "7 of 8"},
		"nobody looked":                  {func(s *soakResult) { s.Quiet = 2 }, "quiet"},
		"goroutines":                     {func(s *soakResult) { s.End.Goroutines = 39 }, "goroutines"},
		"files":                          {func(s *soakResult) { s.End.Files = 39 }, "files"},
		"pipes":                          {func(s *soakResult) { s.End.Pipes = 8*32*runtime.NumCPU() + 1 }, "pipes"},
		"connections":                    {func(s *soakResult) { s.End.Active = 1 }, "connections"},
		"little growth":                  {func(s *soakResult) { s.grows(0.5 * (1 << 20) / 600) }, ""},
		"growth that upgrades hide":      {func(s *soakResult) { s.grows(1.5 * (1 << 20) / 600) }, "MiB"},
		"growth of what is resident": {func(s *soakResult) {
			for i, m := range s.Samples {
				s.Samples[i].RSS += (m.At - time.Duration(m.PID)).Seconds() * 10 * (1 << 20) / 600
			}
		}, "MiB"},
		"growth that is handed on": {func(s *soakResult) {
			for i := range s.Samples {
				s.Samples[i].RSS += time.Duration(s.Samples[i].PID).Seconds() * 5 * (1 << 20) / 600
			}
		}, "MiB"},
		"growth, in a short soak": {func(s *soakResult) {
			s.Duration = 5 * time.Minute
			s.grows(10 << 20)
		}, ""},
		"no samples": {func(s *soakResult) { s.Samples = nil }, "samples"},
	} {
		s := fine()
		c.change(s)
		good := s.judge()
		var broken []string
		for _, f := range s.Verdict {
			broken = append(broken, f.Broken...)
		}
		if good != (c.broken == "") || !strings.Contains(strings.Join(broken, "\n"), c.broken) {
			t.Errorf("%s: %t, %q", what, good, broken)
		}
	}
}
