package telemetry

import (
	"cmp"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/levee-net/levee"
)

// A Recorder is a flight recorder: it remembers the last things that went wrong, with the
// whole story of each connection that ended badly, and tells whoever subscribes. The zero
// value is ready; its methods may be called from several goroutines.
//
// Strangers cannot push out what matters: what they can bring about, such as failed
// handshakes, has a half of the room of its own; of each reason no more than ten ends a second
// are kept, and of the rest there is a count; those that are turned away at the door are one event a second.
type Recorder struct {
	// Size is how many events are remembered. Zero means 256, which take some 200 KiB at
	// most. There are always two at least.
	Size int

	// TraceID returns the id of a connection's trace, or "". It may be nil.
	TraceID func(c *levee.Conn) string

	mu     sync.Mutex
	last   uint64
	more   chan struct{} // closed at the next event; nil if nobody waits for that
	ours   ring
	theirs ring
	heard  map[*Subscription]struct{}

	gates    [256]gate // by reason
	refusals refusals
	looks    atomic.Int64 // see mayLook
}

// What kinds of events a Recorder makes by itself. Others are for Add.
const (
	KindClosed  = "closed"  // a connection ended badly
	KindRefused = "refused" // connections were turned away at the door
	KindPanic   = "panic"   // of a handler, a hook or a TLS callback
	KindAccept  = "accept"  // connections cannot be accepted
)

// An Event is something that happened.
type Event struct {
	ID     uint64 // from 1, one more each time
	Time   time.Time
	Kind   string
	Text   string // one line, without what could control a terminal; at most 500 bytes
	Reason levee.CloseReason
	Ended  *Ended // of a connection that ended badly
}

// Ended is what is remembered of a connection that has ended. It must not be changed.
type Ended struct {
	ID                  uint64
	Listener            string
	Client, Peer, Local string
	Accepted            time.Time
	Duration            time.Duration
	Reason              levee.CloseReason
	Err                 string // what went wrong: at most 500 bytes, perhaps a stranger's
	Read, Written       int64
	Story               levee.Story
	Spans               []levee.Span // the phases that it went through
	TCP                 *levee.TCPInfo
	TraceID             string
}

// Trace returns the hooks of servers whose happenings are to be recorded.
func (r *Recorder) Trace() *levee.Trace {
	return &levee.Trace{
		Closed:  r.closed,
		Refused: func(c *levee.Conn, _ *levee.Refusal) { r.refusals.note(r, c) },
		Panicked: func(c *levee.Conn, value any, _ []byte) {
			r.limited(levee.HandlerPanic, Event{Kind: KindPanic, Text: fmt.Sprintf("conn %d: panic: %v", c.ID(), value)}, false)
		},
		AcceptFailed: func(l net.Listener, err error, pause time.Duration) {
			r.limited(levee.ReasonNone, Event{Kind: KindAccept, Text: fmt.Sprintf("accept on %s: %v; trying again in %v", l.Addr(), err, pause)}, false)
		},
		Sample: r.mayLook,
	}
}

// isStrangers reports whether strangers can bring about ends for that reason as they please.
func isStrangers(reason levee.CloseReason) bool {
	switch reason {
	case levee.ArrivalTimeout, levee.ProxyHeaderInvalid, levee.ProxyHeaderRefused, levee.TLSFailed, levee.NoRoute,
		levee.MessageTimeout, levee.WriteStalled, levee.HalfClosedTimeout, levee.Limited, levee.Denied:
		return true
	}
	return false
}

func (r *Recorder) closed(c *levee.Conn, end levee.End) {
	if !end.Reason.IsAbnormal() {
		return
	}
	held, pass := r.gates[end.Reason].pass(time.Now())
	if !pass {
		return
	}
	e := endedOf(c, end)
	if r.TraceID != nil {
		e.TraceID = r.TraceID(c)
	}
	text := fmt.Sprintf("conn %d of %s ended after %v: %s", e.ID, e.Client, shorter(e.Duration), end.Reason)
	if e.Err != "" {
		text += ": " + e.Err
	}
	r.add(Event{Kind: KindClosed, Text: more(text, held), Reason: end.Reason, Ended: e}, isStrangers(end.Reason))
}

func endedOf(c *levee.Conn, end levee.End) *Ended {
	e := &Ended{
		ID: c.ID(), Listener: c.Server().Name,
		Client: c.RemoteAddr().String(), Local: c.LocalAddr().String(),
		Accepted: c.Accepted(), Duration: end.Duration, Reason: end.Reason,
		Read: end.Read, Written: end.Written, Story: c.Story(), TCP: end.TCP,
	}
	if peer := c.PeerAddr().String(); peer != e.Client {
		e.Peer = peer
	}
	if end.Err != nil {
		e.Err = cut(end.Err.Error())
	}
	e.Spans = e.Story.Spans(nil, end.Duration)
	return e
}

// limited is add for what may come in floods.
func (r *Recorder) limited(reason levee.CloseReason, e Event, theirs bool) {
	// Panics, and failed accepts, have a gate each that no end of a connection uses.
	gate := &r.gates[255]
	if e.Kind == KindPanic {
		gate = &r.gates[254]
	}
	held, pass := gate.pass(time.Now())
	if !pass {
		return
	}
	e.Text, e.Reason = more(e.Text, held), reason
	r.add(e, theirs)
}

func more(text string, held int) string {
	if held == 0 {
		return text
	}
	return fmt.Sprintf("%s (and %d more like it)", text, held)
}

// shorter is a duration without digits that say nothing.
func shorter(d time.Duration) time.Duration {
	if d > time.Second {
		return d.Round(time.Millisecond)
	}
	return d.Round(time.Microsecond)
}

// mayLook has the kernel asked of ends that will be recorded, but not more than a hundred
// a second.
func (r *Recorder) mayLook(c *levee.Conn) bool {
	return c.Reason().IsAbnormal() && spend(&r.looks, time.Now(), 100)
}

// Add records that something else happened: a kind such as "reload", and a line of text.
func (r *Recorder) Add(kind, text string) { r.add(Event{Kind: kind, Text: text}, false) }

func (r *Recorder) add(e Event, theirs bool) {
	e.Text = printable(cut(e.Text))
	e.Time = time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last++
	e.ID = r.last
	size := max(2, cmp.Or(max(0, r.Size), 256))
	if theirs {
		r.theirs.put(e, size/2)
	} else {
		r.ours.put(e, size-size/2)
	}
	for s := range r.heard {
		s.offer(e)
	}
	if r.more != nil {
		close(r.more)
		r.more = nil
	}
}

// Last returns the ID of the last event, 0 if there has been none.
func (r *Recorder) Last() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.last
}

// After is for a reader that takes its time, and has no buffer: it returns up to most events with an ID above
// after, in order, and how many of those in between are not remembered any more. If there has been none yet, more is
// closed when there is. An after that there has not been is of another Recorder: all events are after it.
func (r *Recorder) After(after uint64, most int) (events []Event, lost uint64, more <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if after > r.last {
		after = 0
	}
	if after == r.last {
		if r.more == nil {
			r.more = make(chan struct{})
		}
		return nil, 0, r.more
	}
	events = r.eventsLocked(after)
	events = events[:min(len(events), max(1, most))]
	return events, events[len(events)-1].ID - after - uint64(len(events)), nil
}

// Events returns the events with an ID above after that are remembered, in order. With an
// after of 0 that is all of them.
func (r *Recorder) Events(after uint64) []Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.eventsLocked(after)
}

func (r *Recorder) eventsLocked(after uint64) (all []Event) {
	for _, e := range append(slices.Clone(r.ours.events), r.theirs.events...) {
		if e.ID > after {
			all = append(all, e)
		}
	}
	slices.SortFunc(all, func(a, b Event) int { return cmp.Compare(a.ID, b.ID) })
	return all
}

// A ring holds the last so many events, in no order.
type ring struct {
	events []Event
	next   int
}

func (r *ring) put(e Event, size int) {
	if len(r.events) < size {
		r.events = append(r.events, e)
		return
	}
	r.events[r.next] = e
	r.next = (r.next + 1) % size
}

// A Subscription gets events as they happen.
type Subscription struct {
	// C is where they come. It is never closed.
	C <-chan Event

	recorder *Recorder
	c        chan Event
	lost     atomic.Int64
}

// Subscribe has events sent to a channel that holds so many, at least one; who is slower than that loses
// some. It begins with those that are remembered and have an ID above after, as far as there is
// room. End it with Close.
func (r *Recorder) Subscribe(after uint64, room int) *Subscription {
	s := &Subscription{recorder: r, c: make(chan Event, max(1, room))}
	s.C = s.c
	r.mu.Lock()
	defer r.mu.Unlock()
	missed := r.eventsLocked(after)
	if over := len(missed) - cap(s.c); over > 0 {
		missed = missed[over:]
		s.lost.Add(int64(over))
	}
	for _, e := range missed {
		s.c <- e
	}
	if r.heard == nil {
		r.heard = make(map[*Subscription]struct{})
	}
	r.heard[s] = struct{}{}
	return s
}

func (s *Subscription) offer(e Event) {
	select {
	case s.c <- e:
	default:
		s.lost.Add(1)
	}
}

// Lost returns how many events there was no room for, since it was last called.
func (s *Subscription) Lost() int64 { return s.lost.Swap(0) }

// Close ends the subscription. It may be called more than once.
func (s *Subscription) Close() {
	s.recorder.mu.Lock()
	defer s.recorder.mu.Unlock()
	delete(s.recorder.heard, s)
}

// refusals are those that were turned away and not told yet.
type refusals struct {
	byReason [256]atomic.Int64
	armed    atomic.Bool

	mu      sync.Mutex
	example string
}

// refusalPause is how long they are collected.
const refusalPause = time.Second

func (f *refusals) note(r *Recorder, c *levee.Conn) {
	f.byReason[c.Reason()].Add(1)
	if f.armed.Load() || f.armed.Swap(true) {
		return
	}
	f.mu.Lock()
	f.example = c.RemoteAddr().String()
	f.mu.Unlock()
	time.AfterFunc(refusalPause, func() { f.tell(r) }) // once, and soon
}

func (f *refusals) tell(r *Recorder) {
	f.armed.Store(false) // first: who comes from now on is told by the next
	var parts []string
	total, most, reason := int64(0), int64(0), levee.ReasonNone
	for _, why := range levee.CloseReasons() {
		n := f.byReason[why].Swap(0)
		if n == 0 {
			continue
		}
		parts = append(parts, fmt.Sprintf("%s %d", why, n))
		if total += n; n > most {
			most, reason = n, why
		}
	}
	f.mu.Lock()
	example := f.example
	f.mu.Unlock()
	text := fmt.Sprintf("%d turned away at the door: %s, such as %s", total, strings.Join(parts, ", "), example)
	r.add(Event{Kind: KindRefused, Text: text, Reason: reason}, true)
}

// spend reports whether there may be one more of something this second. It is lock-free: the
// upper half of the word is the second, the lower how many there were.
func spend(word *atomic.Int64, now time.Time, most int64) bool {
	const half = 32
	second := now.Unix() & (1<<31 - 1)
	for {
		old := word.Load()
		n := old & (1<<half - 1)
		if old>>half != second {
			n = 0
		}
		if n >= most {
			return false
		}
		if word.CompareAndSwap(old, second<<half|(n+1)) {
			return true
		}
	}
}
