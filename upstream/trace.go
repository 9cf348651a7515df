package upstream

import (
	"sync"
	"sync/atomic"
	"time"
)

// Trace is a set of hooks into the life of a pool, in the manner of
// net/http/httptrace. Every hook may be nil; new ones may be added without breaking
// anybody.
//
// Hooks run with no lock held, in whichever goroutine something happened; several may run
// at once, but those about a server's state (ServerAdded to BreakerChanged) one at a
// time and in order. They should be quick, and may use the pool.
type Trace struct {
	// ServerAdded and ServerLeft are called for what an Update has changed.
	ServerAdded func(server string)
	ServerLeft  func(server string)

	// ServerUp and ServerDown are called when health checks have changed their verdict,
	// with the error of the last check.
	ServerUp   func(server string)
	ServerDown func(server string, err error)

	// BreakerChanged is called when a server's breaker has changed its state. That an
	// open one is half-open is noticed when somebody asks, or within a second by Run.
	BreakerChanged func(server string, from, to BreakerState)

	// Dialed is called after each try, with how long it took altogether.
	Dialed func(server string, took time.Duration, err error)

	// Retried is called when another try follows one that failed.
	Retried func(server string, err error)

	// Queued is called when a Dial gets in line for a free place.
	Queued func()

	// EarlyClosed is called when a server has closed a connection within EarlyClose and
	// without having sent anything; err is End.Err.
	EarlyClosed func(server string, err error)

	// Cut is called for each connection that CutOnDown cuts, and Moved for each that
	// Rebalance asks to leave.
	Cut   func(server string)
	Moved func(server string)
}

func (t *Trace) serverAdded(server string) {
	if t != nil && t.ServerAdded != nil {
		t.ServerAdded(server)
	}
}

func (t *Trace) serverLeft(server string) {
	if t != nil && t.ServerLeft != nil {
		t.ServerLeft(server)
	}
}

func (t *Trace) serverUp(server string) {
	if t != nil && t.ServerUp != nil {
		t.ServerUp(server)
	}
}

func (t *Trace) serverDown(server string, err error) {
	if t != nil && t.ServerDown != nil {
		t.ServerDown(server, err)
	}
}

func (t *Trace) breakerChanged(server string, from, to BreakerState) {
	if t != nil && t.BreakerChanged != nil {
		t.BreakerChanged(server, from, to)
	}
}

func (t *Trace) dialed(server string, took time.Duration, err error) {
	if t != nil && t.Dialed != nil {
		t.Dialed(server, took, err)
	}
}

func (t *Trace) retried(server string, err error) {
	if t != nil && t.Retried != nil {
		t.Retried(server, err)
	}
}

func (t *Trace) queued() {
	if t != nil && t.Queued != nil {
		t.Queued()
	}
}

func (t *Trace) closedEarly(server string, err error) {
	if t != nil && t.EarlyClosed != nil {
		t.EarlyClosed(server, err)
	}
}

func (t *Trace) cut(server string) {
	if t != nil && t.Cut != nil {
		t.Cut(server)
	}
}

func (t *Trace) moved(server string) {
	if t != nil && t.Moved != nil {
		t.Moved(server)
	}
}

// A bulletin is what happened while locks were held and hooks have yet to be told, in
// order. Whoever has let go of the locks calls tell.
type bulletin struct {
	some atomic.Bool

	mu      sync.Mutex
	news    []func()
	telling bool
}

func (b *bulletin) post(tell func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.news = append(b.news, tell)
	b.some.Store(true)
}

// tell calls the hooks. If that is being done already, there or further up the stack,
// the news is told there.
func (b *bulletin) tell() {
	if !b.some.Load() || !b.begin() {
		return
	}
	told := false
	defer func() {
		if !told { // a hook has panicked
			b.end()
		}
	}()
	for tell := b.next(); tell != nil; tell = b.next() {
		tell()
	}
	told = true
}

func (b *bulletin) begin() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	mine := !b.telling
	b.telling = true
	return mine
}

func (b *bulletin) end() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.telling = false
}

// next returns nil when there is no more: whoever posts from then on tells it himself.
func (b *bulletin) next() func() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.news) == 0 {
		b.some.Store(false)
		b.telling = false
		return nil
	}
	tell := b.news[0]
	b.news = b.news[1:]
	return tell
}
