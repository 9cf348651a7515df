package attack_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

func TestHoldSaysNothing(t *testing.T) {
	saw := look[error](t)
	target := serve(t, func(c *net.TCPConn) {
		c.SetDeadline(time.Now().Add(200 * time.Millisecond))
		_, err := c.Read(make([]byte, 1))
		saw.tell(err)
	})
	if err, tally := saw.of(t, small(target), "hold"); !errors.Is(err, os.ErrDeadlineExceeded) || tally.Ended+tally.Held == 0 {
		t.Errorf("the server read: %v; %+v", err, tally)
	}
}

func TestChurnEndsInOrderAndResetsDoNot(t *testing.T) {
	for name, want := range map[string]error{"churn": io.EOF, "resets": syscall.ECONNRESET} {
		saw := look[error](t)
		target := serve(t, func(c *net.TCPConn) {
			_, err := c.Read(make([]byte, 1))
			saw.tell(err)
		})
		if err, tally := saw.of(t, small(target), name); !errors.Is(err, want) || tally.Left == 0 {
			t.Errorf("%s: the server read: %v, want %v; %+v", name, err, want, tally)
		}
	}
}

func TestHalfCloseEndsItsSideAndStays(t *testing.T) {
	saw := look[error](t)
	target := serve(t, func(c *net.TCPConn) {
		if _, err := c.Read(make([]byte, 1)); err != io.EOF {
			saw.tell(err)
			return
		}
		<-time.After(50 * time.Millisecond) // a reset would be here by now
		_, err := c.Write([]byte("still there?"))
		if err == nil {
			_, err = c.Write([]byte("and now?"))
		}
		saw.tell(err)
	})
	if err, _ := saw.of(t, small(target), "half-close"); err != nil {
		t.Error(err)
	}
}

func TestGarbageIsNoise(t *testing.T) {
	saw := look[int](t)
	target := serve(t, func(c *net.TCPConn) {
		noise := make([]byte, 64<<10)
		if _, err := io.ReadFull(c, noise); err == nil {
			counts := map[byte]int{}
			for _, b := range noise {
				counts[b]++
			}
			saw.tell(len(counts))
		}
	})
	if different, _ := saw.of(t, small(target), "garbage"); different != 256 {
		t.Errorf("%d different bytes", different)
	}
}

// first has the server tell of the first bytes of a connection, and how many reads
// they took.
func first(t *testing.T, size int) (netip.AddrPort, *sight[reads]) {
	saw := look[reads](t)
	return serve(t, func(c *net.TCPConn) {
		r := reads{all: make([]byte, 0, size)}
		for len(r.all) < size {
			n, err := c.Read(r.all[len(r.all):size])
			if err != nil {
				return
			}
			r.all, r.count = r.all[:len(r.all)+n], r.count+1
		}
		saw.tell(r)
	}), saw
}

type reads struct {
	all   []byte
	count int
}

func TestWhatIsSlowComesByteByByte(t *testing.T) {
	for name, want := range map[string]string{
		"slow-header":  "PROXY TCP4 127.0.0.1 127.0.0.1",
		"slow-hello":   "\x16\x03\x01",
		"slow-request": "GET / HTTP/1.1\r\nHost: 127",
		"slow-line":    "line without end line without ",
		"slow-message": "\x00\x00\x03\xe8message message ",
		"long-body":    "POST / HTTP/1.1\r\n",
	} {
		target, saw := first(t, 30)
		f := small(target)
		f.Duration = 100 * time.Millisecond // beats of 10 ms
		if name == "long-body" {
			target, saw = first(t, 100)
			f.Target = target
		}
		r, _ := saw.of(t, f, name)
		if !bytes.HasPrefix(r.all, []byte(want)) {
			t.Errorf("%s is %q", name, r.all)
		}
		if name != "long-body" && r.count < 15 { // now and then two arrive together
			t.Errorf("%s: %d reads", name, r.count)
		}
		if name == "long-body" && !bytes.Contains(r.all, []byte("\r\nContent-Length: 9223372036854775807\r\n\r\nb")) {
			t.Errorf("%s is %q", name, r.all)
		}
	}
}

func TestWhatIsLongIsAnnounced(t *testing.T) {
	for name, want := range map[string][]string{
		"long-header": {"\r\n\r\n\x00\r\nQUIT\n\x21\x11\xff\xff"},
		"long-record": {"\x16\x03\x01\xff\xff\x01"},
		"length-bomb": {"\xff\xff\xff\xff", "\x7f\xff\xff\xff", "\xff\xff\xff\x7f", "\x00\x00\x00\x7f", "*1\r\n"},
	} {
		target, saw := first(t, len(want[0]))
		r, _ := saw.of(t, small(target), name)
		if !slices.Contains(want, string(r.all)) {
			t.Errorf("%s is %q", name, r.all)
		}
	}
}

func TestEndlessLineHasEightMebibytes(t *testing.T) {
	saw := look[int](t)
	target := serve(t, func(c *net.TCPConn) {
		size := 0
		part := make([]byte, 64<<10)
		for {
			n, err := c.Read(part)
			size += n
			if bytes.IndexByte(part[:n], '\n') >= 0 {
				size = -1 << 30
			}
			c.Write(part[:n]) // an echo, which nobody has to wait for
			if err != nil {
				saw.tell(size)
				return
			}
		}
	})
	f := small(target)
	f.Connections = 1
	if size, tally := saw.of(t, f, "endless-line"); size != 8<<20 {
		t.Errorf("%d bytes, %+v", size, tally)
	}
}

func TestFaultsAreOfManyKinds(t *testing.T) {
	saw := look[bool](t)
	var mu sync.Mutex
	inOrder, reset := 0, 0
	target := serve(t, func(c *net.TCPConn) {
		all, err := io.ReadAll(c)
		mu.Lock()
		defer mu.Unlock()
		switch {
		case !bytes.HasPrefix(request, all):
			t.Errorf("%q is no beginning of a request", all)
		case errors.Is(err, syscall.ECONNRESET):
			reset++
		default:
			inOrder++
		}
		if reset > 2 && inOrder > 2 {
			saw.tell(true)
		}
	})
	saw.of(t, small(target), "faults")
}

// request is what the attackers of echo servers ask.
var request = []byte("levee flood: is anybody there? levee flood: is anybody there? l\n")

// A server with a small buffer is stuck once the client's window is full.
func TestWhoDoesNotReadHasTheServerStuck(t *testing.T) {
	for name, most := range map[string]int{"slow-read": 64 << 10, "zero-window": 32 << 10, "pipeline": 16 << 20} {
		saw := look[int](t)
		target := serve(t, func(c *net.TCPConn) {
			c.SetWriteBuffer(4 << 10)
			c.SetWriteDeadline(time.Now().Add(500 * time.Millisecond))
			part, sent := make([]byte, 1<<10), 0
			for {
				n, err := c.Read(part)
				if err != nil {
					return
				}
				for range 100 { // answers that are larger than what was asked
					n, err := c.Write(part[:n])
					if sent += n; err != nil {
						saw.tell(sent)
						return
					}
				}
			}
		})
		f := small(target)
		f.Connections = 2
		if sent, tally := saw.of(t, f, name); sent == 0 || sent > most {
			t.Errorf("%s: stuck after %d bytes; %+v", name, sent, tally)
		}
	}
}

// What does not read still sees that it was ended.
func TestWhoDoesNotReadIsEnded(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux tells, without reading")
	}
	for _, name := range []string{"slow-read", "zero-window", "pipeline"} {
		saw := look[bool](t)
		var closed atomic.Int64
		target := serve(t, func(c *net.TCPConn) {
			io.ReadFull(c, make([]byte, 1<<10))
			<-time.After(150 * time.Millisecond)
			c.SetLinger(0)
			c.Close()
			if closed.Add(1) > 10 {
				<-time.After(200 * time.Millisecond) // they look now and then
				saw.tell(true)
			}
		})
		_, tally := saw.of(t, small(target), name)
		if tally.Ended == 0 || tally.EndedMin < 140*time.Millisecond {
			t.Errorf("%s: %+v", name, tally)
		}
	}
}

func TestManySourcesAreMany(t *testing.T) {
	needLoopback(t)
	sources := map[netip.Addr]int{}
	var mu sync.Mutex
	saw := look[bool](t)
	target := serve(t, func(c *net.TCPConn) {
		mu.Lock()
		sources[addr(c)]++
		enough := len(sources) > 100
		mu.Unlock()
		if io.CopyN(c, c, int64(len(request))); enough {
			saw.tell(true)
		}
	})
	saw.of(t, small(target), "many-sources")
	mu.Lock()
	defer mu.Unlock()
	for source, count := range sources {
		if count > 1 || !netip.MustParsePrefix("127.0.0.0/9").Contains(source) {
			t.Errorf("%d connections from %s", count, source)
		}
	}
}

func TestOneSourceIsBesideAHundredOthers(t *testing.T) {
	needLoopback(t)
	sources := map[netip.Addr]int{}
	var mu sync.Mutex
	f := small(serve(t, func(c *net.TCPConn) {
		mu.Lock()
		sources[addr(c)]++
		mu.Unlock()
		echo(c)
	}), "one-source")
	f.Duration = time.Second
	report := run(t, f)
	mu.Lock()
	defer mu.Unlock()
	others := 0
	for source := range sources {
		if netip.MustParsePrefix("127.78.0.0/24").Contains(source) {
			others++
		}
	}
	if others != 100 || sources[netip.MustParseAddr("127.0.0.1")] != 20 || report.Suffered() {
		t.Errorf("%d others; %v; %+v", others, sources, report.Results)
	}
}

func needLoopback(t *testing.T) {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("only Linux has all of 127.0.0.0/8")
	}
}

func addr(c net.Conn) netip.Addr { return c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap() }
