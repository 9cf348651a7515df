package e2e

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// transfersVariable names how many transfers there are; the default takes some 10 seconds of two processors.
const (
	transfersVariable = "LEVEE_E2E_TRANSFERS"
	allTransfers      = 10_000
	someTransfers     = 1500
)

// transfers is how many there are to be.
func transfers(t *testing.T) int {
	t.Helper()
	text := os.Getenv(transfersVariable)
	if text == "" {
		t.Logf("%d transfers; all %d with %s=%[2]d", someTransfers, allTransfers, transfersVariable)
		return someTransfers
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("%s=%s is no number of transfers", transfersVariable, text)
	}
	return n
}

const (
	maxSize       = 4 << 20 // bytes that a side sends at most
	maxWrites     = 4000    // that it does so with; more would be a measurement of system calls
	transferLimit = time.Minute
	never         = math.MaxInt64
)

// When a side of a transfer half-closes.
type ending int

const (
	atOnce    ending = iota // when it has sent all
	afterPeer               // when the other one has, too
	afterAll                // when it has got all besides, for a path that knows no half-close
)

// A part is what one side of a transfer does.
type part struct {
	Seed     uint64 // of what it sends
	Size     int64  // of it
	Write    int    // the size of a write at most
	Ends     ending
	ResetsAt int64 // how many bytes it has sent, or got if Reads, when it resets the connection
	Reads    bool
}

// A transfer is two streams that cross, in one connection.
type transfer struct {
	Client, Server part
	Lossy          bool // it goes through something that may end it early
}

// randomTransfer is one that a path can bear.
func randomTransfer(r *rand.Rand, over path) *transfer {
	x := &transfer{Client: randomPart(r), Server: randomPart(r), Lossy: over.cuts}
	switch one, other := &x.Client, &x.Server; {
	case !over.halfCloses:
		one.Ends, other.Ends = afterAll, afterPeer
	case r.IntN(3) == 0:
		one.Ends = afterPeer
	case r.IntN(2) == 0:
		other.Ends = afterPeer
	}
	if over.resets && r.IntN(4) == 0 {
		x.Client.willReset(r, x.Server.Size)
	} else if over.resets && r.IntN(3) == 0 {
		x.Server.willReset(r, x.Client.Size)
	}
	return x
}

func randomPart(r *rand.Rand) part {
	p := part{Seed: r.Uint64(), Size: logUniform(r, maxSize), ResetsAt: never}
	p.Write = 1 + int(max(logUniform(r, 256<<10), p.Size/maxWrites*2))
	return p
}

// logUniform returns 0 to most, small numbers as often as large ones.
func logUniform(r *rand.Rand, most int) int64 {
	return int64(math.Exp(r.Float64()*math.Log(float64(most+1)))) - 1
}

func (p *part) willReset(r *rand.Rand, other int64) {
	if p.Reads = r.IntN(2) == 0; p.Reads {
		p.ResetsAt = r.Int64N(other + 1)
	} else {
		p.ResetsAt = r.Int64N(p.Size + 1)
	}
}

func (x *transfer) clean() bool {
	return x.Client.ResetsAt == never && x.Server.ResetsAt == never && !x.Lossy
}

// stream is what a seed sends.
func stream(seed uint64) *rand.ChaCha8 {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	return rand.NewChaCha8(key)
}

// A player plays a part.
type player struct {
	conn         net.Conn
	mine, theirs part
	clean, lossy bool
	ended, got   chan struct{} // closed when the other side has half-closed, or all of it is here
	over         chan struct{} // closed when there is nothing more to wait for
}

// play sends and receives, and returns what is wrong.
func (x *transfer) play(conn net.Conn, mine, theirs part) error {
	p := &player{conn, mine, theirs, x.clean(), x.Lossy, make(chan struct{}), make(chan struct{}), make(chan struct{})}
	_ = conn.SetDeadline(time.Now().Add(transferLimit))
	sent := make(chan error, 1)
	go func() { sent <- p.send() }() // ends with the connection
	err := p.receive()
	close(p.over)
	sending := <-sent
	conn.Close()
	switch {
	case err == nil && p.clean:
		return sending
	case errors.Is(err, errCutShort) && sending != nil:
		err = nil // the kernel tells of a reset once, and has told the one who writes
	}
	return err
}

var errCutShort = errors.New("a clean end")

func (p *player) send() error {
	source, sizes := stream(p.mine.Seed), rand.New(rand.NewPCG(p.mine.Seed, 0))
	buffer := make([]byte, p.mine.Write)
	stop := p.mine.Size
	if !p.mine.Reads {
		stop = min(stop, p.mine.ResetsAt)
	}
	for sent := int64(0); sent < stop; {
		chunk := buffer[:min(int64(1+sizes.IntN(len(buffer))), stop-sent)]
		_, _ = source.Read(chunk) // never fails
		if _, err := p.conn.Write(chunk); err != nil {
			return fmt.Errorf("after %d bytes: %w", sent, err)
		}
		sent += int64(len(chunk))
	}
	if !p.mine.Reads && p.mine.ResetsAt != never {
		p.reset()
		return nil
	}
	switch p.mine.Ends {
	case afterPeer:
		p.await(p.ended)
	case afterAll:
		p.await(p.got)
	}
	return p.conn.(interface{ CloseWrite() error }).CloseWrite()
}

func (p *player) await(event <-chan struct{}) {
	select {
	case <-event:
	case <-p.over:
	}
}

// receive reads to the end. What it gets is what was sent, and all of it if the end is not a
// reset or the like.
func (p *player) receive() error {
	source := stream(p.theirs.Seed)
	got, want := make([]byte, 32<<10), make([]byte, 32<<10)
	total := int64(0)
	for {
		if total == p.theirs.Size {
			p.gotAll()
		}
		room := int64(len(got))
		if p.mine.Reads {
			if total == p.mine.ResetsAt {
				p.reset()
				return nil
			}
			room = min(room, p.mine.ResetsAt-total)
		}
		n, err := p.conn.Read(got[:room])
		_, _ = source.Read(want[:n]) // never fails
		if !bytes.Equal(got[:n], want[:n]) || total+int64(n) > p.theirs.Size {
			return fmt.Errorf("what came after %d bytes is not what was sent", total)
		}
		total += int64(n)
		switch {
		case err == nil:
			continue
		case err == io.EOF && total < p.theirs.Size && !p.lossy:
			return fmt.Errorf("after %d bytes: %w", total, errCutShort)
		case err == io.EOF:
			close(p.ended)
			return nil
		case p.clean || os.IsTimeout(err):
			return fmt.Errorf("after %d bytes: %w", total, err)
		}
		return nil
	}
}

func (p *player) gotAll() {
	select {
	case <-p.got:
	default:
		close(p.got)
	}
}

func (p *player) reset() {
	if secure, ok := p.conn.(*tls.Conn); ok {
		reset(secure.NetConn())
		return
	}
	reset(p.conn)
}

// A path is what transfers go through beside levee, and what it lets them do.
type path struct {
	name       string
	share      int // of the transfers, in per cent
	atOnce     int // transfers side by side
	listener   string
	halfCloses bool // one way can end without the other
	resets     bool // a reset arrives
	cuts       bool // it ends some of them by itself
	listen     func(*testing.T) net.Listener
	between    func(t *testing.T, server string) string // an address that leads there
}

func straight(_ *testing.T, server string) string { return server }

func lossyListen(t *testing.T) net.Listener {
	t.Helper()
	r := newRemote(t)
	r.loses(50)
	return r.listen()
}

// through returns what makes a proxy that does something to both directions.
func through(attributes string) func(*testing.T, string) string {
	return func(t *testing.T, server string) string {
		t.Helper()
		return toxic(t, server, fmt.Sprintf("{%s}\n{%[1]s, \"stream\": \"upstream\"}", attributes))
	}
}

func TestEachSideOfATransferGetsWhatTheOtherSent(t *testing.T) {
	t.Parallel()
	const (
		slices = `"type": "slicer", "attributes": {"average_size": 1000, "size_variation": 900, "delay": 10}`
		limits = `"type": "limit_data", "attributes": {"bytes": 100000}`
		secure = `, tls: {mode: terminate, development: true}`
	)
	all := transfers(t)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	for _, over := range []path{
		{"plaintext", 45, 32, "", true, true, false, listen, straight},
		{"TLS", 20, 32, secure, true, true, false, listen, straight},
		{"two of a hundred packets lost", 15, 64, "", true, false, false, lossyListen, straight},
		{"two of a hundred packets lost, TLS", 5, 64, secure, true, false, false, lossyListen, straight},
		{"slices", 10, 32, "", false, false, false, listen, through(slices)},
		{"cut after 100 kB", 5, 32, "", false, false, true, listen, through(limits)},
	} {
		t.Run(over.name, func(t *testing.T) { over.test(t, max(1, all*over.share/100), seed) })
	}
}

func (over path) test(t *testing.T, n int, seed uint64) {
	r := rand.New(rand.NewPCG(seed, uint64(over.share)))
	all := make([]*transfer, n)
	clean := 0
	for i := range all {
		all[i] = randomTransfer(r, over)
		if all[i].clean() {
			clean++
		}
	}
	var served atomic.Int64 // clean transfers
	server := serve(t, over.listen(t), func(c net.Conn) {
		_ = c.SetDeadline(time.Now().Add(transferLimit))
		var number [4]byte
		if _, err := io.ReadFull(c, number[:]); err != nil {
			return // the client was faster
		}
		i := binary.BigEndian.Uint32(number[:])
		x := all[i]
		if err := x.play(c, x.Server, x.Client); err != nil {
			t.Errorf("the server of transfer %d: %v\n%+v", i, err, *x)
		} else if x.clean() {
			served.Add(1)
		}
	})
	p := start(t, "serve", "-c", ways(t, way{"main", over.listener, servers(over.between(t, server)) + ", early_close: off"}))
	connect := connector(p.addressOf(0), over.listener != "")
	var (
		clients sync.WaitGroup
		next    atomic.Int64
	)
	for range over.atOnce {
		clients.Go(func() {
			for i := next.Add(1) - 1; i < int64(n); i = next.Add(1) - 1 {
				x := all[i]
				if err := x.start(connect, uint32(i)); err != nil {
					t.Errorf("the client of transfer %d: %v\n%+v", i, err, *x)
				}
			}
		})
	}
	clients.Wait()
	eventually(t, "the server has seen the end of all", func() bool { return served.Load() == int64(clean) || t.Failed() })
	eventually(t, "all are gone", func() bool { return p.scrape().of("levee_connections_active") == 0 })
	if s := p.scrape(); !s.addsUp() || s.of("levee_connections_accepted_total") != float64(n) {
		t.Errorf("%v accepted, want %d", s.of("levee_connections_accepted_total"), n)
	}
}

func connector(address string, secure bool) func() (net.Conn, error) {
	return func() (net.Conn, error) {
		dialer := &net.Dialer{Timeout: patience}
		if !secure {
			return dialer.Dial("tcp", address)
		}
		return tls.DialWithDialer(dialer, "tcp", address, &tls.Config{InsecureSkipVerify: true}) //nolint:gosec // whom it talks to is not the question
	}
}

// start is the client's side.
func (x *transfer) start(connect func() (net.Conn, error), number uint32) error {
	c, err := connect()
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := c.Write(binary.BigEndian.AppendUint32(nil, number)); err != nil {
		return err
	}
	return x.play(c, x.Client, x.Server)
}
