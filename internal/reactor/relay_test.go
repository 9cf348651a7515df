//go:build linux

package reactor_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/levee-net/levee/internal/reactor"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// A joint is a pair on a loop, and the other ends of its sockets.
type joint struct {
	*owner    // of the near connection
	farConn   reactor.Conn
	near, far net.Conn
}

// join joins two TCP connections.
func join(t testing.TB, r *reactor.Reactor, limits reactor.Limits, first string) *joint {
	t.Helper()
	nearFD, near := tcp(t)
	farFD, far := tcp(t)
	return joinSockets(t, r, limits, first, nearFD, farFD, near, far)
}

func joinSockets(t testing.TB, r *reactor.Reactor, limits reactor.Limits, first string, nearFD, farFD int, near, far net.Conn) *joint {
	t.Helper()
	return joinAs(t, r, limits, first, (*joint).itsOwner, nearFD, farFD, near, far)
}

func (j *joint) itsOwner() reactor.Owner { return j.owner }

// joinAs joins them as the owner's that is returned by made.
func joinAs(t testing.TB, r *reactor.Reactor, limits reactor.Limits, first string, made func(*joint) reactor.Owner, nearFD, farFD int, near, far net.Conn) *joint {
	t.Helper()
	j := &joint{owner: newOwner(t, func([]byte, []byte) (int, []byte, error) {
		t.Error("a pair is stepped")
		return 0, nil, io.EOF
	}), near: near, far: far}
	must(t, r.Join(&j.Conn, &j.farConn, nearFD, farFD, []byte(first), made(j), &limits))
	j.endsWithTest(t)
	return j
}

// narrow makes a socket's buffers as small as they can be.
func narrow(t testing.TB, fd int) {
	must(t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 4<<10))
	must(t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 4<<10))
}

// control calls f with the socket of one of net's connections.
func control(t testing.TB, conn net.Conn, f func(fd int)) {
	raw, err := conn.(syscall.Conn).SyscallConn()
	must(t, err)
	must(t, raw.Control(func(fd uintptr) { f(int(fd)) }))
}

// joinNarrowly is join with small buffers everywhere, or only where the near one's bytes are.
func joinNarrowly(t testing.TB, r *reactor.Reactor, limits reactor.Limits, both bool) *joint {
	t.Helper()
	nearFD, near := tcp(t)
	farFD, far := tcp(t)
	narrow(t, nearFD)
	control(t, near, func(fd int) { narrow(t, fd) })
	if both {
		narrow(t, farFD)
		control(t, far, func(fd int) { narrow(t, fd) })
	}
	return joinSockets(t, r, limits, "", nearFD, farFD, near, far)
}

// fill has the far side send until some of it waits in memory for the near one, and nothing
// behind. It returns what was sent.
func (j *joint) fill(t testing.TB) (sent []byte) {
	t.Helper()
	for {
		piece := random(8 << 10)
		j.far.Write(piece)
		sent = append(sent, piece...)
		eventually(t, "the loop has read it", func() bool { n, _ := j.farConn.Traffic(); return n == int64(len(sent)) })
		if j.view(t).Out > 0 {
			return sent
		}
	}
}

// random is so many random bytes.
func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(n), byte(rand.Uint32())}).Read(b)
	return b
}

func TestJoinedConnectionsAreEachOthersPeer(t *testing.T) {
	r := start(t, reactor.Options{})
	j := join(t, r, reactor.Limits{}, "read before ")
	expect(t, j.far, "read before ")
	for range 3 {
		j.near.Write([]byte("to the far"))
		expect(t, j.far, "to the far")
		j.far.Write([]byte("to the near"))
		expect(t, j.near, "to the near")
	}
	if v := j.view(t); v.Read != 30 || v.Written != 33 || v.Out != 0 {
		t.Errorf("%+v", v)
	}
	if read, written := j.farConn.Traffic(); read != 33 || written != 42 {
		t.Errorf("%d read from the far one, %d written", read, written)
	}
	j.near.(*net.TCPConn).CloseWrite()
	expectEnd(t, j.far, nil)
	j.far.Close()
	expectEnd(t, j.near, nil)
	if end := j.endsAs(t, reactor.EOF); end.err != nil {
		t.Error(end.err)
	}
}

// A splice stops at urgent data, and looks like the end then if that is there as well.
func TestWhatIsBehindUrgentDataComesBeforeTheEnd(t *testing.T) {
	r := start(t, reactor.Options{})
	for _, before := range []int{1, 32 << 10, 100_000} {
		nearFD, near := tcp(t)
		farFD, far := tcp(t)
		must(t, unix.SetsockoptInt(nearFD, unix.SOL_SOCKET, unix.SO_RCVBUF, 1<<20)) // all has room there
		b := random(before + 50_000)
		near.Write(b[:before])
		control(t, near, func(fd int) { must(t, unix.Send(fd, []byte("!"), unix.MSG_OOB)) })
		near.Write(b[before:])
		near.CloseWrite()
		drained(near)
		joinSockets(t, r, reactor.Limits{}, "", nearFD, farFD, near, far)
		expectEnd(t, far, b)
	}
}

func TestAPairThatCannotBeJoinedIsStillTheCallers(t *testing.T) {
	r := start(t, reactor.Options{})
	fd, peer := tcp(t)
	o := newOwner(t, echo)
	var far reactor.Conn
	if err := r.Join(&o.Conn, &far, fd, 1<<20, nil, o, &reactor.Limits{}); !errors.Is(err, unix.EBADF) {
		t.Fatalf("Join says %v", err)
	}
	o.adopt(t, r, fd, nil, reactor.Limits{})
	exchange(t, peer, "alone")
}

func TestOnlyAMarkedPairThatLastsIsToldOfAsLasting(t *testing.T) {
	lasting := make(chan int, 3)
	r := startedWith(t, reactor.Options{Loops: 1, Lasting: func(fd int) { lasting <- fd }})
	limits := reactor.Limits{Idle: 200 * time.Millisecond} // its end is a look at the pair, as its first 15 seconds' is
	pair := func(mark bool, limits reactor.Limits) (j *joint, farFD int) {
		nearFD, near := tcp(t)
		farFD, far := tcp(t)
		made := func(j *joint) reactor.Owner {
			if mark {
				j.farConn.MayLast()
			}
			return j.owner
		}
		return joinAs(t, r, limits, "", made, nearFD, farFD, near, far), farFD
	}
	brief, _ := pair(true, reactor.Limits{})
	brief.near.Close()
	brief.far.Close()
	receive(t, brief.over, "the end of a pair that did not last")
	plain, _ := pair(false, limits)
	receive(t, plain.over, "the end of a pair that nobody marked")
	marked, farFD := pair(true, limits)
	receive(t, marked.over, "the end of a pair that was marked")
	if got := receive(t, lasting, "the pair that lasts"); got != farFD {
		t.Errorf("told of socket %d, want the far one, %d", got, farFD)
	}
	select {
	case fd := <-lasting:
		t.Errorf("told of socket %d as well", fd)
	default:
	}
}

func TestAPausedPairMovesNothingAndLosesNothing(t *testing.T) {
	r := start(t, reactor.Options{})
	j := join(t, r, reactor.Limits{Idle: 10 * time.Millisecond}, "")
	j.Pause()
	if !j.view(t).Paused {
		t.Error("not paused")
	}
	up, down := random(300_000), random(200_000)
	for conn, b := range map[net.Conn][]byte{j.near: up, j.far: down} {
		go func() { // ends with the reading, or the connection
			conn.Write(b)
			conn.(*net.TCPConn).CloseWrite()
		}()
	}
	j.Leave()
	for range 100 { // it is neither idle, nor does it leave, nor see the ends
		if v := j.view(t); v.Read != 0 || v.Written != 0 {
			t.Fatalf("%+v", v)
		}
	}
	j.Resume()
	var both sync.WaitGroup
	both.Go(func() { expectEnd(t, j.far, up) })
	both.Go(func() { expectEnd(t, j.near, down) })
	both.Wait()
	receive(t, j.over, "the end")
}

func TestAPausedPairDoesNotLeave(t *testing.T) {
	r := start(t, reactor.Options{Quiet: brief})
	j := join(t, r, reactor.Limits{}, "")
	j.Pause()
	j.Leave()
	select {
	case end := <-j.ended:
		t.Fatalf("ended as %d", end.cause)
	case <-time.After(3 * brief):
	}
	j.far.Write([]byte("still here"))
	j.Resume()
	expect(t, j.near, "still here")
	j.endsAs(t, reactor.Left)
}

func TestWhoHadTheLastWordBeforeAPauseStillHas(t *testing.T) {
	r := start(t, reactor.Options{Quiet: brief})
	j := join(t, r, reactor.Limits{}, "ask")
	expect(t, j.far, "ask")
	j.far.Write([]byte("answer"))
	expect(t, j.near, "answer")
	j.Pause()
	j.Resume()
	j.Leave()
	j.endsAs(t, reactor.Left)
}

// An end in the middle of something must not look like one in good order.
func TestAPairThatIsKilledIsResetUnlessItRests(t *testing.T) {
	r := start(t, reactor.Options{Quiet: brief})
	ends := func(j *joint, near, far error) {
		t.Helper()
		j.Kill()
		if _, err := io.ReadAll(j.near); !errors.Is(err, near) {
			t.Errorf("the near one ends with %v, want %v", err, near)
		}
		if _, err := io.ReadAll(j.far); !errors.Is(err, far) {
			t.Errorf("the far one ends with %v, want %v", err, far)
		}
		j.endsAs(t, reactor.Killed)
	}
	answered := func() *joint {
		j := join(t, r, reactor.Limits{}, "ask")
		expect(t, j.far, "ask")
		j.far.Write([]byte("answer"))
		expect(t, j.near, "answer")
		return j
	}
	resting, waiting := answered(), answered()
	waiting.near.Write([]byte("ask"))
	expect(t, waiting.far, "ask")
	ends(answered(), syscall.ECONNRESET, syscall.ECONNRESET)
	halfClosed := answered()
	halfClosed.near.(*net.TCPConn).CloseWrite()
	expectEnd(t, halfClosed.far, nil)
	ends(halfClosed, syscall.ECONNRESET, nil) // the far one had all that there was
	<-time.After(2 * brief)
	ends(waiting, syscall.ECONNRESET, syscall.ECONNRESET)
	ends(resting, nil, nil)
}

func TestAPairHoldsNoMoreThanARead(t *testing.T) {
	r := start(t, reactor.Options{})
	j := joinNarrowly(t, r, reactor.Limits{}, true)
	for _, conn := range []net.Conn{j.near, j.far} {
		go conn.Write(make([]byte, 8<<20)) // ends with the connection
	}
	const most = 32 << 10
	for before, same := int64(-1), 0; same < 20; {
		v := j.view(t)
		if v.Out > most || v.In > 0 {
			t.Fatalf("%d bytes wait in memory", v.Out)
		}
		if same++; v.Read != before {
			before, same = v.Read, 0
		}
		<-time.After(5 * time.Millisecond)
	}
	nearRead, nearWritten := j.Traffic()
	farRead, farWritten := j.farConn.Traffic()
	if up, down := nearRead-farWritten, farRead-nearWritten; up > 512<<10 || down > 512<<10 {
		t.Errorf("%d and %d bytes wait, pipes included", up, down)
	}
}

func TestEitherOfAPairMayStall(t *testing.T) {
	r := start(t, reactor.Options{})
	limits := reactor.Limits{WriteStall: stalled, Idle: time.Hour}
	for name, test := range map[string]struct {
		up, down bool // who sends more than the other takes
		want     reactor.Cause
	}{
		"the near one": {down: true, want: reactor.Stalled},
		"the far one":  {up: true, want: reactor.FarStalled},
	} {
		t.Run(name, func(t *testing.T) {
			j := join(t, r, limits, "")
			from := j.far
			if test.up {
				from = j.near
			}
			go from.Write(make([]byte, 64<<20)) // ends with the connection
			j.endsAs(t, test.want)
		})
	}
}

func TestAStallIsNotHiddenByTheOtherSidesSlowness(t *testing.T) {
	r := start(t, reactor.Options{})
	j := join(t, r, reactor.Limits{WriteStall: stalled, Idle: time.Hour}, "")
	for _, conn := range []net.Conn{j.near, j.far} {
		go conn.Write(make([]byte, 256<<20)) // ends with the connection
	}
	ticker := time.NewTicker(stalled / 20)
	defer ticker.Stop()
	buffer := make([]byte, 64<<10)
	for began := time.Now(); ; <-ticker.C { // the near one takes little at a time, the far one nothing
		if _, err := j.near.Read(buffer); err != nil {
			break
		}
		if time.Since(began) > 10*stalled {
			t.Fatal("the far one takes nothing, and nobody minds")
		}
	}
	j.endsAs(t, reactor.FarStalled)
}

// leaveInKernel has the far side send until the loop's kernel holds some of it for the near
// one, and the loop nothing. It returns what was sent.
func (j *joint) leaveInKernel(t testing.TB, nearFD int) (sent []byte) {
	t.Helper()
	for {
		piece := random(500)
		j.far.Write(piece)
		sent = append(sent, piece...)
		eventually(t, "the loop has read it", func() bool { n, _ := j.farConn.Traffic(); return n == int64(len(sent)) })
		if j.view(t).Out > 0 {
			t.Fatal("more than the kernel takes")
		}
		if queued(t, nearFD) > 2000 {
			<-time.After(100 * time.Millisecond) // longer than any acknowledgement takes
			if queued(t, nearFD) > 2000 {
				return sent
			}
		}
	}
}

// queued returns how many bytes the kernel holds for a socket's peer.
func queued(t testing.TB, fd int) int {
	t.Helper()
	n, err := unix.IoctlGetInt(fd, unix.SIOCOUTQ)
	must(t, err)
	return n
}

// joinOverNarrow joins with small buffers on the near side, and returns the loop's socket.
func joinOverNarrow(t testing.TB, r *reactor.Reactor, limits reactor.Limits) (j *joint, nearFD int) {
	t.Helper()
	nearFD, near := tcp(t)
	farFD, far := tcp(t)
	must(t, unix.SetsockoptInt(nearFD, unix.SOL_SOCKET, unix.SO_SNDBUF, 64<<10))
	control(t, near, func(fd int) { narrow(t, fd) })
	return joinSockets(t, r, limits, "", nearFD, farFD, near, far), nearFD
}

func TestAResetWaitsForTheBytesBeforeIt(t *testing.T) {
	r := start(t, reactor.Options{})
	j, nearFD := joinOverNarrow(t, r, reactor.Limits{HalfClosed: stalled, Idle: stalled})
	b := j.leaveInKernel(t, nearFD)
	j.far.(*net.TCPConn).SetLinger(0)
	j.far.Close()
	select {
	case end := <-j.ended:
		t.Fatalf("ended as %d before the bytes were taken", end.cause)
	case <-time.After(2 * stalled):
	}
	got, err := io.ReadAll(j.near)
	if !bytes.Equal(got, b) || !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("got %d bytes of %d, and %v", len(got), len(b), err)
	}
	j.endsAs(t, reactor.FarIOError)
}

// A server that answers as it reads does not read on when nobody takes its answers.
func TestAServerIsHeardOutWhileItTakesWhatAClientSentBeforeItsReset(t *testing.T) {
	r := start(t, reactor.Options{})
	j := join(t, r, reactor.Limits{WriteStall: time.Hour}, "")
	var took atomic.Int64
	echoed := make(chan struct{})
	go func() { // a server; ends with the connection
		defer close(echoed)
		for b := make([]byte, 64<<10); ; {
			n, err := j.far.Read(b)
			took.Add(int64(n))
			if err != nil {
				return
			}
			if _, err = j.far.Write(b[:n]); err != nil {
				return
			}
		}
	}()
	wrote := make(chan struct{})
	go func() { // a client that does not read; ends with the connection
		defer close(wrote)
		for {
			if _, err := j.near.Write(make([]byte, 64<<10)); err != nil {
				return
			}
		}
	}()
	before, since := int64(-1), time.Now()
	eventually(t, "neither side takes any more", func() bool {
		if n := took.Load(); n != before {
			before, since = n, time.Now()
		}
		return time.Since(since) > stalled && j.view(t).Out > 0
	})
	waits := int64(0)
	j.farConn.Control(func(fd int) {
		n, err := unix.IoctlGetInt(fd, unix.SIOCOUTQ)
		must(t, err)
		waits = int64(n)
	})
	must(t, j.near.(*net.TCPConn).SetLinger(0))
	j.near.Close()
	receive(t, wrote, "the client's end")
	j.endsAs(t, reactor.IOError)
	receive(t, echoed, "the server's end")
	if more := took.Load() - before; waits == 0 || more < waits {
		t.Errorf("the server took %d bytes after the reset, of %d that waited for it", more, waits)
	}
}

func TestAResetDoesNotWaitForWhoHasGone(t *testing.T) {
	r := start(t, reactor.Options{})
	j, nearFD := joinOverNarrow(t, r, reactor.Limits{})
	j.leaveInKernel(t, nearFD)
	began := time.Now()
	for _, conn := range []net.Conn{j.far, j.near} {
		conn.(*net.TCPConn).SetLinger(0)
		conn.Close()
		runtime.Gosched()
	}
	receive(t, j.ended, "the end")
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("it took %v", took)
	}
}

func TestAPairDoesNotLeaveBeforeItsLastBytesAreTaken(t *testing.T) {
	r := start(t, reactor.Options{Quiet: brief})
	j, nearFD := joinOverNarrow(t, r, reactor.Limits{})
	b := j.leaveInKernel(t, nearFD)
	j.Leave()
	select {
	case end := <-j.ended:
		t.Fatalf("ended as %d", end.cause)
	case <-time.After(3 * brief):
	}
	expectEnd(t, j.near, b)
	j.endsAs(t, reactor.Left)
}

// What has arrived when a pair is asked to leave may be in the same batch.
func TestAPairDoesNotLeaveOverBytesThatHaveArrived(t *testing.T) {
	r := start(t, reactor.Options{Loops: 1, Quiet: brief})
	j := join(t, r, reactor.Limits{}, "")
	j.far.Write([]byte("welcome"))
	expect(t, j.near, "welcome")
	<-time.After(2 * brief) // longer than it has to be quiet
	busy, more := make(chan struct{}), make(chan struct{})
	j.Inspect(func(reactor.View) { close(busy); <-more })
	<-busy
	j.near.Write([]byte("one more"))
	drained(j.near)
	j.Leave()
	close(more)
	expect(t, j.far, "one more")
	j.far.Write([]byte("as you like"))
	expect(t, j.near, "as you like")
	j.endsAs(t, reactor.Left)
}

func TestSilenceBeginsWhenTheLastBytesWereTaken(t *testing.T) {
	r := start(t, reactor.Options{})
	for name, halfClosed := range map[string]bool{"idle": false, "half-closed": true} {
		t.Run(name, func(t *testing.T) {
			j := joinNarrowly(t, r, reactor.Limits{WriteStall: time.Hour, Idle: stalled, HalfClosed: stalled}, false)
			if halfClosed {
				j.near.(*net.TCPConn).CloseWrite()
				expectEnd(t, j.far, nil)
			}
			b := j.fill(t)
			<-time.After(2 * stalled)
			got := make([]byte, len(b))
			if n, err := io.ReadFull(j.near, got); err != nil {
				t.Fatalf("after %d bytes: %v", n, err)
			}
			<-time.After(stalled / 2) // less than either limit
			j.far.Write([]byte("go on"))
			expect(t, j.near, "go on")
		})
	}
}

// The kernel of who waits for a slow reader may hold bytes for long when the reset comes.
func TestAResetAfterALongWaitStillComesBehindTheBytes(t *testing.T) {
	r := start(t, reactor.Options{Deliver: brief})
	j := joinNarrowly(t, r, reactor.Limits{HalfClosed: time.Second, Idle: time.Second, WriteStall: time.Hour}, false)
	b := j.fill(t)
	<-time.After(2 * brief) // longer than a reset waits
	control(t, j.far, func(fd int) {
		eventually(t, "all is delivered", func() bool { return queued(t, fd) == 0 })
	})
	j.far.(*net.TCPConn).SetLinger(0)
	j.far.Close()
	got, err := io.ReadAll(j.near)
	if !bytes.Equal(got, b) || !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("got %d bytes of %d, and %v", len(got), len(b), err)
	}
	j.endsAs(t, reactor.FarIOError)
}

// The kernel gives up on a peer that has closed its side and does not take what is sent to
// it. That shows at the end of its stream, and only there.
func TestAPeerThatIsLostBehindItsEndHasFailed(t *testing.T) {
	r := start(t, reactor.Options{})
	j, nearFD := joinOverNarrow(t, r, reactor.Limits{})
	j.leaveInKernel(t, nearFD)
	j.Pause()
	j.view(t)
	must(t, unix.SetsockoptInt(nearFD, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 200))
	j.near.(*net.TCPConn).CloseWrite()
	eventually(t, "the kernel has given up", func() bool {
		info, err := unix.GetsockoptTCPInfo(nearFD, unix.IPPROTO_TCP, unix.TCP_INFO)
		return err == nil && info.State == tcpClose
	})
	j.Resume()
	if end := j.endsAs(t, reactor.IOError); !errors.Is(end.err, syscall.ETIMEDOUT) {
		t.Errorf("ended with %v", end.err)
	}
}

func TestAResetBehindAHalfCloseEndsAPairAtOnce(t *testing.T) {
	r := start(t, reactor.Options{})
	for name, test := range map[string]struct {
		pick func(j *joint) (from, to net.Conn)
		want reactor.Cause
	}{
		"near": {func(j *joint) (from, to net.Conn) { return j.near, j.far }, reactor.IOError},
		"far":  {func(j *joint) (from, to net.Conn) { return j.far, j.near }, reactor.FarIOError},
	} {
		t.Run(name, func(t *testing.T) {
			j := join(t, r, reactor.Limits{}, "")
			from, to := test.pick(j)
			from.Write([]byte("all"))
			from.(*net.TCPConn).CloseWrite()
			expectEnd(t, to, []byte("all"))
			from.(*net.TCPConn).SetLinger(0)
			from.Close()
			if end := j.endsAs(t, test.want); !errors.Is(end.err, syscall.ECONNRESET) {
				t.Errorf("ended with %v", end.err)
			}
		})
	}
}

// A script is what one side of a transfer does: it writes pieces, and then ends.
type script struct {
	pieces []int
	end    finale
	narrow bool // its buffers, and those of the loop's socket
	slow   bool // reads little at a time
}

// A finale is how it ends.
type finale int

const (
	closes    finale = iota // its side, and goes on reading
	resets                  // once the loop's kernel has everything
	resetsNow               // whatever is under way
)

func drawScript(rt *rapid.T, who string, isTCP bool) script {
	s := script{
		pieces: rapid.SliceOfN(rapid.Custom(func(rt *rapid.T) int {
			return rapid.IntRange(1, 1<<rapid.IntRange(1, 17).Draw(rt, "magnitude")).Draw(rt, "bytes")
		}), 0, 8).Draw(rt, who+" writes"),
		narrow: rapid.IntRange(0, 3).Draw(rt, who+" is narrow") == 3,
		slow:   rapid.Bool().Draw(rt, who+" is slow"),
	}
	if isTCP {
		s.end = rapid.SampledFrom([]finale{closes, closes, closes, resets, resetsNow}).Draw(rt, who+" ends")
	}
	return s
}

// play has one side follow its script. It returns what it got, and what ended that.
func (s script) play(conn net.Conn, sent []byte) (got []byte, err error) {
	var reading sync.WaitGroup
	reading.Go(func() {
		buffer := make([]byte, 64<<10)
		if s.slow {
			buffer = buffer[:777]
		}
		for err == nil {
			var n int
			n, err = conn.Read(buffer)
			got = append(got, buffer[:n]...)
		}
	})
	for _, n := range s.pieces {
		if _, werr := conn.Write(sent[:n]); werr != nil { // the other side was reset, which is told once
			reading.Wait()
			return got, errors.Join(werr, err)
		}
		sent = sent[n:]
	}
	if s.end == closes {
		conn.(halfCloser).CloseWrite()
		reading.Wait()
		return got, err
	}
	if s.end == resets {
		drained(conn)
	}
	conn.(*net.TCPConn).SetLinger(0)
	conn.Close()
	reading.Wait()
	return got, err
}

// drained waits until the other end's kernel has everything, or the connection is over.
func drained(conn net.Conn) {
	raw, err := conn.(syscall.Conn).SyscallConn()
	if err != nil {
		return
	}
	ticker := time.NewTicker(100 * time.Microsecond)
	defer ticker.Stop()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); <-ticker.C {
		n, state := 0, uint8(0)
		_ = raw.Control(func(fd uintptr) {
			n, _ = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ)
			if info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
				state = info.State
			}
		})
		if n == 0 || state == tcpClose {
			return
		}
	}
}

const tcpClose = 7 // TCP_CLOSE of the kernel's tcp_states.h

// socketOf returns a connection's two ends.
func socketOf(t testing.TB, isTCP bool) (fd int, conn net.Conn) {
	if isTCP {
		return tcp(t)
	}
	return pair(t)
}

func (s script) total() (n int) {
	for _, piece := range s.pieces {
		n += piece
	}
	return n
}

// A transfer is what both sides of a pair do.
type transfer struct {
	nearTCP, farTCP bool
	up, down        script
	pauses          int
	in, out         bool // are paced
}

func drawTransfer(rt *rapid.T) (x transfer) {
	x.nearTCP, x.farTCP = rapid.IntRange(0, 3).Draw(rt, "near is TCP") > 0, rapid.IntRange(0, 3).Draw(rt, "far is TCP") > 0
	x.up, x.down = drawScript(rt, "near", x.nearTCP), drawScript(rt, "far", x.farTCP)
	x.pauses = rapid.IntRange(0, 3).Draw(rt, "pauses")
	x.in, x.out = rapid.IntRange(0, 2).Draw(rt, "in is paced") == 2, rapid.IntRange(0, 2).Draw(rt, "out is paced") == 2
	return x
}

// More of these: -rapid.checks=1000.
func TestWhateverBothSidesDoEachGetsWhatTheOtherSent(t *testing.T) {
	r := start(t, reactor.Options{})
	stream := random(1 << 20)
	rapid.Check(t, func(rt *rapid.T) {
		var all sync.WaitGroup
		verdicts := make(chan string, 100)
		for _, x := range rapid.SliceOfN(rapid.Custom(drawTransfer), 1, 30).Draw(rt, "transfers") {
			all.Go(func() { x.run(t, r, stream, verdicts) })
		}
		all.Wait()
		close(verdicts)
		for verdict := range verdicts {
			rt.Error(verdict)
		}
	})
}

// run makes the transfer, with both ends of a random stream, and judges it.
func (x transfer) run(t testing.TB, r *reactor.Reactor, stream []byte, verdicts chan<- string) {
	nearFD, near := socketOf(t, x.nearTCP)
	farFD, far := socketOf(t, x.farTCP)
	defer near.Close()
	defer far.Close()
	for fd, s := range map[int]script{nearFD: x.up, farFD: x.down} {
		if s.narrow {
			narrow(t, fd)
		}
	}
	j := joinAs(t, r, reactor.Limits{Uneven: !x.nearTCP || !x.farTCP}, "", func(j *joint) reactor.Owner {
		j.SetPace(whimIf(x.in), whimIf(x.out))
		return j.owner
	}, nearFD, farFD, near, far)
	up := exchanged{x.up, x.down, "far", x.farTCP, stream[:x.up.total()], nil, nil}
	down := exchanged{x.down, x.up, "near", x.nearTCP, stream[len(stream)-x.down.total():], nil, nil}
	var both sync.WaitGroup
	both.Go(func() { down.got, down.err = x.up.play(near, up.sent) })
	both.Go(func() { up.got, up.err = x.down.play(far, down.sent) })
	for range x.pauses {
		j.Pause()
		j.Inspect(func(reactor.View) {})
		j.Resume()
	}
	both.Wait()
	end := receive(t, j.ended, "the end")
	up.judge(verdicts)
	down.judge(verdicts)
	clean := x.up.end == closes && x.down.end == closes
	ok := map[reactor.Cause]bool{
		reactor.EOF: clean, reactor.FarEOF: clean,
		reactor.IOError: x.up.end != closes, reactor.FarIOError: x.down.end != closes,
	}
	if !ok[end.cause] {
		verdicts <- fmt.Sprintf("ended as %d, %v", end.cause, end.err)
	}
}

// exchanged is one direction of a transfer.
type exchanged struct {
	sender, receiver script
	who              string // receives
	isTCP            bool   // by which
	sent, got        []byte
	err              error // what ended the reading
}

// judge sees whether one side got what it had to.
func (e *exchanged) judge(verdicts chan<- string) {
	got, sent := len(e.got), len(e.sent)
	if !bytes.HasPrefix(e.sent, e.got) {
		verdicts <- fmt.Sprintf("the %s one got %d bytes that are not the first of the %d sent", e.who, got, sent)
	}
	switch {
	case e.receiver.end != closes, e.sender.end == resetsNow:
		return // it may have missed some
	case got != sent:
		verdicts <- fmt.Sprintf("the %s one got %d bytes of %d, then %v", e.who, got, sent, e.err)
	case e.sender.end == closes && !errors.Is(e.err, io.EOF):
		verdicts <- fmt.Sprintf("the %s one got %v, want the end", e.who, e.err)
	case e.sender.end == resets && e.isTCP && !errors.Is(e.err, syscall.ECONNRESET) && !errors.Is(e.err, syscall.EPIPE):
		verdicts <- fmt.Sprintf("the %s one got %v, want a reset", e.who, e.err)
	}
}

func TestPipesAreBoundedAndGoneWithTheReactor(t *testing.T) {
	r, err := reactor.New(reactor.Options{Loops: 1})
	must(t, err)
	before := pipesOpen(t)
	var joints []*joint
	much := make([]byte, 16<<20)
	for range 80 { // each of which would like two
		j := join(t, r, reactor.Limits{}, "")
		joints = append(joints, j)
		must(t, j.far.(*net.TCPConn).SetReadBuffer(256<<10)) // or the kernel lets it grow to megabytes, bit by bit
		go j.near.Write(much)                                // ends with the connection
	}
	eventually(t, "nothing moves any more", func() bool {
		var read int64
		for _, j := range joints {
			n, _ := j.Traffic()
			read += n
		}
		<-time.After(50 * time.Millisecond)
		for _, j := range joints {
			n, _ := j.Traffic()
			read -= n
		}
		return read == 0
	})
	if most, used := 2*128, pipesOpen(t)-before; used > most || used == 0 {
		t.Errorf("%d ends of pipes are open, want some, and at most %d", used, most)
	}
	for _, j := range joints {
		j.Kill()
		j.endsAs(t, reactor.Killed)
	}
	r.Close()
	if left := pipesOpen(t); left != before {
		t.Errorf("%d ends of pipes are left", left-before)
	}
}

func pipesOpen(t testing.TB) (n int) {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	for _, entry := range entries {
		if what, err := os.Readlink("/proc/self/fd/" + entry.Name()); err == nil && strings.HasPrefix(what, "pipe:") {
			n++
		}
	}
	return n
}
