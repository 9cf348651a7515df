package overload

import (
	"io"
	"log/slog"
	"net"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"testing"
	"time"
)

func TestTheMemoryLimitIsTheCgroups(t *testing.T) {
	if inCgroup(t, 200<<20) {
		return
	}
	t.Setenv("GOMEMLIMIT", "")
	os.Unsetenv("GOMEMLIMIT")
	if !SetMemoryLimit(slog.New(slog.DiscardHandler)) {
		t.Fatal("no limit was set")
	}
	if got := debug.SetMemoryLimit(-1); got != 180<<20 {
		t.Errorf("the limit is %d MiB, want 180", got>>20)
	}
	t.Setenv("GOMEMLIMIT", "100MiB")
	if SetMemoryLimit(slog.New(slog.DiscardHandler)) {
		t.Error("GOMEMLIMIT was overruled")
	}
}

func TestMemoryThatIsInUseIsALoadAndGarbageIsNot(t *testing.T) {
	if info, _ := debug.ReadBuildInfo(); slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"}) {
		t.Skip("the race detector takes several times the memory, and keeps it")
	}
	if inCgroup(t, 200<<20) {
		return
	}
	m := newMemory(false)
	empty := m.look()
	held := make([][]byte, 100)
	for i := range held {
		held[i] = make([]byte, 1<<20)
		for j := 0; j < len(held[i]); j += 4096 {
			held[i][j] = 1
		}
	}
	runtime.GC()
	if got := m.look() - empty; got < 0.45 || got > 0.6 {
		t.Errorf("100 of 200 MiB are %.2f", got)
	}
	runtime.KeepAlive(held)
	clear(held)
	runtime.GC() // which does not give it back to the system
	if got := m.look() - empty; got > 0.1 {
		t.Errorf("garbage is %.2f", got)
	}
}

// What sockets hold is not Go's. But it is memory, and Go gets less of it.
func TestBuffersOfSocketsAreALoadAndLowerTheMemoryLimit(t *testing.T) {
	if inCgroup(t, 200<<20) {
		return
	}
	m := newMemory(true)
	empty := m.look()
	before := debug.SetMemoryLimit(-1)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for range 60 {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetWriteDeadline(time.Now().Add(30 * time.Millisecond))
		_, _ = io.Copy(c, zeros{}) // as much as the kernel takes
	}
	usage, limit := m.groups[0].look()
	got := m.look() - empty
	t.Logf("%.0f of %.0f MiB in use, a load of %.2f more", usage/(1<<20), limit/(1<<20), got)
	if got < 0.2 {
		t.Errorf("full buffers are a load of %.2f", got)
	}
	if after := debug.SetMemoryLimit(-1); after > before-20<<20 {
		t.Errorf("the limit was %d MiB and is %d", before>>20, after>>20)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }
