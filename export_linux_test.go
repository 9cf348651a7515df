package levee

import (
	"time"
	"unsafe"

	"github.com/levee-net/levee/internal/reactor"
)

// AcceptedBare reports whether c was accepted as a bare socket.
func AcceptedBare(c *Conn) bool { return c.looped.bare != 0 }

// IsPaused reports whether c's loop says that it does not read c.
func IsPaused(c *Conn) bool {
	told := make(chan bool, 1)
	c.looped.Inspect(func(v reactor.View) { told <- v.Paused })
	select {
	case paused := <-told:
		return paused
	case <-time.After(time.Second): // it has ended
		return false
	}
}

// HotSize is how many bytes at a Conn's start are in use while a loop serves it: all of
// the loop's part but its place in the wheel and what Held tells, which come last.
const (
	HotSize = unsafe.Offsetof(Conn{}.looped) + unsafe.Offsetof(looped{}.Conn) + unsafe.Sizeof(reactor.Conn{}) - placeSize

	placeSize = 4 * 8
	Size      = unsafe.Sizeof(Conn{})
)

// CloseLoops has s's event loops take no connection any more.
func CloseLoops(s *Server) {
	s.eventLoops()
	s.closeLoops()
}
