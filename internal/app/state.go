package app

import (
	"sync"
	"time"

	"github.com/levee-net/levee/internal/admin"
)

// state is how far a front has come in its life, for those who ask.
type state struct {
	started time.Time
	asked   chan struct{} // closed when an operator has asked it to drain
	asking  sync.Once

	mu    sync.Mutex
	drain *admin.Drain // nil while it serves
}

func (s *state) begin() {
	s.started = time.Now()
	s.asked = make(chan struct{})
}

// askToDrain does nothing the second time.
func (s *state) askToDrain(patience time.Duration) {
	s.asking.Do(func() {
		s.drains(time.Now(), patience)
		close(s.asked)
	})
}

// drains notes that the end has begun, and by when it is over.
func (s *state) drains(since time.Time, patience time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.drain == nil {
		s.drain = &admin.Drain{Since: since, Until: since.Add(patience)}
	}
}

// told returns how the drain goes, nil if there is none.
func (s *state) told() *admin.Drain {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.drain == nil {
		return nil
	}
	drain := *s.drain
	return &drain
}
