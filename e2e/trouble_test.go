package e2e

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// command is levee, for launch.
func command(args ...string) *exec.Cmd { return exec.Command(levee, args...) }

func TestPortInUseNamesTheFirstOne(t *testing.T) {
	t.Parallel()
	first := start(t, free...)
	second := start(t, "--listen", first.address(), "--admin", "off")
	if code := second.wait(); code != 3 {
		t.Errorf("exit code %d", code)
	}
	owner := ""
	if runtime.GOOS == "linux" {
		owner = fmt.Sprintf(` by "levee" (process %d)`, first.pid())
	}
	want := "levee: listener main: listen on " + first.address() + ": bind: address already in use" + owner + "; stop that, or choose another with --listen\n"
	if got := second.stderr.String(); got != want || second.stdout.String() != "" {
		t.Errorf("%q, %q, want\n%q", got, &second.stdout, want)
	}
	if err := echoes(first.address()); err != nil {
		t.Error(err)
	}
}

// asNobody makes levee run as a user who may do nothing.
func asNobody(t *testing.T, cmd *exec.Cmd) *exec.Cmd {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("skipped: only root can become somebody else")
	}
	const nobody = 65534
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	cmd.Env = []string{"HOME=/"} // which it may not write to
	return cmd
}

func TestPrivilegedPortIsRefusedWithAReason(t *testing.T) {
	t.Parallel()
	lowest, err := os.ReadFile("/proc/sys/net/ipv4/ip_unprivileged_port_start")
	if err != nil || strings.TrimSpace(string(lowest)) != "1024" {
		t.Skipf("skipped: ports from %s on are for everybody (%v)", lowest, err)
	}
	p := launch(t, asNobody(t, command("--listen", "127.0.0.1:1", "--admin", "off")))
	code := p.wait()
	p.find(&p.stderr, `^levee: listener main: listen on 127\.0\.0\.1:1: bind: permission denied; ports below 1024 need root or the capability CAP_NET_BIND_SERVICE\n`)
	if code != 3 || p.stdout.String() != "" {
		t.Errorf("exit code %d, %q", code, &p.stdout)
	}
}

func TestUnreadableFileIsRefusedWithAReason(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "levee-e2e") // t.TempDir is inside a folder that others may not enter
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := dir + "/levee.yaml"
	if err := os.WriteFile(path, []byte("version: 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	p := launch(t, asNobody(t, command("check", "-c", path)))
	if code, want := p.wait(), "levee: "+path+": permission denied\n"; code != 2 || p.stderr.String() != want {
		t.Errorf("exit code %d, %q, want %q", code, &p.stderr, want)
	}
}

func TestWithoutAWritableHomeTheDevelopmentCALivesInMemory(t *testing.T) {
	t.Parallel()
	p := launch(t, asNobody(t, command(free...)))
	c := tls.Client(dial(t, p.address()), &tls.Config{InsecureSkipVerify: true}) //nolint:gosec // there is no file with its CA
	if err := echoesOn(c); err != nil {
		t.Error(err)
	}
	p.logged("the development CA is kept in memory only")
}

// cpu returns the time that a process has run, in both kernel and user mode.
func cpu(t *testing.T, pid int) time.Duration {
	t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	// Past the name, which may hold anything, the 12th and 13th field are utime and stime (proc_pid_stat(5)).
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	var user, system int64
	if _, err := fmt.Sscan(fields[11]+" "+fields[12], &user, &system); err != nil {
		t.Fatal(err)
	}
	return time.Duration(user+system) * time.Second / 100 // USER_HZ
}

func TestFewFilesAndManyClients(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("skipped: prlimit and /proc are Linux's")
	}
	need(t, "prlimit")
	const clients = 500
	p := launch(t, exec.Command("prlimit", append([]string{"--nofile=64", levee}, free...)...))
	address := p.address()
	var (
		all   sync.WaitGroup
		leave = make(chan struct{})
		errs  = make(chan error, clients)
		first = make(chan struct{}, clients)
	)
	for range clients {
		all.Go(func() {
			errs <- func() error {
				c, err := net.DialTimeout("tcp", address, patience)
				if err != nil {
					return err
				}
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(2 * patience))
				if err := echoesOn(c); err != nil {
					return err
				}
				first <- struct{}{}
				<-leave
				return nil
			}()
		})
	}
	<-first // the first are served, the others wait
	const look = 2 * time.Second
	before := cpu(t, p.pid())
	<-time.After(look) // what is measured is time
	if busy := cpu(t, p.pid()) - before; busy > look/10 {
		t.Errorf("%v of CPU in %v", busy, look)
	}
	if status, _ := get(t, p.admin("/livez")); status != http.StatusOK {
		t.Errorf("livez: %d", status)
	}
	if s := p.scrape(); s.of("levee_connections_active") >= 64 || !s.addsUp() {
		t.Errorf("%v active", s.of("levee_connections_active"))
	}
	close(leave)
	all.Wait()
	for range clients {
		if err := <-errs; err != nil {
			t.Errorf("not served: %v", err)
		}
	}
	eventually(t, "all are gone", func() bool {
		s := p.scrape()
		return s.of("levee_connections_active") == 0 && s.of("levee_connections_accepted_total") == clients && s.addsUp()
	})
}

func TestGarbageEndsItsOwnConnectionOnly(t *testing.T) {
	t.Parallel()
	p := start(t, free...)
	address := p.address()
	random := make([]byte, 1<<16)
	rand.NewChaCha8([32]byte{7}).Read(random)
	random[0] = 0xff // neither TLS nor HTTP: it is echoed
	tests := []struct {
		name    string
		garbage []byte
		reason  string
		answer  string // how it begins
	}{
		{"random bytes", random, "client_closed", string(random[:16])},
		{"zeros", make([]byte, 1<<20), "client_closed", "\x00\x00"},
		{"like TLS", append([]byte{22, 3, 1, 0, 200, 1, 0, 0, 196}, random[:200]...), "tls_failed", "\x15\x03"},
		{"like TLS, a record too large", append([]byte{22, 3, 1, 255, 255}, random...), "tls_failed", ""},
		{"like HTTP", []byte("GET \x00\xff HTTP/9.9\r\n\x01\r\n\r\n"), "handler_closed", "HTTP/1.1 400 Bad Request\r\n"},
		{"like HTTP, a head too large", []byte("GET / HTTP/1.1\r\nX: " + strings.Repeat("x", 1<<18)), "handler_closed", "HTTP/1.1 431 "},
		{"like HTTP/2", []byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff\xff\xff\xff\xff"), "handler_closed", ""},
	}
	bystander := dial(t, address)
	for _, test := range tests {
		before := p.scrape()
		c := dial(t, address)
		go func() { // ends with c
			_, _ = c.Write(test.garbage)
			_ = c.(*net.TCPConn).CloseWrite()
		}()
		got, _ := io.ReadAll(c) // a reset is fine
		if !strings.HasPrefix(string(got), test.answer) {
			t.Errorf("%s: the answer is %.40q", test.name, got)
		}
		c.Close()
		eventually(t, test.name+" ends as "+test.reason, func() bool {
			s := p.scrape()
			return s.closed(test.reason) == before.closed(test.reason)+1 && s.of("levee_connections_active") == 1
		})
		if err := echoesOn(bystander); err != nil {
			t.Errorf("%s: somebody else is hit: %v", test.name, err)
		}
	}
	if n := p.scrape().of("levee_handler_panics_total"); n != 0 {
		t.Errorf("%v panics", n)
	}
}

func TestClientsThatAreSilentOrSlowAreReaped(t *testing.T) {
	t.Parallel()
	const (
		each    = 50
		arrival = time.Second
	)
	p := start(t, "serve", "-c", config(t, "", `tls: {mode: optional, development: true}
    timeouts: {arrival: 1s, sniff: 1s}`))
	address := p.address()
	var all sync.WaitGroup
	for i := range 2 * each {
		began := time.Now()
		c := dial(t, address)
		all.Go(func() {
			_, _ = io.Copy(io.Discard, c)
			if took := time.Since(began); took < arrival || took > 2*arrival {
				t.Errorf("client %d is reaped after %v", i, took)
			}
		})
		if i < each {
			continue // silent
		}
		all.Go(func() { // a byte of a ClientHello now and then
			drip := time.NewTicker(50 * time.Millisecond)
			defer drip.Stop()
			hello := append([]byte{22, 3, 1, 1, 0, 1, 0, 0, 252, 3, 3}, make([]byte, 300)...)
			for n := range hello {
				if _, err := c.Write(hello[n : n+1]); err != nil {
					return
				}
				<-drip.C
			}
		})
	}
	slowest, probes := time.Duration(0), 0
	for began := time.Now(); time.Since(began) < arrival; probes++ {
		asked := time.Now()
		if err := echoes(address); err != nil {
			t.Errorf("the probe: %v", err)
		}
		slowest = max(slowest, time.Since(asked))
	}
	if slowest > arrival/2 {
		t.Errorf("one of %d probes took %v", probes, slowest)
	}
	all.Wait()
	eventually(t, "all are counted as arrival_timeout", func() bool { return p.scrape().closed("arrival_timeout") == 2*each })
}

func TestClientInThePROXYHeaderIsTheOneInTheLog(t *testing.T) {
	t.Parallel()
	p := start(t, "serve", "-c", config(t, "telemetry: {logs: {level: debug}}", "proxy_protocol: {from: [127.0.0.1]}"))
	client6, server6 := netip.MustParseAddr("2001:db8::7").As16(), netip.MustParseAddr("2001:db8::1").As16()
	version2 := append([]byte("\r\n\r\n\x00\r\nQUIT\n\x21\x21\x00\x24"), client6[:]...)
	version2 = append(version2, server6[:]...)
	version2 = binary16(binary16(version2, 4321), 443)
	for client, header := range map[string]string{
		"192.0.2.7:1234":     "PROXY TCP4 192.0.2.7 192.0.2.1 1234 80\r\n",
		"[2001:db8::7]:4321": string(version2),
	} {
		c := dial(t, p.address())
		send(t, c, header)
		if err := echoesOn(c); err != nil {
			t.Fatal(err)
		}
		c.Close()
		line := p.find(&p.stderr, `^(.*"client":"`+strings.NewReplacer(".", `\.`, "[", `\[`, "]", `\]`).Replace(client)+`".*)\n`)
		if !strings.Contains(line, `"reason":"client_closed"`) {
			t.Error(line)
		}
	}
	c := dial(t, p.address())
	send(t, c, "hello, no header\n")
	if got, _ := io.ReadAll(c); len(got) != 0 {
		t.Errorf("served without a header: %q", got)
	}
	p.find(&p.stderr, `^.*"reason":"proxy_header_invalid".*\n`)
}

func binary16(b []byte, n uint16) []byte { return binary.BigEndian.AppendUint16(b, n) }
