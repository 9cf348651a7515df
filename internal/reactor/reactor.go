//go:build linux

package reactor

import (
	"errors"
	"math"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// An Owner is what a connection belongs to. Its methods are called by the
// connection's loop, one at a time, but not always on the same goroutine. They may
// block: that costs the loop its budget once, and then only this connection waits.
type Owner interface {
	// Step is given the bytes that have been received and not yet consumed. The first
	// seen of them are what the last call was given, if it consumed nothing: an owner
	// that looks for a delimiter need not search them again. It returns how many it
	// has consumed and what to write in reply, which may be appended to out, or be
	// part of in. It is called again with the rest until it consumes nothing, and
	// then when more has come. It must keep neither slice. An error ends the
	// connection, once the reply has been written.
	//
	// The first call comes with the adoption: in is what Adopt was given, and may be
	// empty. It is not empty in any other.
	Step(in []byte, seen int, out []byte) (n int, reply []byte, err error)

	// Slow is called by another goroutine, once, when a call of Step outlives the
	// budget. The call is still running, or has only just returned. Slow must be
	// quick, must not wait for the call, and must not panic.
	Slow()

	// Slowed is called after Slow, when the call has returned, or panicked, on its
	// goroutine. It is told how long the call took, to about the budget. A panic in
	// it is as one in Step. Both are called after the fact of a call that was made
	// aside. Neither is called of an End.
	Slowed(took time.Duration)

	// End is called once, last, when the socket has been closed; that a Control is
	// using it then may put off.
	End(cause Cause, err error)
}

// A Closer is an Owner that looks at its socket before that is closed; of a pair at the near
// one. Closing is called by the loop, once, before End: it must be quick, and must not panic.
// It comes before what TLS has to say, or the kernel, on the way out.
type Closer interface {
	Owner
	Closing(fd int)
}

// A Hearer is the Owner of a pair that wants to know when the far connection has first sent
// something. Heard is called by the loop, once: it must be quick, and must not panic.
type Hearer interface {
	Owner
	Heard()
}

// A Cause is why a connection ended.
type Cause uint8

// The causes. Idle looks at bytes in both directions, and not at messages: one that
// trickles in is not idle, but Unfinished some time. Nor is a connection whose call is under way, or that is
// paused; its time begins anew then. While bytes wait for the peer and there is a
// Limits.WriteStall, it is that which counts.
const (
	EOF        Cause = iota + 1 // the peer closed its side; the error is io.ErrUnexpectedEOF if bytes were left over
	IOError                     // the socket failed; the error is an *os.SyscallError of "read" or "write"
	Refused                     // Step returned the error; a peer that is still sending got a moment to read its last reply
	Panicked                    // Step or Slowed panicked; the error is a *PanicError
	Idle                        // no byte came, and the peer took none, for Limits.Idle
	Stalled                     // the peer took no byte for Limits.WriteStall
	Left                        // it was asked to leave, and did
	Killed                      // Kill
	Unfinished                  // a message took longer than Limits.Message

	// Of pairs alone. EOF, IOError and Stalled are the near connection's doing then.
	FarEOF     // the far one has closed its side first
	FarIOError // its socket failed
	FarStalled // it took no byte for Limits.WriteStall
	HalfClosed // one side is closed, and from the other came nothing for Limits.HalfClosed
)

// Limits are what a connection may do. They must not be changed while in use. A
// duration that is not positive is no limit.
type Limits struct {
	Idle       time.Duration
	WriteStall time.Duration
	// Message is how long a message may take from its first byte to its last. A time in which
	// the connection waits for a Pacer, or for the peer to take a reply, has it begin anew; so
	// have the beginning and the end of a pause.
	Message time.Duration
	// HalfClosed takes the place of Idle for a pair of which one side has ended.
	HalfClosed time.Duration
	// MaxMessage is how many bytes may wait for the rest of a message, 0 for 1 MiB.
	// Negative is no limit.
	MaxMessage int
	// Uneven says that a read may stop short of what there is, as on a Unix socket
	// behind bytes that came with descriptors.
	Uneven bool
}

const defaultMaxMessage = 1 << 20

func (l *Limits) maxMessage() int {
	switch {
	case l.MaxMessage == 0:
		return defaultMaxMessage
	case l.MaxMessage < 0:
		return math.MaxInt
	}
	return l.MaxMessage
}

// ErrMessageTooLong ends a connection whose owner consumed nothing of
// Limits.MaxMessage bytes.
var ErrMessageTooLong = errors.New("message too long")

// A PanicError is a panic in Step or Slowed, or what runtime.Goexit in it leaves: a
// nil Value.
type PanicError struct {
	Value any
	Stack []byte
}

func (e *PanicError) Error() string { return "panic in a step" }

// Options set a Reactor up.
type Options struct {
	// Loops is how many event loops there are. Zero means one for each processor
	// that Go uses.
	Loops int
	// Budget is how long a call may hold its loop. Zero means 1 ms. It is looked at
	// as often, so a call may hold the loop for twice as long.
	Budget time.Duration
	// Lasting, if not nil, is called with the socket of a far connection that was marked by
	// Conn.MayLast, once its pair has lasted some 15 seconds: for what costs system calls,
	// and is of no use to one that lives shorter. It must be quick.
	Lasting func(fd int)
	// Quiet is for how long nothing must have moved on a pair that is asked to leave, if no more is known of it.
	// Zero means QuietTime.
	Quiet time.Duration
	// Deliver is how long a reset that is passed on waits for the bytes before it to be taken. Zero means DeliverTime.
	Deliver time.Duration
}

// FilesPerLoop is how many files each loop has open, beside its connections.
const FilesPerLoop = 3

// A Reactor is a set of event loops. Its methods may be called from any goroutine.
type Reactor struct {
	loops  []*loop
	turn   atomic.Uint32
	budget time.Duration
	epoch  time.Time

	lasting func(fd int)  // Options.Lasting
	quiet   time.Duration // Options.Quiet
	deliver int64         // Options.Deliver

	bells bells
	watch watchdog
	lane  lane
	slow  atomic.Int64
	done  sync.WaitGroup // of the loops
	close sync.Once
}

// New starts the loops.
func New(o Options) (*Reactor, error) {
	if o.Loops == 0 {
		o.Loops = runtime.GOMAXPROCS(0)
	}
	if o.Budget == 0 {
		o.Budget = time.Millisecond
	}
	if o.Lasting == nil {
		o.Lasting = func(int) {}
	}
	r := &Reactor{budget: o.Budget, epoch: time.Now(), lasting: o.Lasting}
	r.setQuiet(o)
	for range o.Loops {
		l, err := newLoop(r)
		if err != nil {
			r.Close()
			return nil, err
		}
		r.loops = append(r.loops, l)
	}
	r.lane.base = max(1, runtime.GOMAXPROCS(0)-1)
	r.lane.permits = r.lane.base
	r.watch.start(r)
	for _, l := range r.loops {
		r.done.Add(1)
		go l.run() // ends with Close
	}
	return r, nil
}

// Close ends the loops. Connections that are still there are left as they are,
// with their sockets open: end them first.
func (r *Reactor) Close() {
	r.close.Do(func() {
		for _, l := range r.loops {
			l.shut()
		}
		r.done.Wait()
		r.watch.stop()
		for _, l := range r.loops {
			l.poller.close()
		}
	})
}

// Loops returns how many loops there are.
func (r *Reactor) Loops() int { return len(r.loops) }

// Slow returns how many calls have had their loop taken away, as they took longer
// than the budget.
func (r *Reactor) Slow() int64 { return r.slow.Load() }

// Lag returns how long something that was due, be it an event or a deadline, had to
// wait for its loop, at worst, since Lag was last called.
func (r *Reactor) Lag() time.Duration {
	worst := int64(0)
	for _, l := range r.loops {
		worst = max(worst, l.lag.Swap(0))
	}
	return time.Duration(worst)
}

func (r *Reactor) clock() int64 { return int64(time.Since(r.epoch)) }

// Adopt gives a non-blocking socket that is in no other poller to one of the
// loops, with bytes that were read from it already. The fd and the bytes are the
// reactor's from now on, and Step is called once even if there are none. After an
// error they are still the caller's, and nothing has been called. After Close that
// is net.ErrClosed.
func (r *Reactor) Adopt(c *Conn, fd int, first []byte, owner Owner, limits *Limits) error {
	turn := r.turn.Add(1)
	l := r.loops[turn%uint32(len(r.loops))]
	c.fd, c.gen, c.owner, c.limits, c.loop = int32(fd), turn, owner, limits, l
	return l.adopt(c, first)
}
