package leveetest_test

import (
	"bytes"
	"io"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/levee-net/levee/leveetest"
)

// TestStreamsArriveByteExactAndInOrder writes random pieces both ways at once,
// over buffers and through faults of random size, each side ending its direction
// when it is done.
func TestStreamsArriveByteExactAndInOrder(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		network := leveetest.Network{Buffer: rapid.IntRange(1, 100).Draw(rt, "buffer")}
		clientFaults, serverFaults := drawFaults(rt, "client faults"), drawFaults(rt, "server faults")
		up, down := drawPieces(rt, "up"), drawPieces(rt, "down")

		synctest.Test(t, func(t *testing.T) {
			client, server := network.Pipe()
			defer client.Close()
			defer server.Close()
			gotDown, gotUp := exchange(t,
				leveetest.Faulty(client, clientFaults), up,
				leveetest.Faulty(server, serverFaults), down)
			if want := bytes.Join(up, nil); !bytes.Equal(gotUp, want) {
				t.Errorf("server got %d bytes %x, want %d bytes %x", len(gotUp), gotUp, len(want), want)
			}
			if want := bytes.Join(down, nil); !bytes.Equal(gotDown, want) {
				t.Errorf("client got %d bytes %x, want %d bytes %x", len(gotDown), gotDown, len(want), want)
			}
		})
		if t.Failed() {
			rt.FailNow() // so that rapid shrinks
		}
	})
}

func drawFaults(t *rapid.T, label string) leveetest.Faults {
	fault := rapid.Custom(func(t *rapid.T) leveetest.Fault {
		return leveetest.Fault{
			Segment: rapid.IntRange(0, 50).Draw(t, "segment"),
			Seed:    rapid.Uint64().Draw(t, "seed"),
			Delay:   time.Duration(rapid.IntRange(0, 1000).Draw(t, "delay")) * time.Millisecond,
		}
	})
	return leveetest.Faults{Read: fault.Draw(t, label+", read"), Write: fault.Draw(t, label+", write")}
}

func drawPieces(t *rapid.T, label string) [][]byte {
	return rapid.SliceOfN(rapid.SliceOfN(rapid.Byte(), 0, 200), 0, 10).Draw(t, label)
}

// exchange has both ends write their pieces and CloseWrite while they read to the end.
func exchange(t *testing.T, a *leveetest.FaultyConn, fromA [][]byte, b *leveetest.FaultyConn, fromB [][]byte) (gotA, gotB []byte) {
	var all sync.WaitGroup
	all.Go(func() { writePieces(t, a, fromA) })
	all.Go(func() { writePieces(t, b, fromB) })
	all.Go(func() { gotA = readToEnd(t, a) })
	all.Go(func() { gotB = readToEnd(t, b) })
	all.Wait()
	return gotA, gotB
}

func writePieces(t *testing.T, c *leveetest.FaultyConn, pieces [][]byte) {
	for _, piece := range pieces {
		if n, err := c.Write(piece); n != len(piece) || err != nil {
			t.Errorf("Write of %d bytes: %d, %v", len(piece), n, err)
		}
	}
	if err := c.CloseWrite(); err != nil {
		t.Errorf("CloseWrite: %v", err)
	}
}

func readToEnd(t *testing.T, c net.Conn) []byte {
	got, err := io.ReadAll(c)
	if err != nil {
		t.Errorf("ReadAll: %v", err)
	}
	return got
}
