//go:build linux

package reactor

import (
	"errors"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// A Sealer is the owner of a pair whose near socket carries ciphertext, as TLS has it;
// the far one carries what that says. It is a pure matter of bytes: its methods are called
// by the loop, must not block and must not panic, and keep none of the slices.
type Sealer interface {
	Owner

	// Open is given what has come from the near socket, or says with end that no more
	// will. It appends to out what that says, and returns what the near one is to be sent
	// in reply, which is mostly nothing. It is called at first, without bytes, for what
	// was read before. The error is the near connection's, behind the bytes: io.EOF is an
	// end in good order: that of the socket if end is set, and else by the ciphertext's own
	// account.
	Open(in []byte, end bool, out []byte) (plain, reply []byte, err error)

	// Seal appends to out what says plain to the near one.
	Seal(plain, out []byte) (sealed []byte, err error)

	// SealEnd returns what says to the near one that this is the end. It has nothing more
	// to say when it is called again.
	SealEnd() []byte
}

const (
	sealSize = 64 << 10 // one read, of plaintext or of ciphertext

	// sealRoom is what a read takes when it has been sealed or opened: TLS puts 22 bytes around
	// a record, and the rest of one that was incomplete, with which it opens, is less than 17 KiB.
	sealRoom = sealSize + 20<<10

	dearTime  = int64(500 * time.Microsecond) // ten times what a read takes to open that is full of data
	cheapTime = int64(50 * time.Microsecond)
	dearest   = 6 // 1 KiB
)

// A workbench is where a loop seals and opens. It is made when first needed.
type workbench struct{ in, out []byte }

func (l *loop) needBench() *workbench {
	if l.bench.in == nil {
		l.bench.in, l.bench.out = make([]byte, sealSize), make([]byte, 0, sealRoom)
	}
	return &l.bench
}

// sealer returns what is between the near connection and its socket, nil if nothing is.
func (c *Conn) sealer() Sealer {
	if !c.is(sealed) {
		return nil
	}
	return c.owner.(Sealer)
}

// moveOpened is move for a near connection that carries ciphertext.
func (l *loop) moveOpened(c, p *Conn) error {
	if c.is(unopened) {
		c.clear(unopened)
		return l.open(c, p, nil, false)
	}
	buffer := l.needBench().in[:c.chunk(sealSize>>c.dear)]
	n, err := readSocket(int(c.fd), buffer)
	switch {
	case err == unix.EAGAIN:
		return err
	case err == io.EOF:
		return l.open(c, p, nil, true)
	case err != nil:
		return os.NewSyscallError("read", err)
	case n < len(buffer) && !c.is(uneven):
		c.clear(readable)
	}
	c.read.Add(int64(n))
	l.spendIn(c, n)
	began := l.reactor.clock()
	err = l.open(c, p, buffer[:n], false)
	c.appraise(l.reactor.clock() - began)
	return err
}

// appraise takes less at once from who sends what is dear to open, such as thousands of changes of its keys: one read
// of that would take as long as a hundred others.
func (c *Conn) appraise(took int64) {
	switch {
	case took > dearTime && c.dear < dearest:
		c.dear++
	case took < cheapTime && c.dear > 0:
		c.dear--
	}
}

// open passes on what the bytes say.
func (l *loop) open(c, p *Conn, in []byte, end bool) error {
	plain, reply, err := c.sealer().Open(in, end, l.needBench().out)
	if err == io.EOF && !end {
		c.set(said)
	}
	if len(plain) > 0 {
		l.sent(c)
		if err := l.pass(p, plain); err != nil {
			l.failed(p, err)
		}
	}
	switch {
	case len(reply) == 0 || c.is(broken|told): // the end that it has been told of was the last word
	case c.owes() && len(c.rest.out) > sealRoom+repliesMost:
		return errUnread
	default:
		l.spendIn(p, len(reply)) // it goes where what p sends does
		if err := l.pass(c, reply); err != nil {
			l.failed(c, err)
		}
	}
	return err
}

// repliesMost bounds what is kept for one that asks again and again, as TLS lets it by
// updates of its keys, and does not read the answers.
const repliesMost = 64 << 10

var errUnread = errors.New("the replies to it are not read")

// moveSealed is move from a far connection to a near one that carries ciphertext.
func (l *loop) moveSealed(c, p *Conn) error {
	buffer := l.needBench().in[:c.chunk(sealSize)]
	n, err := readSocket(int(c.fd), buffer)
	switch {
	case err == unix.EAGAIN || err == io.EOF:
		return err
	case err != nil:
		return os.NewSyscallError("read", err)
	case n < len(buffer) && !c.is(uneven):
		c.clear(readable)
	}
	c.read.Add(int64(n))
	l.overhear(c, buffer[:n])
	l.sent(c)
	b, err := p.sealer().Seal(buffer[:n], l.needBench().out)
	if err != nil {
		l.breaks(p, err)
		return nil
	}
	l.spendIn(c, len(b)) // as it is on the wire
	if err := l.pass(p, b); err != nil {
		l.failed(p, err)
	}
	return nil
}

// sealEnd tells a near connection that carries ciphertext of the end, and reports whether
// that has been written. One that has ended its own stream may be gone by now, which
// matters to nobody.
func (l *loop) sealEnd(c *Conn) bool {
	s := c.sealer()
	if s == nil {
		return true
	}
	if b := s.SealEnd(); len(b) > 0 {
		if err := l.pass(c, b); err != nil && !c.is(ended) {
			l.failed(c, err)
		}
	}
	return !c.owes()
}

// sealLast is sealEnd when the socket is about to be closed.
func (l *loop) sealLast(c *Conn) {
	if s := c.sealer(); s != nil && !c.is(told|broken) && !c.owes() {
		_, _ = writeSocket(int(c.fd), s.SealEnd())
	}
}
