package certs

import (
	"errors"
	"sync"
)

// ErrKept is what the errors match that Problem is told when files cannot be loaded, and
// what they held before stays in force. The others are warnings.
var ErrKept = errors.New("not loaded")

// kept has the error match ErrKept.
func kept(err error) error {
	if err == nil {
		return nil
	}
	return keptError{err}
}

type keptError struct{ error }

func (e keptError) Unwrap() error        { return e.error }
func (e keptError) Is(target error) bool { return target == ErrKept }

// news keeps somebody from being told the same problem again and again.
type news struct {
	mu       sync.Mutex
	warnings map[string]bool // of the last look that went right
	told     map[string]bool // what went wrong
	failure  string          // why the last look went wrong, if it did
}

// looked tells warnings that the look before had not. The error is told by whoever
// looked, or returned.
func (n *news) looked(problem func(error), warnings []error, err error) {
	n.mu.Lock()
	failure := ""
	if err != nil {
		failure = err.Error()
	}
	if failure != n.failure {
		delete(n.told, n.failure)
		n.failure = failure
	}
	if err != nil {
		n.mu.Unlock()
		return
	}
	found := make(map[string]bool)
	var fresh []error
	for _, w := range warnings {
		text := w.Error()
		if !n.warnings[text] && !found[text] {
			fresh = append(fresh, w)
		}
		found[text] = true
	}
	n.warnings = found
	n.mu.Unlock()
	if problem != nil {
		for _, w := range fresh {
			problem(w)
		}
	}
}

// maxTold bounds what is kept, if the texts of what goes wrong never end.
const maxTold = 100

// tell tells the error unless it has been told.
func (n *news) tell(problem func(error), err error) {
	if err == nil || problem == nil {
		return
	}
	n.mu.Lock()
	again := n.told[err.Error()]
	if n.told == nil || len(n.told) >= maxTold {
		n.told = make(map[string]bool)
	}
	n.told[err.Error()] = true
	n.mu.Unlock()
	if !again {
		problem(err)
	}
}
