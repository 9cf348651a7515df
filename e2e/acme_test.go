package e2e

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/redis/rueidis"

	"github.com/levee-net/levee/certs/acme"
	"github.com/levee-net/levee/certs/acme/redisstorage"
)

// The authority looks for its answers on the very port that is under load.
func TestACMEIssuesByTLSALPNWhileItServes(t *testing.T) {
	t.Parallel()
	a := newPebble(t, nil).run(t)
	s := a.source(t, "db.example.com", "Mail.Example.com.")
	f := serveEcho(t, a.tlsPort, s)
	load := f.load(t, f.steady())
	work(t, s)
	awaitValid(t, s)
	load.stopped(t)

	roots := a.roots(t)
	for _, name := range []string{"db.example.com", "mail.example.com"} {
		c, err := f.connect(&tls.Config{RootCAs: roots, ServerName: name, NextProtos: []string{"echo"}})
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
	if a.issued() != 2 || a.accounts() != 1 {
		t.Errorf("%d certificates were issued to %d accounts", a.issued(), a.accounts())
	}
}

func TestACMEIssuesByHTTPWhileItServes(t *testing.T) {
	t.Parallel()
	a := newPebble(t, nil).run(t)
	s := a.source(t, "db.example.com")
	s.Challenges = []acme.Challenge{acme.HTTP01}
	f := serveEcho(t, freePorts(t, 1)[0], s) // not where the authority could come by TLS
	serveHTTP(t, a.httpPort, s)
	load := f.load(t, f.steady())
	work(t, s)
	awaitValid(t, s)
	load.stopped(t)

	c, err := f.connect(&tls.Config{RootCAs: a.roots(t), ServerName: "db.example.com", NextProtos: []string{"echo"}})
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}

func serveHTTP(t *testing.T, port string, s *acme.Source) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:"+port)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: s.HTTPHandler(), ReadHeaderTimeout: patience}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(l) }() // until the clean-up
	t.Cleanup(func() {
		server.Close()
		<-ended
	})
}

func TestACMEIssuesAWildcardByDNS(t *testing.T) {
	t.Parallel()
	a := newPebble(t, nil).run(t)
	s := a.source(t, "*.example.com")
	s.DNS, s.Resolvers = a.zone, []string{a.zone.address}
	f := serveEcho(t, freePorts(t, 1)[0], s)
	work(t, s)
	awaitValid(t, s)
	c, err := f.connect(&tls.Config{RootCAs: a.roots(t), ServerName: "any.example.com", NextProtos: []string{"echo"}})
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	a.zone.mu.Lock()
	defer a.zone.mu.Unlock()
	if a.zone.set != 1 || len(a.zone.txt) != 0 {
		t.Errorf("%d records were set, and there are still %v", a.zone.set, a.zone.txt)
	}
}

func TestACMERenewsWithoutLosingAConnection(t *testing.T) {
	t.Parallel()
	a := newPebble(t, map[string]any{"profiles": map[string]any{"default": map[string]any{"validityPeriod": 20}}}).run(t)
	s := a.source(t, "db.example.com")
	changed := make(chan struct{}, 8)
	s.Changed = func() { changed <- struct{}{} }
	f := serveEcho(t, a.tlsPort, s)
	work(t, s)
	awaitValid(t, s)
	<-changed
	first := s.Certificates()[0]

	load := f.load(t, &tls.Config{RootCAs: a.roots(t), ServerName: "db.example.com", NextProtos: []string{"echo"}})
	for range 2 {
		select {
		case <-changed:
		case <-time.After(30 * time.Second):
			t.Fatalf("not renewed: %+v", s.Certificates())
		}
	}
	load.stopped(t)
	last := s.Certificates()[0]
	if last.Serial == first.Serial || !last.NotAfter.After(first.NotAfter) || last.Issued != 3 || last.Failed != 0 {
		t.Errorf("first %+v, then %+v", first, last)
	}
	if len(load.shown) < 2 {
		t.Errorf("clients were shown only %v", load.shown)
	}
	if n := a.count("is a replacement of"); n != 2 {
		t.Errorf("%d orders were replacements", n)
	}
}

// Only one of the machines is where the authority comes to, whichever has ordered.
func TestACMEMachinesThatShareRedisOrderOnce(t *testing.T) {
	t.Parallel()
	need(t, "redis-server")
	address := redis(t)
	a := newPebble(t, nil).run(t)
	names := []string{"a.example.com", "b.example.com", "c.example.com"}
	var machines []*acme.Source
	for range 2 {
		client, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{address}, DisableCache: true})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(client.Close)
		s := a.source(t, names...)
		s.Folder, s.Storage = "", &redisstorage.Storage{Client: client}
		machines = append(machines, s)
	}
	serveEcho(t, a.tlsPort, machines[0])
	f := serveEcho(t, freePorts(t, 1)[0], machines[1])
	for _, s := range machines {
		work(t, s)
	}
	var serials [2][]string
	var orders uint64
	for i, s := range machines {
		awaitValid(t, s)
		for _, info := range s.Certificates() {
			serials[i] = append(serials[i], info.Serial)
			orders += info.Issued
		}
	}
	if strings.Join(serials[0], " ") != strings.Join(serials[1], " ") {
		t.Errorf("they show %q", serials)
	}
	for _, s := range machines {
		for _, info := range s.Certificates() {
			if info.Failed > 0 {
				t.Errorf("at first it failed: %+v", info)
			}
		}
	}
	if orders != 3 || a.issued() != 3 || a.accounts() != 1 {
		t.Errorf("%d ordered; the authority has issued %d to %d accounts", orders, a.issued(), a.accounts())
	}
	c, err := f.connect(&tls.Config{RootCAs: a.roots(t), ServerName: "b.example.com", NextProtos: []string{"echo"}})
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}

func TestACMEMachinesThatShareRedisRenewOnce(t *testing.T) {
	t.Parallel()
	need(t, "redis-server")
	address := redis(t)
	a := newPebble(t, map[string]any{"profiles": map[string]any{"default": map[string]any{"validityPeriod": 20}}}).run(t)
	var machines []*acme.Source
	for range 2 {
		client, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{address}, DisableCache: true})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(client.Close)
		s := a.source(t, "db.example.com")
		s.Folder, s.Storage = "", &redisstorage.Storage{Client: client}
		s.Interval = 20 * time.Millisecond // so that they are of one mind before the next renewal
		machines = append(machines, s)
	}
	serveEcho(t, a.tlsPort, machines[1])
	for _, s := range machines {
		if err := s.Load(); err != nil {
			t.Fatal(err)
		}
	}
	for _, s := range machines {
		work(t, s)
		awaitValid(t, s)
	}
	first := machines[0].Certificates()[0].Serial
	late := time.Now().Add(30 * time.Second)
	look := time.NewTicker(10 * time.Millisecond)
	defer look.Stop()
	for {
		x, y := machines[0].Certificates()[0], machines[1].Certificates()[0]
		if x.Serial != first && y.Serial == x.Serial && !x.Ordering && !y.Ordering {
			if a.issued() != 2 || x.Failed+y.Failed > 0 {
				t.Errorf("issued %d: %+v %+v", a.issued(), x, y)
			}
			return
		}
		if time.Now().After(late) {
			t.Fatalf("not renewed: %+v %+v", x, y)
		}
		<-look.C
	}
}

func TestACMEAnAuthorityThatIsAwayIsToldTriedAgainAndStopsNothing(t *testing.T) {
	t.Parallel()
	a := newPebble(t, nil) // not running yet
	s := a.source(t, "db.example.com")
	told := make(chan error, 100)
	s.Problem = func(err error) { told <- err }
	f := serveEcho(t, a.tlsPort, s)
	load := f.load(t, f.steady())
	work(t, s)
	for range 3 {
		select {
		case err := <-told:
			if !strings.Contains(err.Error(), "certificate for db.example.com") || !strings.Contains(err.Error(), "; next try in ") {
				t.Errorf("told %v", err)
			}
		case <-time.After(patience):
			t.Fatal("nothing told")
		}
	}
	if info := s.Certificates()[0]; info.State != acme.Missing || info.Err == nil || info.Failed < 3 || info.Next.IsZero() {
		t.Errorf("it stands so: %+v", info)
	}
	_, err := f.connect(&tls.Config{InsecureSkipVerify: true, ServerName: "db.example.com", NextProtos: []string{"echo"}})
	if err == nil || !strings.Contains(err.Error(), "internal error") {
		t.Errorf("without a certificate a client gets %v", err)
	}
	a.run(t)
	awaitValid(t, s)
	load.stopped(t)
	if info := s.Certificates()[0]; info.Err != nil || info.Issued != 1 {
		t.Errorf("then it stands so: %+v", info)
	}
}

func TestACMECertificatesAndAccountOutliveARestart(t *testing.T) {
	t.Parallel()
	a := newPebble(t, nil).run(t)
	s := a.source(t, "db.example.com")
	folder := s.Folder
	t.Run("before", func(t *testing.T) {
		serveEcho(t, a.tlsPort, s)
		stop := work(t, s)
		awaitValid(t, s)
		stop()
	})
	serial := s.Certificates()[0].Serial

	t.Run("the authority is not needed", func(t *testing.T) {
		again := a.source(t, "db.example.com")
		again.Folder = folder
		again.Directory = a.directory
		if err := again.Load(); err != nil {
			t.Fatal(err)
		}
		if info := again.Certificates()[0]; info.State != acme.Valid || info.Serial != serial {
			t.Errorf("after a restart it stands so: %+v", info)
		}
	})

	t.Run("another name, the same account", func(t *testing.T) {
		more := a.source(t, "db.example.com", "more.example.com")
		more.Folder = folder
		serveEcho(t, a.tlsPort, more)
		work(t, more)
		awaitValid(t, more)
		if a.issued() != 2 || a.accounts() != 1 || more.Certificates()[0].Serial != serial {
			t.Errorf("issued %d, %d accounts, %+v", a.issued(), a.accounts(), more.Certificates())
		}
	})
	private(t, folder)
}

// private fails the test if anybody else could read what is in the folder.
func private(t *testing.T, folder string) {
	t.Helper()
	files := 0
	err := walk(folder, func(path string, mode os.FileMode) {
		files++
		if mode.IsDir() && mode.Perm() != 0o700 && path != folder || mode.IsRegular() && mode.Perm() != 0o600 {
			t.Errorf("%s has mode %v", path, mode)
		}
	})
	if err != nil || files < 8 {
		t.Errorf("%d files, %v", files, err)
	}
}

func TestACMEStrangersNeverSetAnOrderGoing(t *testing.T) {
	t.Parallel()
	a := newPebble(t, nil).run(t)
	s := a.source(t, "db.example.com")
	f := serveEcho(t, a.tlsPort, s)
	work(t, s)
	awaitValid(t, s)
	before := a.orders()
	for _, name := range []string{"evil.example.com", "example.com", "db.example.com.evil.example", "xn--db-.example.com", "a.db.example.com"} {
		for _, protocols := range [][]string{{"echo"}, nil, {"acme-tls/1"}, {"acme-tls/1", "echo"}} {
			_, err := f.connect(&tls.Config{InsecureSkipVerify: true, ServerName: name, NextProtos: protocols})
			if err == nil || !strings.Contains(err.Error(), "unrecognized name") {
				t.Errorf("%s %q: %v", name, protocols, err)
			}
		}
	}
	// And of a name that is ours, nobody gets served by way of acme-tls/1.
	_, err := f.connect(&tls.Config{InsecureSkipVerify: true, ServerName: "db.example.com", NextProtos: []string{"acme-tls/1"}})
	if err == nil || !strings.Contains(err.Error(), "unrecognized name") {
		t.Errorf("acme-tls/1: %v", err)
	}
	if n := a.orders(); n != before || n != 1 {
		t.Errorf("%d orders, before the strangers %d", n, before)
	}
}

func TestACMEAccountsAreBoundToExternalOnes(t *testing.T) {
	t.Parallel()
	const key = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W"
	a := newPebble(t, map[string]any{"externalAccountBindingRequired": true, "externalAccountMACKeys": map[string]string{"kid-1": key}}).run(t)
	s := a.source(t, "db.example.com")
	told := make(chan error, 100)
	s.Problem = func(err error) { told <- err }
	serveEcho(t, a.tlsPort, s)
	stop := work(t, s)
	if err := <-told; !strings.Contains(err.Error(), "externalAccountRequired") {
		t.Errorf("without one told %v", err)
	}
	stop()

	s = a.source(t, "db.example.com")
	s.EAB = &acme.EAB{KeyID: "kid-1", Key: key}
	s.Challenges = []acme.Challenge{acme.HTTP01}
	serveHTTP(t, a.httpPort, s)
	work(t, s)
	awaitValid(t, s)
}

func TestACMERunEndsInTheMiddleOfAnOrder(t *testing.T) {
	t.Parallel()
	hole, err := net.Listen("tcp", "127.0.0.1:0") // accepts and says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer hole.Close()
	s := &acme.Source{Domains: []string{"db.example.com"}, Agreed: true, Directory: "https://" + hole.Addr().String(), Folder: t.TempDir()}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	c, err := hole.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	cancel()
	select {
	case err := <-ended:
		if !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	case <-time.After(patience):
		t.Error("Run does not end")
	}
}
