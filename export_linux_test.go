package levee

import "unsafe"

// AcceptedBare reports whether c was accepted as a bare socket.
func AcceptedBare(c *Conn) bool { return c.looped.bare != 0 }

// HotSize is how many bytes at a Conn's start are in use while a loop serves it.
const HotSize = unsafe.Offsetof(Conn{}.stream)
