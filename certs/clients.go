package certs

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/levee-net/levee/internal/watch"
)

// Clients is a policy for client certificates: who is let in. A client must show a
// certificate that one of the CAs has issued for clients, that is valid now, and that
// no CRL has revoked. If there is any entry in DNS, URIs, Emails, CommonNames or SPKIs,
// the certificate must match one of them, whichever.
//
// Load reads the files, and Watch again when they have changed. The policy in force is
// asked at each handshake, also at one that resumes a session; what becomes of
// connections that are there already is for their owner, whom [Clients.Allows] tells.
//
// It never fails open. If a file is missing, empty or broken, Load returns an error and
// Watch keeps the policy that was in force. As long as none has been loaded, nobody is
// let in. The system's CAs are never believed.
//
// The fields must not be changed after Load. Methods may be called from several
// goroutines.
type Clients struct {
	// CAs are files with the certificates (PEM or DER) of the CAs that are believed.
	// Each has to be a CA's.
	CAs []string

	// CRLs are files with revocation lists (PEM or DER, RFC 5280 section 5). Each must
	// have been signed by a certificate in CAs; so for an intermediate CA's list, that
	// CA's certificate is needed there too. Revoked is what any of them says; neither
	// delta nor indirect lists are understood, and they are refused. A list that is past
	// its next update is told to Problem and still believed: to forget it would let the
	// revoked in again, and to let nobody in would make the CA's outage one's own.
	CRLs []string

	// Optional lets clients in that show no certificate. One that is shown must be
	// good nevertheless.
	Optional bool

	// DNS are names, or patterns such as *.example.com, in which * stands for one label.
	DNS []string

	// URIs are exact, such as spiffe://example.com/billing, or SPIFFE IDs that end with
	// /*, which stands for whatever path. A certificate with several URIs has no SPIFFE
	// ID (SPIFFE X509-SVID section 2).
	URIs []string

	// Emails are exact, except for the case of the domain.
	Emails []string

	// CommonNames are exact. They are of the subject, which CAs check less than the rest.
	CommonNames []string

	// SPKIs are pins of public keys: sha256/ and the hash of the SubjectPublicKeyInfo in
	// base64 (RFC 7469 section 2.4).
	SPKIs []string

	// Interval is how often Watch reads the files when nothing seems to happen in
	// their folders. Zero means 10 seconds, negative never.
	Interval time.Duration

	// Problem, if it is set, is told what is wrong, once: again only when it has
	// been right meanwhile. What keeps Watch from loading the files is an [ErrKept].
	Problem func(error)

	// Changed, if it is set, is called by Watch after another policy has come into
	// force: the time to ask Allows about live connections.
	Changed func()

	mu       sync.Mutex // held while reading
	problems news
	inForce  atomic.Pointer[policy]
}

const maxCRL = 64 << 20 // bytes: about a million certificates

// Load reads the files and puts the policy in force.
func (c *Clients) Load() error {
	_, err := c.load(time.Now())
	return err
}

// Watch reads the files again whenever they may have changed, until ctx ends; it
// returns ctx's error. Load need not have been called, but says at once what is wrong.
func (c *Clients) Watch(ctx context.Context) error {
	files := append(append([]string(nil), c.CAs...), c.CRLs...)
	tell := func(err error) { c.problems.tell(c.Problem, err) }
	return watch.Run(ctx, files, c.Interval, tell, func() error {
		changed, err := c.load(time.Now())
		if changed && c.Changed != nil {
			c.Changed()
		}
		return kept(err)
	})
}

func (c *Clients) load(now time.Time) (changed bool, err error) {
	c.mu.Lock()
	p, err := c.read()
	var warnings []error
	if err == nil {
		changed = p != c.inForce.Load()
		c.inForce.Store(p)
		warnings = p.warn(now)
	}
	c.mu.Unlock()
	c.problems.looked(c.Problem, warnings, err)
	return changed, err
}

// errNoPolicy is not an invitation.
var errNoPolicy = errors.New("no policy for client certificates is loaded yet")

// Allows reports whether the client of a TLS connection would be let in now: nil if it
// would. It tells why not, if the CAs, the lists or the time have changed since its
// handshake: for ending live connections after a change.
func (c *Clients) Allows(state *tls.ConnectionState) error {
	p := c.inForce.Load()
	switch {
	case p == nil:
		return errNoPolicy
	case state == nil:
		return errors.New("the connection is in plaintext")
	}
	return p.allows(state, time.Now())
}

// A policy is what was in the files and the fields. It never changes.
type policy struct {
	sum      [sha256.Size]byte // of everything
	optional bool
	cas      []authority
	roots    *x509.CertPool
	crls     []*crl
	anybody  bool // there are no lists of who is let in
	entries  entries
}

type authority struct {
	cert *x509.Certificate
	file string
}

// A crl is a revocation list.
type crl struct {
	file       string
	issuer     issuer
	nextUpdate time.Time
	revoked    map[string]bool // serial numbers, as big.Int.Bytes
}

// An issuer is what makes one CA the same as another, or its next certificate: the
// name and the key.
type issuer struct{ subject, key string }

func issuerOf(ca *x509.Certificate) issuer {
	return issuer{string(ca.RawSubject), string(ca.RawSubjectPublicKeyInfo)}
}

// read returns the policy in force if the files still say the same.
func (c *Clients) read() (*policy, error) {
	if len(c.CAs) == 0 {
		return nil, errors.New("client certificates: no CA given")
	}
	p := &policy{optional: c.Optional, roots: x509.NewCertPool()}
	lists := [][]string{c.CAs, c.CRLs, c.DNS, c.URIs, c.Emails, c.CommonNames, c.SPKIs}
	var texts [][]byte
	for _, list := range lists {
		texts = append(texts, []byte(fmt.Sprintf("%q", list)))
	}
	texts = append(texts, []byte(fmt.Sprint(c.Optional)))
	cas := make([][]byte, len(c.CAs))
	crls := make([][]byte, len(c.CRLs))
	var err error
	for i, file := range c.CAs {
		if cas[i], err = watch.ReadFile(file, maxPEM); err != nil {
			return nil, fmt.Errorf("client CA: %w", err)
		}
	}
	for i, file := range c.CRLs {
		if crls[i], err = watch.ReadFile(file, maxCRL); err != nil {
			return nil, fmt.Errorf("CRL: %w", err)
		}
	}
	p.sum = digest(append(append(texts, cas...), crls...)...)
	if last := c.inForce.Load(); last != nil && last.sum == p.sum {
		return last, nil
	}
	for i, content := range cas {
		if err := p.addCAs(content, c.CAs[i]); err != nil {
			return nil, fmt.Errorf("client CA %s: %w", c.CAs[i], err)
		}
	}
	for i, content := range crls {
		if err := p.addCRLs(content, c.CRLs[i]); err != nil {
			return nil, fmt.Errorf("CRL %s: %w", c.CRLs[i], err)
		}
	}
	if p.entries, err = parseEntries(c); err != nil {
		return nil, fmt.Errorf("client certificates: %w", err)
	}
	p.anybody = len(c.DNS)+len(c.URIs)+len(c.Emails)+len(c.CommonNames)+len(c.SPKIs) == 0
	return p, nil
}

func (p *policy) addCAs(content []byte, file string) error {
	blocks, err := decode(content, "CERTIFICATE")
	if err != nil {
		return err
	}
	for _, der := range blocks {
		ca, err := x509.ParseCertificate(der)
		switch {
		case err != nil:
			return err
		case !ca.BasicConstraintsValid || !ca.IsCA || ca.KeyUsage != 0 && ca.KeyUsage&x509.KeyUsageCertSign == 0:
			return fmt.Errorf("%s is no CA: whoever has its key could let others in", ca.Subject) // crypto/x509 does not ask this of roots
		}
		p.cas = append(p.cas, authority{ca, file})
		p.roots.AddCert(ca)
	}
	return nil
}

func (p *policy) addCRLs(content []byte, file string) error {
	blocks, err := decode(content, "X509 CRL")
	if err != nil {
		return err
	}
	for _, der := range blocks {
		list, err := x509.ParseRevocationList(der)
		if err != nil {
			return err
		}
		l := &crl{file: file, nextUpdate: list.NextUpdate, revoked: make(map[string]bool, len(list.RevokedCertificateEntries))}
		if l.issuer, err = p.signer(list); err != nil {
			return err
		}
		for _, e := range list.Extensions {
			if e.Critical && e.Id.String() != issuingDistributionPoint {
				return fmt.Errorf("extension %s is not understood, but critical (a delta list is not)", e.Id)
			}
		}
		for _, entry := range list.RevokedCertificateEntries {
			for _, e := range entry.Extensions {
				if e.Critical {
					return fmt.Errorf("an entry's extension %s is not understood, but critical (an indirect list is not)", e.Id)
				}
			}
			l.revoked[string(entry.SerialNumber.Bytes())] = true
		}
		p.crls = append(p.crls, l)
	}
	return nil
}

// issuingDistributionPoint says of what a list is a part (RFC 5280 section 5.2.5). What
// it has revoked is revoked all the same.
const issuingDistributionPoint = "2.5.29.28"

// signer returns the CA that has signed the list.
func (p *policy) signer(list *x509.RevocationList) (issuer, error) {
	reason := fmt.Errorf("its issuer, %s, is not among the CAs", list.Issuer)
	for _, ca := range p.cas {
		if string(ca.cert.RawSubject) != string(list.RawIssuer) {
			continue
		}
		err := list.CheckSignatureFrom(ca.cert)
		if err == nil {
			return issuerOf(ca.cert), nil
		}
		reason = fmt.Errorf("signature of %s: %w", list.Issuer, err)
	}
	return issuer{}, reason
}

// decode returns the content of a file of PEM blocks of a kind, or of DER.
func decode(content []byte, kind string) ([][]byte, error) {
	begin := []byte("-----BEGIN ")
	if !bytes.Contains(content, begin) {
		if len(content) == 0 {
			return nil, errors.New("it is empty")
		}
		return [][]byte{content}, nil
	}
	var blocks [][]byte
	for count := bytes.Count(content, begin); count > 0; count-- {
		var block *pem.Block
		block, content = pem.Decode(content)
		switch {
		case block == nil:
			return nil, errors.New("a PEM block is broken") // pem.Decode would leave it out
		case block.Type != kind:
			return nil, fmt.Errorf("PEM block %s, where there should be %s", block.Type, kind)
		}
		blocks = append(blocks, block.Bytes)
	}
	return blocks, nil
}

// warn returns what Problem should hear.
func (p *policy) warn(now time.Time) (warnings []error) {
	for _, ca := range p.cas {
		if err := outOfTime(ca.cert, now); err != nil {
			warnings = append(warnings, fmt.Errorf("client CA %s: %s %w", ca.file, ca.cert.Subject, err))
		}
	}
	for _, l := range p.crls {
		if !l.nextUpdate.IsZero() && now.After(l.nextUpdate) {
			warnings = append(warnings, fmt.Errorf("CRL %s should have been replaced by %s", l.file, l.nextUpdate.UTC().Format(time.RFC3339)))
		}
	}
	return warnings
}

// allows verifies the client's certificate anew. What crypto/tls has verified it has by
// the CAs of another time if the session is a resumed one.
func (p *policy) allows(state *tls.ConnectionState, now time.Time) error {
	if len(state.PeerCertificates) == 0 {
		return p.allowsChains(nil)
	}
	intermediates := x509.NewCertPool()
	for _, cert := range state.PeerCertificates[1:] {
		intermediates.AddCert(cert)
	}
	chains, err := state.PeerCertificates[0].Verify(x509.VerifyOptions{
		Roots: p.roots, Intermediates: intermediates, CurrentTime: now,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		return fmt.Errorf("client certificate: %w", err)
	}
	return p.allowsChains(chains)
}

// allowsChains decides by chains that have been verified by p's CAs; none is for a
// client that has shown no certificate.
func (p *policy) allowsChains(chains [][]*x509.Certificate) error {
	if len(chains) == 0 {
		if p.optional {
			return nil
		}
		return errors.New("no client certificate")
	}
	var err error
	for _, chain := range chains {
		if err = p.revoked(chain); err == nil {
			break
		}
	}
	if err != nil {
		return err
	}
	leaf := chains[0][0]
	if !p.anybody && !p.entries.match(leaf) {
		return fmt.Errorf("client certificate of %s is on none of the lists", describe(leaf))
	}
	return nil
}

// revoked returns an error if some certificate in the chain is revoked by its issuer.
func (p *policy) revoked(chain []*x509.Certificate) error {
	for i, cert := range chain[:len(chain)-1] {
		by := issuerOf(chain[i+1])
		for _, l := range p.crls {
			if l.issuer == by && l.revoked[string(cert.SerialNumber.Bytes())] {
				return fmt.Errorf("certificate %s of %s is revoked", cert.SerialNumber.Text(16), describe(cert))
			}
		}
	}
	return nil
}

// describe names a certificate by what is in it: a stranger's text, so quoted and bounded.
func describe(cert *x509.Certificate) string { return fmt.Sprintf("%.200q", cert.Subject.String()) }
