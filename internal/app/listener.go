package app

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/handover"
	"github.com/levee-net/levee/internal/config"
	"github.com/levee-net/levee/limit"
)

// A listener is a configured listener come to life. It lasts as long as there is one of its
// name, and until its connections have gone.
type listener struct {
	name    string
	server  *levee.Server
	born    int       // the number of the generation that it began with
	sockets []*socket // written under front.reloading and front.mu, read under either: who looks on waits for no reload
	closing []*socket // nobody new is accepted there; guarded by front.reloading
	rules   atomic.Pointer[rules]
	leaving atomic.Bool   // it is configured no more
	gone    chan struct{} // closed when it has been removed and its connections have gone
}

// Rules are what connections that are there are held to.
type rules struct {
	gate    *limit.Gate
	secured *security
}

// A socket is what is listened on at one of a listener's addresses.
type socket struct {
	net.Listener
	address config.Address
	closed  chan struct{}
}

func (s *socket) isClosed() bool { return isClosed(s.closed) }

// isClosed reports whether a channel that nobody sends to is closed.
func isClosed(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}

// generationOf returns which configuration has let a connection in.
func (l *listener) generationOf(c *levee.Conn) int {
	return l.born - 1 + int(c.Generation()) //nolint:gosec // reloads are not that many
}

// every returns the listeners, those that are leaving too.
func (f *front) every() []*listener {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.listeners)
}

// allServers are those of the listeners.
func (f *front) allServers() (servers []*levee.Server) {
	for _, l := range f.every() {
		servers = append(servers, l.server)
	}
	return servers
}

// listenerOf returns the listener that a connection has come by, or nil.
func (f *front) listenerOf(c *levee.Conn) *listener {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, l := range f.listeners {
		if l.server == c.Server() {
			return l
		}
	}
	return nil
}

// named returns the listener that is configured under a name, or nil.
func (f *front) named(name string) *listener {
	for _, l := range f.every() {
		if l.name == name && !l.leaving.Load() {
			return l
		}
	}
	return nil
}

// An opening is what becomes of listeners and sockets when a generation comes into force. What
// is to be opened is open.
type opening struct {
	kept   []*listener // in the configuration's order; nil for one that is new
	open   [][]*socket // of each
	opened []*socket   // of these, the ones that were not there before
	moved  []*socket   // of others, whose sockets those are now
}

// opens opens the addresses that are not open, or none.
func (g *generation) opens(ctx context.Context) (*opening, error) {
	o := new(opening)
	for i := range g.cfg.Listeners {
		l := &g.cfg.Listeners[i]
		if err := o.add(ctx, g, l); err != nil {
			o.abandon()
			return nil, err
		}
	}
	return o, nil
}

func (o *opening) add(ctx context.Context, g *generation, l *config.Listener) error {
	kept := g.named(l.Name)
	var open []*socket
	for _, address := range l.Listen {
		s := kept.socketAt(address, open)
		if s == nil {
			var err error
			if s, err = o.openOne(ctx, g, address); err != nil {
				err = fmt.Errorf("listener %s: %w", l.Name, err)
				if g.before != nil {
					return located(address.Pos, err)
				}
				return err
			}
		}
		open = append(open, s)
	}
	o.kept, o.open = append(o.kept, kept), append(o.open, open)
	return nil
}

// socketAt returns the listener's socket at the address, if it has one that is not among some.
func (l *listener) socketAt(address config.Address, some []*socket) *socket {
	if l == nil {
		return nil
	}
	for _, s := range l.sockets {
		if s.address.String() == address.String() && !slices.Contains(some, s) {
			return s
		}
	}
	return nil
}

// openOne listens on an address: on the socket of another listener's if that is there.
func (o *opening) openOne(ctx context.Context, g *generation, address config.Address) (*socket, error) {
	s := &socket{address: address, closed: make(chan struct{})}
	if other := o.takenFrom(g, address); other != nil {
		s.Listener = other
	} else {
		where := "change it in the configuration"
		if len(g.cfg.Listeners) == 1 {
			where = "choose another with --listen"
		}
		l, err := g.listen(ctx, address, where)
		if err != nil {
			return nil, err
		}
		s.Listener = l
	}
	o.opened = append(o.opened, s)
	return s, nil
}

// takenFrom returns another listener on the socket that another has at the address, which is not to close
// for a moment because its listener has got another name.
func (o *opening) takenFrom(g *generation, address config.Address) net.Listener {
	if _, port, _ := net.SplitHostPort(address.Address); port == "0" {
		return nil // any will do
	}
	for _, l := range g.every() {
		for _, s := range slices.Concat(l.sockets, l.closing) {
			if s.address.String() != address.String() || s.isClosed() {
				continue
			}
			if own := again(s.Listener); own != nil {
				o.moved = append(o.moved, s)
				return own
			}
		}
	}
	return nil
}

// again returns one more listener on a socket, or nil.
func again(l net.Listener) net.Listener {
	has, ok := l.(interface{ File() (*os.File, error) })
	if !ok {
		return nil
	}
	f, err := has.File()
	if err != nil {
		return nil
	}
	defer f.Close()
	own, err := levee.FileListener(f)
	if err != nil {
		return nil
	}
	return own
}

// abandon closes what was opened.
func (o *opening) abandon() {
	for _, s := range o.opened {
		_ = s.Close()
	}
}

// carryOut has connections come in by the generation, and returns what is closed when the last of those
// that came in before have gone. Nothing of it can fail: what a server cannot become is not configured.
func (g *generation) carryOut(o *opening) (gone []<-chan struct{}) {
	for _, s := range o.moved {
		for _, l := range g.every() {
			l.server.HandOver(s.Listener)
		}
	}
	configured := make(map[*listener]bool)
	for i, l := range o.kept {
		r := &rules{g.limits.gates[i], g.secured[i]}
		if l == nil {
			l = &listener{name: g.cfg.Listeners[i].Name, server: g.servers[i], born: g.number, gone: make(chan struct{})}
			l.rules.Store(r)
			g.add(l)
		} else {
			l.rules.Store(r)
			past, err := l.server.Reconfigure(g.servers[i])
			if err != nil {
				g.log.Error("a listener is left as it was", "listener", l.name, "err", err)
			} else {
				gone = append(gone, past)
			}
		}
		configured[l] = true
		g.listenOn(l, o.open[i])
	}
	for _, l := range g.every() {
		if !configured[l] {
			gone = append(gone, l.gone)
			if !l.leaving.Swap(true) {
				g.remove(l)
			}
		}
	}
	return gone
}

// add has a listener's counts shown.
func (f *front) add(l *listener) {
	f.mu.Lock()
	f.listeners = append(f.listeners, l)
	closing := f.closing
	f.mu.Unlock()
	if closing {
		_ = l.server.Close()
	}
	f.connections.Watch(l.server)
}

// listenOn has a listener accept on those sockets, and no others.
func (f *front) listenOn(l *listener, open []*socket) {
	l.closing = slices.DeleteFunc(l.closing, (*socket).isClosed)
	for _, s := range l.sockets {
		if !slices.Contains(open, s) {
			l.server.StopListening(s.Listener)
			l.closing = append(l.closing, s)
			f.unstore(s)
		}
	}
	for _, s := range open {
		if slices.Contains(l.sockets, s) {
			continue
		}
		if f.now.Load().number > 1 { // else it is announced
			f.log.Info("listening", "listener", l.name, "address", s.Addr().String())
		}
		f.store(s.address.String(), s.Listener)
		f.running.Go(func() { // ends with the server, or when it is to stop listening there
			defer close(s.closed)
			if err := l.server.Serve(context.Background(), s.Listener); err != nil && !errors.Is(err, levee.ErrServerClosed) {
				f.fails(fmt.Errorf("listener %s: %w", l.name, err))
			}
		})
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	l.sockets = open
}

// store has systemd keep a socket while a levee that has crashed is started again, if it does that.
func (f *front) store(address string, l net.Listener) {
	if err := f.env.process.Store(handover.Socket{Address: address, Listener: l}); err != nil {
		f.log.Warn("systemd does not keep a socket", "address", address, "err", err)
	}
}

// unstore has systemd keep it no more, unless another listener has the address.
func (f *front) unstore(s *socket) {
	for _, l := range f.every() {
		if slices.ContainsFunc(f.socketsOf(l), func(other *socket) bool { return other != s && other.address.String() == s.address.String() }) {
			return
		}
	}
	if err := f.env.process.Unstore(s.address.String()); err != nil {
		f.log.Warn("systemd still keeps a socket", "address", s.address.String(), "err", err)
	}
}

// addressesOf returns where a listener listens.
func (f *front) addressesOf(l *listener) (addresses []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, s := range l.sockets {
		addresses = append(addresses, s.Addr().String())
	}
	return addresses
}

// fails ends the front. The first failure is enough.
func (f *front) fails(err error) {
	select {
	case f.broken <- err:
	default:
	}
}

// remove lets a listener's connections finish that is configured no more, for as long as a drain may
// take.
func (g *generation) remove(l *listener) {
	timeout := g.cfg.Drain.Timeout
	g.log.Info("draining a listener that is no longer configured", "listener", l.name, "connections", l.server.Load().Active, "timeout", timeout)
	g.listenOn(l, nil)
	g.running.Go(func() { // ends with the timeout
		defer close(l.gone)
		began := time.Now()
		g.awaitLastCall()
		ctx, cancel := context.WithTimeout(context.Background(), timeout)
		defer cancel()
		err := l.server.Shutdown(ctx)
		g.forget(l)
		took := time.Since(began).Round(time.Millisecond)
		if cut := cutBy(err); cut > 0 {
			g.log.Warn("removed a listener; connections that had not finished were cut", "listener", l.name, "cut", cut, "took", took)
			return
		}
		g.log.Info("removed a listener", "listener", l.name, "took", took)
	})
}

// lastCall is how long those who have just come by a listener that is removed have to say what for: as they
// are asked to leave, who has not said anything does.
const lastCall = time.Second

func (f *front) awaitLastCall() {
	select {
	case <-time.After(lastCall):
	case <-f.ended:
	}
}

// cutBy returns how many connections Shutdown had to cut.
func cutBy(err error) int {
	if drained := (*levee.DrainError)(nil); errors.As(err, &drained) {
		return drained.Cut
	}
	return 0
}

// forget has a listener's counts no longer shown.
func (f *front) forget(l *listener) {
	f.mu.Lock()
	f.listeners = slices.DeleteFunc(f.listeners, func(other *listener) bool { return other == l })
	f.mu.Unlock()
	f.connections.Unwatch(l.server)
	f.pressed()
}
