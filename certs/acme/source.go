package acme

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/certmagic"

	"github.com/levee-net/levee/internal/servername"
)

// Directories of Let's Encrypt: the default, and the one for trying things out, whose
// certificates nobody trusts and whose limits are generous.
const (
	LetsEncrypt        = "https://acme-v02.api.letsencrypt.org/directory"
	LetsEncryptStaging = "https://acme-staging-v02.api.letsencrypt.org/directory"
)

// A Challenge is a way to prove to the authority that a name is ours.
type Challenge string

// The challenges, by their names in the registry of RFC 8555 section 9.7.8.
const (
	TLSALPN01 Challenge = "tls-alpn-01" // a handshake on port 443 (RFC 8737)
	HTTP01    Challenge = "http-01"     // a request to port 80 (RFC 8555 section 8.3)
	DNS01     Challenge = "dns-01"      // a TXT record (RFC 8555 section 8.4)
)

// EAB ties a new account to one that the authority knows by other means (RFC 8555 section
// 7.3.4).
type EAB struct {
	KeyID string
	Key   string // base64url
}

// Source is a source of certificates that an authority issues, for certs.Server. Load
// reads what the storage has, and Run orders what is missing, renews what runs out and
// takes over what other machines have put into the storage.
//
// Keys are ECDSA P-256, new ones for each certificate. A certificate is renewed at the time
// that the authority suggests (ARI, RFC 9773); if it suggests none when a third of its
// life is left, and half of one that lives less than ten days; in any case before the last
// twentieth. OCSP responses are stapled if the authority has a responder.
//
// What goes wrong is told to Problem and tried again: after Retry, then twice that, and so
// on up to an hour, with a tenth of chance. What is served meanwhile stays as it is, until
// it expires. At most four orders are under way at a time, each for ten minutes at most.
//
// The fields must not be changed after Load. Methods may be called from several goroutines.
type Source struct {
	// Domains are the names to have certificates for, one for each: in any case, with
	// letters of any script, and with * for a first label if there is DNS.
	Domains []string

	// Email is where the authority may write to about the account. It may be empty.
	Email string

	// Agreed says that the authority's terms of service are agreed to. Load insists.
	Agreed bool

	// Directory is the URL of the authority's directory (RFC 8555 section 7.1.1). Empty
	// means LetsEncrypt, or with Staging LetsEncryptStaging.
	Directory string
	Staging   bool

	// Roots are whom to believe that they are the directory. Nil means the system's.
	Roots *x509.CertPool

	// EAB is for authorities that issue only to whom they know already.
	EAB *EAB

	// Folder is where certificates, their keys and the account are kept, in folders with
	// mode 0700 and files with 0600. Storage takes its place, for instance redisstorage's.
	// One of them has to be given.
	Folder  string
	Storage certmagic.Storage

	// Challenges are the proofs that can be given. Empty means TLSALPN01, or with DNS
	// DNS01. HTTP01 needs HTTPHandler on port 80.
	Challenges []Challenge

	// DNS sets TXT records: any of the providers for github.com/libdns. Resolvers, as
	// host:port, are asked whether a record has arrived; none means the system's.
	DNS       certmagic.DNSProvider
	Resolvers []string

	// Interval is how often Run looks into the storage for what others have put there.
	// Zero means 10 minutes.
	Interval time.Duration

	// Retry is how long Run waits after a first failure. Zero means a minute.
	Retry time.Duration

	// Problem, if it is set, is told what goes wrong, each time.
	Problem func(error)

	// Changed, if it is set, is called after another certificate has come into force.
	Changed func()

	// Logger, if it is set, gets what the libraries beneath have to say. Of failures
	// Problem is told anyway.
	Logger *slog.Logger

	mu     sync.Mutex // held while loading
	loaded atomic.Pointer[state]
}

// state is what Load has made of a Source.
type state struct {
	names     []*name
	byName    map[string]*name // .example.com stands for *.example.com
	storage   certmagic.Storage
	authority *authority
	pending   *pending
}

// A name is one of the domains, and its certificate.
type name struct {
	text string // in its one form
	cert atomic.Pointer[tls.Certificate]
	wake chan struct{} // of capacity 1: to look at it now

	mu      sync.Mutex
	course  course
	revoked bool // so says the authority's responder
}

const loadTimeout = 5 * time.Second // for a storage that does not answer: a server has to start

// Load checks the fields and puts in force what the storage holds. A mistake in the fields,
// or a folder that cannot be used, is an error; what is wrong with the storage's content,
// or a storage that does not answer within 5 seconds, is told to Problem: Run tries again.
func (s *Source) Load() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.loaded.Load() != nil {
		return nil
	}
	st, err := s.prepare()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), loadTimeout)
	defer cancel()
	for _, n := range st.names {
		if _, err := st.read(ctx, n); err != nil {
			s.tell(fmt.Errorf("certificate for %s: %w", n.text, err))
		}
	}
	s.loaded.Store(st)
	return nil
}

func (s *Source) tell(err error) {
	if s.Problem != nil {
		s.Problem(err)
	}
}

func (s *Source) prepare() (*state, error) {
	directory, err := s.directory()
	if err != nil {
		return nil, err
	}
	challenges, err := s.challenges()
	switch {
	case err != nil:
		return nil, err
	case !s.Agreed:
		return nil, errors.New("acme: the authority's terms of service are not agreed to")
	case s.EAB != nil && (s.EAB.KeyID == "" || s.EAB.Key == ""):
		return nil, errors.New("acme: an external account needs both its key and the key's ID")
	}
	st := &state{byName: make(map[string]*name)}
	if err := st.know(s.Domains, slices.Contains(challenges, DNS01)); err != nil {
		return nil, err
	}
	if st.storage, err = s.storage(); err != nil {
		return nil, err
	}
	key := issuerKey(directory)
	st.pending = newPending(st.storage, key)
	st.authority = newAuthority(s, directory, key, st.storage, st.solvers(s, challenges))
	return st, nil
}

func (s *Source) directory() (string, error) {
	directory := s.Directory
	switch {
	case directory != "" && s.Staging:
		return "", errors.New("acme: staging is Let's Encrypt's; leave it off with a directory")
	case s.Staging:
		directory = LetsEncryptStaging
	case directory == "":
		directory = LetsEncrypt
	}
	u, err := url.Parse(directory)
	if err != nil {
		return "", fmt.Errorf("acme: directory: %w", err)
	}
	if u.Scheme != "https" || u.Host == "" { // RFC 8555 section 6.1
		return "", fmt.Errorf("acme: directory %s: not an https:// address", directory)
	}
	return directory, nil
}

// issuerKey is the directory's name in the storage, as certmagic forms it.
func issuerKey(directory string) string {
	return (&certmagic.ACMEIssuer{CA: directory}).IssuerKey()
}

func (s *Source) challenges() ([]Challenge, error) {
	challenges := s.Challenges
	if len(challenges) == 0 {
		challenges = []Challenge{TLSALPN01}
		if s.DNS != nil {
			challenges = []Challenge{DNS01}
		}
	}
	for _, c := range challenges {
		switch {
		case c != TLSALPN01 && c != HTTP01 && c != DNS01:
			return nil, fmt.Errorf("acme: challenge %q: there are %s, %s and %s", c, TLSALPN01, HTTP01, DNS01)
		case c == DNS01 && s.DNS == nil:
			return nil, fmt.Errorf("acme: challenge %s: no DNS provider", c)
		}
	}
	return challenges, nil
}

func (st *state) know(domains []string, wildcards bool) error {
	if len(domains) == 0 {
		return errors.New("acme: no domain given")
	}
	for _, domain := range domains {
		pattern, err := servername.ParsePattern(domain)
		if err != nil {
			return fmt.Errorf("acme: domain %q: %w", domain, err)
		}
		text := pattern.String()
		rest, wildcard := strings.CutPrefix(text, "*")
		switch {
		case wildcard && !wildcards:
			return fmt.Errorf("acme: domain %s: a wildcard can only be proven by %s", text, DNS01)
		case st.byName[rest] != nil:
			continue
		}
		n := &name{text: text, wake: make(chan struct{}, 1)}
		st.names = append(st.names, n)
		st.byName[rest] = n
	}
	return nil
}

func (s *Source) storage() (certmagic.Storage, error) {
	switch {
	case s.Storage != nil && s.Folder != "":
		return nil, errors.New("acme: both a folder and a storage given")
	case s.Storage != nil:
		return s.Storage, nil
	case s.Folder == "":
		return nil, errors.New("acme: no folder given, nor a storage")
	}
	if err := os.MkdirAll(s.Folder, 0o700); err != nil {
		return nil, fmt.Errorf("acme: %w", err)
	}
	return &certmagic.FileStorage{Path: s.Folder}, nil
}

// read puts in force what the storage holds for the name, and reports whether that is
// another certificate than before. It is no mistake if there is none.
func (st *state) read(ctx context.Context, n *name) (changed bool, err error) {
	cert, err := st.stored(ctx, n)
	if cert == nil || err != nil {
		return false, err
	}
	before := n.cert.Load()
	if before != nil && before.Leaf.Equal(cert.Leaf) {
		return false, nil
	}
	n.put(cert)
	return true, nil
}

const (
	tornReads = 3 // a renewal writes key and certificate one after the other, and in between they do not match
	tornWait  = 200 * time.Millisecond
)

// stored returns the certificate that the storage holds for the name, nil if none.
func (st *state) stored(ctx context.Context, n *name) (*tls.Certificate, error) {
	for reads := 1; ; reads++ {
		chain, err := st.storage.Load(ctx, certmagic.StorageKeys.SiteCert(st.authority.key, n.text))
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		key, err := st.storage.Load(ctx, certmagic.StorageKeys.SitePrivateKey(st.authority.key, n.text))
		if err != nil {
			return nil, err
		}
		cert, err := tls.X509KeyPair(chain, key)
		if err == nil {
			return &cert, nil
		}
		if reads == tornReads {
			return nil, fmt.Errorf("what is stored: %w", err)
		}
		select {
		case <-time.After(tornWait):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (n *name) put(cert *tls.Certificate) {
	n.cert.Store(cert)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.course.took()
	n.revoked = false
}

// What a client of one of our names is refused with (internal_error). Made once: a
// stranger should not be able to have them made.
var (
	errNotLoaded = errors.New("no certificates are loaded yet")
	errNone      = errors.New("no certificate has been issued for this name yet")
	errExpired   = errors.New("the certificate for this name has expired, and is not renewed yet")
)

// GetCertificate returns the certificate for a client, for crypto/tls: the one for the
// very name that it asks for, or else a wildcard's. A client that names no server is shown
// that of the first of Domains. To other names it answers nil, with which crypto/tls
// refuses the client (unrecognized_name, RFC 6066 section 3). Where there is no certificate
// yet, or only one that has expired, it is an error. It never waits, and never orders.
func (s *Source) GetCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	st := s.loaded.Load()
	if st == nil {
		return nil, errNotLoaded
	}
	n := st.find(hello.ServerName)
	if n == nil {
		return nil, nil
	}
	cert := n.cert.Load()
	switch {
	case cert == nil:
		return nil, errNone
	case time.Now().After(cert.Leaf.NotAfter):
		return nil, errExpired
	}
	return cert, nil
}

// find returns the name whose certificate is for what a client has sent, nil if none.
func (st *state) find(sent string) *name {
	if sent == "" {
		return st.names[0]
	}
	asked, err := servername.Normalize(sent)
	if err != nil {
		return nil
	}
	if n := st.byName[asked]; n != nil {
		return n
	}
	if dot := strings.IndexByte(asked, '.'); dot >= 0 {
		return st.byName[asked[dot:]]
	}
	return nil
}

// A State is how it stands with a name's certificate.
type State string

// The states.
const (
	Missing State = "missing" // never issued
	Valid   State = "valid"
	Expired State = "expired" // or revoked
)

// Info is what an operator may want to know about a name.
type Info struct {
	Name  string
	State State

	NotBefore, NotAfter time.Time // zero if there is no certificate
	Issuer              string    // distinguished name, RFC 2253
	Serial              string    // hex
	Stapled             bool      // with an OCSP response

	Ordering bool      // right now
	Next     time.Time // when the next order is due; zero before Run
	Err      error     // why the last order failed, nil if it did not

	Issued, Failed uint64 // orders of this Source; other machines' are not counted
}

// Certificates returns how it stands with each name, in the order of Domains. It is empty
// before Load.
func (s *Source) Certificates() []Info {
	st := s.loaded.Load()
	if st == nil {
		return nil
	}
	infos := make([]Info, 0, len(st.names))
	for _, n := range st.names {
		infos = append(infos, n.info(time.Now()))
	}
	return infos
}

func (n *name) info(now time.Time) Info {
	n.mu.Lock()
	c, revoked := n.course, n.revoked
	n.mu.Unlock()
	info := Info{
		Name: n.text, State: Missing,
		Ordering: c.ordering, Next: c.next, Err: c.err, Issued: c.issued, Failed: c.failed,
	}
	cert := n.cert.Load()
	if cert == nil {
		return info
	}
	info.State = Valid
	if revoked || now.After(cert.Leaf.NotAfter) {
		info.State = Expired
	}
	info.NotBefore, info.NotAfter = cert.Leaf.NotBefore, cert.Leaf.NotAfter
	info.Issuer, info.Serial = cert.Leaf.Issuer.String(), cert.Leaf.SerialNumber.Text(16)
	info.Stapled = cert.OCSPStaple != nil
	return info
}
