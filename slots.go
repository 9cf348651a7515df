package levee

import (
	"slices"
	"sync"
)

// Slots are the room for connections that are open at once. Who waits for one is given it in
// the order of coming.
type slots struct {
	mu      sync.Mutex
	most    int // not positive: any number
	taken   int // may be more, if most was once
	waiting []chan struct{}
}

// take takes a slot, if there is one.
func (s *slots) take() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.takeLocked()
}

func (s *slots) takeLocked() bool {
	if s.most > 0 && s.taken >= s.most {
		return false
	}
	s.taken++
	return true
}

// seize takes a slot even if there is none.
func (s *slots) seize() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.taken++
}

// await takes a slot and returns nil, or else a channel that is closed when there is one and
// it has been taken.
func (s *slots) await() (taken chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.takeLocked() {
		return nil
	}
	taken = make(chan struct{})
	s.waiting = append(s.waiting, taken)
	return taken
}

// giveUp ends the waiting for a slot, and gives it back if it has been taken.
func (s *slots) giveUp(taken chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := slices.Index(s.waiting, taken); i >= 0 {
		s.waiting = slices.Delete(s.waiting, i, i+1)
		return
	}
	s.freeLocked()
}

func (s *slots) free() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.freeLocked()
}

func (s *slots) freeLocked() {
	s.taken--
	s.serveLocked()
}

// serveLocked gives out what there is to those who wait.
func (s *slots) serveLocked() {
	for len(s.waiting) > 0 && s.takeLocked() {
		close(s.waiting[0])
		s.waiting = slices.Delete(s.waiting, 0, 1)
	}
}

// resize changes how many there are. Those that are taken stay.
func (s *slots) resize(most int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.most = most
	s.serveLocked()
}
