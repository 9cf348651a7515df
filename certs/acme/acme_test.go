package acme

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/mholt/acmez/v3"
	"github.com/mholt/acmez/v3/acme"
	"go.uber.org/goleak"
	"go.uber.org/zap"

	"github.com/levee-net/levee/certs"
	"github.com/levee-net/levee/leveetest"
)

// certmagic's file locks are renewed by a goroutine that notices their end within 5 seconds.
func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/caddyserver/certmagic.keepLockfileFresh"))
}

const patience = 15 * time.Second

// loaded returns a source that is loaded, with a directory that is not to be asked.
func loaded(t *testing.T, domains ...string) *Source {
	t.Helper()
	s := &Source{Domains: domains, Agreed: true, Folder: t.TempDir(), Directory: "https://127.0.0.1:1/dir"}
	if err := s.Load(); err != nil {
		t.Fatal(err)
	}
	return s
}

// keep puts a certificate for the name into the source's folder, as an order would.
func keep(t *testing.T, s *Source, name string, ca *leveetest.CA, spec leveetest.CertificateSpec) tls.Certificate {
	t.Helper()
	spec.Names = []string{name}
	cert := ca.Issue(spec)
	certFile, keyFile := ca.WriteFilesOf(t.TempDir(), cert)
	storage, key := &certmagic.FileStorage{Path: s.Folder}, issuerKey(s.Directory)
	for from, to := range map[string]string{
		certFile: certmagic.StorageKeys.SiteCert(key, name),
		keyFile:  certmagic.StorageKeys.SitePrivateKey(key, name),
	} {
		text, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		if err := storage.Store(t.Context(), to, text); err != nil {
			t.Fatal(err)
		}
	}
	if err := storage.Store(t.Context(), certmagic.StorageKeys.SiteMeta(key, name), []byte(`{"sans":["`+name+`"]}`)); err != nil {
		t.Fatal(err)
	}
	return cert
}

func TestLoadSaysWhatIsWrong(t *testing.T) {
	good := func() *Source {
		return &Source{Domains: []string{"db.example.com"}, Agreed: true, Folder: t.TempDir()}
	}
	if err := good().Load(); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(*Source){
		"no domain given":                                               func(s *Source) { s.Domains = nil },
		"terms of service are not agreed to":                            func(s *Source) { s.Agreed = false },
		"no folder given, nor a storage":                                func(s *Source) { s.Folder = "" },
		"both a folder and a storage":                                   func(s *Source) { s.Storage = &certmagic.FileStorage{} },
		"not a directory":                                               func(s *Source) { s.Folder = file },
		`domain "10.0.0.1": server name 10.0.0.1: an address`:           func(s *Source) { s.Domains = []string{"10.0.0.1"} },
		`domain "a b"`:                                                  func(s *Source) { s.Domains = []string{"a b"} },
		"domain *.example.com: a wildcard can only be proven by dns-01": func(s *Source) { s.Domains = []string{"*.Example.com"} },
		"challenge dns-01: no DNS provider":                             func(s *Source) { s.Challenges = []Challenge{DNS01} },
		`challenge "dns": there are tls-alpn-01, http-01 and dns-01`:    func(s *Source) { s.Challenges = []Challenge{"dns"} },
		"directory http://ca.example.com/dir: not an https:// address":  func(s *Source) { s.Directory = "http://ca.example.com/dir" },
		"staging is Let's Encrypt's":                                    func(s *Source) { s.Directory, s.Staging = LetsEncrypt, true },
		"an external account needs both its key and the key's ID":       func(s *Source) { s.EAB = &EAB{KeyID: "kid"} },
	} {
		s := good()
		change(s)
		if err := s.Load(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Load returned %v, want %q", err, want)
		}
		if err := s.Run(t.Context()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Run returned %v, want %q", err, want)
		}
	}
}

func TestTheDirectoryIsLetsEncryptUnlessSaidOtherwise(t *testing.T) {
	for want, s := range map[string]*Source{
		LetsEncrypt:                  {},
		LetsEncryptStaging:           {Staging: true},
		"https://ca.example.com/dir": {Directory: "https://ca.example.com/dir"},
	} {
		if got, err := s.directory(); got != want || err != nil {
			t.Errorf("%+v: %s, %v", s, got, err)
		}
	}
}

func TestWhatTheStorageHasIsServedAtOnce(t *testing.T) {
	ca := leveetest.NewCA(t)
	s := &Source{Domains: []string{"DB.Example.com.", "gone.example.com", "none.example.com"}, Agreed: true, Folder: t.TempDir(), Directory: "https://127.0.0.1:1/dir"}
	cert := keep(t, s, "db.example.com", ca, leveetest.CertificateSpec{})
	keep(t, s, "gone.example.com", ca, leveetest.CertificateSpec{NotAfter: time.Now().Add(-time.Hour)})
	hello := func(name string) *tls.ClientHelloInfo { return &tls.ClientHelloInfo{ServerName: name} }
	if _, err := s.GetCertificate(hello("db.example.com")); err != errNotLoaded {
		t.Errorf("before Load: %v", err)
	}
	if got := s.Certificates(); got != nil {
		t.Errorf("before Load: %v", got)
	}
	for range 2 { // a second Load changes nothing
		if err := s.Load(); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"db.example.com", "DB.EXAMPLE.COM", "db.example.com.", ""} {
		if got, err := s.GetCertificate(hello(name)); err != nil || got == nil || !got.Leaf.Equal(cert.Leaf) {
			t.Errorf("%q is shown %v, %v", name, got, err)
		}
	}
	for _, name := range []string{"evil.example.com", "example.com", "x.db.example.com", "db.example.com..", "127.0.0.1", ".example.com", "*.example.com"} {
		if got, err := s.GetCertificate(hello(name)); got != nil || err != nil {
			t.Errorf("%q is shown %v, %v", name, got, err)
		}
	}
	for name, want := range map[string]error{"gone.example.com": errExpired, "none.example.com": errNone} {
		if got, err := s.GetCertificate(hello(name)); got != nil || err != want {
			t.Errorf("%q is shown %v, %v", name, got, err)
		}
	}
	var states []State
	for _, info := range s.Certificates() {
		states = append(states, info.State)
	}
	if !slices.Equal(states, []State{Valid, Expired, Missing}) {
		t.Errorf("it stands so: %q", states)
	}
	if n := testing.AllocsPerRun(100, func() { _, _ = s.GetCertificate(hello("db.example.com")) }); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestAWildcardIsForOneLabel(t *testing.T) {
	s := &Source{Domains: []string{"*.example.com", "db.example.com"}, Agreed: true, Folder: t.TempDir(), Directory: "https://127.0.0.1:1/dir", DNS: noDNS{}}
	ca := leveetest.NewCA(t)
	wildcard := keep(t, s, "*.example.com", ca, leveetest.CertificateSpec{})
	own := keep(t, s, "db.example.com", ca, leveetest.CertificateSpec{})
	if err := s.Load(); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]*x509.Certificate{"db.example.com": own.Leaf, "a.example.com": wildcard.Leaf, "a.b.example.com": nil, "example.com": nil} {
		got, err := s.GetCertificate(&tls.ClientHelloInfo{ServerName: name})
		if err != nil || (got == nil) != (want == nil) || got != nil && !got.Leaf.Equal(want) {
			t.Errorf("%s is shown %v, %v", name, got, err)
		}
	}
}

type noDNS struct{ certmagic.DNSProvider }

func TestWhatIsStoredAndBrokenIsTold(t *testing.T) {
	var told []error
	s := &Source{
		Domains: []string{"db.example.com"}, Agreed: true, Folder: t.TempDir(), Directory: "https://127.0.0.1:1/dir",
		Problem: func(err error) { told = append(told, err) },
	}
	key := certmagic.StorageKeys.SiteCert(issuerKey(s.Directory), "db.example.com")
	storage := &certmagic.FileStorage{Path: s.Folder}
	keep(t, s, "db.example.com", leveetest.NewCA(t), leveetest.CertificateSpec{})
	if err := storage.Store(t.Context(), key, []byte("no PEM")); err != nil {
		t.Fatal(err)
	}
	if err := s.Load(); err != nil {
		t.Fatal(err)
	}
	if len(told) != 1 || !strings.Contains(told[0].Error(), "certificate for db.example.com: what is stored: ") {
		t.Errorf("told %q", told)
	}
}

// handshake makes one, and returns what each side has come to know.
func handshake(server, client *tls.Config) (state tls.ConnectionState, clientErr, serverErr error) {
	c, s := leveetest.Pipe()
	served := make(chan error, 1)
	go func() { // until the handshake has ended one way or the other
		defer s.Close()
		conn := tls.Server(s, server)
		err := conn.Handshake()
		if err == nil {
			_, err = conn.Write([]byte{1})
		}
		served <- err
	}()
	conn := tls.Client(c, client)
	clientErr = conn.Handshake()
	state = conn.ConnectionState()
	if clientErr == nil && !slices.Equal(client.NextProtos, []string{acmez.ACMETLS1Protocol}) {
		_, clientErr = conn.Read(make([]byte, 1))
	}
	c.Close()
	return state, clientErr, <-served
}

func challenge(kind Challenge, name string) acme.Challenge {
	return acme.Challenge{
		Type: string(kind), Token: "token", KeyAuthorization: "token.thumbprint",
		Identifier: acme.Identifier{Type: "dns", Value: name},
	}
}

// The policy asks for client certificates and a protocol; neither the authority nor a
// stranger in its clothes has them, and neither is served.
func TestAChallengeIsAnsweredAndServesNobody(t *testing.T) {
	ca := leveetest.NewCA(t)
	s := loaded(t, "db.example.com", "other.example.com")
	own := ca.Issue(leveetest.CertificateSpec{Names: []string{"db.example.com"}})
	clients := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(clients, ca.PEM(), 0o600); err != nil {
		t.Fatal(err)
	}
	policy := &certs.Clients{CAs: []string{clients}}
	if err := policy.Load(); err != nil {
		t.Fatal(err)
	}
	plain := (&certs.Server{
		ALPN: []string{"echo"}, Clients: policy,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &own, nil },
	}).Config()
	config := s.Answering(plain)
	authority := func(name string) *tls.Config {
		return &tls.Config{InsecureSkipVerify: true, ServerName: name, NextProtos: []string{acmez.ACMETLS1Protocol}}
	}
	refused := func(when string, client *tls.Config, want string) {
		t.Helper()
		if _, err, _ := handshake(config, client); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", when, err, want)
		}
	}

	refused("before there is a challenge", authority("db.example.com"), "unrecognized name")
	c := challenge(TLSALPN01, "db.example.com")
	pending := s.loaded.Load().pending
	if err := pending.Present(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	state, clientErr, serverErr := handshake(config, authority("DB.example.com"))
	if clientErr != nil || serverErr != errAnswered {
		t.Errorf("the authority gets %v, the server %v", clientErr, serverErr)
	}
	want, err := acmez.TLSALPN01ChallengeCert(c)
	if err != nil {
		t.Fatal(err)
	}
	const acmeIdentifier = "1.3.6.1.5.5.7.1.31" // RFC 8737 section 6.1
	if state.NegotiatedProtocol != acmez.ACMETLS1Protocol || len(state.PeerCertificates) != 1 ||
		extension(state.PeerCertificates[0], acmeIdentifier) == "" || extension(state.PeerCertificates[0], acmeIdentifier) != extension(want.Leaf, acmeIdentifier) {
		t.Errorf("the authority sees %+v", state)
	}
	refused("another name", authority("other.example.com"), "unrecognized name")
	refused("a stranger's name", authority("evil.example.com"), "unrecognized name")
	twelve := authority("db.example.com")
	twelve.MaxVersion = tls.VersionTLS12
	refused("TLS 1.2, in which the server's last word comes too late", twelve, "protocol version not supported")
	both := authority("db.example.com")
	both.NextProtos = append(both.NextProtos, "echo")
	refused("acme-tls/1 among others is nothing special", both, "certificate required")

	if err := pending.CleanUp(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	refused("after the challenge", authority("db.example.com"), "unrecognized name")

	client := ca.ClientConfig("db.example.com")
	client.NextProtos, client.Certificates = []string{"echo"}, []tls.Certificate{ca.ClientCertificate("client")}
	if state, clientErr, serverErr := handshake(config, client); clientErr != nil || serverErr != nil || state.NegotiatedProtocol != "echo" {
		t.Errorf("a client gets %v, the server %v", clientErr, serverErr)
	}
	if slices.Contains(config.NextProtos, acmez.ACMETLS1Protocol) {
		t.Errorf("its protocols are %q", config.NextProtos)
	}
}

func extension(cert *x509.Certificate, id string) string {
	for _, e := range cert.Extensions {
		if e.Id.String() == id && e.Critical {
			return string(e.Value)
		}
	}
	return ""
}

// The configuration that is wrapped need not be one of certs.
func TestAnsweringLeavesAConfigurationAsItIs(t *testing.T) {
	ca := leveetest.NewCA(t)
	s := loaded(t, "db.example.com")
	config := s.Answering(ca.ServerConfig("db.example.com"))
	client := ca.ClientConfig("db.example.com")
	if _, clientErr, serverErr := handshake(config, client); clientErr != nil || serverErr != nil {
		t.Errorf("a client gets %v, the server %v", clientErr, serverErr)
	}
	empty := new(Source).Answering(ca.ServerConfig("db.example.com"))
	client.NextProtos = []string{acmez.ACMETLS1Protocol}
	if _, err, _ := handshake(empty, client); err == nil || !strings.Contains(err.Error(), "unrecognized name") {
		t.Errorf("before Load: %v", err)
	}
}

func TestHTTPAnswersChallengesAndSendsTheRestToHTTPS(t *testing.T) {
	s := loaded(t, "db.example.com", "other.example.com")
	if err := s.loaded.Load().pending.Present(t.Context(), challenge(HTTP01, "db.example.com")); err != nil {
		t.Fatal(err)
	}
	h := s.HTTPHandler()
	for _, c := range []struct {
		method, url string
		status      int
		body        string
		location    string
	}{
		{"GET", "http://db.example.com/.well-known/acme-challenge/token", 200, "token.thumbprint", ""},
		{"GET", "http://DB.example.com.:8080/.well-known/acme-challenge/token", 200, "token.thumbprint", ""},
		{"POST", "http://db.example.com/.well-known/acme-challenge/token", 404, "", ""},
		{"GET", "http://db.example.com/.well-known/acme-challenge/other", 404, "", ""},
		{"GET", "http://db.example.com/.well-known/acme-challenge/", 404, "", ""},
		{"GET", "http://other.example.com/.well-known/acme-challenge/token", 404, "", ""},
		{"GET", "http://evil.example.com/.well-known/acme-challenge/token", 421, "", ""},
		{"GET", "http://db.example.com/a%2Fb?c=d", 308, "", "https://db.example.com/a%2Fb?c=d"},
		{"POST", "http://other.example.com:8080/", 308, "", "https://other.example.com/"},
		{"GET", "http://db.example.com//evil.example.com", 308, "", "https://db.example.com//evil.example.com"},
		{"GET", "http://evil.example.com/", 421, "", ""},
		{"GET", "http://127.0.0.1/", 421, "", ""},
	} {
		w, r := httptest.NewRecorder(), httptest.NewRequest(c.method, c.url, http.NoBody)
		h.ServeHTTP(w, r)
		if known := s.Known(r.Host); known != (c.status != http.StatusMisdirectedRequest) {
			t.Errorf("%s is known: %t", r.Host, known)
		}
		if w.Code != c.status || c.body != "" && w.Body.String() != c.body || c.status != 200 && strings.Contains(w.Body.String(), "thumbprint") || w.Header().Get("Location") != c.location {
			t.Errorf("%s %s: %d %q, location %q", c.method, c.url, w.Code, w.Body, w.Header().Get("Location"))
		}
	}
	w := httptest.NewRecorder()
	new(Source).HTTPHandler().ServeHTTP(w, httptest.NewRequest("GET", "http://db.example.com/", http.NoBody))
	if w.Code != http.StatusMisdirectedRequest {
		t.Errorf("before Load: %d", w.Code)
	}
	if new(Source).Known("db.example.com") {
		t.Error("known before Load")
	}
}

// shared is a storage that counts, and can be slow.
type shared struct {
	certmagic.Storage
	mu    sync.Mutex
	loads int
	slow  chan struct{} // what a Load waits for, if it is not nil
}

func (s *shared) Load(ctx context.Context, key string) ([]byte, error) {
	s.mu.Lock()
	s.loads++
	slow := s.slow
	s.mu.Unlock()
	if slow != nil {
		<-slow
	}
	return s.Storage.Load(ctx, key)
}

// An authority comes from several places at once, to whichever machine.
func TestAnotherMachinesChallengeIsAnsweredToAllWhoAsk(t *testing.T) {
	folder := t.TempDir()
	storage := &shared{Storage: &certmagic.FileStorage{Path: folder}}
	here, there := newPending(storage, "ca"), newPending(&certmagic.FileStorage{Path: folder}, "ca")
	c := challenge(TLSALPN01, "db.example.com")
	if err := there.Present(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	storage.slow = make(chan struct{})
	var askers sync.WaitGroup
	found := make(chan *proof, 20)
	for range cap(found) {
		askers.Go(func() { found <- here.of(context.Background(), "db.example.com", TLSALPN01) })
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	close(storage.slow)
	askers.Wait()
	close(found)
	for p := range found {
		if p == nil || p.cert == nil || p.KeyAuthorization != c.KeyAuthorization {
			t.Errorf("found %+v", p)
		}
	}
	if p := here.of(t.Context(), "db.example.com", HTTP01); p != nil {
		t.Errorf("it is one of %s too", HTTP01)
	}
	_ = here.of(gone, "db.example.com", TLSALPN01) // whatever comes of it, it ends
	if err := there.CleanUp(gone, c); err != nil {
		t.Fatal(err)
	}
	if p := here.of(t.Context(), "db.example.com", TLSALPN01); p != nil {
		t.Error("it has been taken back, and is answered")
	}
}

// An aside is a connection whose handshake is one of few, but where it waits outside.
type aside struct {
	net.Conn
	outside bool
	err     error // of coming back
}

func (a *aside) WaitOutside(wait func(ctx context.Context)) error {
	a.outside = true
	wait(context.Background())
	a.outside = false
	return a.err
}

// A storage that does not answer is a matter of those who ask for what it may have.
func TestWhoAsksForAnotherMachinesChallengeKeepsNobodyElseWaiting(t *testing.T) {
	s := loaded(t, "db.example.com")
	p := s.loaded.Load().pending
	asked := 0
	conn := new(aside)
	p.storage = loading{p.storage, func() {
		if asked++; !conn.outside {
			t.Error("it waits inside")
		}
	}}
	config := s.Answering(leveetest.NewCA(t).ServerConfig("db.example.com"))
	authority := &tls.Config{InsecureSkipVerify: true, ServerName: "db.example.com", NextProtos: []string{acmez.ACMETLS1Protocol}}
	come := func() error {
		client, server := leveetest.Pipe()
		defer client.Close()
		conn.Conn = server
		go func() { // ends with the pipe
			_ = tls.Client(client, authority).HandshakeContext(t.Context())
			client.Close()
		}()
		return tls.Server(conn, config).HandshakeContext(t.Context())
	}
	conn.err = errors.New("too late")
	if err := come(); err != conn.err || asked != 1 {
		t.Errorf("asked %d times, and then %v", asked, err)
	}
	conn.err = nil
	if err := newPending(p.storage, issuerKey(s.Directory)).Present(t.Context(), challenge(TLSALPN01, "db.example.com")); err != nil {
		t.Fatal(err)
	}
	if err := come(); err != errAnswered || asked != 2 {
		t.Errorf("asked %d times, and answered by %v", asked, err)
	}
}

// loading is a storage that tells of each Load.
type loading struct {
	certmagic.Storage
	told func()
}

func (l loading) Load(ctx context.Context, key string) ([]byte, error) {
	l.told()
	return l.Storage.Load(ctx, key)
}

func TestOneLookForANameGoesOnAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		storage := &shared{Storage: &certmagic.FileStorage{Path: t.TempDir()}, slow: make(chan struct{})}
		p := newPending(storage, "ca")
		var askers sync.WaitGroup
		for range 100 {
			askers.Go(func() { p.of(context.Background(), "db.example.com", TLSALPN01) })
		}
		synctest.Wait()
		if storage.loads != 1 {
			t.Errorf("%d strangers' hellos have cost %d looks", 100, storage.loads)
		}
		close(storage.slow)
		askers.Wait()
	})
}

func TestWhenACertificateIsRenewed(t *testing.T) {
	at := func(h float64) time.Time {
		return time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC).Add(time.Duration(h * float64(time.Hour)))
	}
	for _, c := range []struct {
		name    string
		life    float64 // hours
		advised float64 // 0 for none
		want    float64
	}{
		{"a third of a long life is left", 2160, 0, 1440},
		{"half of a short life is left", 144, 0, 72},
		{"when the authority says", 2160, 100, 100},
		{"the authority says so at once", 2160, 0.5, 0.5},
		{"but not in the last twentieth", 2160, 2150, 2052},
		{"nor after the end", 144, 1000, 136.8},
	} {
		var advice acme.RenewalInfo
		if c.advised != 0 {
			advice.SelectedTime = at(c.advised)
		}
		leaf := &x509.Certificate{NotBefore: at(0), NotAfter: at(c.life)}
		if got := renewal(leaf, advice); got.Sub(at(c.want)).Abs() > time.Second {
			t.Errorf("%s: %s, want %s", c.name, got, at(c.want))
		}
	}
}

func TestWaitsDoubleUpToAnHour(t *testing.T) {
	for before, want := range map[int]time.Duration{0: time.Minute, 1: 2 * time.Minute, 3: 8 * time.Minute, 6: time.Hour, 1000: time.Hour} {
		for range 20 {
			if got := backOff(before, 0); got < want*9/10 || got > want*11/10 {
				t.Errorf("after %d failures before it waits %s, want %s", before, got, want)
			}
		}
	}
	if got := backOff(2, 2*time.Hour); got > 66*time.Minute*2 {
		t.Errorf("it waits %s", got)
	}
}

// A time within a window is chosen once, and a CA that wants everything renewed at once
// does not get a storm of orders.
func TestAdviceIsKeptAndOrdersAreSpaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &name{text: "db.example.com"}
		now := time.Now()
		cert := &tls.Certificate{Leaf: &x509.Certificate{NotBefore: now, NotAfter: now.Add(90 * 24 * time.Hour)}}
		n.put(cert)
		n.ordered(nil, true, 0)
		window := func(selected time.Time) (info acme.RenewalInfo) {
			info.SuggestedWindow.Start, info.SuggestedWindow.End = now.Add(-time.Hour), now
			info.SelectedTime = selected
			return info
		}
		if !n.shouldAsk(now) {
			t.Error("a new certificate's renewal is not asked for")
		}
		n.advised(window(now.Add(-time.Minute)), now)
		n.advised(window(now.Add(-time.Second)), now)
		if got := n.course.advice.SelectedTime; !got.Equal(now.Add(-time.Minute)) {
			t.Errorf("the time is chosen again: %s", got)
		}
		if n.shouldAsk(now.Add(time.Hour)) || !n.shouldAsk(now.Add(6*time.Hour)) {
			t.Error("it is not asked again after six hours")
		}
		if got := n.next(); !got.Equal(now.Add(time.Hour)) {
			t.Errorf("the next order is after %s, want an hour", got.Sub(now))
		}
		n.wake = make(chan struct{}, 1)
		n.revoke()
		if got := n.next(); !got.IsZero() {
			t.Errorf("the next order of a revoked one is at %s", got)
		}
		if info := n.info(now); info.State != Expired {
			t.Errorf("a revoked certificate is %s", info.State)
		}
	})
}

// certmagic may not order on its own account, nor replace what has been replaced.
func TestOrdersThatAreNotNeededAreStopped(t *testing.T) {
	ca := leveetest.NewCA(t)
	s := loaded(t, "db.example.com")
	first := keep(t, s, "db.example.com", ca, leveetest.CertificateSpec{})
	var told []error
	s.Problem = func(err error) { told = append(told, err) }
	r := newRun(s)
	defer r.cache.Stop()
	asked := func(ctx context.Context) error {
		return r.event(ctx, "cert_obtaining", map[string]any{"identifier": "db.example.com"})
	}
	with := func(i *intent) context.Context { return context.WithValue(t.Context(), intentKey{}, i) }
	var final certmagic.ErrNoRetry
	if err := asked(t.Context()); !errors.As(err, &final) {
		t.Errorf("on its own account: %v", err)
	}
	if err := asked(with(&intent{})); err != nil {
		t.Errorf("a first one: %v", err)
	}
	if err := asked(with(&intent{replaces: first.Leaf})); err != nil {
		t.Errorf("a renewal: %v", err)
	}
	keep(t, s, "db.example.com", ca, leveetest.CertificateSpec{})
	if err := asked(with(&intent{replaces: first.Leaf})); !errors.As(err, &final) || !errors.Is(err, errRenewedElsewhere) {
		t.Errorf("after another machine's: %v", err)
	}
	if err := r.event(t.Context(), "cert_ocsp_revoked", map[string]any{"subjects": []string{"db.example.com"}}); err != nil {
		t.Error(err)
	}
	if len(told) != 1 || !r.names[0].revoked {
		t.Errorf("of a revocation told %q", told)
	}
}

// What another machine has put into the storage is taken over, without an order.
func TestRunTakesOverWhatOthersHaveStored(t *testing.T) {
	ca := leveetest.NewCA(t)
	s := &Source{Domains: []string{"db.example.com"}, Agreed: true, Folder: t.TempDir(), Directory: "https://127.0.0.1:1/dir", Interval: 10 * time.Millisecond}
	changed := make(chan struct{}, 1)
	s.Changed = func() { changed <- struct{}{} }
	s.Problem = func(err error) { t.Errorf("told %v", err) }
	keep(t, s, "db.example.com", ca, leveetest.CertificateSpec{})
	if err := s.Load(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }() // until cancel
	next := keep(t, s, "db.example.com", ca, leveetest.CertificateSpec{})
	late := time.After(patience)
	for shown := ""; shown != next.Leaf.SerialNumber.Text(16); shown = s.Certificates()[0].Serial {
		select {
		case <-changed:
		case <-late:
			t.Fatal("nothing has changed")
		}
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// A machine whose order has failed has no certificate, and waits a minute before it orders again. What another machine has
// been issued meanwhile it does not wait for.
func TestAMachineWhoseOrderHasFailedTakesWhatAnotherIsIssued(t *testing.T) {
	told, changed := make(chan error, 10), make(chan struct{}, 1)
	s := &Source{
		Domains: []string{"db.example.com"}, Agreed: true, Folder: t.TempDir(), Directory: "https://127.0.0.1:1/dir",
		Problem: func(err error) { told <- err }, Changed: func() { changed <- struct{}{} },
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }() // until cancel
	select {
	case <-told:
	case <-time.After(patience):
		t.Fatal("no order has failed")
	}
	keep(t, s, "db.example.com", leveetest.NewCA(t), leveetest.CertificateSpec{})
	select {
	case <-changed:
	case <-time.After(patience):
		t.Error("it has no certificate")
	}
	cancel()
	<-ended
	if info := s.Certificates()[0]; info.State != Valid || info.Failed != 1 {
		t.Errorf("it stands so: %+v", info)
	}
}

func TestAnAuthorityThatAnswersNonsenseIsTold(t *testing.T) {
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html>") }))
	defer server.Close()
	roots := x509.NewCertPool()
	roots.AddCert(server.Certificate())
	told := make(chan error, 100)
	s := &Source{
		Domains: []string{"db.example.com"}, Agreed: true, Folder: t.TempDir(), Directory: server.URL, Roots: roots,
		Retry: time.Millisecond, Problem: func(err error) { told <- err },
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }() // until cancel
	for range 3 {
		select {
		case err := <-told:
			if !strings.HasPrefix(err.Error(), "certificate for db.example.com: ") || !strings.Contains(err.Error(), "; next try in ") {
				t.Errorf("told %v", err)
			}
		case <-time.After(patience):
			t.Fatal("nothing told")
		}
	}
	cancel()
	<-ended
	if info := s.Certificates()[0]; info.State != Missing || info.Failed < 3 || info.Issued != 0 {
		t.Errorf("it stands so: %+v", info)
	}
}

func TestTheAccountIsKeptInOnePiece(t *testing.T) {
	s := loaded(t, "db.example.com")
	a := s.loaded.Load().authority
	if _, err := a.loadAccount(t.Context()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("before there is one: %v", err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.saveAccount(t.Context(), acme.Account{Location: "https://ca/1", PrivateKey: key}); err != nil {
		t.Fatal(err)
	}
	got, err := a.openAccount(t.Context()) // without asking anybody
	if err != nil || got.Location != "https://ca/1" || !key.Equal(got.PrivateKey) {
		t.Errorf("it is %+v, %v", got, err)
	}
	if err := a.forgetAccount(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := a.loadAccount(t.Context()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after it has been forgotten: %v", err)
	}
	for _, text := range []string{"", "{}", `{"account":{},"key":"x"}`} {
		if err := s.loaded.Load().storage.Store(t.Context(), a.accountKey(), []byte(text)); err != nil {
			t.Fatal(err)
		}
		if _, err := a.openAccount(t.Context()); err == nil || !strings.Contains(err.Error(), "what is stored") {
			t.Errorf("of %q it makes %v", text, err) // and does not open another
		}
	}
}

func TestCertmagicsLogIsSlogs(t *testing.T) {
	var text strings.Builder
	logger := zap.New(bridge{slog.New(slog.NewTextHandler(&text, &slog.HandlerOptions{
		Level: slog.LevelInfo,
		ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		},
	}))})
	logger.Debug("too little")
	logger = logger.Named("obtain").With(zap.String("identifier", "db.example.com"))
	logger.Info("lock acquired", zap.Strings("names", []string{"a", "b"}))
	logger.Warn("hm", zap.Duration("remaining", time.Second))
	logger.Error("no", zap.Error(errors.New("because")))
	if err := logger.Sync(); err != nil {
		t.Error(err)
	}
	const want = `level=INFO msg="lock acquired" identifier=db.example.com logger=obtain names="[a b]"
level=WARN msg=hm identifier=db.example.com logger=obtain remaining=1s
level=ERROR msg=no identifier=db.example.com logger=obtain error=because
`
	if text.String() != want {
		t.Errorf("it says\n%s", text.String())
	}
}
