package levee

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/levee-net/levee/internal/reactor"
)

// A Pressure is how much of its comfort a server gives up, so that the connections which
// behave do not notice that memory, files or processors are short. Each includes those
// before it.
type Pressure uint8

// The pressures, from the mildest to the hardest.
const (
	// NoPressure: the server does all that it can.
	NoPressure Pressure = iota
	// ShortIdle: IdleTimeout and HalfClosedTimeout are a tenth of what they are, though at
	// least a second, also for the connections that are there. No limit stays none.
	ShortIdle
	// NoLinger: a connection that the server ends is closed at once, without listening to
	// a client that is still sending, which may then be reset before it has read the last
	// that it was sent.
	NoLinger
	// RefuseNew: newcomers are reset at the door, with reason overloaded.
	RefuseNew
	// PauseReads: the connections on event loops that hold the most memory are not read from:
	// the biggest of those that hold over 64 KiB of bytes that wait for the rest of their
	// message, or to be taken, until they are half of all that is held. It ends with the
	// pressure, and when the server drains. A message that is held has to be complete in MessageTimeout
	// even so: what is short must not be kept by those who have filled it.
	PauseReads
	// ShedIdle: connections that have been idle the longest are closed, with reason
	// overloaded.
	ShedIdle

	pressureCount
)

var pressureWords = [pressureCount]string{"none", "short_idle", "no_linger", "refuse_new", "pause_reads", "shed_idle"}

// String returns the pressure's word, such as "short_idle".
func (p Pressure) String() string {
	if p < pressureCount {
		return pressureWords[p]
	}
	return fmt.Sprintf("Pressure(%d)", uint8(p))
}

// pressing is what a server keeps of the pressure it is under.
type pressing struct {
	mu     sync.Mutex // of those who change it
	now    atomic.Uint32
	paused map[*Conn]struct{} // guarded by mu

	turnAway atomic.Uint64 // bits of the share

	newcomers sources // of the last moment
	standing  sources // those of the last seconds: who waits to be served may have come a while ago
}

const (
	muchHeld = 64 << 10 // bytes; who holds less is not paused

	shedShare  = 20                     // of the connections, the part that one call sheds: 5 %
	shedIdle   = time.Second            // who has been silent for less is not idle
	surveyTime = 100 * time.Millisecond // a loop that takes longer to tell of its connections is done without
)

// Press puts the server under a pressure, or takes it away: it is reversible at any time.
// With [PauseReads] each call pauses
// those who hold much then. With [ShedIdle] each call closes up to 5 % of the connections, but at least one, of
// those that have been silent for over a second: whoever presses repeats it for as long as
// it takes. Package overload does that. Press may be called from several goroutines; it looks
// at all connections if it has to.
func (s *Server) Press(p Pressure) {
	s.init()
	s.pressing.mu.Lock()
	defer s.pressing.mu.Unlock()
	before := Pressure(s.pressing.now.Swap(uint32(p))) //nolint:gosec // a Pressure it was
	if p != before {
		s.hurryLoops()
	}
	if p >= ShortIdle && before < ShortIdle {
		for _, c := range s.Conns() {
			c.hurry()
		}
	}
	switch {
	case p < PauseReads:
		s.resumeReadsLocked()
	case !s.isStopping():
		s.pauseReadsLocked()
	}
	if p >= ShedIdle {
		s.shedIdle()
	}
}

// TurnAway resets that share of the newcomers at the door, with reason overloaded: none
// at 0, and all at 1, whatever the pressure is. It is for when more come than can be served:
// those who are turned away know at once, and the others need not wait. The more have come from
// a newcomer's IPv4 address, or IPv6 /64, within the last moment, the more likely it is to be one of
// them: where one source floods, the others hardly notice. Nobody is turned away of a source of which by far
// fewer have come in the last ten seconds than of others. It may be called from several goroutines.
func (s *Server) TurnAway(share float64) {
	s.pressing.turnAway.Store(math.Float64bits(min(max(share, 0), 1)))
}

// turnsAway decides whether a newcomer is let in.
func (s *Server) turnsAway(c *Conn) *Refusal {
	if s.pressed(RefuseNew) {
		return &overload
	}
	share, from := math.Float64frombits(s.pressing.turnAway.Load()), addrPort(c.peer).Addr()
	crowding := s.pressing.newcomers.crowding(from, c.accepted) // also before it is needed: it takes a moment to show
	if s.pressing.standing.crowding(from, c.accepted) == 0 {
		crowding = 0
	}
	if share < 1 {
		share *= crowding
	}
	if share > 0 && rand.Float64() < share { //nolint:gosec // spreads load, keeps no secret
		return &overload
	}
	return nil
}

var overload = Refusal{Reason: Overloaded}

// pressed reports whether the server is under that pressure, or more.
func (s *Server) pressed(p Pressure) bool { return s.pressing.now.Load() >= uint32(p) }

// patience returns how long a limit on silence is now.
func (s *Server) patience(limit time.Duration) time.Duration {
	if s.pressed(ShortIdle) {
		return reactor.Hurried(limit)
	}
	return limit
}

// hurry arms the deadlines of a connection in a goroutine anew: they may have been armed
// for later than they are now. Nothing has to be done when there is more time again.
func (c *Conn) hurry() {
	s := c.stream.Load()
	if s == nil {
		return
	}
	if s.wire.readArmed.Load() {
		_ = s.wire.armRead()
	}
	if j := s.joint.Load(); j != nil {
		j.hurry()
	}
}

// pauseReadsLocked has the biggest holders not be read from.
func (s *Server) pauseReadsLocked() {
	type holder struct {
		conn *Conn
		held int
	}
	var big []holder
	total := 0
	for _, c := range s.Conns() {
		held := c.holds()
		total += held
		if held > muchHeld {
			big = append(big, holder{c, held})
		}
	}
	slices.SortFunc(big, func(a, b holder) int { return cmp.Compare(b.held, a.held) })
	paused := s.pressing.paused
	if paused == nil {
		paused = make(map[*Conn]struct{})
		s.pressing.paused = paused
	}
	maps.DeleteFunc(paused, func(c *Conn, _ struct{}) bool { return c.end.Load() != nil })
	covered := 0
	for _, h := range big {
		if covered >= total/2 {
			return
		}
		if _, already := paused[h.conn]; !already && !h.conn.pause() {
			continue
		}
		paused[h.conn] = struct{}{}
		covered += h.held
	}
}

func (s *Server) resumeReads() {
	s.pressing.mu.Lock()
	defer s.pressing.mu.Unlock()
	s.resumeReadsLocked()
}

func (s *Server) resumeReadsLocked() {
	for c := range s.pressing.paused {
		c.resume()
	}
	s.pressing.paused = nil
}

// isStopping reports whether the server drains or is closed.
func (s *Server) isStopping() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state != serving
}

// A quietConn is a connection from or to which nothing has moved for a while.
type quietConn struct {
	conn *Conn
	idle time.Duration
}

// shedIdle closes those that have been idle the longest.
func (s *Server) shedIdle() {
	conns := s.Conns()
	quiet := s.quietOnLoops(shedIdle)
	for _, c := range conns {
		if idle := c.quietFor(); idle > shedIdle {
			quiet = append(quiet, quietConn{c, idle})
		}
	}
	slices.SortFunc(quiet, func(a, b quietConn) int { return cmp.Compare(b.idle, a.idle) })
	for _, q := range quiet[:min(len(quiet), max(1, len(conns)/shedShare))] {
		_ = q.conn.cut(Overloaded, nil)
	}
}

// quietFor returns for how long a connection in a goroutine has waited for its client, 0
// if it does not, or is not in a goroutine.
func (c *Conn) quietFor() time.Duration {
	s := c.stream.Load()
	if s == nil || c.over() {
		return 0
	}
	moved, known := s.lastMoved()
	if !known {
		return 0
	}
	return s.wire.clock() - moved
}

// lastMoved returns when a byte last moved, by the server's clock, if that shows: it does
// not while the handler is at work.
func (s *stream) lastMoved() (at time.Duration, known bool) {
	w := &s.wire
	if j := s.joint.Load(); j != nil {
		return time.Duration(max(j.sentAt.Load(), j.receivedAt.Load(), j.movedAt.Load(), w.wroteAt.Load())), true
	}
	return time.Duration(max(w.waitingSince.Load(), w.wroteAt.Load(), int64(s.conn.accepted))), w.isWaiting()
}

// isWaiting reports whether the connection waits for its client, as far as that shows: no
// byte has moved since a read began.
func (w *wire) isWaiting() bool {
	return w.waiting.Load() || w.moved.Load() == w.read.Load()+w.written.Load()+1
}
