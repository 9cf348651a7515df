//go:build !race

// Under the race detector a sync.Pool forgets at random.

package frame_test

import (
	"bytes"
	"io"
	"runtime"
	"testing"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/frame"
)

func TestStepAllocatesNothing(t *testing.T) {
	for name, codec := range codecs {
		t.Run(name, func(t *testing.T) {
			s := frame.Handler(codec, echo)
			var in []byte
			for range 16 {
				in, _ = codec.Append(in, []byte("message"))
			}
			out := make([]byte, 0, 4<<10)
			allocs := testing.AllocsPerRun(1000, func() {
				if n, reply, err := s.Step(nil, in, 0, out); n != len(in) || !bytes.Equal(reply, in) || err != nil {
					t.Fatal(n, reply, err)
				}
			})
			if allocs != 0 {
				t.Errorf("%v allocations for 16 messages", allocs)
			}
		})
	}
}

func TestServingAllocatesNothing(t *testing.T) {
	for name, size := range map[string]int{"small": 64, "large": 40 << 10} {
		t.Run(name, func(t *testing.T) {
			c, _ := start(t, &levee.Server{Handler: frame.Handler(frame.Uint32(nil, 0), echo)})
			request, err := frame.Uint32(nil, 0).Append(nil, make([]byte, size))
			if err != nil {
				t.Fatal(err)
			}
			reply := make([]byte, len(request))
			allocs := testing.AllocsPerRun(1000, func() {
				if _, err := c.Write(request); err != nil {
					t.Fatal(err)
				}
				if _, err := io.ReadFull(c, reply); err != nil {
					t.Fatal(err)
				}
			})
			if allocs >= 1 { // less is the collector emptying a pool
				t.Errorf("%v allocations for a request and its reply", allocs)
			}
		})
	}
}

// What a length only claims costs nothing: neither one above the maximum nor one
// below it of which the bytes do not come.
func TestMemoryGrowsWithWhatHasComeNotWithWhatIsClaimed(t *testing.T) {
	for _, claimed := range []string{
		"\x80\x00\x00\x00\x00\x00\x00\x00", // 2^63
		"\x00\x00\x00\x00\x40\x00\x00\x01", // a byte above the maximum
		"\x00\x00\x00\x00\x40\x00\x00\x00", // the maximum
	} {
		for _, come := range []int{8, 100, 4 << 10, 5 << 10, 60 << 10} {
			stream := make([]byte, come)
			copy(stream, claimed)
			source := bytes.NewReader(stream)
			var before, after runtime.MemStats
			runtime.GC()
			runtime.GC() // the second takes from the pools what the first left there
			runtime.ReadMemStats(&before)
			_, err := frame.NewReader(source, frame.Uint64(nil, 1<<30)).Read()
			runtime.ReadMemStats(&after)
			if err == nil {
				t.Fatal("there was a message")
			}
			const odds = 4 << 10 // the Reader, the error
			if allocated := after.TotalAlloc - before.TotalAlloc; allocated > uint64(come+64<<10+odds) {
				t.Errorf("%x, %d bytes of it: %d bytes allocated, %v", claimed, come, allocated, err)
			}
		}
	}
}
