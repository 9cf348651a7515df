package levee_test

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/levee-net/levee"
)

// What is particular to clients that speak TLS, whichever engine joins them.

var (
	tlsOnLoop = engine{name: "TLS on a loop", joins: true, tls: true, network: "tcp", listen: listenTCP}
	tlsAlone  = engine{name: "TLS by goroutines", alone: true, tls: true, network: "tcp", listen: listenTCP}
)

func onEveryTLS(t *testing.T, test func(t *testing.T, e engine)) {
	onEach(t, []engine{tlsOnLoop, tlsAlone}, test)
}

func TestAClientThatIsGoneWithinARecordIsClientClosed(t *testing.T) {
	onEveryTLS(t, func(t *testing.T, e engine) {
		s := e.join(t, &levee.Server{}, tcpUpstream)
		for _, later := range []bool{false, true} {
			c := s.meet()
			raw := c.near.(*tls.Conn).NetConn().(*net.TCPConn)
			send(t, raw, "\x17\x03\x03\x00\x28and so")
			if later {
				untilQuiet(c.conn) // crypto/tls has the part of the record
			}
			if err := raw.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			wantReset(t, c.far, nil)
			if p := s.end(levee.ClientClosed); !errors.Is(p.Err, io.ErrUnexpectedEOF) {
				t.Errorf("the error is %v", p.Err)
			}
		}
	})
}

// What crypto/tls takes for sent may be waiting to be.
func TestARecordThatADeadlineCutShortIsCompletedFirst(t *testing.T) {
	onEveryTLS(t, func(t *testing.T, e engine) {
		said := make(chan int, 1)
		s := e.tightly(t, &levee.Server{Trace: &levee.Trace{Serving: func(c *levee.Conn, _ levee.Handler) {
			_ = c.SetWriteDeadline(time.Now().Add(soon / 4))
			n, err := 0, error(nil)
			for m := 0; err == nil; n += m {
				m, err = c.Write(make([]byte, 10_000))
			}
			_ = c.SetWriteDeadline(time.Time{})
			said <- n
		}}})
		s.rough.Store(true) // no loop can have it
		near := s.dial()
		send(t, near, "hello\n")
		n := int64(receive(t, said))
		far := s.accept()
		want(t, far, "hello\n")
		send(t, far, "welcome\n")
		if got, err := io.CopyN(io.Discard, near, n); err != nil {
			t.Fatalf("got %d bytes of %d that were said: %v", got, n, err)
		}
		want(t, near, "welcome\n")
	})
}

// A client that never reads leaves unread the session tickets that TLS has sent to it, for
// which the kernel adds a reset to its end. That end is all that it meant to say.
func TestAResetBehindACloseNotifyDoesNotSpoilTheEnd(t *testing.T) {
	onEveryTLS(t, func(t *testing.T, e engine) {
		l, dial := tcpUpstream.start(t)
		t.Cleanup(func() { l.Close() })
		dial, waits, goOn := gated(dial)
		s := e.joinAt(t, &levee.Server{}, e.listen(t), tcpUpstream, l, dial)
		for _, late := range []bool{false, true} {
			near := s.dial()
			send(t, near, "that was all\n")
			receive(t, waits)
			if late {
				goOn <- struct{}{}
			}
			if err := near.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			resetByClient(t, near)
			if !late {
				goOn <- struct{}{}
			}
			far := s.accept()
			want(t, far, "that was all\n")
			wantEOF(t, far)
			far.Close()
			if p := receive(t, s.over); p.Reason != levee.ClientClosed && p.Reason != levee.ClientReset {
				t.Errorf("ended as %v", p.Reason)
			}
		}
	})
}
