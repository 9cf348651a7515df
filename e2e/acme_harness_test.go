package e2e

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libdns/libdns"
	"github.com/miekg/dns"

	library "github.com/levee-net/levee"
	"github.com/levee-net/levee/certs"
	"github.com/levee-net/levee/certs/acme"
	"github.com/levee-net/levee/leveetest"
)

// buildPebble builds the authority, once.
var buildPebble = sync.OnceValues(func() (string, error) {
	path := filepath.Join(filepath.Dir(levee), "pebble")
	out, err := exec.Command("go", "build", "-o", path, "github.com/letsencrypt/pebble/v2/cmd/pebble").CombinedOutput()
	if err != nil {
		err = fmt.Errorf("building pebble: %w\n%s", err, out)
	}
	return path, err
})

// A pebble is an ACME authority that issues to whoever answers on 127.0.0.1.
type pebble struct {
	*process
	directory string
	trusted   *x509.CertPool // for the directory
	tlsPort   string         // where it looks for answers
	httpPort  string
	zone      *txtZone

	address          string // of the directory
	port, management string
	files            [2]string // the directory's certificate and key
	settings         map[string]any
}

// newPebble chooses ports and does not start yet.
func newPebble(t *testing.T, settings map[string]any) *pebble {
	t.Helper()
	return newPebbleAt(t, "127.0.0.1", settings)
}

// newPebbleAt chooses ports too, for one that is reached at an address of this machine, and looks for answers there.
func newPebbleAt(t *testing.T, address string, settings map[string]any) *pebble {
	t.Helper()
	ca := leveetest.NewCA(t)
	ports := freePorts(t, 4)
	a := &pebble{
		trusted: ca.Pool(), port: ports[0], management: ports[1], tlsPort: ports[2], httpPort: ports[3],
		address: address, directory: "https://" + address + ":" + ports[0] + "/dir", settings: settings, zone: newTXTZone(t),
	}
	a.files[0], a.files[1] = ca.WriteFiles(t.TempDir(), "127.0.0.1", address)
	return a
}

// run starts it.
func (a *pebble) run(t *testing.T) *pebble {
	t.Helper()
	path, err := buildPebble()
	if err != nil {
		t.Fatal(err)
	}
	number := func(s string) int { n, _ := strconv.Atoi(s); return n }
	settings := map[string]any{
		"listenAddress": "127.0.0.1:" + a.port, "managementListenAddress": "127.0.0.1:" + a.management,
		"certificate": a.files[0], "privateKey": a.files[1],
		"tlsPort": number(a.tlsPort), "httpPort": number(a.httpPort), "keyAlgorithm": "ecdsa",
	}
	maps.Copy(settings, a.settings)
	text, err := json.Marshal(map[string]any{"pebble": settings})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, "-config", write(t, "pebble.json", string(text)), "-dnsserver", a.zone.address)
	cmd.Env = []string{"PEBBLE_VA_NOSLEEP=1", "PEBBLE_AUTHZREUSE=0", "PEBBLE_WFE_NONCEREJECT=5"}
	a.process = listening(t, a.port, cmd)
	a.find(&a.stdout, `(ACME directory available at)`)
	eventually(t, "its management listens, which it says before it does", func() bool {
		c, err := net.Dial("tcp", "127.0.0.1:"+a.management)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	return a
}

// count returns how often it has written that.
func (a *pebble) count(text string) int { return strings.Count(a.stdout.String(), text) }

func (a *pebble) issued() int   { return a.count("Issued certificate serial") }
func (a *pebble) orders() int   { return a.count("Added order") }
func (a *pebble) accounts() int { return a.count("accounts in memory") }

// rootPEM returns the certificate that clients have to trust.
func (a *pebble) rootPEM(t *testing.T) []byte {
	t.Helper()
	// Not by an http.Client: that dials on another thread, which may be in another network namespace.
	c, err := tls.Dial("tcp", "127.0.0.1:"+a.management, &tls.Config{RootCAs: a.trusted})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	status, text, err := getOn(c, "/roots/0")
	if err != nil || status != http.StatusOK {
		t.Fatalf("%d %s: %v", status, text, err)
	}
	return text
}

// getOn makes a request on a connection, the last one.
func getOn(c net.Conn, path string) (status int, body []byte, err error) {
	if _, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n", path); err != nil {
		return 0, nil, err
	}
	answer, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return 0, nil, err
	}
	defer answer.Body.Close()
	body, err = io.ReadAll(answer.Body)
	return answer.StatusCode, body, err
}

// roots returns what clients have to trust.
func (a *pebble) roots(t *testing.T) *x509.CertPool {
	t.Helper()
	text := a.rootPEM(t)
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(text) {
		t.Fatalf("no certificate in %s", text)
	}
	return roots
}

// source returns a Source for it.
func (a *pebble) source(t *testing.T, domains ...string) *acme.Source {
	t.Helper()
	return &acme.Source{
		Domains: domains, Email: "ops@example.com", Agreed: true,
		Directory: a.directory, Roots: a.trusted, Folder: t.TempDir(),
		Retry:   100 * time.Millisecond,
		Problem: func(err error) { t.Log("told:", err) },
		Logger:  slog.New(slog.NewTextHandler(t.Output(), nil)),
	}
}

// work loads and runs a source until the test ends, or stop is called.
func work(t *testing.T, s *acme.Source) (stop func()) {
	t.Helper()
	if err := s.Load(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }() // until stop
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("Run returned %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// awaitValid waits until all names have a valid certificate.
func awaitValid(t *testing.T, s *acme.Source) {
	t.Helper()
	late := time.Now().Add(patience)
	look := time.NewTicker(10 * time.Millisecond)
	defer look.Stop()
	for ; ; <-look.C {
		valid := true
		for _, info := range s.Certificates() {
			valid = valid && info.State == acme.Valid
		}
		if valid {
			return
		}
		if time.Now().After(late) {
			t.Fatalf("no certificate: %+v", s.Certificates())
		}
	}
}

// steady is a name that has a certificate anyway.
const steady = "steady.example.com"

// A front is a levee.Server that echoes, with certificates of a source, and one for steady.
type front struct {
	address string
	ca      *leveetest.CA
}

// serveEcho runs one on 127.0.0.1:port.
func serveEcho(t *testing.T, port string, s *acme.Source, change ...func(*certs.Server)) *front {
	t.Helper()
	f := &front{ca: leveetest.NewCA(t)}
	own := f.ca.Issue(leveetest.CertificateSpec{Names: []string{steady}})
	settings := &certs.Server{
		ALPN: []string{"echo"},
		GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			if hello.ServerName == steady {
				return &own, nil
			}
			return s.GetCertificate(hello)
		},
	}
	for _, c := range change {
		c(settings)
	}
	l, err := net.Listen("tcp", "127.0.0.1:"+port)
	if err != nil {
		t.Fatal(err)
	}
	f.address = l.Addr().String()
	srv := &library.Server{
		TLSConfig: s.Answering(settings.Config()),
		Handler: library.HandlerFunc(func(_ context.Context, c *library.Conn) error {
			if state := c.TLS(); state == nil || state.NegotiatedProtocol != "echo" {
				t.Errorf("served %+v", state)
			}
			_, err := io.Copy(c, c)
			return err
		}),
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- srv.Serve(ctx, l) }() // until the clean-up
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Serve returned %v", err)
		}
	})
	return f
}

func (f *front) steady() *tls.Config {
	c := f.ca.ClientConfig(steady)
	c.NextProtos = []string{"echo"}
	return c
}

// connect makes a connection and has it echo.
func (f *front) connect(config *tls.Config) (*tls.Conn, error) {
	c, err := tls.DialWithDialer(&net.Dialer{Timeout: patience}, "tcp", f.address, config)
	if err != nil {
		return nil, err
	}
	_ = c.SetDeadline(time.Now().Add(patience))
	if err := echoesOn(c); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// A load is connections that come and go, and some that stay.
type load struct {
	stop   context.CancelFunc
	done   sync.WaitGroup
	made   atomic.Int64
	mu     sync.Mutex
	failed []error
	shown  map[string]bool // serials
}

// load begins; stopped ends it, and fails the test if any connection has failed.
func (f *front) load(t *testing.T, config *tls.Config) *load {
	ctx, stop := context.WithCancel(context.Background())
	t.Cleanup(stop)
	l := &load{stop: stop, shown: make(map[string]bool)}
	for range 4 {
		l.done.Go(func() { l.come(ctx, f, config) })
	}
	for range 8 {
		l.done.Go(func() { l.stay(ctx, f, config) })
	}
	return l
}

func (l *load) fail(err error) {
	l.mu.Lock()
	l.failed = append(l.failed, err)
	l.mu.Unlock()
}

func (l *load) come(ctx context.Context, f *front, config *tls.Config) {
	for ctx.Err() == nil {
		c, err := f.connect(config)
		if err != nil {
			l.fail(err)
			return // one is enough
		}
		l.made.Add(1)
		l.mu.Lock()
		l.shown[c.ConnectionState().PeerCertificates[0].SerialNumber.Text(16)] = true
		l.mu.Unlock()
		c.Close()
	}
}

func (l *load) stay(ctx context.Context, f *front, config *tls.Config) {
	c, err := f.connect(config)
	if err != nil {
		l.fail(err)
		return
	}
	defer c.Close()
	pause := time.NewTicker(5 * time.Millisecond)
	defer pause.Stop()
	for ctx.Err() == nil {
		_ = c.SetDeadline(time.Now().Add(patience))
		if err := echoesOn(c); err != nil {
			l.fail(fmt.Errorf("a connection that stays: %w", err))
			return
		}
		<-pause.C
	}
}

func (l *load) stopped(t *testing.T) {
	t.Helper()
	l.stop()
	l.done.Wait()
	if len(l.failed) > 0 {
		t.Errorf("%d connections failed, the first with %v", len(l.failed), l.failed[0])
	}
	if l.made.Load() < 10 {
		t.Errorf("only %d connections were made", l.made.Load())
	}
	t.Logf("%d connections, %d certificates seen", l.made.Load(), len(l.shown))
}

// A txtZone is example.com: every name of it is at one address, and TXT records are what is
// set through libdns.
type txtZone struct {
	address string
	leads   string // the A record of every name

	mu  sync.Mutex
	txt map[string][]string // by name
	set int
}

func newTXTZone(t *testing.T) *txtZone {
	t.Helper()
	z := &txtZone{leads: "127.0.0.1", txt: make(map[string][]string)}
	l, err := net.Listen("tcp", "127.0.0.1:0") // pebble asks by TCP, certmagic by UDP
	if err != nil {
		t.Fatal(err)
	}
	z.address = l.Addr().String()
	socket, err := net.ListenPacket("udp", z.address)
	if err != nil {
		t.Fatal(err)
	}
	var servers sync.WaitGroup
	for _, server := range []*dns.Server{{Listener: l, Handler: z}, {PacketConn: socket, Handler: z}} {
		servers.Go(func() { _ = server.ActivateAndServe() }) // until the clean-up
	}
	t.Cleanup(func() {
		l.Close()
		socket.Close()
		servers.Wait()
	})
	return z
}

func (z *txtZone) ServeDNS(w dns.ResponseWriter, question *dns.Msg) {
	answer := new(dns.Msg).SetReply(question)
	answer.Authoritative = true
	q := question.Question[0]
	add := func(text string) {
		if rr, err := dns.NewRR(text); err == nil {
			answer.Answer = append(answer.Answer, rr)
		}
	}
	switch {
	case q.Qtype == dns.TypeA:
		add(q.Name + " 1 IN A " + z.leads)
	case q.Qtype == dns.TypeSOA && q.Name == "example.com.":
		add("example.com. 1 IN SOA ns.example.com. ops.example.com. 1 1 1 1 1")
	case q.Qtype == dns.TypeTXT:
		z.mu.Lock()
		for _, text := range z.txt[strings.ToLower(q.Name)] {
			add(q.Name + " 1 IN TXT " + strconv.Quote(text))
		}
		z.mu.Unlock()
	}
	_ = w.WriteMsg(answer)
}

func (z *txtZone) AppendRecords(_ context.Context, in string, records []libdns.Record) ([]libdns.Record, error) {
	z.mu.Lock()
	defer z.mu.Unlock()
	for _, r := range records {
		rr := r.RR()
		name := libdns.AbsoluteName(rr.Name, in)
		z.txt[name] = append(z.txt[name], rr.Data)
		z.set++
	}
	return records, nil
}

func (z *txtZone) DeleteRecords(_ context.Context, in string, records []libdns.Record) ([]libdns.Record, error) {
	z.mu.Lock()
	defer z.mu.Unlock()
	for _, r := range records {
		delete(z.txt, libdns.AbsoluteName(r.RR().Name, in))
	}
	return records, nil
}

// walk visits everything in a folder.
func walk(folder string, visit func(path string, mode os.FileMode)) error {
	return filepath.WalkDir(folder, func(path string, entry os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err == nil {
			visit(path, info.Mode())
		}
		return err
	})
}
