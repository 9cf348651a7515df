//go:build linux

package reactor

import "golang.org/x/sys/unix"

// shut is the bit of Conn.users that lets nobody in any more. The others count who
// is in.
const shut = 1 << 31

// Control calls f with the socket, and reports whether it has: if not, the
// connection has ended, or has been discarded. The socket is not closed while f runs. Control may
// be called from any goroutine once Adopt has returned, and in Step. It waits for
// nobody, and nobody waits for it: if the connection ends meanwhile, End may be
// called, and the last Control closes the socket. So f had better be quick. It must
// not close the socket.
func (c *Conn) Control(f func(fd int)) bool {
	for {
		users := c.users.Load()
		if users&shut != 0 {
			return false
		}
		if c.users.CompareAndSwap(users, users+1) {
			break
		}
	}
	defer c.relinquish() // also if f panics
	f(int(c.fd))
	return true
}

func (c *Conn) relinquish() {
	if c.users.Add(^uint32(0)) == shut {
		c.part()
	}
}

// closing tells the owner that the socket is about to be closed, if it wants to know.
func (c *Conn) closing() {
	if o, ok := c.owner.(Closer); ok {
		o.Closing(int(c.fd))
	}
}

// giveUp closes the socket, or leaves that to the last one who is using it. The
// connection must have been forgotten, as the socket's number may be another's at
// once.
func (c *Conn) giveUp() {
	if c.users.Or(shut) == 0 {
		c.part()
	}
}

func (c *Conn) part() { _ = unix.Close(int(c.fd)) }
