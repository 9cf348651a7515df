package levee

import (
	"net"
	"time"
)

// OnLoop reports whether an event loop serves c, or did to its end.
func OnLoop(c *Conn) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.onLoop
}

// BetweenEngines returns a connection as one that was accepted bare is until an
// event loop has it.
func BetweenEngines(s *Server) *Conn {
	s.init()
	c := new(Conn)
	c.init(s, &net.TCPAddr{}, &net.TCPAddr{})
	return c
}

// IdleLimits returns how long connections of s may be idle, and those that are joined.
func IdleLimits(s *Server) (idle, joined time.Duration) {
	limits := s.effectiveLimits()
	return limits.idle, limits.joinedIdle
}

// SetQuiet has joined connections that are asked to leave do so after a silence of d. It is called before s is used.
func SetQuiet(s *Server, d time.Duration) { s.quiet = d }

// Pause has an event loop not read c until it is resumed, and reports whether one serves it.
func Pause(c *Conn) bool { return c.pause() }

// Resume ends a Pause.
func Resume(c *Conn) { c.resume() }

// Holds returns how many bytes c's server holds for it.
func Holds(c *Conn) int { return c.holds() }

// ThroughMoment returns what is left of d when it has been kept as a moment.
func ThroughMoment(d time.Duration) time.Duration {
	var m moment
	m.set(d)
	return m.get()
}

// ReachAgain notes a moment as if it were for the first time.
func ReachAgain(c *Conn) {
	c.life.at[routed].Store(0)
	c.reached(routed)
}
