package leveetest

import (
	"errors"
	"math"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Faults says what goes wrong on a connection, for each direction as the owner
// of the faulty end sees it. The zero value is a connection in good health.
type Faults struct {
	Read, Write Fault
}

// Fault is what goes wrong in one direction. The zero value is nothing.
type Fault struct {
	// Segment is how many bytes pass at once: a Read returns no more, and a
	// Write is cut into Writes of no more. 1 is a stream of single bytes.
	// Zero or less means no limit.
	Segment int

	// Seed, if not zero, makes the size of every segment a random number from 1
	// to Segment, or to what the caller asks for if that is less. The same
	// seed gives the same sizes.
	Seed uint64

	// Delay passes before every Read and before every segment of a Write. A
	// deadline or Close cuts it short. With Segment 1 it is a slow drip.
	// Zero or less means no delay.
	Delay time.Duration

	// After is how many bytes pass before Then happens. A Read or Write that
	// would go beyond is cut there. Zero or less means none.
	After int64

	// Then is what happens after that many bytes. The default is nothing.
	Then Accident
}

// Accident is what ends the flow of bytes in one direction.
type Accident int

const (
	// Nothing lets the bytes flow on.
	Nothing Accident = iota

	// Stall makes every further Read or Write block until its deadline or
	// Close, as behind a path that swallows packets. A stalled Read does not
	// notice that the peer has gone. The other direction, CloseWrite and Close
	// still get through.
	Stall

	// Reset resets the connection, both directions, as soon as the bytes have
	// passed; without any, at the first Read or Write. The peer sees
	// syscall.ECONNRESET, and so does every further Read and Write here. A
	// connection that has no SetLinger, neither itself nor behind NetConn, is
	// closed instead. On a real network the reset may overtake bytes sent
	// before it.
	Reset
)

// Faulty returns c with faults in it. The caller must not use c itself any more.
func Faulty(c net.Conn, faults Faults) *FaultyConn {
	f := &FaultyConn{Conn: c}
	f.reads, f.writes = newLane(&f.mu, faults.Read), newLane(&f.mu, faults.Write)
	return f
}

// FaultyConn is a connection with [Faults]; make one with [Faulty]. It is safe
// for use by several goroutines at once. The methods it does not mention are
// those of the connection inside.
type FaultyConn struct {
	net.Conn

	mu     sync.Mutex // never held during a call of Conn
	reads  *lane
	writes *lane
	closed bool
	reset  bool
}

// Read reads from the connection inside. Errors are those of that connection,
// and those that the faults bring: within *net.OpError os.ErrDeadlineExceeded,
// net.ErrClosed or syscall.ECONNRESET.
func (f *FaultyConn) Read(p []byte) (int, error) {
	return f.pass("read", f.reads, p, f.Conn.Read)
}

// Write writes p in segments and returns how many bytes went out before the
// first error. Writes from several goroutines do not mix. Errors are those of
// Read.
func (f *FaultyConn) Write(p []byte) (n int, err error) {
	if err := f.takeTurn(f.writes); err != nil {
		return 0, f.opError("write", err)
	}
	defer f.endTurn(f.writes)
	for {
		sent, err := f.passSegment("write", f.writes, p[n:], f.Conn.Write)
		n += sent
		if err != nil || n == len(p) {
			return n, err
		}
	}
}

// Close closes the connection inside and ends every call blocked here. Further
// calls return net.ErrClosed within *net.OpError.
func (f *FaultyConn) Close() error {
	f.mu.Lock()
	again, reset := f.closed, f.reset
	f.closed = true
	f.reads.deadline.stopLocked()
	f.writes.deadline.stopLocked()
	f.changedLocked()
	f.mu.Unlock()

	switch {
	case again:
		return f.opError("close", net.ErrClosed)
	case reset: // which has closed the connection inside
		return nil
	}
	return f.Conn.Close()
}

// CloseWrite calls CloseWrite on the connection inside. It returns
// errors.ErrUnsupported if that has none.
func (f *FaultyConn) CloseWrite() error {
	if c, ok := f.Conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return f.opError("close", errors.ErrUnsupported)
}

// CloseRead calls CloseRead on the connection inside. It returns
// errors.ErrUnsupported if that has none.
func (f *FaultyConn) CloseRead() error {
	if c, ok := f.Conn.(interface{ CloseRead() error }); ok {
		return c.CloseRead()
	}
	return f.opError("close", errors.ErrUnsupported)
}

// SetLinger calls SetLinger on the connection inside. It returns
// errors.ErrUnsupported if that has none.
func (f *FaultyConn) SetLinger(sec int) error {
	if c, ok := f.Conn.(lingerer); ok {
		return c.SetLinger(sec)
	}
	return f.opError("set", errors.ErrUnsupported)
}

type lingerer interface{ SetLinger(sec int) error }

// SetDeadline sets both deadlines, for the connection inside and for the waits
// that the faults add.
func (f *FaultyConn) SetDeadline(t time.Time) error {
	return errors.Join(f.SetReadDeadline(t), f.SetWriteDeadline(t))
}

// SetReadDeadline is SetDeadline for Read alone.
func (f *FaultyConn) SetReadDeadline(t time.Time) error {
	return f.setDeadline(f.reads, t, f.Conn.SetReadDeadline)
}

// SetWriteDeadline is SetDeadline for Write alone.
func (f *FaultyConn) SetWriteDeadline(t time.Time) error {
	return f.setDeadline(f.writes, t, f.Conn.SetWriteDeadline)
}

func (f *FaultyConn) setDeadline(l *lane, t time.Time, setInside func(time.Time) error) error {
	if err := setInside(t); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.closed {
		l.deadline.setLocked(t, &l.changed)
	}
	return nil
}

// lane is one direction: its fault, and how far it has come.
type lane struct {
	Fault
	random   *rand.Rand // nil without a seed
	changed  sync.Cond  // anything below, or the connection's state
	passed   int64      // bytes
	busy     bool       // a call is under way, others wait for their turn
	deadline deadline
}

func newLane(mu *sync.Mutex, fault Fault) *lane {
	l := &lane{Fault: fault}
	l.changed.L = mu
	if fault.Segment <= 0 {
		l.Segment = math.MaxInt
	}
	if fault.Seed != 0 {
		l.random = rand.New(rand.NewPCG(fault.Seed, 0))
	}
	return l
}

// due says that the bytes before the accident have passed.
func (l *lane) due(a Accident) bool { return l.Then == a && l.passed >= l.After }

// segment returns how many of n bytes may pass now: none once an accident is due.
func (l *lane) segment(n int) int {
	n = min(n, l.Segment)
	if l.Then != Nothing {
		n = int(min(int64(n), max(0, l.After-l.passed)))
	}
	if l.random != nil && n > 1 {
		n = 1 + l.random.IntN(n)
	}
	return n
}

func (f *FaultyConn) pass(op string, l *lane, p []byte, inside func([]byte) (int, error)) (int, error) {
	if err := f.takeTurn(l); err != nil {
		return 0, f.opError(op, err)
	}
	defer f.endTurn(l)
	return f.passSegment(op, l, p, inside)
}

// passSegment waits as the fault demands, lets one segment of p pass inside, and
// resets the connection if that was the last.
func (f *FaultyConn) passSegment(op string, l *lane, p []byte, inside func([]byte) (int, error)) (int, error) {
	size, err := f.awaitSegment(l, len(p))
	if err != nil {
		return 0, f.opError(op, err)
	}
	if size == 0 && len(p) > 0 { // a reset before the first byte
		f.resetInside()
		return 0, f.opError(op, syscall.ECONNRESET)
	}
	n, err := inside(p[:size])
	if f.countPassed(l, n) {
		f.resetInside()
	} else if err != nil && f.isReset() { // by the other direction, in the middle of this call
		err = f.opError(op, syscall.ECONNRESET)
	}
	return n, err
}

func (f *FaultyConn) takeTurn(l *lane) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for {
		if err := f.stoppedLocked(l); err != nil || !l.busy {
			l.busy = l.busy || err == nil
			return err
		}
		l.changed.Wait()
	}
}

func (f *FaultyConn) endTurn(l *lane) {
	f.mu.Lock()
	defer f.mu.Unlock()
	l.busy = false
	l.changed.Broadcast()
}

// awaitSegment waits out the delay, and in a stall until the call or the
// connection ends. It returns how many of n bytes may pass then.
func (f *FaultyConn) awaitSegment(l *lane, n int) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if n == 0 {
		return 0, f.stoppedLocked(l)
	}
	if err := f.delayLocked(l); err != nil {
		return 0, err
	}
	for l.due(Stall) {
		l.changed.Wait()
		if err := f.stoppedLocked(l); err != nil {
			return 0, err
		}
	}
	return l.segment(n), nil
}

func (f *FaultyConn) delayLocked(l *lane) error {
	var delay deadline
	if l.Delay > 0 {
		delay.startLocked(l.Delay, &l.changed)
		defer delay.stopLocked()
	}
	for {
		if err := f.stoppedLocked(l); err != nil || l.Delay <= 0 || delay.passed {
			return err
		}
		l.changed.Wait()
	}
}

func (f *FaultyConn) stoppedLocked(l *lane) error {
	switch {
	case f.closed:
		return net.ErrClosed
	case f.reset:
		return syscall.ECONNRESET
	case l.deadline.passed:
		return os.ErrDeadlineExceeded
	}
	return nil
}

// countPassed says whether those were the last bytes before a reset.
func (f *FaultyConn) countPassed(l *lane, n int) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	l.passed += int64(n)
	return l.due(Reset)
}

func (f *FaultyConn) isReset() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.reset && !f.closed
}

// resetInside resets the connection inside: the innermost that can be reset, so
// that a TLS connection says no goodbye.
func (f *FaultyConn) resetInside() {
	f.mu.Lock()
	f.reset = true
	f.changedLocked()
	f.mu.Unlock()

	for conn := f.Conn; conn != nil; {
		if c, ok := conn.(lingerer); ok {
			_ = c.SetLinger(0) // where it fails, Close does what it can
			conn.Close()
			break
		}
		inner, ok := conn.(interface{ NetConn() net.Conn })
		if !ok {
			break
		}
		conn = inner.NetConn()
	}
	f.Conn.Close()
}

func (f *FaultyConn) changedLocked() {
	f.reads.changed.Broadcast()
	f.writes.changed.Broadcast()
}

func (f *FaultyConn) opError(op string, err error) error {
	return &net.OpError{Op: op, Net: f.LocalAddr().Network(), Source: f.LocalAddr(), Addr: f.RemoteAddr(), Err: err}
}

// FaultyListener returns a listener whose connections are those of l with faults
// in them: the first accepted gets the first of faults and so on, then it begins
// again. Give it one Faults for all connections, or, say, three of which one
// resets. A fault that has a Seed gets the number of its connection added, so
// that no two are cut alike. Errors of Accept are those of l.
func FaultyListener(l net.Listener, faults ...Faults) net.Listener {
	return &faultyListener{Listener: l, faults: faults}
}

type faultyListener struct {
	net.Listener
	faults   []Faults
	accepted atomic.Uint64
}

func (l *faultyListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil || len(l.faults) == 0 {
		return conn, err
	}
	nth := l.accepted.Add(1) - 1
	faults := l.faults[nth%uint64(len(l.faults))]
	faults.Read.reseed(nth)
	faults.Write.reseed(nth)
	return Faulty(conn, faults), nil
}

func (f *Fault) reseed(nth uint64) {
	if f.Seed != 0 {
		f.Seed = max(1, f.Seed+nth) // 0 would be no seed
	}
}
