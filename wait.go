package levee

import (
	"io"
	"net"
	"syscall"
	"time"
)

// await waits for the peer's next bytes and holds no memory until they are
// there; then it holds them. A request to leave ends the wait with
// errAskedToLeave, unless the bytes have already arrived: a request that was
// sent in time is served.
func (w *wire) await() error {
	if held, err := w.alreadyHeld(); held {
		return err
	}
	leaving, wanted := w.beginWait()
	defer w.endWait()
	switch {
	case wanted:
		return errWanted
	case leaving:
		return w.awaitNothing()
	}
	_, err := w.readSocket(nil)
	if err == errAskedToLeave {
		return w.awaitNothing()
	}
	return err
}

// awaitMovably is await for Next: meanwhile the connection may move.
func (w *wire) awaitMovably() error {
	err := errWanted
	for err == errWanted {
		if w.wanted.Load() {
			if err := w.conn.stepAside(); err != nil {
				return err
			}
		}
		w.between.Store(true)
		err = w.await()
		w.between.Store(false)
	}
	return err
}

// isInterrupted reports whether a wait for a next request is to end: the connection is asked to leave, or to move.
func (w *wire) isInterrupted() bool {
	return w.waiting.Load() && (w.leaving.Load() || w.isWanted())
}

func (w *wire) isWanted() bool { return w.wanted.Load() && w.between.Load() }

// awaitBytes is await for a reader in the middle of something: it does not heed
// a request to leave.
func (w *wire) awaitBytes() error {
	if held, err := w.alreadyHeld(); held {
		return err
	}
	_, err := w.readSocket(nil)
	return err
}

// alreadyHeld reports whether there is no need to wait, and why.
func (w *wire) alreadyHeld() (bool, error) {
	if w.held.some.Load() {
		return true, w.held.state()
	}
	return false, nil
}

// awaitNothing looks once whether there are bytes.
func (w *wire) awaitNothing() error {
	_, err := w.readAhead(false)
	switch {
	case err == io.EOF:
		w.eof.Store(true)
		return err
	case err == errWouldBlock:
		return errAskedToLeave
	}
	return w.ended(err)
}

// beginWait reports whether there is no time to wait, and why. It and askToLeave, or want, each
// say what they do before they look at what the other does, so one of them notices.
func (w *wire) beginWait() (leaving, wanted bool) {
	w.waiting.Store(true)
	leaving, wanted = w.leaving.Load(), w.isWanted()
	if leaving || wanted {
		w.mu.Lock() // askToLeave may be about to arm the deadline: it must not strike at the look that follows
		defer w.mu.Unlock()
	}
	return leaving, wanted
}

func (w *wire) endWait() {
	w.waiting.Store(false)
	if w.leaving.Load() || w.wanted.Load() {
		w.readArmed.Store(false) // it may have been armed to interrupt the wait
	}
}

// socket is what can be waited for without a buffer: one of net's own types.
// Not every syscall.Conn is: a type that embeds a *net.TCPConn to change what
// Read does has its SyscallConn too, and would be bypassed.
func (w *wire) socket() (syscall.RawConn, bool) { return rawSocket(w.raw) }

func rawSocket(conn net.Conn) (syscall.RawConn, bool) {
	if !canReadDirectly {
		return nil, false
	}
	var (
		sock syscall.RawConn
		err  error
	)
	switch raw := conn.(type) {
	case *net.TCPConn:
		sock, err = raw.SyscallConn()
	case *net.UnixConn:
		sock, err = raw.SyscallConn()
	default:
		return nil, false
	}
	return sock, err == nil
}

// readiness reads a socket directly, from inside its RawConn's callback: the
// goroutine is parked with no memory in hand, and takes a block once there is
// something to fill it with.
type readiness struct {
	sock    syscall.RawConn
	attempt func(fd uintptr) bool // made once: a closure per wait would be garbage per request
	look    func(fd uintptr)

	into  []byte // or, when nil, a block
	most  int    // of the block
	block *block
	n     int
	err   error
}

// direct returns the connection's readiness, or nil if its kind has none.
func (w *wire) direct() *readiness {
	if w.ready == nil {
		w.ready = new(readiness)
		if sock, ok := w.socket(); ok {
			w.ready.sock, w.ready.attempt, w.ready.look = sock, w.ready.tryRead, w.ready.readOnce
		}
	}
	if w.ready.sock == nil {
		return nil
	}
	return w.ready
}

// tryRead is the callback: it reports whether the wait is over.
func (r *readiness) tryRead(fd uintptr) bool {
	into := r.into
	if into == nil {
		r.block = blocks.Get().(*block)
		into = r.block[:r.most]
	}
	r.n, r.err = readDirectly(fd, into)
	if r.n == 0 && r.block != nil {
		blocks.Put(r.block)
		r.block = nil
	}
	return r.err != errWouldBlock
}

func (r *readiness) readOnce(fd uintptr) { r.tryRead(fd) }

// read waits if it is patient, within the deadline. If not it looks past the
// deadline, which may have been set only to interrupt a wait.
func (r *readiness) read(into []byte, patient bool) (int, error) {
	r.into, r.n, r.err = into, 0, nil
	var err error
	if patient {
		err = r.sock.Read(r.attempt)
	} else {
		err = r.sock.Control(r.look)
	}
	r.into = nil
	if err != nil {
		return 0, err
	}
	return r.n, r.err
}

// readAhead reads into a block and holds what it got. If it is not patient it
// returns errWouldBlock where it would have to wait.
func (w *wire) readAhead(patient bool) (int, error) {
	most := w.meterIn().chunk(blockSize)
	if r := w.direct(); r != nil {
		r.most = most
		n, err := r.read(nil, patient)
		b := r.block
		r.block = nil
		return w.hold(b, n, w.conn.networkError(err))
	}
	b := blocks.Get().(*block)
	var (
		n   int
		err error
	)
	if patient {
		n, err = w.raw.Read(b[:most])
	} else {
		n, err = w.readBriefly(b[:most])
	}
	return w.hold(b, n, err)
}

// hold holds what a read into a block got, if anything. The block may be nil if
// it got nothing.
func (w *wire) hold(b *block, n int, err error) (int, error) {
	if n > 0 {
		n, err = w.count(b[:], n, err)
	}
	switch {
	case n > 0:
		w.held.put(b, n)
	case b != nil:
		blocks.Put(b)
	}
	return n, err
}

// readNow reads what is there, or returns errWouldBlock.
func (w *wire) readNow(p []byte) (n int, err error) {
	if r := w.direct(); r != nil {
		n, err = r.read(p, false)
		err = w.conn.networkError(err)
	} else {
		n, err = w.readBriefly(p)
	}
	return w.count(p, n, err)
}

// readLast is readNow for when the handler has returned. A goroutine that it left
// behind may still be reading, with the connection's readiness.
func (w *wire) readLast(p []byte) (n int, err error) {
	if sock, ok := w.socket(); ok {
		r := readiness{sock: sock}
		r.look = r.readOnce
		n, err = r.read(p, false)
	} else {
		n, err = w.readBriefly(p)
	}
	return w.count(p, n, err)
}

// brief is how long a look for bytes takes on a connection that can only be
// asked by waiting: an expired deadline would not look at all.
const brief = time.Millisecond

// mostLooks bounds how often is looked again because the deadline may have been over before the look began,
// as on a machine that has more to do than it can: each time there is twice as long.
const mostLooks = 8

func (w *wire) readBriefly(p []byte) (n int, err error) {
	for looks, wait := 1, brief; ; looks, wait = looks+1, 2*wait {
		until := time.Now().Add(wait)
		_ = w.raw.SetReadDeadline(until)
		left := time.Until(until)
		n, err = w.raw.Read(p)
		if n > 0 || !isTimeout(err) {
			break
		}
		looked := left > wait/2 && time.Since(until) < brief // it begins in time, and ends with its deadline
		if err = errWouldBlock; looked || looks == mostLooks {
			break
		}
	}
	_ = w.armRead()
	return n, err
}
