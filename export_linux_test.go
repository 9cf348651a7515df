package levee

import (
	"unsafe"

	"github.com/levee-net/levee/internal/reactor"
)

// AcceptedBare reports whether c was accepted as a bare socket.
func AcceptedBare(c *Conn) bool { return c.looped.bare != 0 }

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
