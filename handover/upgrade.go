package handover

import (
	"context"
	"fmt"
	"net"
	"os"
	"slices"
	"time"

	"github.com/levee-net/levee"
)

const (
	readyTimeout = 30 * time.Second
	settle       = 2 * time.Second
	probation    = 5 * time.Second

	batchConns = 120                    // two sockets each, and a file: what fits into a message
	packLimit  = 100 * time.Millisecond // for a batch's connections to be between two steps
	packRounds = 3                      // who was busy in one may not be in the next
)

// A Plan says how a process is to be replaced. The zero value starts this program again, with its arguments, and hands nothing over.
//
// Its functions are called by Upgrade, one after the other. While one runs the new process hears nothing from here, and
// after most of a second of that it accepts without having been told: they have to be quick.
type Plan struct {
	// Path is the program. Empty means this one: what is now where it was started from.
	Path string

	// Args are the program's arguments, without its name. Nil means this process's.
	Args []string

	// Env is the program's environment. Nil means this process's.
	Env []string

	// Sockets are the listeners that go along. Upgrade makes copies of their sockets, and leaves the listeners alone.
	Sockets []Socket

	// State returns what the new process is given to begin with, and FreshState what it is given when this
	// one accepts no more, in place of that. Either may be nil. They come to no more than 256 MiB.
	State      func() map[string][]byte
	FreshState func() map[string][]byte

	// StopAccepting has this process accept no more, but leave those alone who wait in the sockets' queues: see [levee.Server.HandOver].
	StopAccepting func()

	// AcceptAgain is called if that has to be taken back, with listeners on the same sockets.
	AcceptAgain func([]Socket)

	// Servers are those whose live connections go along.
	Servers []*levee.Server

	// ReadyTimeout is how long the new process may take until it is ready. Zero means 30 seconds, negative as long as
	// ctx allows.
	ReadyTimeout time.Duration

	// Settle is how long the new process is watched, once it is ready, before it accepts. Zero means 2 seconds, negative no time.
	Settle time.Duration

	// Probation is how long, from when it is ready, the new process is watched before live
	// connections move. Zero means 5 seconds, negative no time.
	Probation time.Duration

	// Started is told the number of the new process when it has been started. It may be nil.
	Started func(pid int)

	// Progress is told of each step as it begins. It may be nil.
	Progress func(Step)

	pack func(ctx context.Context, found func(server string, parcels []parcel) bool) // packs what Servers have; tests have others
}

// A Step is a step of an upgrade.
type Step string

// The steps.
const (
	Starting  Step = "starting"  // the new process has been started, and is not ready yet
	Settling  Step = "settling"  // it is ready, and watched
	Probation Step = "probation" // it accepts, and all can still be taken back
	Moving    Step = "moving"    // live connections move
	Ending    Step = "ending"    // it has failed, or the upgrade was called off: it is ended
)

// A Socket is a listener, and the address by which the new process asks for it; see [Process.Listen].
type Socket struct {
	Address  string
	Listener net.Listener
}

// An Outcome is what has become of an upgrade.
type Outcome struct {
	PID    int           // the new process's
	Moved  int           // live connections that are the new process's now
	Stayed int           // those that are left to drain here
	Ready  time.Duration // from the start to when the new process was ready
	Moving time.Duration // how long it took to move the live connections
	Total  time.Duration
}

// A parcel is a connection on its way, as [levee.Parcel] is.
type parcel interface {
	Data() []byte
	Sockets() []int
	Unpack()
	Moved()
}

// An adopted connection has come and not begun, as [levee.Adopted] has.
type adopted interface {
	Begin()
	Drop()
}

// Upgrade replaces this process by another. When it returns an outcome, the new process serves, and what is left
// here is to drain and then to end: nobody comes any more. When it returns an error, this process serves as if
// nothing had happened; the error says how far it went, and what became of the new process.
//
// It takes as long as the new process takes to get ready, and Probation. Until the live connections move the end of ctx calls it
// off. After that it has them stay: it cannot be called off.
//
// The new process is this one's child, in its process group, and lives on when this one ends. Until it is ready what it
// writes to standard error is held back; it is passed on then, and in part of the error if it never is. An upgrade
// while another is under way, or before the one that made this process is over, is refused with [ErrUpgrading].
func (p *Process) Upgrade(ctx context.Context, plan *Plan) (*Outcome, error) {
	p.mu.Lock()
	if p.upgrading || !p.alone() {
		p.mu.Unlock()
		return nil, ErrUpgrading
	}
	p.upgrading = true
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		p.upgrading = false
		p.mu.Unlock()
	}()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	p.notify("RELOADING=1", monotonicTime(), "STATUS=Starting the process that is to replace this one")
	outcome, err := p.upgrade(ctx, plan)
	if err != nil {
		_ = p.writePIDFile() // it was there before, and is checked then
		p.notify("READY=1", "STATUS=Serving; an upgrade has failed")
		return nil, err
	}
	p.notify(fmt.Sprintf("MAINPID=%d", outcome.PID), "READY=1", "STATUS=Serving")
	return outcome, nil
}

// command returns what is to be started.
func (plan *Plan) command() (path string, args, env []string, err error) {
	path, args, env = plan.Path, plan.Args, plan.Env
	if path == "" {
		if path, err = os.Executable(); err != nil {
			return "", nil, nil, err
		}
	}
	if args == nil {
		args = os.Args[1:]
	}
	if env == nil {
		env = os.Environ()
	}
	return path, args, env, nil
}

// orDefault reads a duration of a plan's.
func orDefault(d, zero, negative time.Duration) time.Duration {
	switch {
	case d == 0:
		return zero
	case d < 0:
		return negative
	}
	return d
}

// packServers packs the connections of the plan's servers, in batches.
func (plan *Plan) packServers(ctx context.Context, found func(server string, parcels []parcel) bool) {
	done := make(map[*levee.Conn]bool)
	for range packRounds {
		for _, s := range plan.Servers {
			conns := slices.DeleteFunc(s.Conns(), func(c *levee.Conn) bool { return done[c] })
			for some := range slices.Chunk(conns, batchConns) {
				parcels := packSome(ctx, s, some, done)
				if len(parcels) > 0 && !found(s.Name, parcels) || ctx.Err() != nil {
					return
				}
			}
		}
	}
}

// packSome packs a batch, and notes whom it has packed: those that are refused are not asked again.
func packSome(ctx context.Context, s *levee.Server, conns []*levee.Conn, done map[*levee.Conn]bool) (parcels []parcel) {
	ctx, cancel := context.WithTimeout(ctx, packLimit)
	defer cancel()
	for _, p := range s.Pack(ctx, conns...) {
		done[p.Conn()] = true
		parcels = append(parcels, p)
	}
	return parcels
}
