package e2e

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// An exchange is a connection on which bytes go back and forth without a pause, and what has gone there and come
// back.
type exchange struct {
	conn        net.Conn
	there, back hash.Hash
	bytes       int64
	err         error
}

// run goes on until stop is closed.
func (s *exchange) run(stop <-chan struct{}) {
	random := rand.NewChaCha8([32]byte{1})
	out, in := make([]byte, 16<<10), make([]byte, 16<<10)
	for {
		select {
		case <-stop:
			return
		default:
		}
		_, _ = random.Read(out)
		_ = s.conn.SetDeadline(time.Now().Add(patience))
		if _, s.err = s.conn.Write(out); s.err != nil {
			return
		}
		if _, s.err = io.ReadFull(s.conn, in); s.err != nil {
			return
		}
		s.there.Write(out)
		s.back.Write(in)
		s.bytes += int64(len(out))
		<-time.After(time.Millisecond)
	}
}

// meets makes a connection and has a message come back.
func meets(address string) error {
	c, err := net.Dial("tcp", address)
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	sent := fmt.Appendf(nil, "message %d", rand.Int())
	if _, err := c.Write(sent); err != nil {
		return err
	}
	got := make([]byte, len(sent))
	if _, err := io.ReadFull(c, got); err != nil {
		return err
	}
	if !bytes.Equal(got, sent) {
		return fmt.Errorf("%q came back as %q", sent, got)
	}
	return nil
}

// echoServer is an upstream.
func echoServer(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() { // ends with l
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { // ends with the connection
				defer c.Close()
				_, _ = io.Copy(c, c)
			}()
		}
	}()
	return l.Addr().String()
}

// measure returns a metric without labels.
func (p *process) measure(name string) float64 {
	p.t.Helper()
	status, body := get(p.t, p.admin("/metrics"))
	found := regexp.MustCompile(`(?m)^` + name + ` (\S+)$`).FindStringSubmatch(body)
	if found == nil {
		p.t.Fatalf("no %s, status %d", name, status)
	}
	v, err := strconv.ParseFloat(found[1], 64)
	if err != nil {
		p.t.Fatal(err)
	}
	return v
}

// A hundred reloads in ten seconds: routes, limits, timeouts, upstreams and listeners come and go, and neither the
// connections that are there nor those that come notice.
func TestAHundredReloadsLoseNobodyAndLeaveNothingBehind(t *testing.T) {
	besideOthers(t)
	server := echoServer(t)
	path := filepath.Join(t.TempDir(), "levee.yaml")
	put := func(i int) {
		more := ""
		if i%3 == 0 {
			more = "  - {name: more, listen: [\"127.0.0.1:0\"], limits: {per_client: {mode: off}}, routes: [{upstream: behind}]}\n"
		}
		config := fmt.Sprintf(`version: 1
admin: {listen: "127.0.0.1:0"}
drain: {timeout: 5s}
limits: {deny: [192.0.2.%d]}
listeners:
  - name: main
    listen: ["127.0.0.1:0"]
    limits: {max_connections: %d, per_client: {connections: %d, rate: off}}
    timeouts: {idle: %dm}
    routes: [{match: {source: [192.0.2.0/24]}, handler: echo}, {upstream: behind}]
%supstreams:
  - {name: behind, servers: [%q], health: {interval: 50ms, timeout: 40ms}, max_connections: %d}
`, 1+i%200, 2000+i%2, 1000+i%5, 1+i%7, more, server, 2000+i%2)
		if err := os.WriteFile(path+".new", []byte(config), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
	put(0)
	p := start(t, "serve", "-c", path)
	address := p.address()
	generation := 1
	reload := func(n int) {
		for range n {
			next := time.Now().Add(60 * time.Millisecond)
			put(generation)
			p.signal(syscall.SIGHUP)
			generation++
			p.find(&p.stderr, fmt.Sprintf(`"msg":"reloaded","what":"configuration","generation":%d\b`, generation))
			<-time.After(time.Until(next))
		}
	}
	stop, quiet := make(chan struct{}), make(chan struct{})
	streams := make([]*exchange, 8)
	var running, dialling sync.WaitGroup
	for i := range streams {
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		streams[i] = &exchange{conn: c, there: sha256.New(), back: sha256.New()}
		running.Go(func() { streams[i].run(stop) })
	}
	reload(3)
	goroutines, files, memory := p.measure("go_goroutines"), p.measure("process_open_fds"), p.measure("process_resident_memory_bytes")
	var met, failed atomic.Int64
	for range 4 {
		dialling.Go(func() {
			for {
				select {
				case <-quiet:
					return
				default:
				}
				if err := meets(address); err != nil {
					failed.Add(1)
					t.Error(err)
				}
				met.Add(1)
				<-time.After(time.Millisecond)
			}
		})
	}
	began := time.Now()
	reload(100)
	took := time.Since(began)
	close(quiet)
	dialling.Wait()
	more := func() string {
		var over []string
		if now := p.measure("go_goroutines"); now > goroutines+15 {
			over = append(over, fmt.Sprintf("%g goroutines, %g before", now, goroutines))
		}
		if now := p.measure("process_open_fds"); now > files+15 {
			over = append(over, fmt.Sprintf("%g files, %g before", now, files))
		}
		if now := p.measure("process_resident_memory_bytes"); now > memory+64<<20 {
			over = append(over, fmt.Sprintf("%g bytes, %g before", now, memory))
		}
		return strings.Join(over, "; ")
	}
	for late := time.Now().Add(patience); more() != ""; <-time.After(50 * time.Millisecond) {
		if time.Now().After(late) {
			t.Error(more())
			break
		}
	}
	close(stop)
	running.Wait()
	moved := int64(0)
	for i, s := range streams {
		moved += s.bytes
		if s.err != nil || !bytes.Equal(s.there.Sum(nil), s.back.Sum(nil)) || s.bytes == 0 {
			t.Errorf("stream %d: %d bytes, %v", i, s.bytes, s.err)
		}
	}
	t.Logf("100 reloads in %v; %d new connections, %d failed; %d streams moved %d MiB", took.Round(time.Millisecond), met.Load(), failed.Load(), len(streams), moved>>20)
	if took > 12*time.Second {
		t.Log("the machine is busy: that took longer than it should")
	}
	if n := p.measure("levee_config_generation"); int(n) != generation {
		t.Errorf("it is generation %g, want %d", n, generation)
	}
	if n := p.measure(`levee_reloads_total\{result="failed"\}`); n != 0 {
		t.Errorf("%g reloads failed", n)
	}
}

func TestAReloadThatFailsKeepsWhatIsInForce(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	path := filepath.Join(t.TempDir(), "levee.yaml")
	put := func(rest string) {
		t.Helper()
		if err := os.WriteFile(path, []byte("version: 1\nadmin: {listen: \"127.0.0.1:0\"}\nlisteners:\n  - {name: main, listen: [\"127.0.0.1:0\"], routes: [{handler: echo}]}\n"+rest), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put("")
	p := start(t, "serve", "-c", path)
	address := p.address()
	for _, c := range []struct{ rest, why string }{
		{"listener: 1\n", `levee\.yaml:5:1: .*did you mean \\"listeners\\"`},
		{"  - {name: more, listen: [\"" + taken.Addr().String() + "\"], routes: [{handler: echo}]}\n", `levee\.yaml:5:.*listener more: .*address already in use`},
	} {
		put(c.rest)
		p.signal(syscall.SIGHUP)
		p.find(&p.stderr, `"level":"ERROR","msg":"not reloaded; what was in force before is kept","err":"[^\n]*`+c.why)
		if err := meets(address); err != nil {
			t.Error(err)
		}
	}
	put("drain: {timeout: 3s}\n")
	p.signal(syscall.SIGHUP)
	p.find(&p.stderr, `"msg":"reloaded","what":"configuration","generation":2`)
	if n := p.measure(`levee_reloads_total\{result="failed"\}`); n != 2 {
		t.Errorf("%g reloads failed", n)
	}
	p.signal(syscall.SIGTERM)
	p.find(&p.stderr, `"msg":"draining","signal":"terminated","timeout":3[,}]`)
	if code := p.wait(); code != 0 {
		t.Errorf("exit code %d", code)
	}
}
