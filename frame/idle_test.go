package frame_test

import (
	"io"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/frame"
	"github.com/levee-net/levee/leveetest"
)

func TestBuffersAreGivenBackBetweenMessages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const (
			clients = 100
			network = 24 << 10 // bytes per connection; what the one in memory keeps for messages of this size
		)
		l := leveetest.Listen()
		serve(t, l, &levee.Server{Handler: frame.Handler(frame.Lines(0), echo)})
		line := strings.Repeat("x", 5000) // needs a buffer of 64 KiB
		var all []*leveetest.Conn
		for range clients {
			all = append(all, dial(t, l))
		}
		fresh := heap()
		for _, c := range all {
			send(t, c, line+"\n")
			if _, err := io.CopyN(io.Discard, c, int64(len(line)+1)); err != nil {
				t.Fatal(err)
			}
		}
		if idle := (heap() - fresh) / clients; idle > network {
			t.Errorf("an idle connection holds %d bytes more than a fresh one", idle)
		}
		for _, c := range all {
			send(t, c, line)
		}
		if busy := (heap() - fresh) / clients; busy < 60<<10 {
			t.Errorf("a connection with %d bytes of a message holds %d bytes: the measurement is wrong", len(line), busy)
		}
	})
}

// heap returns how many bytes are in use once all goroutines wait for something.
func heap() int64 {
	synctest.Wait()
	var stats runtime.MemStats
	runtime.GC()
	runtime.GC() // the second takes from the pools what the first left there
	runtime.ReadMemStats(&stats)
	return int64(stats.HeapAlloc)
}
