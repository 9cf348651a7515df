package levee

import (
	"errors"
	"fmt"
	"net"
	"syscall"
	"time"
)

// errFilesReserved is an accept that has come too near to the limit of open files. It is as
// if there had been none left.
var errFilesReserved = fmt.Errorf("the last %d files are reserved: %w", reservedFiles, syscall.EMFILE)

// takeWithFile takes the next connection, but not one whose descriptor, the lowest that was
// free, shows that nearly all files are open.
func (d *door) takeWithFile() (*Conn, error) {
	c, err := d.take()
	if err != nil || d.server.files == 0 || d.descriptorOf(c) < d.server.files {
		return c, err
	}
	c.closeAtDoor(Reset)
	c.set.letGo()
	addr := d.listener.Addr()
	return nil, &net.OpError{Op: "accept", Net: addr.Network(), Addr: addr, Err: errFilesReserved}
}

// A fileGauge asks net's connections for their descriptors. To ask costs an allocation, so
// while there are plenty of files only a few are asked.
type fileGauge struct {
	skip int              // so many are not asked
	note func(fd uintptr) // made once
	fd   int
}

const (
	gaugeEvery = 16              // connections
	gaugeNear  = 16 * gaugeEvery // how near the limit is that each is asked: other doors have skipped some too
)

// descriptorOf returns a connection's descriptor, or -1 if it has none or is not asked.
func (d *door) descriptorOf(c *Conn) int {
	s := c.stream.Load()
	if s == nil {
		return c.looped.descriptor()
	}
	g := &d.files
	if g.skip > 0 {
		g.skip--
		return -1
	}
	sock, ok := rawSocket(s.wire.raw)
	if !ok {
		return -1
	}
	if g.note == nil {
		g.note = func(fd uintptr) { g.fd = int(fd) }
	}
	g.fd = -1
	if sock.Control(g.note) == nil && g.fd < d.server.files-gaugeNear {
		g.skip = gaugeEvery - 1
	}
	return g.fd
}

// lacksFiles reports whether an accept failed for want of what other connections have.
func lacksFiles(err error) bool {
	errno, _ := errors.AsType[syscall.Errno](err)
	switch errno {
	case syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM:
		return true
	}
	return false
}

// fileLook is how often an acceptor that lacks a file looks for one. It looks, and is not
// told: whoever may have closed one would have to know all who wait, in all servers.
const fileLook = firstPause

// pauseFor waits, and reports false if stop is closed first. For a file it waits no longer
// than until a connection has ended.
func pauseFor(d time.Duration, stop <-chan struct{}, forFile bool) bool {
	ended, until := endedConns.Load(), time.Now().Add(d)
	if forFile {
		d = min(d, fileLook)
	}
	ticker := time.NewTicker(d)
	defer ticker.Stop()
	for {
		select {
		case <-stop:
			return false
		case now := <-ticker.C:
			if !now.Before(until) || endedConns.Load() != ended {
				return true
			}
		}
	}
}
