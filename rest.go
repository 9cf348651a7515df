package levee

import (
	"bytes"

	"github.com/levee-net/levee/internal/reactor"
)

// A Rest is what the last that an upstream has sent tells of whether the connection that is joined to it may leave
// without harm; see [Upstream].
type Rest uint8

// What it may tell.
const (
	// RestUnknown: nothing. The connection leaves when nothing has moved for five seconds, and the upstream has had
	// the last word.
	RestUnknown Rest = iota
	// AtRest: nothing is under way. If the upstream has had the last word it leaves after a twentieth of a second.
	AtRest
	// NotAtRest: something is, such as a transaction. It does not leave before that changes.
	NotAtRest
)

// RestBytes is how much of an answer an Upstream's Rest is shown at most: of its beginning, and of its end.
const RestBytes = 32

// An overhearing is what is kept of an upstream's answer for its Rest. An event loop has it, or the joint under its mu.
type overhearing struct {
	by   *Conn
	rest func(first, last []byte) Rest

	first, last [RestBytes]byte
	began, kept uint8 // bytes in first, and in last
	more        bool  // than first holds has been sent
}

func (c *Conn) overhears(u Upstream) overhearing { return overhearing{by: c, rest: u.Rest} }

// Overhear is reactor.Overhearer's.
func (o *overhearing) Overhear(b []byte, first bool) {
	if first {
		o.began, o.kept, o.more = 0, 0, false
	}
	if b == nil {
		o.kept, o.more = 0, true
		return
	}
	if !o.more {
		n := copy(o.first[o.began:], b)
		o.began += uint8(n) //nolint:gosec // at most RestBytes
		o.more = n < len(b)
	}
	b = b[max(0, len(b)-RestBytes):]
	stays := min(int(o.kept), RestBytes-len(b))
	copy(o.last[:], o.last[int(o.kept)-stays:o.kept])
	o.kept = uint8(stays + copy(o.last[stays:], b)) //nolint:gosec // the same
}

// A heard record is what another process is told of an overhearing.
type heard struct {
	First, Last []byte `json:",omitempty"`
	More        bool   `json:",omitempty"`
}

func (o *overhearing) save() *heard {
	return &heard{bytes.Clone(o.first[:o.began]), bytes.Clone(o.last[:o.kept]), o.more}
}

// restore takes over what another process has heard.
func (o *overhearing) restore(h *heard) {
	o.began, o.more = uint8(copy(o.first[:], h.First)), h.More              //nolint:gosec // at most RestBytes
	o.kept = uint8(copy(o.last[:], h.Last[max(0, len(h.Last)-RestBytes):])) //nolint:gosec // the same
}

// Rest is reactor.Overhearer's.
func (o *overhearing) Rest() reactor.Rest { return reactor.Rest(o.ask()) }

func (o *overhearing) ask() (rest Rest) {
	if o.kept == 0 {
		return RestUnknown
	}
	o.by.server.guard(o.by, func() { rest = o.rest(o.first[:o.began], o.last[:o.kept]) })
	return rest
}
