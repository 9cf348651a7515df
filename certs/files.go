package certs

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/ocsp"

	"github.com/levee-net/levee/internal/watch"
)

// A Pair names the PEM files of a certificate, leaf first and intermediates after
// it, and of its private key. OCSP may name a file with a response (DER) that says
// the certificate is good, which clients are then shown with it.
type Pair struct {
	Cert, Key, OCSP string
}

// Files is a source of certificates that stand in files, for [Server]. Load reads
// them, and Watch again when they have changed: whoever shakes hands after that is
// shown the new ones, and connections that are there already go on.
//
// It is all or nothing. If any pair is broken, Load says which file is at fault and
// why, and everything stays as it was. What is no reason to serve nothing at all is
// told to Problem instead, and served: a certificate that has expired, as a client
// may have reasons to go on, or soon will, or is not valid yet, or has no DNS name; a private
// key that every user can read. But a pair that is out of its time does not replace one
// that is good. A stapled response that is missing, not this certificate's, not its
// issuer's, or out of its time is left out and told: one that lags behind a renewal
// must not stop the renewal.
//
// The fields must not be changed after Load. Methods may be called from several
// goroutines.
type Files struct {
	Pairs []Pair

	// Interval is how often Watch reads the files when nothing seems to happen in
	// their folders. Zero means 10 seconds, negative never.
	Interval time.Duration

	// Problem, if it is set, is told what is wrong, once: again only when it has
	// been right meanwhile. What keeps Watch from loading the files is an [ErrKept].
	Problem func(error)

	// Changed, if it is set, is called by Watch after other certificates have come
	// into force.
	Changed func()

	mu       sync.Mutex // held while reading
	problems news
	inForce  atomic.Pointer[selection]
}

const (
	maxPEM  = 1 << 20 // bytes of a certificate's or key's file, or of CAs: some hundred certificates
	maxOCSP = 64 << 10
)

// Load reads the files and puts what they hold in force.
func (f *Files) Load() error {
	_, err := f.load(time.Now())
	return err
}

// Watch reads the files again whenever they may have changed, until ctx ends; it
// returns ctx's error. Load need not have been called, but says at once what is wrong.
func (f *Files) Watch(ctx context.Context) error {
	var files []string
	for _, p := range f.Pairs {
		files = append(files, p.Cert, p.Key)
		if p.OCSP != "" {
			files = append(files, p.OCSP)
		}
	}
	return watch.Run(ctx, files, f.Interval, f.tell, func() error {
		changed, err := f.load(time.Now())
		if changed && f.Changed != nil {
			f.Changed()
		}
		return kept(err)
	})
}

func (f *Files) tell(err error) {
	f.problems.tell(f.Problem, err)
}

func (f *Files) load(now time.Time) (changed bool, err error) {
	f.mu.Lock()
	s, warnings, err := f.read(now)
	if err == nil {
		changed = s != f.inForce.Load()
		f.inForce.Store(s)
	}
	f.mu.Unlock()
	f.problems.looked(f.Problem, warnings, err)
	return changed, err
}

// read returns what is in force now if the files still say the same.
func (f *Files) read(now time.Time) (s *selection, warnings []error, err error) {
	if len(f.Pairs) == 0 {
		return nil, nil, errors.New("no certificate given")
	}
	var before []*pair
	if s = f.inForce.Load(); s != nil {
		before = s.pairs
	}
	pairs := make([]*pair, len(f.Pairs))
	for i, files := range f.Pairs {
		var last *pair
		if before != nil {
			last = before[i]
		}
		if pairs[i], err = files.read(last, now); err != nil {
			return nil, nil, err
		}
		warnings = append(warnings, pairs[i].warn(now)...)
	}
	if !slices.Equal(pairs, before) {
		s = newSelection(pairs)
	}
	return s, warnings, nil
}

// A pair is what a Pair's files hold.
type pair struct {
	files    Pair
	sum      [sha256.Size]byte // of the files
	cert     *tls.Certificate
	warnings []error   // that do not depend on the time
	stapled  time.Time // until when, if there is a staple
}

// read returns the last pair if the files still say the same.
func (p Pair) read(last *pair, now time.Time) (*pair, error) {
	cert, err := watch.ReadFile(p.Cert, maxPEM)
	if err != nil {
		return nil, fmt.Errorf("certificate: %w", err)
	}
	key, err := watch.ReadFile(p.Key, maxPEM)
	if err != nil {
		return nil, fmt.Errorf("certificate key: %w", err)
	}
	var (
		warnings []error
		response []byte
	)
	if p.OCSP != "" {
		if response, err = watch.ReadFile(p.OCSP, maxOCSP); err != nil {
			warnings = append(warnings, fmt.Errorf("stapled OCSP response: %w", err))
		}
	}
	if info, err := os.Stat(p.Key); err == nil && readableByAll(info) {
		warnings = append(warnings, fmt.Errorf("certificate key %s can be read by every user (mode %04o)", p.Key, info.Mode().Perm()))
	}
	sum := digest(cert, key, response, []byte(fmt.Sprint(warnings)))
	if last != nil && last.sum == sum && (last.cert.OCSPStaple == nil || now.Before(last.stapled)) {
		return last, nil
	}
	certificate, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, fmt.Errorf("certificate %s with key %s: %w", p.Cert, p.Key, err)
	}
	if err := outOfTime(certificate.Leaf, now); err != nil && last != nil && outOfTime(last.cert.Leaf, now) == nil {
		return nil, fmt.Errorf("certificate %s %w; the one before it is kept", p.Cert, err)
	}
	read := &pair{files: p, sum: sum, cert: &certificate, warnings: warnings}
	if response != nil {
		staple, err := checkStaple(response, &certificate, now)
		if err != nil {
			read.warnings = append(read.warnings, fmt.Errorf("stapled OCSP response %s: %w", p.OCSP, err))
		} else {
			certificate.OCSPStaple, read.stapled = response, staple.NextUpdate
		}
	}
	if len(certificate.Leaf.DNSNames) == 0 {
		read.warnings = append(read.warnings, fmt.Errorf("certificate %s has no DNS name: only clients that name no server are shown it", p.Cert))
	}
	return read, nil
}

// warn returns what Problem should hear.
func (p *pair) warn(now time.Time) []error {
	warnings := p.warnings
	leaf := p.cert.Leaf
	if err := outOfTime(leaf, now); err != nil {
		warnings = append(slices.Clone(warnings), fmt.Errorf("certificate %s %w", p.files.Cert, err))
	} else if leaf.NotAfter.Sub(now) < min(expiresSoon, leaf.NotAfter.Sub(leaf.NotBefore)/5) {
		warnings = append(slices.Clone(warnings), fmt.Errorf("certificate %s expires soon, at %s", p.files.Cert, leaf.NotAfter.UTC().Format(time.RFC3339)))
	}
	return warnings
}

// expiresSoon is when a certificate should have been renewed: ACME clients do it with a third of 90 days left. Of those
// that live for less than 70 days it is the last fifth.
const expiresSoon = 14 * 24 * time.Hour

func outOfTime(leaf *x509.Certificate, now time.Time) error {
	switch {
	case now.After(leaf.NotAfter):
		return fmt.Errorf("expired at %s", leaf.NotAfter.UTC().Format(time.RFC3339))
	case now.Before(leaf.NotBefore):
		return fmt.Errorf("is not valid before %s", leaf.NotBefore.UTC().Format(time.RFC3339))
	}
	return nil
}

// checkStaple checks that a client could believe the response (RFC 6960 section 3.2).
func checkStaple(response []byte, certificate *tls.Certificate, now time.Time) (*ocsp.Response, error) {
	if len(certificate.Certificate) < 2 {
		return nil, errors.New("the issuer's certificate is needed, after the leaf")
	}
	issuer, err := x509.ParseCertificate(certificate.Certificate[1])
	if err != nil {
		return nil, err
	}
	staple, err := ocsp.ParseResponseForCert(response, certificate.Leaf, issuer)
	switch {
	case err != nil:
		return nil, err
	case !bytes.Equal(certificate.Leaf.RawIssuer, issuer.RawSubject):
		return nil, errors.New("what follows the leaf is not its issuer's certificate")
	case staple.Status != ocsp.Good:
		return nil, errors.New("it does not say that the certificate is good")
	case now.Before(staple.ThisUpdate):
		return nil, fmt.Errorf("not valid before %s", staple.ThisUpdate.UTC().Format(time.RFC3339))
	case staple.NextUpdate.IsZero():
		return nil, errors.New("it does not say until when it is valid")
	case !now.Before(staple.NextUpdate):
		return nil, fmt.Errorf("expired at %s", staple.NextUpdate.UTC().Format(time.RFC3339))
	}
	return staple, nil
}

// Info is what an operator may want to know about a certificate.
type Info struct {
	Pair                Pair // the files
	Names               []string
	Issuer              string // distinguished name, RFC 2253
	Serial              string // hex
	NotBefore, NotAfter time.Time
	Stapled             bool // with an OCSP response
}

// Certificates returns the certificates in force, in the order of Pairs.
func (f *Files) Certificates() []Info {
	s := f.inForce.Load()
	if s == nil {
		return nil
	}
	infos := make([]Info, 0, len(s.pairs))
	for _, p := range s.pairs {
		leaf := p.cert.Leaf
		names := slices.Clone(leaf.DNSNames)
		for _, ip := range leaf.IPAddresses {
			names = append(names, ip.String())
		}
		infos = append(infos, Info{
			Pair: p.files, Names: names, Issuer: leaf.Issuer.String(), Serial: leaf.SerialNumber.Text(16),
			NotBefore: leaf.NotBefore, NotAfter: leaf.NotAfter, Stapled: p.cert.OCSPStaple != nil,
		})
	}
	return infos
}

// GetCertificate returns the certificate for a client, for crypto/tls: one for the
// very name that it asks for, or else one with a wildcard for it; of these an ECDSA
// one if it can use that. A client that names no server is shown one for the first of
// the first pair's names. To a name for which there is none it
// answers nil, with which crypto/tls refuses the client (unrecognized_name, RFC 6066
// section 3) rather than show it another's; its error for that is "no certificates
// configured".
func (f *Files) GetCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	s := f.inForce.Load()
	if s == nil {
		return nil, errors.New("no certificates are loaded yet")
	}
	return s.choose(hello), nil
}

// digest tells contents apart.
func digest(contents ...[]byte) [sha256.Size]byte {
	h := sha256.New()
	for _, c := range contents {
		fmt.Fprintf(h, "%d\n", len(c))
		h.Write(c)
	}
	return [sha256.Size]byte(h.Sum(nil))
}
