//go:build !linux

package handover

import (
	"context"
	"errors"
	"fmt"
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

func (p *Process) alone() bool { return true }

func (p *Process) upgrade(context.Context, *Plan) (*Outcome, error) {
	return nil, fmt.Errorf("replace the process: %w", errors.ErrUnsupported)
}

// Notify does nothing here: it tells systemd.
func Notify(...string) error { return nil }

// Store does nothing here: there is no systemd.
func (p *Process) Store(Socket) error { return nil }

// Unstore does nothing here.
func (p *Process) Unstore(string) error { return nil }

func monotonicTime() string { return "" }
