package app

import (
	"net"
	"sync"
)

// A doorway is a listener whose socket can be left to another process, and taken back.
type doorway struct {
	addr net.Addr

	mu     sync.Mutex
	inner  net.Listener  // nil while it is left
	again  chan struct{} // closed when that is over
	closed bool
}

func newDoorway(l net.Listener) *doorway { return &doorway{addr: l.Addr(), inner: l} }

// Accept waits while the socket is left to another.
func (d *doorway) Accept() (net.Conn, error) {
	for {
		l, again, closed := d.now()
		switch {
		case closed:
			return nil, net.ErrClosed
		case l == nil:
			<-again
			continue
		}
		c, err := l.Accept()
		if now, _, closed := d.now(); err != nil && now != l && !closed {
			continue
		}
		return c, err
	}
}

func (d *doorway) now() (l net.Listener, again <-chan struct{}, closed bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.inner, d.again, d.closed
}

// leave leaves the socket to whoever else has it.
func (d *doorway) leave() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.inner != nil {
		_ = d.inner.Close()
		d.inner, d.again = nil, make(chan struct{})
	}
}

// takeBack accepts again, on another listener on that socket.
func (d *doorway) takeBack(l net.Listener) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed || d.inner != nil {
		_ = l.Close()
		return
	}
	d.inner = l
	close(d.again)
}

// Close has Accept return net.ErrClosed.
func (d *doorway) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return net.ErrClosed
	}
	d.closed = true
	if d.inner != nil {
		return d.inner.Close()
	}
	close(d.again)
	return nil
}

// Addr returns the socket's address.
func (d *doorway) Addr() net.Addr { return d.addr }

// socket returns the listener, for its socket to be copied; nil while it is left.
func (d *doorway) socket() net.Listener {
	l, _, _ := d.now()
	return l
}
