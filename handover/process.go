package handover

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"

	"github.com/levee-net/levee"
)

// A Process is this process in the row of those that serve one after the other. [Begin] makes it; there
// is one. Its methods may be called from several goroutines.
type Process struct {
	// PIDFile is the path of a file that holds the number of the process that serves. It is written, as one, before Ready
	// returns, and again after an upgrade that has failed. Empty means none. It must not be changed after Ready.
	PIDFile string

	// Turn is called when the process is to accept, before Ready returns and before any live connection comes; State is
	// what it is after Ready. It has to be quick: the predecessor hears nothing meanwhile. Nil does nothing. It must be
	// set before Ready.
	Turn func()

	// Logger gets what an operator has to see. Nil means slog.Default().
	Logger *slog.Logger

	origin Origin

	mu        sync.Mutex
	inherited []*inherited
	files     []socketFile
	state     map[string][]byte
	upgrading bool

	succession // what links it to its predecessor
	adoptions  atomic.Int64
}

// An Origin is who has started a process.
type Origin uint8

// Who may have started a process.
const (
	Nobody      Origin = iota // nobody who gave it anything
	Systemd                   // systemd, with sockets
	Predecessor               // another process of its kind, which it is to replace
)

// String returns "nobody", "systemd" or "predecessor".
func (o Origin) String() string {
	return [...]string{"nobody", "systemd", "predecessor"}[o]
}

// Begin finds out who has started the process and takes what it was given. It is to be called once, early: what the
// environment says of descriptors is true only once, and is removed from it, so that no other
// program that this one starts believes it.
//
// Started by a predecessor it returns when that has given all that there is to begin with, within 10 seconds.
func Begin() (*Process, error) {
	p := new(Process)
	if err := p.begin(); err != nil {
		return nil, fmt.Errorf("hand-over: %w", err)
	}
	return p, nil
}

// From returns who has started the process.
func (p *Process) From() Origin { return p.origin }

// Listen returns a listener on the address, as [levee.Listen] does: on the socket that the process was given for it,
// if there is one, or else on a new one. A socket is found by the address or the name that it was given under, and by
// what it is bound to; each is given out once. The file of a Unix socket that was given stays when the listener is
// closed, as others may have the socket. Leave removes it, of the last process that has it, if the first of them had made it here.
func (p *Process) Listen(ctx context.Context, address string) (net.Listener, error) {
	if i := p.claim(ctx, address); i != nil {
		defer i.file.Close()
		l, err := levee.FileListener(i.file)
		if err != nil {
			return nil, err
		}
		p.watch(l)
		if i.owned {
			p.own(l.Addr())
		}
		return l, nil
	}
	l, err := levee.Listen(ctx, address)
	if err == nil {
		p.own(l.Addr())
	}
	return l, err
}

// State returns what the predecessor has given under the name, or nil. Before Ready it is from
// when this process was started, and after it from when the predecessor stopped accepting, unless
// that died before.
func (p *Process) State(name string) []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.state[name]
}

// Ready says that the process could accept, and returns when it is to. That is at once, unless there is a
// predecessor: that may take some seconds, and may end the process instead, which is why it must not have served
// before. An error is ctx's, or says that the PID file cannot be written, which is found out first; the process has to end then without serving.
//
// From then on the servers are given the predecessor's live connections, by their names ([levee.Server.Name]). Those
// of a server that is not among them stay where they are. The servers may begin to serve after Ready.
//
// Sockets that the process was given and has not asked for are closed.
func (p *Process) Ready(ctx context.Context, servers ...*levee.Server) error {
	adopts := make(map[string]adoptFunc, len(servers))
	for _, s := range servers {
		adopts[s.Name] = func(data []byte, sockets []int) (adopted, error) {
			a, err := s.Adopt(data, sockets)
			if err != nil {
				return nil, err
			}
			return a, nil
		}
	}
	p.examine(servers)
	return p.readyWith(ctx, adopts)
}

// An adoptFunc is a server's Adopt.
type adoptFunc func(data []byte, sockets []int) (adopted, error)

func (p *Process) readyWith(ctx context.Context, adopts map[string]adoptFunc) error {
	if err := p.checkPIDFile(); err != nil { // while a predecessor can still go on as if nothing had happened
		return err
	}
	if err := p.awaitTurn(ctx, adopts); err != nil {
		return fmt.Errorf("hand-over: %w", err)
	}
	p.mu.Lock()
	for _, i := range p.inherited {
		_ = i.file.Close()
		_ = p.Unstore(i.name) // or systemd would keep a queue that nobody serves; it matters to nobody else if that fails
	}
	p.inherited = nil
	p.mu.Unlock()
	if err := p.writePIDFile(); err != nil {
		return err
	}
	if p.origin != Predecessor { // it is not the main process before its predecessor has said so
		p.notify("READY=1")
	}
	return nil
}

// Adopted returns how many live connections of its predecessor's the process has taken.
func (p *Process) Adopted() int { return int(p.adoptions.Load()) }

// ErrUpgrading says that an upgrade is under way: one that this process has begun, or the one that it has come by.
var ErrUpgrading = errors.New("an upgrade is under way")

func (p *Process) logger() *slog.Logger {
	if p.Logger == nil {
		return slog.Default()
	}
	return p.Logger
}

// notify tells systemd. It matters to nobody else if that fails.
func (p *Process) notify(lines ...string) {
	if err := Notify(lines...); err != nil {
		p.logger().Warn("systemd could not be told", "what", lines[0], "err", err)
	}
}

// An inherited socket was given to the process by whoever started it.
type inherited struct {
	name string // an address, or what systemd's unit calls it
	file *os.File
	at   net.Addr // what it is bound to

	owned bool // its file is to be removed by whoever has it last
}

// inherit takes a descriptor. One that is no listening socket is closed, and said to be.
func (p *Process) inherit(name string, f *os.File, owned bool) {
	l, err := net.FileListener(f)
	if err != nil {
		_ = f.Close()
		p.logger().Warn("an inherited descriptor is of no use", "name", name, "err", err)
		return
	}
	at := l.Addr()
	_ = l.Close() // a copy, which closes no more than itself
	p.inherited = append(p.inherited, &inherited{name, f, at, owned})
}

// claim returns the socket for an address, or nil, and gives it out no more.
func (p *Process) claim(ctx context.Context, address string) *inherited {
	wanted := boundTo(ctx, address)
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, fits := range []func(*inherited) bool{
		func(i *inherited) bool { return i.name == address },
		func(i *inherited) bool { return wanted != nil && wanted(i.at) },
	} {
		for n, i := range p.inherited {
			if fits(i) {
				p.inherited = append(p.inherited[:n:n], p.inherited[n+1:]...)
				return i
			}
		}
	}
	return nil
}
