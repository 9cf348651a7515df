//go:build !linux

package handover

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/levee-net/levee"
)

type succession struct{}

func (p *Process) begin() error { return nil }

func (p *Process) awaitTurn(context.Context, map[string]adoptFunc) error { return nil }

// Done returns a channel that is closed when the process is on its own, as it is from the beginning here.
func (p *Process) Done() <-chan struct{} {
	done := make(chan struct{})
	close(done)
	return done
}

func (p *Process) watch(net.Listener)      {}
func (p *Process) examine([]*levee.Server) {}

// PredecessorPID returns 0: there is no predecessor here.
func (p *Process) PredecessorPID() int { return 0 }

func (p *Process) alone() bool { return true }

func (p *Process) upgrade(context.Context, *Plan) (*Outcome, error) {
	return nil, fmt.Errorf("replace the process: %w", errors.ErrUnsupported)
}

// TellLeft does nothing here: there is nobody to tell.
func (p *Process) TellLeft(int) {}

// Bequeath does nothing here: there is nobody to leave anything to.
func (p *Process) Bequeath(map[string][]byte) error { return nil }

// HeirFailed returns nil: nobody has replaced this process.
func (p *Process) HeirFailed() <-chan error { return nil }

func (p *Process) isReplaced() bool { return false }

func (p *Process) closeHeirLink() {}

// Free returns a channel that is closed: there is no predecessor here.
func (p *Process) Free() <-chan struct{} { return p.Done() }

// Left returns 0: there is no predecessor here.
func (p *Process) Left() int { return 0 }

// Bequest returns nil: there is no predecessor here.
func (p *Process) Bequest(string) []byte { return nil }

// Notify does nothing here: it tells systemd.
func Notify(...string) error { return nil }

// NotifyReloading does nothing here: it tells systemd.
func NotifyReloading() error { return nil }

// Store does nothing here: there is no systemd.
func (p *Process) Store(Socket) error { return nil }

// Unstore does nothing here.
func (p *Process) Unstore(string) error { return nil }

func monotonicTime() string { return "" }
