package levee_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/leveetest"
)

// pump writes size bytes of a random stream in random pieces, with pauses now and
// then, and returns their hash.
func pump(w io.Writer, random *rand.Rand, size int) (sum []byte, err error) {
	h := sha256.New()
	piece := make([]byte, 200_000)
	for size > 0 {
		n := min(size, 1+random.IntN(1+random.IntN(len(piece))))
		for i := range n {
			piece[i] = byte(random.Uint32())
		}
		h.Write(piece[:n])
		if _, err := w.Write(piece[:n]); err != nil {
			return nil, err
		}
		size -= n
		if random.IntN(10) == 0 {
			<-time.After(time.Duration(random.IntN(2000)) * time.Microsecond)
		}
	}
	return h.Sum(nil), nil
}

// drain reads to the end in random pieces, with pauses now and then.
func drain(r io.Reader, random *rand.Rand) (sum []byte, size int64, err error) {
	h := sha256.New()
	piece := make([]byte, 300_000)
	for {
		n, err := r.Read(piece[:1+random.IntN(1+random.IntN(len(piece)))])
		h.Write(piece[:n])
		size += int64(n)
		if err != nil {
			if err == io.EOF {
				err = nil
			}
			return h.Sum(nil), size, err
		}
		if random.IntN(30) == 0 {
			<-time.After(time.Duration(random.IntN(3000)) * time.Microsecond)
		}
	}
}

// join copies both ways, and passes each end of stream on.
func join(a, b peer) error {
	errs := make(chan error, 2)
	one := func(to, from peer) {
		_, err := io.Copy(to, from)
		errs <- errors.Join(err, to.CloseWrite())
	}
	go one(a, b)
	one(b, a)
	return errors.Join(<-errs, <-errs)
}

func TestCopyBothWaysIsByteExact(t *testing.T) {
	ca := leveetest.NewCA(t)
	far := []string{"Conn", "*net.TCPConn", "in-memory Conn", "Unix socket"}
	for _, secure := range []bool{false, true} {
		for _, beyond := range far {
			for _, secureBeyond := range []bool{false, true} {
				if secureBeyond && beyond != "Conn" {
					continue
				}
				t.Run(fmt.Sprintf("client over TLS %t, beyond is a %s over TLS %t", secure, beyond, secureBeyond), func(t *testing.T) {
					leveetest.CheckLeaks(t)
					testJoint(t, ca, secure, beyond, secureBeyond)
				})
			}
		}
	}
}

func testJoint(t *testing.T, ca *leveetest.CA, secure bool, beyond string, secureBeyond bool) {
	pick, dialBeyond := upstream(t, ca, beyond, secureBeyond)
	near := &levee.Server{Handler: does(func(c *levee.Conn) error {
		other, release := pick()
		defer release()
		return join(c, other)
	})}
	if secure {
		near.TLSConfig = ca.ServerConfig("localhost")
	}
	dial, ends := overTCP(t, near)
	for round := range uint64(3) {
		random := rand.New(rand.NewPCG(round, 1))
		var client peer = dial()
		if secure {
			client = handshaken(t, client, ca.ClientConfig("localhost"))
		}
		server := dialBeyond()
		sizes := [2]int{random.IntN(3 << 20), random.IntN(3 << 20)}
		if round == 0 {
			sizes = [2]int{0, 1}
		}
		var all sync.WaitGroup
		for i, way := range [2][2]peer{{client, server}, {server, client}} {
			var sent []byte
			var wrote sync.WaitGroup
			wrote.Add(1)
			writer, reader := rand.New(rand.NewPCG(round, uint64(i+2))), rand.New(rand.NewPCG(round, uint64(i+4)))
			all.Go(func() {
				defer wrote.Done()
				var err error
				if sent, err = pump(way[0], writer, sizes[i]); err != nil {
					t.Error(err)
				}
				way[0].CloseWrite()
			})
			all.Go(func() {
				got, n, err := drain(way[1], reader)
				wrote.Wait()
				if !bytes.Equal(got, sent) || n != int64(sizes[i]) || err != nil {
					t.Errorf("round %d: %d bytes arrived of %d, equal: %t, %v", round, n, sizes[i], bytes.Equal(got, sent), err)
				}
			})
		}
		all.Wait()
		client.Close()
		server.Close()
		end := expectReason(t, ends, levee.ClientClosed)
		if !secure && (end.Read != int64(sizes[0]) || end.Written != int64(sizes[1])) {
			t.Errorf("round %d: counted %d bytes read and %d written, want %v", round, end.Read, end.Written, sizes)
		}
	}
}

// upstream offers connections of a kind: pick returns the proxy's end of the one
// whose other end dial returned.
func upstream(t *testing.T, ca *leveetest.CA, kind string, secure bool) (pick func() (peer, func()), dial func() peer) {
	t.Helper()
	accepted := make(chan peer, 1)
	switch kind {
	case "Conn", "in-memory Conn":
		released := make(chan struct{})
		srv := &levee.Server{Handler: handle(func(ctx context.Context, c *levee.Conn) error {
			accepted <- c
			<-released
			return nil
		})}
		pick = func() (peer, func()) { return <-accepted, func() { released <- struct{}{} } }
		if kind == "in-memory Conn" {
			dialMemory, _ := inMemory(t, srv)
			return pick, func() peer { return dialMemory() }
		}
		if secure {
			srv.TLSConfig = ca.ServerConfig("localhost")
		}
		dialTCP, _ := overTCP(t, srv)
		return pick, func() peer {
			if secure {
				return handshaken(t, dialTCP(), ca.ClientConfig("localhost"))
			}
			return dialTCP()
		}
	}
	network, address := "tcp", "127.0.0.1:0"
	if kind == "Unix socket" {
		network, address = "unix", filepath.Join(t.TempDir(), "s")
	}
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	dial = func() peer {
		c, err := net.Dial(network, l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		other, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		accepted <- other.(peer)
		return c.(peer)
	}
	return func() (peer, func()) {
		c := <-accepted
		return c, func() { c.Close() }
	}, dial
}

func TestFileIsCopiedWhole(t *testing.T) {
	content := make([]byte, 5<<20+12345)
	for i := range content {
		content[i] = byte(i * i >> 9)
	}
	name := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(name, content, 0o600); err != nil {
		t.Fatal(err)
	}
	onEveryTransport(t, func(t *testing.T, serve func(*levee.Server) (func() peer, <-chan levee.End)) {
		for way, copyFile := range map[string]func(c *levee.Conn, f *os.File) (int64, error){
			"ReadFrom": func(c *levee.Conn, f *os.File) (int64, error) { return c.ReadFrom(f) },
			"Copy":     func(c *levee.Conn, f *os.File) (int64, error) { return io.Copy(c, f) },
			"CopyN":    func(c *levee.Conn, f *os.File) (int64, error) { return io.CopyN(c, f, int64(len(content))) },
		} {
			dial, ends := serve(&levee.Server{Handler: does(func(c *levee.Conn) error {
				f, err := os.Open(name)
				if err != nil {
					return err
				}
				defer f.Close()
				if n, err := copyFile(c, f); n != int64(len(content)) || err != nil {
					t.Errorf("%s: copied %d bytes, %v", way, n, err)
				}
				return nil
			})})
			client := dial()
			if got, err := io.ReadAll(client); !bytes.Equal(got, content) || err != nil {
				t.Errorf("%s: %d bytes arrived of %d, %v", way, len(got), len(content), err)
			}
			end := expectReason(t, ends, levee.HandlerClosed)
			if end.Written < int64(len(content)) {
				t.Errorf("%s: counted %d bytes written", way, end.Written)
			}
			client.Close()
		}
	})
}

// bytesRead returns what this process has read by read(2): splice(2) is not counted there.
func bytesRead(t *testing.T) int64 {
	t.Helper()
	counts, err := os.ReadFile("/proc/self/io")
	if err != nil {
		t.Skip("no account of input and output here:", err)
	}
	for line := range strings.Lines(string(counts)) {
		if n, ok := strings.CutPrefix(line, "rchar: "); ok {
			n, err := strconv.ParseInt(strings.TrimSpace(n), 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Skip("no rchar in /proc/self/io")
	panic("unreachable")
}

// The kernel's own account: what is spliced is not read into the process. The
// client reads its bytes in any case.
func TestBulkInPlaintextStaysInTheKernel(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("splice(2) is Linux's")
	}
	const size = 64 << 20
	for _, beyond := range []string{"Conn", "*net.TCPConn"} {
		for _, upload := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, upload %t", beyond, upload), func(t *testing.T) {
				leveetest.CheckLeaks(t)
				pick, dialBeyond := upstream(t, nil, beyond, false)
				dial, _ := overTCP(t, &levee.Server{Handler: does(func(c *levee.Conn) error {
					other, release := pick()
					defer release()
					return join(c, other)
				})})
				var source, sink peer = dial(), dialBeyond()
				if !upload {
					source, sink = sink, source
				}
				before := bytesRead(t)
				go func() {
					io.Copy(source, io.LimitReader(zeroes{}, size))
					source.CloseWrite()
				}()
				n, err := io.Copy(io.Discard, struct{ io.Reader }{sink})
				if n != size || err != nil {
					t.Fatalf("%d bytes arrived, %v", n, err)
				}
				if copied := bytesRead(t) - before - size; copied > size/2 {
					t.Errorf("of %d bytes %d were read into the process on their way", size, copied)
				}
				source.Close()
				sink.Close()
			})
		}
	}
}

// openFDs counts this process's open files, once the collector has closed spare ones.
func openFDs(t *testing.T) (sockets, others int) {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skip("open files cannot be counted here:", err)
	}
	for _, e := range entries {
		target, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err != nil {
			continue
		}
		if strings.HasPrefix(target, "socket:") {
			sockets++
		} else {
			others++
		}
	}
	return sockets, others
}

func TestIdlePairHoldsTwoSocketsAndNothingElse(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux tells")
	}
	leveetest.CheckLeaks(t)
	const pairs, bulk = 20, 4 << 20
	pick, dialBeyond := upstream(t, nil, "*net.TCPConn", false)
	dial, _ := overTCP(t, &levee.Server{Handler: does(func(c *levee.Conn) error {
		other, release := pick()
		defer release()
		return join(c, other)
	})})
	sockets, others := openFDs(t)
	ends := make([]peer, 0, 2*pairs)
	for i := range pairs {
		client := dial()
		server := dialBeyond()
		for _, way := range [2][2]peer{{client, server}, {server, client}} {
			size := int64(1)
			if i%2 == 0 {
				size = bulk // which takes pipes, and has to give them back
			}
			go io.Copy(way[0], io.LimitReader(zeroes{}, size))
			if n, err := io.CopyN(io.Discard, way[1], size); err != nil {
				t.Fatalf("%d bytes, %v", n, err)
			}
		}
		ends = append(ends, client, server)
	}
	for range 2 {
		runtime.GC() // closes the pool's spare pipes
	}
	var moreSockets, moreOthers int
	for range 100 { // their cleanups run in a goroutine
		s, o := openFDs(t)
		if moreSockets, moreOthers = s-sockets, o-others; moreOthers <= 0 {
			break
		}
		<-time.After(10 * time.Millisecond)
		runtime.GC()
	}
	if moreSockets != 4*pairs || moreOthers > 0 { // two of each pair are the test's own
		t.Errorf("%d idle pairs hold %d sockets, of which half are the test's, and %d other files", pairs, moreSockets, moreOthers)
	}
	for _, c := range ends {
		c.Close()
	}
}

// slowly reads a little now and then.
func slowly(c io.Reader, bytes int, pause, during time.Duration) (hash.Hash, error) {
	h := sha256.New()
	for until := time.Now().Add(during); time.Now().Before(until); <-time.After(pause) {
		if _, err := io.CopyN(h, c, int64(bytes)); err != nil {
			return h, err
		}
	}
	return h, nil
}

// A download that takes longer than every limit, to a reader who is slow but steady.
func TestSlowReaderOfASplicedDownloadIsNeverCut(t *testing.T) {
	leveetest.CheckLeaks(t)
	const size = 24 << 20
	random := rand.New(rand.NewPCG(7, 7))
	content := make([]byte, size)
	for i := range content {
		content[i] = byte(random.Uint32())
	}
	pick, dialBeyond := upstream(t, nil, "Conn", false)
	const limit = 500 * time.Millisecond // well above the 200 of the kernel's window probes
	dial, ends := overTCP(t, &levee.Server{
		IdleTimeout: limit, WriteStallTimeout: limit,
		Handler: does(func(c *levee.Conn) error {
			other, release := pick()
			defer release()
			return join(c, other)
		}),
	})
	client := dial()
	client.SetReadBuffer(64 << 10)
	server := dialBeyond()
	go func() {
		server.Write(content)
		server.CloseWrite()
	}()
	h, err := slowly(client, 200_000, limit/5, 3*limit)
	if err != nil {
		end := <-ends
		t.Fatalf("%v; the connection ended as %v: %v", err, end.Reason, end.Err)
	}
	if _, err := io.Copy(h, client); err != nil {
		t.Fatal(err)
	}
	if sum := sha256.Sum256(content); !bytes.Equal(h.Sum(nil), sum[:]) {
		t.Error("what arrived differs from what was sent")
	}
	client.Close()
	expectReason(t, ends, levee.ClientClosed)
	server.Close()
}

// The same for a source whose limit is shorter than the copy takes.
func TestSlowSinkIsNoSilenceOfTheSource(t *testing.T) {
	leveetest.CheckLeaks(t)
	pick, dialBeyond := upstream(t, nil, "*net.TCPConn", false)
	const limit = 500 * time.Millisecond
	copied := make(chan error, 1)
	dial, _ := overTCP(t, &levee.Server{
		IdleTimeout: limit,
		Handler: does(func(c *levee.Conn) error {
			other, release := pick()
			defer release()
			_, err := io.Copy(other, c)
			copied <- err
			return err
		}),
	})
	client := dial()
	server := dialBeyond()
	const size = 24 << 20
	go func() {
		io.Copy(client, io.LimitReader(zeroes{}, size))
		client.CloseWrite()
	}()
	if _, err := slowly(server, 200_000, limit/5, 3*limit); err != nil {
		t.Fatal(err)
	}
	io.Copy(io.Discard, server)
	if err := <-copied; err != nil {
		t.Errorf("the copy ended with %v", err)
	}
	client.Close()
	server.Close()
}

func TestPeerThatTakesNothingOfASpliceOrFileIsCut(t *testing.T) {
	leveetest.CheckLeaks(t)
	const limit = 200 * time.Millisecond
	for name, source := range map[string]func(c *levee.Conn) error{
		"splice": func(c *levee.Conn) error {
			from, to := tcpPair(t)
			defer from.Close()
			defer to.Close()
			go io.Copy(to, zeroes{})
			_, err := io.Copy(c, from)
			return err
		},
		"sendfile": func(c *levee.Conn) error {
			f, err := os.Create(filepath.Join(t.TempDir(), "file"))
			if err != nil {
				return err
			}
			defer f.Close()
			if err := f.Truncate(1 << 30); err != nil {
				return err
			}
			_, err = io.Copy(c, f)
			return err
		},
	} {
		dial, ends := overTCP(t, &levee.Server{WriteStallTimeout: limit, Handler: does(source)})
		client := dial()
		slowly(client, 300_000, limit/4, 2*limit)
		start := time.Now()
		end := expectReason(t, ends, levee.WriteStalled)
		if took := time.Since(start); took < limit/2 {
			t.Errorf("%s: it was cut after %v", name, took)
		}
		if reasonOf(end.Err) != levee.WriteStalled {
			t.Errorf("%s: the copy returned %v", name, end.Err)
		}
		if _, err := io.Copy(io.Discard, client); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%s: the peer read %v, want a reset", name, err)
		}
	}
}

// tcpPair returns both ends of a connection.
func tcpPair(t *testing.T) (a, b *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dialled, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	accepted, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return dialled.(*net.TCPConn), accepted.(*net.TCPConn)
}

// Full blocks that are followed by a reset are still the handler's.
func TestCopyDeliversWhatCameBeforeAReset(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var got bytes.Buffer
		dial, ends := inMemory(t, &levee.Server{Handler: does(func(c *levee.Conn) error {
			time.Sleep(time.Second) // virtual time
			_, err := io.Copy(&got, c)
			return err
		})})
		client := dial()
		send(t, client, strings.Repeat("x", 4<<10))
		client.Reset()
		expectReason(t, ends, levee.ClientReset)
		if got.Len() != 4<<10 {
			t.Errorf("%d bytes were delivered", got.Len())
		}
	})
}

// chunks counts Writes.
type chunks struct{ n, bytes int }

func (c *chunks) Write(p []byte) (int, error) {
	c.n++
	c.bytes += len(p)
	return len(p), nil
}

func TestCopyFromTLSMovesWholeRecords(t *testing.T) {
	leveetest.CheckLeaks(t)
	ca := leveetest.NewCA(t)
	const size = 8 << 20
	got := make(chan chunks, 1)
	dial, _ := overTCP(t, &levee.Server{TLSConfig: ca.ServerConfig("localhost"), Handler: does(func(c *levee.Conn) error {
		var sink chunks
		_, err := c.WriteTo(&sink)
		got <- sink
		return err
	})})
	config := ca.ClientConfig("localhost")
	config.DynamicRecordSizingDisabled = true
	client := tls.Client(dial(), config)
	io.Copy(client, io.LimitReader(zeroes{}, size))
	client.Close()
	if sink := <-got; sink.bytes != size || sink.n > size/(16<<10)+10 {
		t.Errorf("%d bytes came in %d pieces", sink.bytes, sink.n)
	}
}

// Handlers answer early and leave while the client still sends.
func TestLastBytesReachAPeerThatIsStillSending(t *testing.T) {
	answer := bytes.Repeat([]byte("no, thank you. "), 20_000)
	onEveryTransport(t, func(t *testing.T, serve func(*levee.Server) (func() peer, <-chan levee.End)) {
		dial, ends := serve(&levee.Server{Handler: does(func(c *levee.Conn) error {
			if _, err := c.Read(make([]byte, 100)); err != nil {
				return err
			}
			_, err := c.Write(answer)
			return err
		})})
		rounds := 20
		if strings.HasSuffix(t.Name(), "/TCP") {
			rounds = 200 // where the kernel decides
		}
		for range rounds {
			client := dial()
			sending := make(chan struct{})
			go func() {
				defer close(sending)
				client.Write(make([]byte, 100_000))
			}()
			got, err := io.ReadAll(client)
			if err != nil || !bytes.Equal(got, answer) {
				t.Fatalf("the client read %d bytes of %d, %v", len(got), len(answer), err)
			}
			<-sending
			client.Close()
			<-ends
		}
	})
}
