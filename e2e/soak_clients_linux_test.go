package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// A habit is what clients of one kind do, again and again.
type habit struct {
	name    string
	listens string // the listener
	clients int
	tls     *tls.Config
	rounds  int // requests on a connection; 0 is as many as there is time for
	pause   time.Duration
	ask     func(c *dialogue, r *rand.Rand) (bytes int64, err error) // one request, and what is wrong with its answer
	bears   string                                                   // what may excuse a complaint
}

// A dialogue is a client's connection.
type dialogue struct {
	net.Conn
	in *bufio.Reader
}

// errLeft is the end of a connection before a byte of the answer: where the server may leave between two requests it says
// nothing of what it has done.
var errLeft = errors.New("the connection ended between two requests")

// read reads a whole answer, or its beginning.
func (c *dialogue) read(answer []byte) error {
	n, err := io.ReadFull(c.in, answer)
	if err != nil && n == 0 && kicked(err) {
		return fmt.Errorf("%w: %w", errLeft, err)
	}
	return err
}

// asksEcho sends up to most bytes, which have to come back.
func asksEcho(most int) func(*dialogue, *rand.Rand) (int64, error) {
	return func(c *dialogue, r *rand.Rand) (int64, error) {
		sent := make([]byte, 1+r.IntN(most))
		_, _ = stream(r.Uint64()).Read(sent) // never fails
		sent[0] = 'x'                        // not what begins a TLS handshake, which is refused where first bytes decide
		if _, err := c.Write(sent); err != nil {
			if kicked(err) {
				err = fmt.Errorf("%w: %w", errLeft, err)
			}
			return 0, err
		}
		got := make([]byte, len(sent))
		if err := c.read(got); err != nil {
			return 0, err
		}
		if !bytes.Equal(sent, got) {
			return 0, errDiffers
		}
		return int64(2 * len(sent)), nil
	}
}

// asksDigest sends a frame, a length and as many bytes, whose SHA-256 is the answer: see digests.
func asksDigest(most int) func(*dialogue, *rand.Rand) (int64, error) {
	return func(c *dialogue, r *rand.Rand) (int64, error) {
		size := r.IntN(most)
		frame := make([]byte, 4+size)
		binary.BigEndian.PutUint32(frame, uint32(size))
		_, _ = stream(r.Uint64()).Read(frame[4:]) // never fails
		want, got := sha256.Sum256(frame[4:]), make([]byte, sha256.Size)
		if _, err := c.Write(frame); err != nil {
			return 0, err
		}
		if err := c.read(got); err != nil {
			return 0, err
		}
		if !bytes.Equal(got, want[:]) {
			return 0, errDiffers
		}
		return int64(len(frame) + len(got)), nil
	}
}

// asksPage asks for a page.
func asksPage(c *dialogue, r *rand.Rand) (int64, error) {
	if _, err := fmt.Fprintf(c, "GET /%d HTTP/1.1\r\nHost: soak\r\n\r\n", r.Uint32()); err != nil {
		return 0, err
	}
	answer, err := http.ReadResponse(c.in, nil)
	if err != nil {
		return 0, err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err == nil && (answer.StatusCode != http.StatusOK || len(body) == 0) {
		err = fmt.Errorf("status %d, %q", answer.StatusCode, body)
	}
	return int64(len(body)), err
}

// asksAll sends all that it has, ends its direction, and then wants it back, and the other direction's end. Each takes what
// it reads in small pieces now and then, so that what comes meanwhile has to wait.
func asksAll(most int, lag time.Duration) func(*dialogue, *rand.Rand) (int64, error) {
	return func(c *dialogue, r *rand.Rand) (int64, error) {
		sent := make([]byte, most/2+r.IntN(most/2))
		_, _ = stream(r.Uint64()).Read(sent) // never fails
		sending := make(chan error, 1)
		go func() { // ends with the connection's deadline
			_, err := c.Write(sent)
			sending <- errors.Join(err, c.Conn.(*net.TCPConn).CloseWrite())
		}()
		got, piece := make([]byte, 0, len(sent)), make([]byte, 16<<10)
		var err error
		for err == nil && len(got) <= len(sent) {
			var n int
			n, err = c.in.Read(piece)
			got = append(got, piece[:n]...)
			if lag > 0 && len(got) < len(sent)/2 {
				<-time.After(lag)
			}
		}
		if err == io.EOF {
			err = nil
		}
		if err := errors.Join(err, <-sending); err != nil {
			return 0, fmt.Errorf("%d bytes of %d came back: %w", len(got), len(sent), err)
		}
		if !bytes.Equal(sent, got) {
			return 0, fmt.Errorf("%d bytes of %d came back: %w", len(got), len(sent), errDiffers)
		}
		return int64(2 * len(sent)), nil
	}
}

// digests is a server that answers frames, and flips a bit of the answer if it is told to.
type digests struct{ corrupt atomic.Bool }

func (d *digests) serve(c net.Conn) {
	in := bufio.NewReader(c)
	for {
		var size [4]byte
		if _, err := io.ReadFull(in, size[:]); err != nil {
			return
		}
		sum := sha256.New()
		if _, err := io.CopyN(sum, in, int64(binary.BigEndian.Uint32(size[:]))); err != nil {
			return
		}
		answer := sum.Sum(nil)
		if d.corrupt.Load() {
			answer[len(answer)-1] ^= 1
		}
		if _, err := c.Write(answer); err != nil {
			return
		}
	}
}

// habits are those of the soak. Whoever stays does so until its end, through everything.
func (s *soak) habits() []habit {
	const brief, calm = 100 * time.Millisecond, 300 * time.Millisecond
	secure := s.ca.ClientConfig("soak.example.com")
	return []habit{
		{name: "echo, stays", listens: "echo", clients: 8, pause: calm, ask: asksEcho(8 << 10)},
		{name: "echo, comes and goes", listens: "echo", clients: 4, rounds: 3, pause: brief, ask: asksEcho(8 << 10)},
		{name: "http, comes and goes", listens: "echo", clients: 4, rounds: 20, pause: brief, ask: asksPage},
		{name: "proxied frames, stays", listens: "framed", clients: 6, pause: calm, ask: asksDigest(64 << 10)},
		{name: "proxied frames, comes and goes", listens: "framed", clients: 4, rounds: 3, pause: brief, ask: asksDigest(64 << 10)},
		{name: "proxied, half-closes", listens: "proxied", clients: 3, rounds: 1, pause: calm, ask: asksAll(256<<10, 0)},
		// TLS cannot move to another process. One that is silent for a moment leaves the old one when it is asked to.
		{name: "tls, stays", listens: "tls", clients: 6, tls: secure, pause: calm, ask: asksEcho(1 << 10), bears: byDrain},
		// And one that ends by itself before drain.timeout is not to notice anything.
		{name: "tls, comes and goes", listens: "tls", clients: 3, tls: secure, rounds: 3, pause: brief, ask: asksEcho(8 << 10), bears: byDrain},
		{name: "tls to an upstream, comes and goes", listens: "sealed", clients: 4, tls: secure, rounds: 8, pause: brief, ask: asksDigest(32 << 10)},
		{name: "fragile, stays", listens: "fragile", clients: 8, pause: calm, ask: asksEcho(8 << 10), bears: byFault},
		{name: "fragile, comes and goes", listens: "fragile", clients: 4, rounds: 3, pause: brief, ask: asksEcho(8 << 10), bears: byFault},
	}
}

// slowly is what clients do in an ordeal: they read so slowly that the server has to wait for them.
var slowly = habit{name: "proxied, reads slowly", listens: "proxied", rounds: 1, pause: 1, ask: asksAll(512<<10, 50*time.Millisecond)}

// A client is one of a habit.
type soakClient struct {
	*soak
	habit
	tally *deeds
	from  string // its address
	dice  *rand.Rand
}

// live goes on until ctx ends, and then ends between two requests.
func (c *soakClient) live(ctx context.Context) {
	for ctx.Err() == nil {
		c.visit(ctx)
		c.rest(ctx)
	}
}

// rest waits for about the habit's pause.
func (c *soakClient) rest(ctx context.Context) {
	select {
	case <-time.After(c.pause/2 + time.Duration(c.dice.Int64N(int64(c.pause)))):
	case <-ctx.Done():
	}
}

// visit is the life of a connection.
func (c *soakClient) visit(ctx context.Context) {
	began := c.now()
	conn, err := c.connect()
	if err != nil {
		c.complain(c.habit, began, fmt.Errorf("connecting: %w", err))
		return
	}
	defer conn.Close()
	for n := 0; ctx.Err() == nil && (n < c.rounds || c.rounds == 0); n++ {
		asked := time.Now()
		_ = conn.SetDeadline(asked.Add(patience))
		moved, err := c.ask(conn, c.dice)
		if err != nil {
			c.complain(c.habit, began, fmt.Errorf("request %d, asked at %s, from %s: %w", n+1, short(asked.Sub(c.Began)), conn.LocalAddr(), err))
			return
		}
		c.answered(c.tally, moved, time.Since(asked))
		c.rest(ctx)
	}
}

func (c *soakClient) connect() (*dialogue, error) {
	conn, err := dialFrom(c.from, c.addresses[c.listens])
	if err != nil {
		return nil, err
	}
	c.opened(c.listens, c.tally)
	if c.tls != nil {
		secured := tls.Client(conn, c.tls)
		if err := secured.Handshake(); err != nil {
			conn.Close()
			return nil, err
		}
		conn = secured
	}
	return &dialogue{conn, bufio.NewReader(conn)}, nil
}

// A register is where clients say what has happened to them.
type register struct {
	mu         sync.Mutex
	made       map[string]int64 // connections, by listener
	complaints []complaint
}

func (r *register) opened(listener string, t *deeds) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.made[listener]++
	t.Connections++
}

func (r *register) answered(t *deeds, moved int64, took time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	t.Requests++
	t.Bytes += moved
	t.Slowest = max(t.Slowest, int64(took))
}

// mostComplaints bounds what a soak keeps that has gone wrong altogether.
const mostComplaints = 10_000

// complain says what has gone wrong. What may end between two requests is excused by a drain only where it has.
func (s *soak) complain(h habit, began time.Duration, err error) {
	bears := h.bears
	if bears == byDrain && !errors.Is(err, errLeft) {
		bears = byNothing
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.complaints) < mostComplaints {
		s.complaints = append(s.complaints, complaint{Habit: h.name, Began: began, At: s.now(), Err: err.Error(), Bears: bears})
	}
}
