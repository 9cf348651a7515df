//go:build linux

package reactor_test

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/levee-net/levee/internal/reactor"
	"golang.org/x/sys/unix"
)

// A cipher is a toy: it flips a bit of every byte. Of those that it would make of control
// characters, which plaintext has none of, ends is the end, asks wants an answer and spoils
// breaks it.
type cipher struct {
	*owner
	told bool
}

const (
	bit    = 0x80
	ends   = 1
	asks   = 2
	spoils = 3
)

var errSpoilt = errors.New("spoilt")

func flip(b []byte) []byte {
	flipped := make([]byte, len(b))
	for i := range b {
		flipped[i] = b[i] ^ bit
	}
	return flipped
}

func (c *cipher) Open(in []byte, end bool, out []byte) (plain, reply []byte, err error) {
	for i, b := range in {
		switch b {
		case ends:
			return out, reply, io.EOF
		case asks:
			reply = append(reply, "answered"...)
		case spoils:
			return out, append(reply, "alert"...), errSpoilt
		default:
			out = append(out, in[i]^bit)
		}
	}
	if end {
		return out, reply, io.ErrUnexpectedEOF
	}
	return out, reply, nil
}

func (c *cipher) Seal(plain, out []byte) ([]byte, error) { return append(out, flip(plain)...), nil }

func (c *cipher) SealEnd() []byte {
	if c.told {
		return nil
	}
	c.told = true
	return []byte{ends}
}

// joinSealed joins two connections of which the near one is sealed.
func joinSealed(t testing.TB, r *reactor.Reactor, limits reactor.Limits, first string) *joint {
	t.Helper()
	nearFD, near := tcp(t)
	farFD, far := tcp(t)
	return joinAs(t, r, limits, first, func(j *joint) reactor.Owner { return &cipher{owner: j.owner} }, nearFD, farFD, near, far)
}

// plaintext is so many random bytes, none of which is a control character, sealed or not.
func plaintext(n int) []byte {
	b := random(n)
	for i := range b {
		b[i] |= 0x40
	}
	return b
}

func TestASealedConnectionIsOpenedForItsPeerAndItsPeersBytesAreSealed(t *testing.T) {
	r := start(t, reactor.Options{})
	j := joinSealed(t, r, reactor.Limits{}, "read before ")
	expect(t, j.far, "read before ")
	for range 3 {
		j.near.Write(flip([]byte("to the far")))
		expect(t, j.far, "to the far")
		j.far.Write([]byte("to the near"))
		expect(t, j.near, string(flip([]byte("to the near"))))
	}
	if v := j.view(t); v.Read != 30 || v.Written != 33 || v.Out != 0 {
		t.Errorf("%+v", v)
	}
	j.near.Write(append(flip([]byte("and")), asks))
	expect(t, j.far, "and")
	expect(t, j.near, "answered")
	j.near.Write([]byte{ends})
	expectEnd(t, j.far, nil)
	j.far.Write([]byte("last"))
	j.far.Close()
	expectEnd(t, j.near, append(flip([]byte("last")), ends))
	if end := j.endsAs(t, reactor.EOF); end.err != nil || !j.EndedFirst() {
		t.Error(end.err, j.EndedFirst())
	}
}

func TestMuchGoesThroughASealInFullWhateverHasRoom(t *testing.T) {
	r := start(t, reactor.Options{})
	for _, small := range []bool{false, true} {
		j := joinSealed(t, r, reactor.Limits{}, "")
		size := 5 << 20
		if small {
			size = 200 << 10
			for _, conn := range []net.Conn{j.near, j.far} {
				control(t, conn, func(fd int) { must(t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 4<<10)) })
			}
		}
		up, down := plaintext(size), plaintext(size+rand.IntN(1000))
		var all sync.WaitGroup
		all.Go(func() { j.near.Write(append(flip(up), ends)) })
		all.Go(func() {
			j.far.Write(down)
			j.far.(*net.TCPConn).CloseWrite()
		})
		all.Go(func() {
			if got, err := io.ReadAll(j.far); err != nil || !bytes.Equal(got, up) {
				t.Errorf("small %t: the far one got %d bytes, %v; want %d", small, len(got), err, len(up))
			}
		})
		all.Go(func() {
			if got, err := io.ReadAll(j.near); err != nil || !bytes.Equal(got, append(flip(down), ends)) {
				t.Errorf("small %t: the near one got %d bytes, %v; want %d and the end", small, len(got), err, len(down))
			}
		})
		all.Wait()
		receive(t, j.over, "the end")
	}
}

// What is cut short must not look like the end.
func TestWhatEndsWithoutASealedEndIsReset(t *testing.T) {
	r := start(t, reactor.Options{})
	for name, test := range map[string]struct {
		breaks func(*joint)
		cause  reactor.Cause
		err    error
		near   string // what the near one is sent, before it is reset
	}{
		"an end of the socket alone": {func(j *joint) { j.near.(*net.TCPConn).CloseWrite() }, reactor.IOError, io.ErrUnexpectedEOF, ""},
		"what cannot be opened":      {func(j *joint) { j.near.Write([]byte{spoils}) }, reactor.IOError, errSpoilt, "alert"},
		"a reset of the far one": {func(j *joint) {
			must(t, j.far.(*net.TCPConn).SetLinger(0))
			j.far.Close()
		}, reactor.FarIOError, syscall.ECONNRESET, ""},
		"somebody who ends it": {func(j *joint) { j.Kill() }, reactor.Killed, nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			j := joinSealed(t, r, reactor.Limits{}, "")
			j.near.Write(flip([]byte("hello")))
			expect(t, j.far, "hello")
			test.breaks(j)
			if end := j.endsAs(t, test.cause); !errors.Is(end.err, test.err) {
				t.Errorf("error %v, want %v", end.err, test.err)
			}
			got, _ := io.ReadAll(j.near)
			if string(got) != test.near {
				t.Errorf("the near one got %q, want %q", got, test.near)
			}
			if test.cause != reactor.FarIOError {
				if got, err := io.ReadAll(j.far); len(got) > 0 || !errors.Is(err, syscall.ECONNRESET) {
					t.Errorf("the far one got %q, %v; want a reset", got, err)
				}
			}
		})
	}
}

func TestOneThatWasToldOfTheEndMayGoOnAndGetsNoMoreReplies(t *testing.T) {
	r := start(t, reactor.Options{})
	j := joinSealed(t, r, reactor.Limits{}, "")
	j.far.(*net.TCPConn).CloseWrite()
	expectEnd(t, j.near, []byte{ends})
	j.near.Write(append([]byte{asks}, flip([]byte("still here"))...))
	expect(t, j.far, "still here")
	j.near.Write(append(flip([]byte("and gone")), ends))
	expectEnd(t, j.far, []byte("and gone"))
	if end := j.endsAs(t, reactor.FarEOF); end.err != nil {
		t.Error(end.err)
	}
}

func TestRepliesThatNobodyReadsAreBounded(t *testing.T) {
	r := start(t, reactor.Options{})
	j := joinSealed(t, r, reactor.Limits{}, "")
	control(t, j.near, func(fd int) { narrow(t, fd) })
	go func() { // ends with the connection
		for _, err := j.near.Write(bytes.Repeat([]byte{asks}, 1000)); err == nil; {
			_, err = j.near.Write(bytes.Repeat([]byte{asks}, 1000))
		}
	}()
	if end := j.endsAs(t, reactor.IOError); end.err == nil {
		t.Error("no error")
	}
	if _, err := io.ReadAll(j.far); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the far one got %v, want a reset", err)
	}
}

func TestASealedConnectionThatLeavesInQuietIsToldOfTheEnd(t *testing.T) {
	r := start(t, reactor.Options{Quiet: brief})
	j := joinSealed(t, r, reactor.Limits{}, "")
	j.near.Write(flip([]byte("question")))
	expect(t, j.far, "question")
	j.far.Write([]byte("answer"))
	expect(t, j.near, string(flip([]byte("answer"))))
	began := time.Now()
	j.Leave()
	expectEnd(t, j.near, []byte{ends})
	if quiet := time.Since(began); quiet < brief*4/5 {
		t.Errorf("left after %v", quiet)
	}
	j.endsAs(t, reactor.Left)
	expectEnd(t, j.far, nil)
}

func TestWhatBreaksASealedConnectionFirstIsWhyItEnds(t *testing.T) {
	r := start(t, reactor.Options{})
	j := joinSealed(t, r, reactor.Limits{}, "")
	j.near.Write(flip([]byte("question")))
	expect(t, j.far, "question")
	j.Inspect(func(reactor.View) { // a write finds the reset before a read does
		j.far.Write([]byte("answer"))
		_ = j.near.(*net.TCPConn).SetLinger(0)
		j.near.Close()
	})
	if end := j.endsAs(t, reactor.IOError); !errors.Is(end.err, syscall.ECONNRESET) {
		t.Errorf("error %v, want the reset", end.err)
	}
}

// A slow cipher takes its time for each byte, as it does who has to change its keys before each.
type slowCipher struct {
	cipher
	each time.Duration
	most chan int // bytes that it was last given
}

func (c *slowCipher) Open(in []byte, end bool, out []byte) (plain, reply []byte, err error) {
	time.Sleep(time.Duration(len(in)) * c.each) //nolint:forbidigo // it is what is slow, and nobody waits by it
	select {
	case <-c.most:
	default:
	}
	c.most <- len(in)
	return c.cipher.Open(in, end, out)
}

func TestLittleAtOnceIsReadOfWhatIsDearToOpen(t *testing.T) {
	r := start(t, reactor.Options{Loops: 1})
	nearFD, near := tcp(t)
	farFD, far := tcp(t)
	most := make(chan int, 1)
	j := joinAs(t, r, reactor.Limits{}, "", func(j *joint) reactor.Owner {
		return &slowCipher{cipher{owner: j.owner}, 500 * time.Nanosecond, most}
	}, nearFD, farFD, near, far)
	go func() { // ends with the connection
		for {
			if _, err := near.Write(make([]byte, 64<<10)); err != nil {
				return
			}
		}
	}()
	go io.Copy(io.Discard, far) // ends with the connection
	eventually(t, "at most 4 KiB are read at once", func() bool {
		n := <-most
		return n > 0 && n <= 4<<10
	})
	for range 20 {
		if n := receive(t, most, "another read"); n > 4<<10 {
			t.Errorf("%d bytes were read at once", n)
		}
	}
	j.Kill()
}
