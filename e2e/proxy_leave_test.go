package e2e

import (
	"bytes"
	"io"
	"net"
	"os"
	"slices"
	"syscall"
	"testing"
	"time"
)

func TestIdleProxiedConnectionsLeaveAtOnce(t *testing.T) {
	t.Parallel()
	p := before(t, answering(t, echoing))
	var idle []net.Conn
	for range 50 {
		c := dial(t, p.address())
		if err := echoesOn(c); err != nil {
			t.Fatal(err)
		}
		idle = append(idle, c, dial(t, p.address())) // one that has said something, and one that has not
	}
	eventually(t, "all are in", func() bool { return p.scrape()[`levee_connections_active{listener="proxy"}`] == 100 })
	began := time.Now()
	p.signal(syscall.SIGTERM)
	if code, took := p.wait(), p.ended.Sub(began); code != 0 || took > 7*time.Second {
		t.Errorf("exit code %d after %v", code, took)
	}
	for _, c := range idle {
		if n, err := c.Read(make([]byte, 1)); n != 0 || err != io.EOF {
			t.Fatalf("%d, %v, want EOF", n, err)
		}
	}
}

func TestTransferThatIsUnderWayIsFinishedBeforeItLeaves(t *testing.T) {
	t.Parallel()
	want, err := os.ReadFile(randomFile(t, 12<<20))
	if err != nil {
		t.Fatal(err)
	}
	p := before(t, answering(t, func(c net.Conn) {
		if n, _ := c.Read(make([]byte, 16)); n == 0 {
			return // the idle one has left
		}
		steadily := time.NewTicker(20 * time.Millisecond) // about 3 s in all
		defer steadily.Stop()
		for piece := range slices.Chunk(want, len(want)/150) {
			if _, err := c.Write(piece); err != nil {
				return
			}
			<-steadily.C
		}
	}))
	idle, busy := dial(t, p.address()), dial(t, p.address())
	send(t, busy, "everything")
	got := make([]byte, len(want))
	if _, err := io.ReadFull(busy, got[:1]); err != nil {
		t.Fatal(err)
	}
	p.signal(syscall.SIGTERM)
	if n, err := idle.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("idle: %d, %v, want EOF", n, err)
	}
	select {
	case <-p.done:
		t.Error("it did not wait")
	default:
	}
	if n, err := io.ReadFull(busy, got[1:]); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes of %d, or not the same: %v", n, len(want), err)
	}
	if code := p.wait(); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

func TestExchangeThatDoesNotEndIsCutAtTheDeadline(t *testing.T) {
	t.Parallel()
	const deadline = 2 * time.Second
	silent := answering(t, func(c net.Conn) { _, _ = io.Copy(io.Discard, c) })
	p := start(t, "serve", "-c", proxying(t, silent, "drain: {timeout: 2s}", "", ""))
	c := dial(t, p.address())
	send(t, c, "a question")
	eventually(t, "it is in", func() bool { return p.scrape().of("levee_connections_active") == 1 })
	began := time.Now()
	p.signal(syscall.SIGTERM)
	if code, took := p.wait(), p.ended.Sub(began); code != 1 || took < deadline || took > deadline+time.Second {
		t.Errorf("exit code %d after %v", code, took)
	}
	if line := p.logged(cutLine); line["cut"] != 1.0 {
		t.Errorf("%v", line)
	}
}
