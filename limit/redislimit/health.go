package redislimit

import (
	"sync"
	"time"
)

// A State says how it goes with Redis.
type State struct {
	Err   error     // what ails it; nil while it is well
	Since time.Time // when that began; zero if it never has
}

// health is a State that changes.
type health struct {
	mu    sync.Mutex
	begun bool
	state State
}

func (h *health) now() State {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.begun {
		return State{Err: ErrNotRunning}
	}
	return h.state
}

func (h *health) err() error { return h.now().Err }

// set tells of a change, but not of every error while Redis ails: the last one is in State.
func (h *health) set(err error, changed func(State)) {
	h.mu.Lock()
	turned := !h.begun || (err == nil) != (h.state.Err == nil)
	if turned {
		h.begun, h.state.Since = true, time.Now()
	}
	h.state.Err = err
	state := h.state
	h.mu.Unlock()
	if turned && changed != nil {
		changed(state)
	}
}

// end has it be as before it began.
func (h *health) end() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.begun, h.state = false, State{}
}
