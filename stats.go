package levee

import "time"

// Stats are a server's counts at one instant. They are taken together: Accepted and Adopted are
// always Active plus Moved plus the sum of Closed.
type Stats struct {
	Accepted int64                 // connections accepted since the start, without those turned away at the door
	Adopted  int64                 // connections that have come from another process; see Server.Adopt
	Active   int64                 // of both, open now
	Moved    int64                 // of both, another process's by now; see Parcel.Moved
	Closed   map[CloseReason]int64 // of both, ended, by reason; every reason is present

	// Refused are the connections that were turned away at the door, before anything was
	// spent on them: by Server.Gate, or for want of room. Limited, Denied and Overloaded
	// are always present, and nothing else is.
	Refused map[CloseReason]int64

	Arriving          int   // connections without a handler yet that have a goroutine
	Read, Written     int64 // bytes on the wire, of ended and of open connections, and only while they were this process's
	Panics            int64 // in handlers, hooks and TLS callbacks
	AcceptErrors      int64 // failed accepts, however they failed
	HandshakesWaiting int   // TLS handshakes that wait for one of Server.MaxHandshakes
	SlowSteps         int64 // calls of a Stepper's Step that outlived StepBudget, of connections that event loops serve

	// LoopLag is how long something that was due on an event loop had to wait for it, at
	// worst: in the last 15 to 30 seconds, or since Stats was last called if that is longer ago.
	LoopLag time.Duration

	// QueueLength is how many connections wait in the kernel's accept queues,
	// and QueueLimit how many may. Both are 0 where the system does not tell
	// (TCP on Linux does).
	QueueLength, QueueLimit int

	MaxConns int      // the cap on Active, negative if there is none
	Draining bool     // Shutdown or Close has been called
	Pressure Pressure // that Press has put the server under
}

// Add returns the counts of two servers together, such as of one and of that which takes its place. Of
// LoopLag it has the longer. What cannot be added, MaxConns, Draining and Pressure, is that of the one which
// does not drain, or else of s. Stats that are zero add nothing.
func (s Stats) Add(t Stats) Stats {
	s.Accepted += t.Accepted
	s.Adopted += t.Adopted
	s.Active += t.Active
	s.Moved += t.Moved
	s.Closed = together(s.Closed, t.Closed)
	s.Refused = together(s.Refused, t.Refused)
	s.Arriving += t.Arriving
	s.Read += t.Read
	s.Written += t.Written
	s.Panics += t.Panics
	s.AcceptErrors += t.AcceptErrors
	s.HandshakesWaiting += t.HandshakesWaiting
	s.SlowSteps += t.SlowSteps
	s.LoopLag = max(s.LoopLag, t.LoopLag)
	s.QueueLength += t.QueueLength
	s.QueueLimit += t.QueueLimit
	if s.MaxConns == 0 || s.Draining && !t.Draining && t.MaxConns != 0 { // 0 is no server's
		s.MaxConns, s.Draining, s.Pressure = t.MaxConns, t.Draining, t.Pressure
	}
	return s
}

func together(a, b map[CloseReason]int64) map[CloseReason]int64 {
	if a == nil && b == nil {
		return nil
	}
	both := make(map[CloseReason]int64, max(len(a), len(b)))
	for _, some := range [...]map[CloseReason]int64{a, b} {
		for reason, n := range some {
			both[reason] += n
		}
	}
	return both
}

// Stats returns the server's counts. It looks at every open connection, so it is
// for the pace of a metrics scrape, not for that of a request.
func (s *Server) Stats() Stats {
	s.init()
	s.mu.Lock()
	defer s.mu.Unlock()
	set := s.inForce.Load()
	stats := Stats{
		Active:       int64(len(s.conns)),
		Accepted:     s.acceptedLocked(),
		Adopted:      s.left.adopted,
		Moved:        s.left.moved,
		Closed:       make(map[CloseReason]int64, reasonCount),
		Refused:      make(map[CloseReason]int64, len(refusals)),
		Read:         s.left.read,
		Written:      s.left.written,
		Panics:       s.left.panics,
		AcceptErrors: s.left.acceptErrors,
		Arriving:     int(s.arriving.Load()),
		SlowSteps:    s.slow.Load(),
		LoopLag:      s.lag.worst(s.clock(), s.lagOfLoops()),
		MaxConns:     set.limits.conns,
		Draining:     s.state != serving,
		Pressure:     Pressure(s.pressing.now.Load()), //nolint:gosec // a Pressure it was
	}
	stats.HandshakesWaiting, _ = s.handshakes.load()
	for _, reason := range CloseReasons() {
		stats.Closed[reason] = s.left.closed[reason]
	}
	for _, reason := range refusals {
		stats.Refused[reason] = s.left.refused[reason]
	}
	for _, c := range s.conns {
		read, written := c.Traffic()
		stats.Read += read
		stats.Written += written
	}
	for d := range s.doors {
		length, limit := queueOf(d.listener)
		stats.QueueLength += length
		stats.QueueLimit += limit
	}
	return stats
}

// acceptedLocked returns how many connections were accepted.
func (s *Server) acceptedLocked() int64 {
	return int64(len(s.conns)) + s.left.total + s.left.moved - s.left.adopted
}

// A Load is what a server has to do, of what can be told at once.
type Load struct {
	Active, MaxConns  int   // open connections, and how many may be; negative if any number
	AcceptPauses      int64 // how often accepting has paused so far: for want of room under MaxConns, or as it failed
	AcceptsPaused     int   // acceptors that pause now
	Arriving          int   // of them, without a handler yet and with a goroutine
	MaxArrivals       int   // negative if any number may
	HandshakesWaiting int   // TLS handshakes that wait for one of MaxHandshakes
	HandshakeTurns    int64 // how often one was let in so far, also to go on when its client had answered; 0 where any number is computed at once
	MaxHandshakes     int   // negative if any number are computed at once
	Accepted          int64 // so far, those turned away among them
	Unwanted          int64 // of them, those that the Gate has turned away at the door

	// QueueLength and QueueLimit are as in Stats, of the listener whose queue is fullest.
	QueueLength, QueueLimit int
}

// Load returns what Stats does not have to count for: its cost does not depend on how many
// connections are open. It may be asked several times a second.
func (s *Server) Load() Load {
	s.init()
	s.mu.Lock()
	defer s.mu.Unlock()
	set := s.inForce.Load()
	load := Load{
		Active:        len(s.conns),
		MaxConns:      set.limits.conns,
		MaxArrivals:   set.limits.arrivals,
		AcceptPauses:  s.pauses.begun.Load(),
		AcceptsPaused: int(s.pauses.open.Load()),
		Accepted:      s.acceptedLocked(),
		Arriving:      int(s.arriving.Load()),
		MaxHandshakes: set.limits.handshakes,
	}
	load.HandshakesWaiting, load.HandshakeTurns = s.handshakes.load()
	for reason, refused := range s.left.refused {
		load.Accepted += refused
		if CloseReason(reason) != Overloaded {
			load.Unwanted += refused
		}
	}
	for d := range s.doors {
		length, limit := queueOf(d.listener)
		if load.QueueLimit == 0 || length*load.QueueLimit > load.QueueLength*limit {
			load.QueueLength, load.QueueLimit = length, limit
		}
	}
	return load
}

// tally sums up the connections that have ended, and those that never were.
type tally struct {
	total         int64
	adopted       int64 // those that have come from another process
	moved         int64 // those that have gone to one
	closed        [reasonCount]int64
	refused       [reasonCount]int64 // at the door
	read, written int64
	panics        int64
	acceptErrors  int64
}

// add counts a connection that has ended, or with ReasonNone has moved.
func (t *tally) add(end End) {
	if end.Reason == ReasonNone {
		t.moved++
	} else {
		t.total++
		t.closed[end.Reason]++
	}
	t.read += end.Read
	t.written += end.Written
}

// A lagWindow remembers the worst of a time for a while, as whoever asks the loops takes it
// from the next who does. It is guarded by Server.mu.
type lagWindow struct {
	since       time.Duration // when now began, by the server's clock
	now, before time.Duration
}

const lagWindowTime = 15 * time.Second

// worst takes in the worst since the last call.
func (w *lagWindow) worst(clock, lag time.Duration) time.Duration {
	if clock-w.since >= lagWindowTime {
		w.before, w.now, w.since = w.now, 0, clock
	}
	w.now = max(w.now, lag)
	return max(w.now, w.before)
}
