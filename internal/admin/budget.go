package admin

import (
	"errors"
	"net"
	"net/http"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"
)

const (
	mostConns  = 64                    // open at once: operators are few, and files may be what is short
	spareFiles = 8                     // put by: a scrape, a command, and what answering them opens
	retryWait  = 20 * time.Millisecond // after an accept for which there was no file
)

// A budget keeps the admin port's connections few. Who asks nothing makes room for who may.
type budget struct {
	mu    sync.Mutex
	open  map[net.Conn]struct{}
	quiet []net.Conn // those of them that wait for a request, who has waited longest first
}

// note returns a connection that has to go.
func (b *budget) note(c net.Conn, state http.ConnState) (drop net.Conn) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.open == nil {
		b.open = make(map[net.Conn]struct{})
	}
	b.unquietLocked(c)
	switch state {
	case http.StateClosed, http.StateHijacked:
		delete(b.open, c)
		return nil
	case http.StateNew, http.StateIdle:
		b.quiet = append(b.quiet, c)
	}
	b.open[c] = struct{}{}
	if len(b.open) <= mostConns || state != http.StateNew {
		return nil
	}
	drop = b.quiet[0] // the newcomer itself, if all others are being answered
	b.unquietLocked(drop)
	return drop
}

func (b *budget) unquietLocked(c net.Conn) {
	if i := slices.Index(b.quiet, c); i >= 0 {
		b.quiet = slices.Delete(b.quiet, i, i+1)
	}
}

// A patient listener has files put by for the time when there are no others, and tries again soon when even those are
// gone. net/http waits for up to a second, and an operator is needed most at such a time.
type patient struct {
	net.Listener

	mu     sync.Mutex
	spares []*os.File // open, so that nobody else has them
	closed bool
}

func (l *patient) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		switch {
		case err == nil:
			return c, nil
		case !short(err):
			l.release()
			return nil, err
		case !l.spend():
			time.Sleep(retryWait) // which Close waits for
		}
	}
}

// save puts files by, as many as there are to be had.
func (l *patient) save() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.spares) < spareFiles && !l.closed {
		f, err := os.Open(os.DevNull)
		if err != nil {
			return
		}
		l.spares = append(l.spares, f)
	}
}

// spend gives a file back for a connection to have, and reports whether there was one.
func (l *patient) spend() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	last := len(l.spares) - 1
	if last < 0 {
		return false
	}
	_ = l.spares[last].Close()
	l.spares = l.spares[:last]
	return true
}

func (l *patient) release() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	for _, f := range l.spares {
		_ = f.Close()
	}
	l.spares = nil
}

func short(err error) bool {
	for _, of := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.ENOBUFS} {
		if errors.Is(err, of) {
			return true
		}
	}
	return false
}
