package app

import (
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/certs/acme"
	"github.com/levee-net/levee/internal/config"
)

// announce says on standard output what is open, and with the built-in
// configuration what to try; the log gets the honesty report.
func (f *front) announce(demo bool, p *opening) {
	for _, line := range f.now.Load().report() {
		if line.warning {
			f.log.Warn(line.text)
		} else {
			f.log.Info(line.text)
		}
	}
	for _, sockets := range p.open {
		for _, s := range sockets {
			fmt.Fprintf(f.env.Stdout, "Listening on %s\n", s.Addr())
		}
	}
	if demo {
		f.suggest(p.open[0][0].Addr())
	}
	if f.adminSocket != nil {
		scheme := "http://"
		if f.first.Admin.TLS.Given() {
			scheme = "https://"
		}
		where := scheme + f.adminSocket.Addr().String() + "/metrics"
		if f.adminSocket.Addr().Network() == "unix" {
			where = "unix socket " + f.adminSocket.Addr().String()
		}
		fmt.Fprintf(f.env.Stdout, "Metrics on %s\n", where)
	}
}

// suggest prints three lines to try.
func (f *front) suggest(address net.Addr) {
	host, port, err := net.SplitHostPort(address.String())
	if err != nil {
		return
	}
	trust := ""
	if f.ca != nil && f.ca.CertFile != "" {
		trust = " -CAfile '" + strings.ReplaceAll(f.ca.CertFile, "'", `'\''`) + "'"
	}
	fmt.Fprintf(f.env.Stdout, `Try   printf 'hi\n' | nc -N %s %s
      curl http://%s/
      openssl s_client -brief%s -connect %s
`, host, port, address, trust, address)
}

// A reportLine is a sentence of the honesty report; a warning is one that an
// operator should not overlook.
type reportLine struct {
	text    string
	warning bool
}

// String marks warnings.
func (l reportLine) String() string {
	if l.warning {
		return "warning: " + l.text
	}
	return l.text
}

// report is the honesty report: what the configuration amounts to with every
// default filled in, and what it leaves unprotected.
func (g *generation) report() []reportLine {
	var lines []reportLine
	say := func(warning bool, format string, args ...any) {
		lines = append(lines, reportLine{fmt.Sprintf(format, args...), warning})
	}
	files := 0
	for i, l := range g.cfg.Listeners {
		server := g.servers[i]
		most := server.Stats().MaxConns
		files += max(most, 0) * filesPerConn(&g.cfg.Listeners[i])
		say(false, "%s: %s; %s; %s", l.Name, tlsInWords(&l), connsInWords(most), timeoutsInWords(l.Timeouts))
		if l.TLS.Mode == config.TLSOff || l.TLS.Mode == config.TLSOptional {
			say(!allLoopback(l.Listen), "%s: plaintext is accepted (tls.mode: %s)", l.Name, l.TLS.Mode)
		}
		if developed(&g.cfg.Listeners[i]) {
			say(!allLoopback(l.Listen), "%s: its certificates are this machine's own; %s", l.Name, g.trustInWords())
		}
		g.secured[i].report(&g.cfg.Listeners[i], say)
		if s := g.secured[i].listener; l.TLS.Mode == config.TLSOptional && s != nil && s.clients != nil && !s.cfg.ClientOptional {
			say(true, "%s: client_ca is only for those who come in TLS: tls.mode optional lets others in without a certificate", l.Name)
		}
		for _, name := range timeoutsOff(l.Timeouts) {
			say(true, "%s: timeouts.%s is off: one client can hold a connection for ever", l.Name, name)
		}
	}
	for i := range g.cfg.Upstreams {
		g.reportUpstream(&g.cfg.Upstreams[i], say)
	}
	g.limits.report(say)
	g.reportTracing(say)
	if g.cfg.Overload.Mode == config.ModeOff {
		say(true, "overload is off: short of memory, files or processors, all connections suffer, and levee with them")
	}
	if limit := levee.DefaultMaxConns(); limit > 0 && files > limit {
		say(true, "the listeners' connections may take %d files together, two for each that goes to an upstream, but the limit of open files leaves %d: raise it (ulimit -n) or lower limits.max_connections", files, limit)
	}
	g.reportAdmin(say)
	say(false, "drain: %s", drainInWords(&g.cfg.Drain))
	if canSupervise {
		say(false, "upgrade: %s", upgradeInWords(&g.cfg.Upgrade))
	}
	return lines
}

// report says whom a listener's TLS lets in, and what it does not see.
func (s *security) report(l *config.Listener, say func(warning bool, format string, args ...any)) {
	if l.Limits.Handshakes < 0 {
		say(true, "%s: limits.handshakes is off: a flood of handshakes takes the processors from the connections that are there", l.Name)
	}
	for _, t := range s.terms {
		if t.cfg.ACME.Given() {
			say(false, "%s: %s", t.where, issuedInWords(&t.cfg.ACME))
		}
		for _, line := range append(t.inWords(), ticketsInWords(t.cfg.Tickets)) {
			if line != "" {
				say(false, "%s: %s", t.where, line)
			}
		}
	}
	for i := range l.Routes {
		if l.TLSOf(&l.Routes[i]).Mode == config.TLSPassthrough && !l.Routes[i].Refuse {
			say(false, "%s/%s: TLS is passed through: who is behind asks for client certificates, if anybody does", l.Name, routeName(l, i))
		}
	}
}

// ticketsInWords says nothing of the default.
func ticketsInWords(cfg config.Tickets) string {
	switch {
	case cfg.Rotate < 0:
		return "no session tickets: who comes back makes a full handshake"
	case cfg.File != "":
		return "session tickets are shared with whoever has " + cfg.File
	}
	return ""
}

// issuedInWords says who issues certificates, and how he is convinced.
func issuedInWords(a *config.ACME) string {
	by := a.Directory
	switch {
	case by != "":
	case a.Staging:
		by = acme.LetsEncryptStaging
	default:
		by = acme.LetsEncrypt
	}
	where := "whose handshakes on port 443 have to come here"
	switch {
	case !a.By(config.ChallengeTLSALPN):
		where = "whose requests on port 80 have to come to handler: acme"
	case a.By(config.ChallengeHTTP):
		where += ", and whose requests on port 80 to handler: acme"
	}
	return fmt.Sprintf("certificates for %s are issued by %s, %s", strings.Join(config.Texts(a.Domains), ", "), by, where)
}

// inWords says whom the terms let in.
func (t *terms) inWords() (lines []string) {
	if t.clients == nil {
		return nil
	}
	cfg := &t.cfg
	line := "clients need a certificate"
	if cfg.ClientOptional {
		line = "clients may show a certificate"
	}
	line += " of " + strings.Join(config.Texts(cfg.ClientCA), ", ")
	if n := len(entriesOf(&cfg.ClientAllow)); n > 0 {
		line += fmt.Sprintf(" that is on a list of %d", n)
	}
	lines = append(lines, line)
	if len(cfg.ClientCRL) == 0 {
		lines = append(lines, "no client_crl: a client's certificate that is lost is good until it expires")
	}
	return lines
}

// developed reports whether the listener uses the development CA.
func developed(l *config.Listener) bool {
	return l.TLS.Development || slices.ContainsFunc(l.Routes, func(r config.Route) bool { return r.TLS.Development })
}

// reportUpstream says what an upstream amounts to.
func (g *generation) reportUpstream(u *config.Upstream, say func(warning bool, format string, args ...any)) {
	say(false, "%s", upstreamInWords(u))
	if u.TLS.SkipVerify {
		say(true, "%s: its servers' certificates are not verified (tls.skip_verify): who is in between can read along", u.Name)
	}
	if probe := u.Health.Probe; u.TLS.Mode == config.ModeOn && (probe == config.ProbePostgres || probe == config.ProbeMySQL) {
		say(true, "%s: TLS begins at once (tls.mode: on), which %s servers understand only behind a TLS wrapper: without one they are found down", u.Name, probe)
	}
	if u.Health.Interval < 0 {
		say(true, "%s: health checks are off: a server that is down is found out by its clients", u.Name)
	}
	if u.Breaker.Mode == config.ModeOff {
		say(true, "%s: the breaker is off: a server that fails goes on getting connections", u.Name)
	}
}

func upgradeInWords(u *config.Upgrade) string {
	words := fmt.Sprintf("by levee upgrade or SIGUSR2; the new process has %s to get ready, is watched for %s before it accepts, and for %s before open connections move to it",
		shortDuration(u.Timeout), shortDuration(u.Settle), shortDuration(u.Probation))
	if u.PIDFile != "" {
		words += "; its number is in " + u.PIDFile
	}
	return words
}

func drainInWords(d *config.Drain) string {
	said := fmt.Sprintf("up to %s after SIGTERM, the rest are cut", d.Timeout)
	switch {
	case d.Spread > 0:
		said += "; asked to leave one after the other, in " + shortDuration(d.Spread)
	case d.Spread < 0:
		said += "; all are asked to leave at once"
	}
	return said
}

func upstreamInWords(u *config.Upstream) string {
	servers := make([]string, len(u.Servers))
	for i, s := range u.Servers {
		servers[i] = s.String()
	}
	secure := "plaintext"
	if u.TLS.Mode == config.ModeOn {
		secure = "TLS"
	}
	if protocol := u.Speaks(); protocol != config.ProtocolNone {
		secure = string(protocol) + " in " + secure
	}
	return fmt.Sprintf("%s: %s to %s; %s; dial %s, %d tries, %s in all; %s; %s", u.Name, secure, strings.Join(servers, ", "), u.Balance,
		shortDuration(u.Dial.Timeout), u.Dial.Tries, shortDuration(u.Dial.TotalTimeout), healthInWords(&u.Health), breakerInWords(&u.Breaker))
}

func healthInWords(h *config.Health) string {
	if h.Interval < 0 {
		return "no health checks"
	}
	return fmt.Sprintf("health %s every %s", h.Probe, shortDuration(h.Interval))
}

func breakerInWords(b *config.Breaker) string {
	if b.Mode == config.ModeOff {
		return "no breaker"
	}
	var limits []string
	if b.Failures > 0 {
		limits = append(limits, fmt.Sprintf("%d failures in a row", b.Failures))
	}
	if b.Rate > 0 {
		limits = append(limits, fmt.Sprintf("%.0f%% of %d in %s", 100*b.Rate, b.Volume, shortDuration(b.Window)))
	}
	return "breaker opens at " + strings.Join(limits, " or ")
}

func tlsInWords(l *config.Listener) string {
	words := map[config.TLSMode]string{
		config.TLSOff:         "no TLS",
		config.TLSTerminate:   "TLS required",
		config.TLSOptional:    "TLS optional",
		config.TLSPassthrough: "TLS required, and passed through",
	}[l.TLS.Mode]
	switch {
	case l.STARTTLS == "":
	case dialogues[l.STARTTLS].meet != nil: // levee speaks first, and a hello is no answer to that
		words += ", as clients of " + string(l.STARTTLS) + " ask for it"
	default:
		words += ", at once or as clients of " + string(l.STARTTLS) + " ask for it"
	}
	return words
}

func connsInWords(n int) string {
	if n < 0 {
		return "any number of connections"
	}
	return fmt.Sprintf("up to %d connections", n)
}

func (g *generation) trustInWords() string {
	if g.env.lookOnly && g.ca.CertFile == "" {
		return "the CA is made at the first start"
	}
	if g.ca.CertFile == "" {
		return "they last until levee ends"
	}
	return "clients need " + g.ca.CertFile + " to trust them"
}

// namedTimeouts are a listener's timeouts under their names in the configuration.
func namedTimeouts(t config.Timeouts) []struct {
	name string
	d    time.Duration
} {
	return []struct {
		name string
		d    time.Duration
	}{
		{"arrival", t.Arrival},
		{"proxy_header", t.ProxyHeader},
		{"sniff", t.Sniff},
		{"idle", t.Idle},
		{"half_closed", t.HalfClosed},
		{"write_stall", t.WriteStall},
		{"message", t.Message},
		{"lifetime", t.Lifetime},
	}
}

func timeoutsInWords(t config.Timeouts) string {
	var words []string
	for _, timeout := range namedTimeouts(t) {
		value := "off"
		if timeout.d >= 0 {
			value = shortDuration(timeout.d)
		}
		words = append(words, timeout.name+" "+value)
	}
	return strings.Join(words, ", ")
}

// shortDuration is d without the zero units that Duration.String spells out.
func shortDuration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// timeoutsOff names the timeouts without which a silent client stays. A lifetime
// is not among them: it bounds the well-behaved.
func timeoutsOff(t config.Timeouts) []string {
	var off []string
	for _, timeout := range namedTimeouts(t) {
		if timeout.d < 0 && timeout.name != "lifetime" {
			off = append(off, timeout.name)
		}
	}
	return off
}

func allLoopback(addresses []config.Address) bool {
	for _, a := range addresses {
		if !a.Loopback() {
			return false
		}
	}
	return true
}
