package attack_test

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/levee-net/levee/leveetest"
)

// echoInTLS serves echo in TLS.
func echoInTLS(config *tls.Config) func(*net.TCPConn) {
	return func(c *net.TCPConn) {
		secure := tls.Server(c, config)
		_, _ = io.Copy(secure, secure)
	}
}

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

func TestSlowHelloIsAHelloByteByByte(t *testing.T) {
	ca := leveetest.NewCA(t)
	config := ca.ServerConfig("localhost")
	saw := look[[]int](t)
	target := serve(t, func(c *net.TCPConn) {
		var sizes []int
		var all []byte
		for len(all) < 20 {
			part := make([]byte, 100)
			n, err := c.Read(part)
			if err != nil {
				return
			}
			sizes, all = append(sizes, n), append(all, part[:n]...)
		}
		if !bytes.HasPrefix(all, []byte{22, 3, 1}) || all[5] != 1 { // a handshake record, and in it a ClientHello
			sizes = nil
		}
		saw.tell(sizes)
	})
	f := small(target)
	f.TLS, f.Duration = config, 100*time.Millisecond             // beats of 10 ms
	if sizes, _ := saw.of(t, f, "slow-hello"); len(sizes) < 15 { // now and then two arrive together
		t.Errorf("reads of %v bytes, or no hello", sizes)
	}
}

func TestHandshakesAreFullOnes(t *testing.T) {
	config := leveetest.NewCA(t).ServerConfig("localhost")
	saw := look[tls.ConnectionState](t)
	first := true
	target := serve(t, func(c *net.TCPConn) {
		secure := tls.Server(c, config)
		if err := secure.Handshake(); err != nil {
			return
		}
		if !first { // the second could resume
			saw.tell(secure.ConnectionState())
		}
		first = false
	})
	f := small(target)
	f.Connections = 1
	state, tally := saw.of(t, f, "handshakes")
	if !state.HandshakeComplete || state.DidResume || tally.Left == 0 {
		t.Errorf("%+v, %+v", state, tally)
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
