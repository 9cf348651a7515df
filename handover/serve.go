package handover

import (
	"context"
	"errors"
	"net"
	"os"
	"time"

	"github.com/levee-net/levee"
)

// ListenAndServe is [levee.Server.ListenAndServe] for a process that can be replaced: it listens on the addresses, or takes over the sockets that are
// there, waits for its turn, serves, and starts this program again for each signal that comes from upgrade. When one
// of these has taken over, what is left here drains as it does when ctx ends, and ListenAndServe returns.
//
// A failed upgrade is logged, and changes nothing.
func (p *Process) ListenAndServe(ctx context.Context, upgrade <-chan os.Signal, s *levee.Server, addresses ...string) error {
	front := &front{server: s, ctx: ctx, failed: make(chan error, 1)}
	for _, address := range addresses {
		l, err := p.Listen(ctx, address)
		if err != nil {
			front.close()
			return err
		}
		front.sockets = append(front.sockets, Socket{address, l})
	}
	if err := p.Ready(ctx, s); err != nil {
		front.close()
		return err
	}
	defer p.Leave()
	front.serve(front.sockets)
	for {
		select {
		case <-ctx.Done():
			p.notify("STOPPING=1")
			return front.drain()
		case err := <-front.failed:
			return err
		case <-upgrade:
		}
		outcome, err := p.Upgrade(ctx, front.plan())
		if err != nil {
			p.logger().Error("the process is not replaced", "err", err)
			continue
		}
		p.logger().Info("the process is replaced", "by", outcome.PID, "moved", outcome.Moved, "to_drain", outcome.Stayed)
		return front.drain()
	}
}

// A front is a server and its listeners.
type front struct {
	server  *levee.Server
	ctx     context.Context
	sockets []Socket
	failed  chan error // has room for one
}

func (f *front) plan() *Plan {
	return &Plan{
		Sockets: f.sockets,
		Servers: []*levee.Server{f.server},
		StopAccepting: func() {
			for _, s := range f.sockets {
				f.server.HandOver(s.Listener)
			}
		},
		AcceptAgain: f.serve,
	}
}

// serve has the server accept on the sockets, which takes their listeners.
func (f *front) serve(sockets []Socket) {
	f.sockets = sockets
	listeners := make([]net.Listener, len(sockets))
	for i, s := range sockets {
		listeners[i] = s.Listener
	}
	if len(listeners) == 0 {
		return
	}
	go func() { // ends when the server does, or accepts no more
		ctx := context.WithoutCancel(f.ctx) // its end has the server drain: see drain
		if err := f.server.Serve(ctx, listeners...); err != nil && !errors.Is(err, levee.ErrServerClosed) {
			select {
			case f.failed <- err:
			default:
			}
		}
	}()
}

// drain has everybody leave, as Serve does at the end of its context.
func (f *front) drain() error {
	ctx := context.WithoutCancel(f.ctx)
	if limit := orDefault(f.server.DrainTimeout, 25*time.Second, -1); limit >= 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, limit)
		defer cancel()
	}
	return f.server.Shutdown(ctx)
}

func (f *front) close() {
	for _, s := range f.sockets {
		_ = s.Listener.Close()
	}
}
