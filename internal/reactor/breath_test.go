//go:build linux

package reactor_test

import (
	"io"
	"net"
	"os"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/levee-net/levee/internal/reactor"
)

// Two connections that answer each other keep the only processor's only loop at work
// for ever. Go would look into its netpoller once in 10 ms then.
func TestLoopThatIsNeverIdleLetsOthersHearOfTheNetwork(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	r := started(t, 1)
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var tireless [2]*owner
	for i, fd := range pair {
		tireless[i] = newOwner(t, echo)
		first := []byte("ping")[:4*i] // one of them begins
		if err := r.Adopt(&tireless[i].Conn, fd, first, tireless[i], &reactor.Limits{}); err != nil {
			t.Fatal(err)
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() { // ends with the client
		c, err := l.Accept()
		if err == nil {
			_, _ = io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c})
			c.Close()
		}
	}()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	const trips = 300
	began := time.Now()
	for range trips {
		if _, err := c.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
	if took := time.Since(began); took > trips*10*time.Millisecond {
		t.Errorf("a round trip took %v beside a busy loop", took/trips)
	}
	if read, _ := tireless[0].Traffic(); read < 4*trips {
		t.Errorf("the loop was not busy: %d bytes", read)
	}
	for _, o := range tireless {
		o.Kill()
	}
	for _, o := range tireless {
		<-o.over
	}
}

func TestLoopsHaveAsManyFilesAsTheySay(t *testing.T) {
	count := func() int {
		files, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Skip(err)
		}
		return len(files)
	}
	r := started(t, 1)
	before := count()
	const loops = 4
	more, err := reactor.New(reactor.Options{Loops: loops})
	if err != nil {
		t.Fatal(err)
	}
	defer more.Close()
	if got := count() - before; got != loops*reactor.FilesPerLoop {
		t.Errorf("%d loops have %d files", loops, got)
	}
	r.Close()
}
