package frame_test

import (
	"bytes"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"net"
	"testing"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/frame"
	"github.com/levee-net/levee/leveetest"
)

// On Linux the first of them is served by an event loop.
func TestMessagesOfAllSizesComeBackOverTCP(t *testing.T) {
	for name, perConn := range map[string]bool{"event loop": false, "goroutine": true} {
		for _, codec := range []struct {
			name string
			frame.Codec
		}{
			{"Lines", frame.Lines(2 << 20)},
			{"Uint32", frame.Uint32(binary.BigEndian, 2<<20)},
		} {
			t.Run(name+"/"+codec.name, func(t *testing.T) {
				leveetest.CheckLeaks(t)
				l, err := levee.Listen(t.Context(), "127.0.0.1:0")
				if err != nil {
					t.Fatal(err)
				}
				s := serve(t, l, &levee.Server{Handler: frame.Handler(codec, echo), GoroutinePerConn: perConn})
				random := rand.New(rand.NewPCG(1, 1))
				var stream []byte
				for _, size := range []int{0, 1, 4 << 10, 64 << 10, 1<<20 + 1, 2<<20 - 1, 3, 100 << 10, 7} {
					message := bytes.Repeat([]byte{'a' + byte(size%26)}, size)
					if stream, err = codec.Append(stream, message); err != nil {
						t.Fatal(err)
					}
				}
				c, err := net.Dial("tcp", l.Addr().String())
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				go func() { // ends with the stream, or c
					for rest := stream; len(rest) > 0; {
						n, _ := c.Write(rest[:min(len(rest), 1+random.IntN(200<<10))])
						if n == 0 {
							return
						}
						rest = rest[n:]
					}
					_ = c.(*net.TCPConn).CloseWrite()
				}()
				got, err := io.ReadAll(c)
				if !bytes.Equal(got, stream) || err != nil {
					t.Fatalf("%d bytes of %d came back, %v", len(got), len(stream), err)
				}
				if end := s.checkEnd(t, levee.ClientClosed); end.Err != nil {
					t.Error(end.Err)
				}
			})
		}
	}
}
