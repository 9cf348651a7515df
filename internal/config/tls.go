package config

import (
	"fmt"
	"strings"
	"time"

	"github.com/google/jsonschema-go/jsonschema"
	"go.yaml.in/yaml/v4"
)

// TLS is what becomes of TLS: at a listener, or at a route that has it otherwise than its listener.
type TLS struct {
	Pos  Position // zero when the file has no tls key
	Mode TLSMode  // a route's is empty when it has it as its listener has

	Certificates []Certificate
	Development  bool
	ACME         ACME

	ALPN []Word

	ClientCA       []Word // files; empty asks clients for no certificate
	ClientCRL      []Word // files
	ClientOptional bool
	ClientAllow    ClientAllow

	Tickets Tickets
}

// TLSMode is what becomes of TLS.
type TLSMode string

// What becomes of TLS.
const (
	TLSOff         TLSMode = "off"         // a connection's bytes are the handler's, whatever they are
	TLSTerminate   TLSMode = "terminate"   // it is required, and ends here
	TLSOptional    TLSMode = "optional"    // it ends here if the first byte is one, else the connection is plaintext
	TLSPassthrough TLSMode = "passthrough" // it is required, and goes on as it came
)

// Dialogue is a protocol in which clients ask for TLS before they begin it.
type Dialogue string

// The protocols in which clients ask for TLS before they begin it.
const (
	DialogueIMAP     Dialogue = "imap"
	DialogueLDAP     Dialogue = "ldap"
	DialogueMySQL    Dialogue = "mysql"
	DialoguePostgres Dialogue = "postgres"
	DialogueSMTP     Dialogue = "smtp"
)

// Dialogues returns all of them.
func Dialogues() []Dialogue {
	return []Dialogue{DialogueIMAP, DialogueLDAP, DialogueMySQL, DialoguePostgres, DialogueSMTP}
}

// serverFirst reports whether the server speaks first, and so levee in its place: then it has to end TLS, as a client
// that went on otherwise would have been greeted by another than it talks to.
func (d Dialogue) serverFirst() bool {
	return d == DialogueIMAP || d == DialogueMySQL || d == DialogueSMTP
}

func (t *TLS) keys() []key {
	mode := key{
		"mode", optional,
		choice[TLSMode]{p: &t.Mode, def: TLSTerminate, options: words(TLSOff, TLSTerminate, TLSOptional, TLSPassthrough)},
		"off is plaintext; terminate requires TLS and ends it; optional does that when the first byte is a TLS handshake, and is plaintext otherwise; " +
			"passthrough requires TLS and leaves it to who is behind.",
	}
	return append([]key{mode}, t.settings()...)
}

// routeKeys are the keys of a route's mapping.
type routeKeys TLS

func (t *routeKeys) keys() []key {
	mode := key{
		"mode", optional,
		choice[TLSMode]{p: &t.Mode, def: TLSTerminate, options: words(TLSTerminate, TLSPassthrough)},
		"terminate requires TLS and ends it; passthrough leaves it to who is behind.",
	}
	return append([]key{mode}, (*TLS)(t).settings()...)
}

// settings are the keys that listeners and routes have in common.
func (t *TLS) settings() []key {
	return []key{
		{
			"certificates", optional,
			list[Certificate]{
				p: &t.Certificates, of: "certificates such as {cert: a.pem, key: a-key.pem}",
				item: func(c *Certificate) value { return object{of: c, pos: &c.Pos} },
			},
			"Certificates with their keys, chosen by the name that the client asks for. The files are watched.",
		},
		{
			"development", optional,
			boolean{&t.Development},
			"Use a certificate from this machine's own development CA, which is made at first use. Excludes certificates.",
		},
		{
			"acme", optional,
			whole{object{of: &t.ACME, pos: &t.ACME.Pos, filled: true}, t.ACME.Given},
			"Have an authority such as Let's Encrypt issue certificates, and renew them. Excludes certificates.",
		},
		{
			"alpn", optional,
			wordsOf(&t.ALPN, "protocols such as h2", "a protocol such as h2", notALPN),
			"The application protocols (ALPN), the preferred one first. A client that offers only others is refused; one that offers none is let in.",
		},
		{
			"client_ca", optional,
			filesOf(&t.ClientCA),
			"The authorities that clients' certificates must be from: PEM files, relative to this file's folder. Without it clients are asked for none.",
		},
		{
			"client_crl", optional,
			filesOf(&t.ClientCRL),
			"Revocation lists of those authorities: PEM or DER files, relative to this file's folder.",
		},
		{
			"client_optional", optional,
			boolean{&t.ClientOptional},
			"Lets clients in that show no certificate. One that is shown must be good nevertheless.",
		},
		{
			"client_allow", optional,
			object{of: &t.ClientAllow, pos: &t.ClientAllow.Pos, filled: true},
			"Which of the authorities' clients are let in: those that are on any of the lists. Without it, all.",
		},
		{
			"tickets", optional,
			object{of: &t.Tickets, pos: &t.Tickets.Pos, filled: true},
			"Session tickets, by which clients resume a session without a full handshake.",
		},
	}
}

func notALPN(s string) error {
	if len(s) > 255 {
		return fmt.Errorf("has %d bytes; a protocol's name has at most 255 (RFC 7301)", len(s))
	}
	return hasControl(s)
}

func filesOf(p *[]Word) value {
	return wordsOf(p, "paths of PEM files", "the path of a PEM file", hasControl)
}

// Certificate is a pair of PEM files, and perhaps an OCSP response. The paths are absolute; the file may give them
// relative to its own folder.
type Certificate struct {
	Pos  Position
	Cert string
	Key  string
	OCSP string // empty is none
}

func (c *Certificate) keys() []key {
	return []key{
		{"cert", required, filePath(&c.Cert), "The certificate and its chain: a PEM file, relative to this file's folder."},
		{"key", required, filePath(&c.Key), "The private key: a PEM file, relative to this file's folder."},
		{"ocsp", optional, filePath(&c.OCSP), "An OCSP response (DER) that clients are shown with it, relative to this file's folder."},
	}
}

// ClientAllow is which of the authorities' clients are let in. All lists empty is all of them.
type ClientAllow struct {
	Pos        Position
	DNS        []Word
	URI        []Word
	Email      []Word
	CommonName []Word
	SPKI       []Word
}

func (a *ClientAllow) keys() []key {
	return []key{
		{
			"dns", optional,
			wordsOf(&a.DNS, "names such as client.example.com", "a name such as client.example.com", notPattern),
			"DNS names, or patterns such as *.example.com, in which * is one label.",
		},
		{
			"uri", optional,
			wordsOf(&a.URI, "URIs such as spiffe://example.com/billing", "a URI such as spiffe://example.com/billing", hasControl),
			"URIs, or SPIFFE IDs that end with /*, which is any path.",
		},
		{
			"email", optional,
			wordsOf(&a.Email, "addresses such as ops@example.com", "an address such as ops@example.com", hasControl),
			"Email addresses.",
		},
		{
			"common_name", optional,
			wordsOf(&a.CommonName, "common names", "a common name", hasControl),
			"Common names of the subject. Prefer the others: authorities check this one less.",
		},
		{
			"spki", optional,
			wordsOf(&a.SPKI, "pins such as sha256/ and 44 characters of base64", "sha256/ and the base64 of the public key's hash", hasControl),
			"Pins of public keys: sha256/ and the hash of the SubjectPublicKeyInfo in base64.",
		},
	}
}

// given reports whether there is any list.
func (a *ClientAllow) given() bool {
	return len(a.DNS)+len(a.URI)+len(a.Email)+len(a.CommonName)+len(a.SPKI) > 0
}

// Tickets is how sessions are resumed.
type Tickets struct {
	Pos    Position
	File   string        // empty is random keys of this process's own
	Rotate time.Duration // 0 is 8h; negative is no tickets
}

func (t *Tickets) keys() []key {
	return []key{
		{
			"file", optional, filePath(&t.File),
			"A secret that several machines share, so that clients may resume at any of them: 32 random bytes or more, relative to this file's folder. It is watched.",
		},
		{
			"rotate", optional,
			duration{p: &t.Rotate, min: time.Minute, max: 7 * day, off: true},
			"How long a key makes tickets; they are taken for twice as long after that. Without it, 8h. off is no tickets.",
		},
	}
}

// routeTLS is a route's tls: the word passthrough, or a mapping.
type routeTLS struct{ *TLS }

func (t routeTLS) mapping() object {
	return object{of: (*routeKeys)(t.TLS), pos: &t.Pos, filled: true}
}

func (t routeTLS) word() choice[TLSMode] {
	return choice[TLSMode]{p: &t.Mode, options: words(TLSPassthrough)}
}

func (t routeTLS) read(r *reader, path string, n *yaml.Node) {
	if n.Kind == yaml.MappingNode {
		t.mapping().read(r, path, n)
		return
	}
	t.absent()
	t.Pos = r.at(n)
	if n.Kind != yaml.ScalarNode {
		r.mistaken(path, n, t)
		return
	}
	t.word().read(r, path, n)
}

func (t routeTLS) absent() { *t.TLS = TLS{} }

func (t routeTLS) write() *yaml.Node {
	if t.Mode == TLSTerminate || t.setting() != "" {
		return t.mapping().write()
	}
	return t.word().write()
}

func (t routeTLS) schema() *jsonschema.Schema {
	return &jsonschema.Schema{AnyOf: []*jsonschema.Schema{t.word().schema(), t.mapping().schema()}}
}

func (t routeTLS) takes() string { return "passthrough, or " + t.mapping().takes() }

func (t *TLS) resolvePaths(resolve func(*string)) {
	for i := range t.Certificates {
		c := &t.Certificates[i]
		resolve(&c.Cert)
		resolve(&c.Key)
		resolve(&c.OCSP)
	}
	for _, files := range [][]Word{t.ClientCA, t.ClientCRL} {
		for i := range files {
			resolve(&files[i].Text)
		}
	}
	resolve(&t.Tickets.File)
	resolve(&t.ACME.CA)
	resolve(&t.ACME.Folder)
}

func (t *TLS) certified() bool { return len(t.Certificates) > 0 || t.Development || t.ACME.Given() }

// clientSetting names a setting for clients' certificates that there is, if there is any.
func (t *TLS) clientSetting() string {
	switch {
	case len(t.ClientCA) > 0:
		return "client_ca"
	case len(t.ClientCRL) > 0:
		return "client_crl"
	case t.ClientOptional:
		return "client_optional"
	case t.ClientAllow.given():
		return "client_allow"
	}
	return ""
}

// setting names a setting beside the mode that there is, if there is any.
func (t *TLS) setting() string {
	switch {
	case t.certified():
		return "a certificate"
	case len(t.ALPN) > 0:
		return "alpn"
	case t.Tickets.File != "" || t.Tickets.Rotate != 0:
		return "tickets"
	}
	return t.clientSetting()
}

// TLSOf returns what becomes of TLS on a route. What the route leaves out is the listener's: certificates, alpn and
// tickets each, and the settings for clients' certificates all together, so that nobody's are mixed with another's.
func (l *Listener) TLSOf(r *Route) TLS {
	own := r.TLS
	switch {
	case own.Mode == "":
		return l.TLS
	case own.Mode == TLSPassthrough:
		return own
	}
	if !own.certified() {
		own.Certificates, own.Development, own.ACME = l.TLS.Certificates, l.TLS.Development, l.TLS.ACME
	}
	if len(own.ALPN) == 0 {
		own.ALPN = l.TLS.ALPN
	}
	if own.clientSetting() == "" {
		own.ClientCA, own.ClientCRL, own.ClientOptional, own.ClientAllow = l.TLS.ClientCA, l.TLS.ClientCRL, l.TLS.ClientOptional, l.TLS.ClientAllow
	}
	if own.Tickets.File == "" && own.Tickets.Rotate == 0 {
		own.Tickets = l.TLS.Tickets
	}
	return own
}

// Terms returns the settings in a form that is the same for those that say the same, wherever they stand.
func (t *TLS) Terms() string {
	alike := *t
	alike.Mode = TLSTerminate
	return Said(&alike)
}

// Terminates reports whether TLS on the route ends here.
func (l *Listener) Terminates(r *Route) bool {
	mode := l.TLSOf(r).Mode
	return mode == TLSTerminate || mode == TLSOptional
}

// checkTLS judges the listener's tls at path, which its routes may have otherwise.
func (l *Listener) checkTLS(ps *Problems, listener string) {
	path := listener + ".tls"
	if !ps.clean(path) {
		return
	}
	l.TLS.check(ps, path)
	wanted := len(l.Routes) == 0 // or some route ends TLS with what the listener says
	ends := false
	for i := range l.Routes {
		r := &l.Routes[i]
		ends = ends || l.Terminates(r)
		wanted = wanted || r.TLS.Mode == ""
	}
	setting := l.TLS.setting()
	switch {
	case !ps.clean(path) || !ps.clean(listener+".routes"):
	case l.TLS.Mode == TLSOff && setting != "":
		ps.add(l.TLS.Pos, path, "mode is off, yet there is %s; remove it, or set mode: terminate", setting)
	case l.TLS.Mode == TLSOff && l.STARTTLS != "":
		ps.add(l.Pos, listener+".starttls", "there is starttls, yet tls.mode is off; remove it, or set mode: terminate")
	case l.STARTTLS.serverFirst() && l.TLS.Mode != TLSTerminate:
		ps.add(l.Pos, listener+".starttls", "levee speaks first in the place of an %s server, so TLS has to end here, yet tls.mode is %s; set mode: terminate", l.STARTTLS, l.TLS.Mode)
	case l.TLS.Mode == TLSPassthrough && setting != "" && !ends:
		ps.add(l.TLS.Pos, path, "mode is passthrough, yet there is %s; remove it, or set mode: terminate", setting)
	case (l.TLS.Mode == TLSTerminate || l.TLS.Mode == TLSOptional) && wanted && !l.TLS.certified():
		ps.add(l.TLS.Pos, path, "mode %s needs a certificate; add certificates: [{cert: a.pem, key: a-key.pem}], or development: true", l.TLS.Mode)
	}
}

// check judges what needs no other key to be wrong.
func (t *TLS) check(ps *Problems, path string) {
	switch {
	case len(t.Certificates) > 0 && t.Development:
		ps.add(t.Pos, path, "has both certificates and development: true; keep one of them")
	case t.ACME.Given() && len(t.Certificates) > 0:
		ps.add(t.Pos, path, "has both certificates and acme; keep one of them")
	case t.ACME.Given() && t.Development:
		ps.add(t.Pos, path, "has both acme and development: true; keep one of them")
	}
	t.ACME.check(ps, path+".acme")
	if setting := t.clientSetting(); setting != "" && len(t.ClientCA) == 0 {
		ps.add(t.Pos, path, "has %s without client_ca, by which no client's certificate could be verified; add client_ca: clients.pem", setting)
	}
	if t.Tickets.File != "" && t.Tickets.Rotate < 0 {
		ps.add(t.Tickets.Pos, path+".tickets", "rotate is off, yet there is file; remove one of them")
	}
	for _, twice := range []struct {
		name string
		of   []Word
	}{{"alpn", t.ALPN}, {"client_ca", t.ClientCA}, {"client_crl", t.ClientCRL}} {
		first := make(map[string]int)
		for i, w := range twice.of {
			if j, taken := first[w.Text]; taken {
				ps.add(w.Pos, fmt.Sprintf("%s.%s[%d]", path, twice.name, i), "%s is %s[%d] already; remove it", quote(w.Text), twice.name, j)
				continue
			}
			first[w.Text] = i
		}
	}
}

// checkRouteTLS judges a route's tls.
func (l *Listener) checkRouteTLS(ps *Problems, r *Route, path string) {
	path += ".tls"
	if r.TLS.Mode == "" || !ps.clean(path) {
		return
	}
	r.TLS.check(ps, path)
	setting := r.TLS.setting()
	whole := l.TLSOf(r)
	switch {
	case !ps.clean(path):
	case r.TLS.Mode == TLSPassthrough && l.STARTTLS.serverFirst():
		ps.add(r.TLS.Pos, path, "levee speaks first in the place of an %s server, so TLS has to end here; remove this, or the listener's starttls", l.STARTTLS)
	case l.TLS.Mode == TLSOff:
		ps.add(r.TLS.Pos, path, "the listener's tls.mode is off, so no TLS is looked at; set that to terminate, optional or passthrough, or remove this")
	case r.TLS.Mode == TLSPassthrough && setting != "":
		ps.add(r.TLS.Pos, path, "mode is passthrough, yet there is %s; remove it, or set mode: terminate", setting)
	case r.TLS.Mode == TLSTerminate && !whole.certified():
		ps.add(r.TLS.Pos, path, "needs a certificate, and the listener has none either; add certificates: [{cert: a.pem, key: a-key.pem}], or development: true")
	}
}

// Texts returns the texts of words.
func Texts(words []Word) []string {
	texts := make([]string, len(words))
	for i, w := range words {
		texts[i] = w.Text
	}
	return texts
}

// quoteAll shows some pieces of the file.
func quoteAll(texts []string) string {
	const most = 4
	var quoted []string
	for _, t := range texts[:min(len(texts), most)] {
		quoted = append(quoted, quote(t))
	}
	if len(texts) > most {
		quoted = append(quoted, "...")
	}
	return strings.Join(quoted, ", ")
}
