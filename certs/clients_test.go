package certs_test

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"errors"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/levee-net/levee/certs"
)

// A club is a server whose clients need certificates.
type club struct {
	t       *testing.T
	dir     string
	ca      *authority // of the clients
	door    *authority // of the server
	clients *certs.Clients
	told    *log
	config  *tls.Config
}

func newClub(t *testing.T, change func(*certs.Clients)) *club {
	t.Helper()
	c := &club{t: t, dir: t.TempDir(), ca: newAuthority(t, "clients' CA"), door: newAuthority(t, "server's CA"), told: newLog()}
	c.clients = &certs.Clients{CAs: []string{put(t, c.dir, "ca.pem", c.ca.pem())}, Interval: never, Problem: c.told.add}
	change(c.clients)
	c.load()
	c.config = (&certs.Server{GetCertificate: fixed(c.door.server("club.test")), Clients: c.clients}).Config()
	return c
}

func (c *club) load() {
	c.t.Helper()
	if err := c.clients.Load(); err != nil {
		c.t.Fatal(err)
	}
}

// member returns the configuration of a client with a certificate, who resumes if he can.
func (c *club) member(certificate ...tls.Certificate) *tls.Config {
	return &tls.Config{
		RootCAs: c.door.pool(), ServerName: "club.test", Certificates: certificate,
		ClientSessionCache: tls.NewLRUClientSessionCache(4),
	}
}

var versions = []uint16{tls.VersionTLS12, tls.VersionTLS13}

// each runs a test with each version of TLS.
func each(t *testing.T, test func(t *testing.T, version uint16)) {
	for _, version := range versions {
		t.Run(tls.VersionName(version), func(t *testing.T) { test(t, version) })
	}
}

func TestOnlyClientsOfTheCAsAreLetIn(t *testing.T) {
	each(t, func(t *testing.T, version uint16) {
		c := newClub(t, func(*certs.Clients) {})
		come := func(certificate ...tls.Certificate) error {
			client := c.member(certificate...)
			client.MaxVersion = version
			// The client does not choose by what the server says that it believes.
			if len(certificate) > 0 {
				client.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &certificate[0], nil }
			}
			_, err := meet(c.config, client)
			return err
		}
		if err := come(c.ca.client("somebody")); err != nil {
			t.Error(err)
		}
		if err := come(c.ca.under("intermediate").client("somebody")); err != nil {
			t.Error(err)
		}
		for name, certificate := range map[string]tls.Certificate{
			"another CA of that name": newAuthority(t, "clients' CA").client("somebody"),
			"the server's CA":         c.door.client("somebody"),
			"expired":                 c.ca.issue("P-256", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }),
			"early":                   c.ca.issue("P-256", func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) }),
			"a server's": c.ca.issue("P-256", func(c *x509.Certificate) {
				c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
			}),
		} {
			if err := come(certificate); err == nil {
				t.Errorf("%s was let in", name)
			}
		}
		if err := come(); err == nil {
			t.Error("nobody was let in")
		} else if version == tls.VersionTLS13 && alert(err) != certificateRequired {
			t.Error(err)
		}
	})
}

func TestAnOptionalCertificateMustBeGood(t *testing.T) {
	each(t, func(t *testing.T, version uint16) {
		c := newClub(t, func(p *certs.Clients) { p.Optional, p.CommonNames = true, []string{"somebody"} })
		for name, test := range map[string]struct {
			certificate []tls.Certificate
			in          bool
		}{
			"none":         {nil, true},
			"good":         {[]tls.Certificate{c.ca.client("somebody")}, true},
			"not listed":   {[]tls.Certificate{c.ca.client("somebody else")}, false},
			"of others":    {[]tls.Certificate{c.door.client("somebody")}, false},
			"out of time":  {[]tls.Certificate{c.ca.issue("P-256", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })}, false},
			"self-written": {[]tls.Certificate{newAuthority(t, "somebody").client("somebody")}, false},
		} {
			client := c.member()
			client.MaxVersion = version
			client.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
				if len(test.certificate) == 0 {
					return new(tls.Certificate), nil
				}
				return &test.certificate[0], nil
			}
			if _, err := meet(c.config, client); (err == nil) != test.in {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
}

func TestAListLetsNobodyElseIn(t *testing.T) {
	uris := func(texts ...string) func(*x509.Certificate) {
		return func(c *x509.Certificate) {
			for _, text := range texts {
				uri, err := url.Parse(text)
				if err != nil {
					t.Fatal(err)
				}
				c.URIs = append(c.URIs, uri)
			}
		}
	}
	dns := func(names ...string) func(*x509.Certificate) { return func(c *x509.Certificate) { c.DNSNames = names } }
	email := func(names ...string) func(*x509.Certificate) {
		return func(c *x509.Certificate) { c.EmailAddresses = names }
	}
	cn := func(name string) func(*x509.Certificate) {
		return func(c *x509.Certificate) { c.Subject = pkix.Name{CommonName: name} }
	}
	lists := certs.Clients{
		DNS:         []string{"db.example.com", "*.Apps.example.com"},
		URIs:        []string{"spiffe://example.com/billing", "spiffe://example.com/ns/a/*", "https://example.com/me"},
		Emails:      []string{"Ann@Example.com"},
		CommonNames: []string{"ops team"},
	}
	c := newClub(t, func(p *certs.Clients) {
		p.DNS, p.URIs, p.Emails, p.CommonNames = lists.DNS, lists.URIs, lists.Emails, lists.CommonNames
	})
	for name, test := range map[string]struct {
		certificate func(*x509.Certificate)
		in          bool
	}{
		"DNS":                     {dns("db.example.com"), true},
		"DNS in another case":     {dns("DB.example.COM"), true},
		"DNS by wildcard":         {dns("a.apps.example.com"), true},
		"any of several":          {dns("x.test", "db.example.com"), true},
		"two labels":              {dns("a.b.apps.example.com"), false},
		"none":                    {dns("apps.example.com"), false},
		"a wildcard":              {dns("*.apps.example.com"), false},
		"a wildcard above":        {dns("*.example.com"), false},
		"DNS below":               {dns("x.db.example.com"), false},
		"URI":                     {uris("spiffe://example.com/billing"), true},
		"URI of another scheme":   {uris("https://example.com/me"), true},
		"one URI of two":          {uris("https://example.com/me", "https://x.test/"), true},
		"a SPIFFE ID of two":      {uris("spiffe://example.com/billing", "https://x.test/"), false},
		"URI by wildcard":         {uris("spiffe://example.com/ns/a/sa/b"), true},
		"URI below":               {uris("spiffe://example.com/billing/x"), false},
		"URI above":               {uris("spiffe://example.com/ns/a"), false},
		"URI above, with a slash": {uris("spiffe://example.com/ns/a/"), false},
		"URI beside":              {uris("spiffe://example.com/ns/ab"), false},
		"URI that climbs":         {uris("spiffe://example.com/ns/a/../b"), false},
		"URI that climbs, hidden": {uris("spiffe://example.com/ns/a/%2e%2e/b"), false},
		"URI with a query":        {uris("spiffe://example.com/ns/a/b?c"), false},
		"URI of another domain":   {uris("spiffe://example.org/billing"), false},
		"URI with a port":         {uris("spiffe://example.com:443/billing"), false},
		"email":                   {email("Ann@example.COM"), true},
		"another's email":         {email("ann@example.com"), false},
		"email at a subdomain":    {email("Ann@mail.example.com"), false},
		"common name":             {cn("ops team"), true},
		"common name's beginning": {cn("ops"), false},
		"common name in capitals": {cn("Ops Team"), false},
		"DNS as common name":      {cn("db.example.com"), false},
		"nothing":                 {cn(""), false},
	} {
		_, err := meet(c.config, c.member(c.ca.issue("P-256", test.certificate)))
		if (err == nil) != test.in {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && (alert(err) != badCertificate || !strings.Contains(err.Error(), "is on none of the lists")) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAPinIsOfTheKey(t *testing.T) {
	ca := newAuthority(t, "ca")
	in, out := ca.client("a"), ca.client("a")
	sum := sha256.Sum256(in.Leaf.RawSubjectPublicKeyInfo)
	c := newClub(t, func(p *certs.Clients) {
		p.CAs = []string{put(t, t.TempDir(), "ca.pem", ca.pem())}
		p.SPKIs = []string{"sha256/" + base64.StdEncoding.EncodeToString(sum[:])}
	})
	if _, err := meet(c.config, c.member(in)); err != nil {
		t.Error(err)
	}
	if _, err := meet(c.config, c.member(out)); err == nil {
		t.Error("another key was let in")
	}
}

func TestAListWithAMistakeIsRefused(t *testing.T) {
	dir, ca := t.TempDir(), newAuthority(t, "ca")
	file := put(t, dir, "ca.pem", ca.pem())
	for want, clients := range map[string]*certs.Clients{
		`DNS name ""`:                   {DNS: []string{"a.test", ""}},
		`DNS name "*.*.test"`:           {DNS: []string{"*.*.test"}},
		`DNS name "*"`:                  {DNS: []string{"*"}},
		`URI ""`:                        {URIs: []string{""}},
		`URI "*"`:                       {URIs: []string{"*"}},
		`URI "/path"`:                   {URIs: []string{"/path"}},
		`URI "spiffe://*"`:              {URIs: []string{"spiffe://*"}},
		`URI "spiffe://example.com*"`:   {URIs: []string{"spiffe://example.com*"}},
		`URI "spiffe://example.com/a*"`: {URIs: []string{"spiffe://example.com/a*"}},
		`URI "spiffe://*/a"`:            {URIs: []string{"spiffe://*/a"}},
		`URI "https://example.com/*"`:   {URIs: []string{"https://example.com/*"}},
		`URI "SPIFFE://example.com/a"`:  {URIs: []string{"SPIFFE://example.com/a"}},
		`email ""`:                      {Emails: []string{""}},
		`email "@example.com"`:          {Emails: []string{"@example.com"}},
		`email "ann"`:                   {Emails: []string{"ann"}},
		"an empty common name":          {CommonNames: []string{""}},
		`SPKI ""`:                       {SPKIs: []string{""}},
		`SPKI "sha256/"`:                {SPKIs: []string{"sha256/"}},
		`SPKI "sha256/AAAA"`:            {SPKIs: []string{"sha256/AAAA"}},
		`SPKI "sha1/AAAAAAAAAAAAAAAAAAAAAAAAAAA="`: {SPKIs: []string{"sha1/AAAAAAAAAAAAAAAAAAAAAAAAAAA="}},
		`SPKI "sha256/` + strings.Repeat("A", 43):  {SPKIs: []string{"sha256/" + strings.Repeat("A", 43)}},
		"no CA given": {CAs: []string{}},
		filepath.Join(dir, "none") + ": no such fi": {CRLs: []string{filepath.Join(dir, "none")}},
	} {
		if clients.CAs == nil {
			clients.CAs = []string{file}
		}
		if err := clients.Load(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v; want %q in it", err, want)
		}
		if err := clients.Allows(&tls.ConnectionState{}); err == nil {
			t.Errorf("%q lets somebody in", want)
		}
	}
}

func TestNobodyIsLetInBeforeThereIsAPolicy(t *testing.T) {
	each(t, func(t *testing.T, version uint16) {
		ca := newAuthority(t, "ca")
		clients := &certs.Clients{CAs: []string{filepath.Join(t.TempDir(), "none")}, Optional: true}
		server := (&certs.Server{GetCertificate: fixed(ca.server("a.test")), Clients: clients}).Config()
		client := &tls.Config{RootCAs: ca.pool(), ServerName: "a.test", MaxVersion: version}
		if _, err := meet(server, client); err == nil {
			t.Error("somebody was let in")
		}
		bare := server.Clone()
		bare.GetConfigForClient = nil // nor by what somebody has made of the configuration
		if _, err := meet(bare, client); err == nil {
			t.Error("somebody was let in")
		}
		if err := clients.Allows(nil); err == nil {
			t.Error("somebody would be let in")
		}
	})
}

func TestABrokenPolicyKeepsTheOld(t *testing.T) {
	all := faults()
	all = append(all,
		fault{"a certificate that is no CA's", func(t *testing.T, path string) {
			cert, _ := encodePair(t, newAuthority(t, "ca").server("a.test"))
			put(t, filepath.Dir(path), filepath.Base(path), cert)
		}, ""},
		fault{"a certificate for any use that is no CA's", func(t *testing.T, path string) {
			cert, _ := encodePair(t, newAuthority(t, "ca").issue("P-256", func(c *x509.Certificate) { c.KeyUsage = 0 }))
			put(t, filepath.Dir(path), filepath.Base(path), cert)
		}, ""},
		fault{"another CA's list", func(t *testing.T, path string) {
			put(t, filepath.Dir(path), filepath.Base(path), newAuthority(t, "clients' CA").crl())
		}, ""},
		fault{"the last block is broken", func(t *testing.T, path string) {
			content, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			put(t, filepath.Dir(path), filepath.Base(path), append(content, content[:len(content)/2]...))
		}, "a PEM block is broken"},
	)
	for _, f := range all {
		for _, which := range []string{"CA", "CRL"} {
			if f.name == "huge" && which == "CRL" {
				continue // two megabytes are not for a CRL
			}
			t.Run(f.name+" "+which, func(t *testing.T) {
				var revoked, member tls.Certificate
				c := newClub(t, func(*certs.Clients) {})
				revoked, member = c.ca.client("revoked"), c.ca.client("member")
				c.clients.CRLs = []string{put(t, c.dir, "list.crl", c.ca.crl(revoked))}
				c.load()
				path := c.clients.CAs[0]
				if which == "CRL" {
					path = c.clients.CRLs[0]
				}
				f.change(t, path)
				fresh := &certs.Clients{CAs: c.clients.CAs, CRLs: c.clients.CRLs}
				for _, clients := range []*certs.Clients{c.clients, fresh} {
					if err := clients.Load(); err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), f.want) {
						t.Errorf("error %v", err)
					}
				}
				if _, err := meet(c.config, c.member(member)); err != nil {
					t.Errorf("a member: %v", err)
				}
				if _, err := meet(c.config, c.member(revoked)); err == nil {
					t.Error("the revoked was let in")
				}
			})
		}
	}
}

func TestAListOfTheRevokedMustBeUnderstood(t *testing.T) {
	ca, dir := newAuthority(t, "ca"), t.TempDir()
	critical := func(id ...int) []pkix.Extension {
		return []pkix.Extension{{Id: id, Critical: true, Value: []byte{0x30, 0}}}
	}
	for name, test := range map[string]struct {
		list []byte
		want string // "" for a good one
	}{
		"good":   {ca.crl(ca.client("a")), ""},
		"a part": {ca.crlOf(func(l *x509.RevocationList) { l.ExtraExtensions = critical(2, 5, 29, 28) }), ""},
		"old":    {ca.crlOf(func(l *x509.RevocationList) { l.NextUpdate = l.ThisUpdate.Add(time.Second) }), ""},
		"two":    {append(ca.crl(), ca.crl()...), ""},
		"delta":  {ca.crlOf(func(l *x509.RevocationList) { l.ExtraExtensions = critical(2, 5, 29, 27) }), "2.5.29.27"},
		"indirect": {ca.crlOf(func(l *x509.RevocationList) {
			l.RevokedCertificateEntries = []x509.RevocationListEntry{{SerialNumber: big.NewInt(7), RevocationTime: l.ThisUpdate, ExtraExtensions: critical(2, 5, 29, 29)}}
		}), "2.5.29.29"},
		"a CA's certificate": {ca.pem(), "PEM block CERTIFICATE"},
		"a good and a bad":   {append(ca.crl(), newAuthority(t, "ca").crl()...), "signature"},
		"a stranger's":       {newAuthority(t, "stranger").crl(), "not among the CAs"},
	} {
		clients := &certs.Clients{CAs: []string{put(t, dir, "ca.pem", ca.pem())}, CRLs: []string{put(t, dir, "list.crl", test.list)}}
		err := clients.Load()
		if (test.want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAnOldListIsToldAndBelieved(t *testing.T) {
	var revoked tls.Certificate
	c := newClub(t, func(*certs.Clients) {})
	revoked = c.ca.client("revoked")
	c.clients.CRLs = []string{put(t, c.dir, "list.crl", c.ca.crlOf(func(l *x509.RevocationList) {
		l.NextUpdate = time.Now().Add(-time.Second)
	}, revoked))}
	c.load()
	c.load()
	if text := c.told.take(); strings.Count(text, "list.crl should have been replaced by") != 1 {
		t.Errorf("told %q", text)
	}
	if _, err := meet(c.config, c.member(revoked)); err == nil {
		t.Error("the revoked was let in")
	}
}

// An intermediate CA's list counts for what it has issued, and the root's for the
// intermediate itself. The same serial number of another CA means nothing.
func TestEveryCAMayRevokeItsOwn(t *testing.T) {
	c := newClub(t, func(*certs.Clients) {})
	a, b := c.ca.under("a"), c.ca.under("b")
	serial := big.NewInt(99)
	issue := func(by *authority) tls.Certificate {
		return by.issue("P-256", func(c *x509.Certificate) { c.SerialNumber = serial })
	}
	ofA, ofB := issue(a), issue(b)
	c.clients.CAs = append(c.clients.CAs, put(t, c.dir, "a.pem", a.pem()))
	c.clients.CRLs = []string{put(t, c.dir, "a.crl", a.crl(ofA))}
	c.load()
	if _, err := meet(c.config, c.member(ofA)); err == nil || !strings.Contains(err.Error(), "is revoked") {
		t.Errorf("a's: %v", err)
	}
	if _, err := meet(c.config, c.member(ofB)); err != nil {
		t.Errorf("b's: %v", err)
	}
	c.clients.CRLs = append(c.clients.CRLs, put(t, c.dir, "root.crl", c.ca.crl(tls.Certificate{Leaf: b.cert})))
	c.load()
	if _, err := meet(c.config, c.member(ofB)); err == nil || !strings.Contains(err.Error(), "is revoked") {
		t.Errorf("b's, with b revoked: %v", err)
	}
}

// What has changed since goes for a session that is resumed, too. A client with a ticket
// that is not let in any more does not stay out with another certificate.
func TestAResumedSessionIsHeldToThePresentPolicy(t *testing.T) {
	each(t, func(t *testing.T, version uint16) {
		for name, change := range map[string]func(c *club, member tls.Certificate){
			"revoked": func(c *club, member tls.Certificate) {
				c.clients.CRLs = []string{put(t, c.dir, "list.crl", c.ca.crl(member))}
			},
			"another CA": func(c *club, _ tls.Certificate) {
				put(t, c.dir, "ca.pem", newAuthority(t, "clients' CA").pem())
			},
			"not on the list": func(c *club, _ tls.Certificate) {
				c.clients.CommonNames = []string{"another"}
			},
		} {
			t.Run(name, func(t *testing.T) {
				c := newClub(t, func(*certs.Clients) {})
				certificate := c.ca.client("member")
				client := c.member(certificate)
				client.MaxVersion = version
				m, err := meet(c.config, client)
				if err != nil {
					t.Fatal(err)
				}
				if err := c.clients.Allows(&m.server); err != nil {
					t.Error(err)
				}
				m, err = meet(c.config, client)
				if err != nil || !m.server.DidResume {
					t.Fatalf("resumed: %t, %v", m.server.DidResume, err)
				}
				change(c, certificate)
				c.load()
				if m, err := meet(c.config, client); err == nil {
					t.Errorf("let in; resumed: %t", m.server.DidResume)
				}
				if err := c.clients.Allows(&m.server); err == nil {
					t.Error("the live connection would be let in again")
				}
				another := c.ca.client("another")
				if name == "another CA" {
					return
				}
				client.Certificates = []tls.Certificate{another}
				if _, err := meet(c.config, client); err != nil {
					t.Errorf("another certificate of the same client: %v", err)
				}
			})
		}
	})
}

// A handshake may take longer than a policy lasts.
func TestAPolicyThatChangesDuringAHandshakeIsTheOneThatCounts(t *testing.T) {
	each(t, func(t *testing.T, version uint16) {
		c := newClub(t, func(*certs.Clients) {})
		certificate := c.ca.client("member")
		client := c.member()
		client.MaxVersion = version
		client.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { // the server waits meanwhile
			c.clients.CRLs = []string{put(t, c.dir, "list.crl", c.ca.crl(certificate))}
			return &certificate, c.clients.Load()
		}
		if _, err := meet(c.config, client); err == nil || !strings.Contains(err.Error(), "is revoked") {
			t.Errorf("error %v", err)
		}
	})
}

// Of a live connection there is no more than what its client has shown.
func TestAllowsKnowsWhatIsBetweenTheClientAndTheCA(t *testing.T) {
	c := newClub(t, func(*certs.Clients) {})
	m, err := meet(c.config, c.member(c.ca.under("a").under("b").client("member")))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.clients.Allows(&m.server); err != nil {
		t.Error(err)
	}
}

// So it does for a session that is resumed, which crypto/tls verifies by the old CAs only.
func TestAPolicyThatChangesDuringAResumptionIsTheOneThatCounts(t *testing.T) {
	each(t, func(t *testing.T, version uint16) {
		for _, name := range []string{"revoked", "another CA"} {
			c := newClub(t, func(*certs.Clients) {})
			certificate := c.ca.client("member")
			client := c.member(certificate)
			client.MaxVersion = version
			if _, err := meet(c.config, client); err != nil {
				t.Fatal(err)
			}
			config := c.config.Clone()
			config.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
				chosen, err := c.config.GetConfigForClient(hello)
				if name == "revoked" {
					c.clients.CRLs = []string{put(t, c.dir, "list.crl", c.ca.crl(certificate))}
				} else {
					put(t, c.dir, "ca.pem", newAuthority(t, "clients' CA").pem())
				}
				return chosen, errors.Join(err, c.clients.Load())
			}
			m, err := meet(config, client)
			if err == nil || !m.server.DidResume {
				t.Errorf("%s: resumed %t, %v", name, m.server.DidResume, err)
			}
		}
	})
}

func TestAChangedPolicyIsToldToWhoeverEndsConnections(t *testing.T) {
	c := newClub(t, func(p *certs.Clients) {})
	list := put(t, c.dir, "list.crl", c.ca.crl())
	changed := make(chan struct{}, 10)
	clients := &certs.Clients{CAs: c.clients.CAs, CRLs: []string{list}, Interval: never, Problem: c.told.add, Changed: func() { changed <- struct{}{} }}
	watch(t, clients.Watch)
	await(t, changed) // the first time
	member := c.ca.client("member")
	state := &tls.ConnectionState{PeerCertificates: []*x509.Certificate{member.Leaf}}
	if err := clients.Allows(state); err != nil {
		t.Error(err)
	}
	put(t, c.dir, "list.crl", []byte("garbage"))
	c.told.await(t, "list.crl")
	if err := clients.Allows(state); err != nil {
		t.Errorf("after garbage: %v", err)
	}
	put(t, c.dir, "list.crl", c.ca.crl(member))
	await(t, changed)
	if err := clients.Allows(state); err == nil || !strings.Contains(err.Error(), "is revoked") {
		t.Errorf("error %v", err)
	}
}
