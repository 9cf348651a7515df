package e2e

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// A rhythm is how a side of a flow sends.
type rhythm struct {
	chunk int // bytes
	every time.Duration
}

var (
	trickle = rhythm{1 << 10, 500 * time.Millisecond}
	gush    = rhythm{64 << 10, 20 * time.Millisecond} // some 3 MB a second, which goes through pipes
)

// A side of a flow sends in its rhythm, whatever the other one does, and looks at every byte that comes.
type side struct {
	seed     uint64
	rhythm   rhythm
	sentAt   [128]atomic.Int64 // when the last chunks were sent, in nanoseconds since epoch
	out, in  int64
	longest  atomic.Int64 // how many nanoseconds a chunk was on its way to this side at most
	sendErr  error
	readErr  error
	sent, at chan struct{} // closed at the end of either
}

var epoch = time.Now()

func newSide(seed uint64, rhythm rhythm) *side {
	return &side{seed: seed, rhythm: rhythm, sent: make(chan struct{}), at: make(chan struct{})}
}

var errDiffers = errors.New("what came is not what was sent")

// send sends until stop is closed, and then ends its direction.
func (s *side) send(c net.Conn, stop <-chan struct{}) {
	defer close(s.sent)
	source, chunk := stream(s.seed), make([]byte, s.rhythm.chunk)
	select {
	case <-time.After(time.Duration(rand.Int64N(int64(s.rhythm.every)))): // not all at once
	case <-stop:
	}
	tick := time.NewTicker(s.rhythm.every)
	defer tick.Stop()
	for n := 0; ; n++ {
		_, _ = source.Read(chunk) // never fails
		s.sentAt[n%len(s.sentAt)].Store(int64(time.Since(epoch)))
		wrote, err := c.Write(chunk)
		s.out += int64(wrote)
		if err != nil {
			s.sendErr = fmt.Errorf("sending after %d bytes: %w", s.out, err)
			return
		}
		select {
		case <-tick.C:
		case <-stop:
			s.sendErr = c.(*net.TCPConn).CloseWrite()
			return
		}
	}
}

// receive reads to the end what the other side sends.
func (s *side) receive(c net.Conn, from *side) {
	defer close(s.at)
	source := stream(from.seed)
	got, want := make([]byte, 32<<10), make([]byte, 32<<10)
	chunk := int64(from.rhythm.chunk)
	for {
		n, err := c.Read(got)
		_, _ = source.Read(want[:n]) // never fails
		if !bytes.Equal(got[:n], want[:n]) {
			s.readErr = fmt.Errorf("after %d bytes: %w", s.in, errDiffers)
			return
		}
		for last := s.in / chunk; last < (s.in+int64(n))/chunk; last++ {
			s.arrived(from.sentAt[last%int64(len(from.sentAt))].Load())
		}
		s.in += int64(n)
		if err == io.EOF {
			return
		}
		if err != nil {
			s.readErr = fmt.Errorf("after %d bytes: %w", s.in, err)
			return
		}
	}
}

func (s *side) arrived(sent int64) {
	if took := int64(time.Since(epoch)) - sent; took > s.longest.Load() {
		s.longest.Store(took)
	}
}

func (s *side) run(c net.Conn, other *side, stop <-chan struct{}) {
	defer c.Close()
	go s.send(c, stop) // ends with stop, or c
	s.receive(c, other)
	if s.readErr != nil {
		c.Close()
	}
	<-s.sent
}

// A flow is a connection on which both sides send without waiting for one another.
type flow struct{ client, server *side }

// wrong is what became of it that should not have, once both have ended.
func (f *flow) wrong() error {
	switch err := errors.Join(f.client.sendErr, f.client.readErr, f.server.sendErr, f.server.readErr); {
	case err != nil:
		return err
	case f.client.out != f.server.in || f.server.out != f.client.in:
		return fmt.Errorf("%d bytes of %d came there, and %d of %d back", f.server.in, f.client.out, f.client.in, f.server.out)
	case f.client.out == 0 || f.server.out == 0:
		return errors.New("nothing was sent")
	}
	return nil
}

// Flows are those to one server, which is here as well.
type flows struct {
	t      *testing.T
	server string
	all    []*flow
	stop   chan struct{}
	ending sync.WaitGroup
}

// newFlows has n flows, of which heavy ones gush. They begin with start.
func newFlows(t *testing.T, n, heavy int) *flows {
	t.Helper()
	fs := &flows{t: t, stop: make(chan struct{}), all: make([]*flow, n)}
	for i := range fs.all {
		r := trickle
		if i < heavy {
			r = gush
		}
		fs.all[i] = &flow{newSide(uint64(2*i), r), newSide(uint64(2*i+1), r)}
	}
	fs.server = serve(t, listen(t), fs.serve)
	t.Cleanup(fs.halt)
	return fs
}

func (fs *flows) serve(c net.Conn) {
	var number [4]byte
	if _, err := io.ReadFull(c, number[:]); err != nil {
		return // a check, or a client that has gone
	}
	f := fs.all[binary.BigEndian.Uint32(number[:])]
	f.server.run(c, f.client, fs.stop)
}

// start connects them to an address that leads to the server.
func (fs *flows) start(address string) {
	fs.t.Helper()
	for i, c := range dialMany(fs.t, address, len(fs.all)) {
		if _, err := c.Write(binary.BigEndian.AppendUint32(nil, uint32(i))); err != nil {
			fs.t.Fatal(err)
		}
		f := fs.all[i]
		fs.ending.Go(func() { f.client.run(c, f.server, fs.stop) })
	}
	eventually(fs.t, "all flows flow", func() bool {
		for _, f := range fs.all {
			if f.client.longest.Load() == 0 || f.server.longest.Load() == 0 {
				return false
			}
		}
		return true
	})
	fs.stalls()
}

// stalls are how long a chunk was on its way at most, on each way of each flow, since the last time.
func (fs *flows) stalls() (all []time.Duration) {
	for _, f := range fs.all {
		if f.client.rhythm == trickle {
			all = append(all, time.Duration(f.client.longest.Swap(0)), time.Duration(f.server.longest.Swap(0)))
		}
	}
	return all
}

func (fs *flows) halt() {
	select {
	case <-fs.stop:
	default:
		close(fs.stop)
	}
}

// end ends them, and returns what went wrong, and how many bytes have moved.
func (fs *flows) end() (wrong []error, moved int64) {
	fs.t.Helper()
	fs.halt()
	ended := make(chan struct{})
	go func() { // ends with the flows
		defer close(ended)
		fs.ending.Wait()
		for _, f := range fs.all {
			if f.client.out > 0 {
				<-f.server.at
				<-f.server.sent
			}
		}
	}()
	select {
	case <-ended:
	case <-time.After(2 * patience):
		fs.t.Fatal("flows do not end")
	}
	for i, f := range fs.all {
		if err := f.wrong(); err != nil {
			wrong = append(wrong, fmt.Errorf("flow %d: %w", i, err))
		}
		moved += f.client.in + f.server.in
	}
	return wrong, moved
}

// areWhole ends them, and wants nothing to be wrong.
func (fs *flows) areWhole() {
	fs.t.Helper()
	wrong, moved := fs.end()
	fs.t.Logf("%d streams moved %d MiB, %d broken", len(fs.all), moved>>20, len(wrong))
	for _, err := range wrong[:min(len(wrong), 10)] {
		fs.t.Error(err)
	}
	if len(wrong) > 10 {
		fs.t.Errorf("and %d more", len(wrong)-10)
	}
}
