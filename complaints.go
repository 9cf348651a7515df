package levee

import (
	"log/slog"
	"sync"
	"time"
)

// complaints log one line a second at the most, and say how many were held
// back: what strangers can cause must not fill a disk.
type complaints struct {
	mu   sync.Mutex
	next time.Time
	held int
}

const complaintInterval = time.Second

func (c *complaints) complain(logger *slog.Logger, message string, args ...any) {
	c.mu.Lock()
	now := time.Now()
	if now.Before(c.next) {
		c.held++
		c.mu.Unlock()
		return
	}
	held := c.held
	c.held, c.next = 0, now.Add(complaintInterval)
	c.mu.Unlock()

	if held > 0 {
		args = append(args, "more_like_it", held)
	}
	if logger == nil {
		logger = slog.Default()
	}
	logger.Error(message, args...)
}
