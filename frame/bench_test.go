package frame_test

import (
	"encoding/binary"
	"fmt"
	"io"
	"testing"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/frame"
)

// BenchmarkStep is a message there and back, without a network.
func BenchmarkStep(b *testing.B) {
	for _, size := range []int{64, 1024} {
		for _, bench := range []struct {
			name  string
			codec frame.Codec
		}{
			{"Lines", frame.Lines(0)},
			{"CRLFLines", frame.CRLFLines(0)},
			{"Delimited", frame.Delimited([]byte("\r\n"), 0)},
			{"Fixed", frame.Fixed(size)},
			{"Uint16", frame.Uint16(nil, 0)},
			{"Uint32", frame.Uint32(binary.BigEndian, 0)},
			{"Uint64", frame.Uint64(binary.LittleEndian, 0)},
			{"Varint", frame.Varint(0)},
		} {
			for _, pipelined := range []int{1, 16} {
				b.Run(fmt.Sprintf("%s/size=%d/pipelined=%d", bench.name, size, pipelined), func(b *testing.B) {
					benchmarkStep(b, bench.codec, size, pipelined)
				})
			}
		}
	}
}

func benchmarkStep(b *testing.B, codec frame.Codec, size, pipelined int) {
	s := frame.Handler(codec, echo)
	var in []byte
	for range pipelined {
		in, _ = codec.Append(in, make([]byte, size))
	}
	out := make([]byte, 0, 64<<10)
	b.ReportAllocs()
	b.SetBytes(int64(size))
	for i := 0; i < b.N; i += pipelined { // per message, not per Step
		if n, _, err := s.Step(nil, in, 0, out); n != len(in) || err != nil {
			b.Fatal(n, err)
		}
	}
}

// BenchmarkServe is a request and its reply between two goroutines over a network
// in memory.
func BenchmarkServe(b *testing.B) {
	for _, size := range []int{64, 16 << 10} {
		b.Run(fmt.Sprintf("size=%d", size), func(b *testing.B) {
			codec := frame.Uint32(nil, 0)
			c, _ := start(b, &levee.Server{Handler: frame.Handler(codec, echo)})
			request, _ := codec.Append(nil, make([]byte, size))
			reply := make([]byte, len(request))
			b.ReportAllocs()
			b.SetBytes(int64(size))
			for b.Loop() {
				if _, err := c.Write(request); err != nil {
					b.Fatal(err)
				}
				if _, err := io.ReadFull(c, reply); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
