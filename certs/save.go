package certs

import (
	"fmt"
	"time"

	"github.com/levee-net/levee/internal/saved"
)

const (
	savedVersion = 1
	mostSaved    = 64 << 10 // bytes
)

// savedTickets are random keys, for the process that goes on with them.
type savedTickets struct {
	Rotate time.Duration    `json:"rotate"`
	Seeds  map[int64][]byte `json:"seeds"` // by epoch
}

// Save returns the random keys that are good for tickets now, for Restore in the process that goes on in place of this
// one. They are secret: whoever gets hold of them can do what [Tickets.File] says of its secret, for
// up to three times Rotate. So hand them on in memory alone. Where the keys are from a File or Secret, or there
// are no tickets, there are none to hand on, and it returns nil.
func (t *Tickets) Save() ([]byte, error) {
	if t.share() || t.at(time.Now()) == nil {
		return nil, nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return saved.Write(savedVersion, savedTickets{t.rotate(), t.random})
}

// Restore has the keys that another process has saved in place of random ones of its own, as long as they would
// have been good there: tickets from before are taken, and new ones are made with the same key until that is
// due to change. They are of no use, and not an error, where Rotate is another, or the keys are from a File or Secret. It may be
// called at any time, but tickets that were made with random keys before are not taken after that.
func (t *Tickets) Restore(b []byte) error {
	state, _, err := saved.Read[savedTickets](b, savedVersion, mostSaved)
	switch {
	case err != nil:
		return fmt.Errorf("session tickets: %w", err)
	case t.share() || t.off() || state.Rotate != t.rotate():
		return nil
	}
	now := t.epoch(time.Now())
	kept := make(map[int64][]byte)
	for epoch, seed := range state.Seeds {
		if epoch > now || epoch < now-keptKeys { // a clock may have been set back: what is due later has not been made yet
			continue
		}
		if len(seed) != seedSize || !varied(seed) {
			return fmt.Errorf("session tickets: the key of epoch %d is not one", epoch)
		}
		kept[epoch] = seed
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(kept) > 0 {
		t.random = kept
		t.current.Store(nil)
	}
	return nil
}
