package app

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/levee-net/levee/internal/config"
	"github.com/levee-net/levee/limit"
)

// report says which limits are in force, and which are only counted.
func (l *limiting) report(say func(warning bool, format string, args ...any)) {
	cfg := l.gen.cfg
	if text := wholeInWords(&cfg.Limits); text != "" {
		say(false, "all listeners together: %s", text)
	}
	for i := range cfg.Listeners {
		of := &cfg.Listeners[i]
		for _, text := range limitsInWords(&of.Limits) {
			say(false, "%s: %s", of.Name, text)
		}
		l.reportClients(of, say)
		for j := range of.Routes {
			for _, text := range routeLimitsInWords(&of.Routes[j].Limits) {
				say(false, "%s/%s: %s", of.Name, routeName(of, j), text)
			}
		}
		if lists := l.gates[i].Lists; lists != nil {
			s := lists.Stats()
			say(false, "%s: %s", of.Name, listsInWords(s.Allow, s.Deny, len(lists.Allow)+len(lists.AllowFiles) > 0))
		}
	}
	b := &cfg.Limits.Bans
	switch text := bansInWords(b); b.Mode {
	case config.LimitEnforce:
		say(false, "bans: %s", text)
	case config.LimitShadow:
		say(false, "bans: %s; shadow: only counted", text)
	default:
		say(false, "bans: %s", text)
	}
	switch {
	case l.shared != nil:
		say(false, "limits per client and bans are shared with all machines that have redis %s; while it does not answer, each decides alone", cfg.Redis.Address)
	case l.sharedBans != nil:
		say(false, "bans are shared with all machines that have redis %s; limits are not", cfg.Redis.Address)
	}
}

// A limitText is a limit in words, and where it is written.
type limitText struct {
	text string
	pos  config.Position
}

// of returns the limits that a connection of the listener's route is held to.
func (l *limiting) of(listener, route int) []limitText {
	cfg := &l.gen.cfg.Listeners[listener]
	lines := []limitText{{connsInWords(l.gen.servers[listener].Stats().MaxConns), cfg.Limits.Pos}}
	if text := wholeInWords(&l.gen.cfg.Limits); text != "" {
		lines = append(lines, limitText{"of all listeners together: " + text, l.gen.cfg.Limits.Pos})
	}
	for _, text := range limitsInWords(&cfg.Limits) {
		lines = append(lines, limitText{text, cfg.Limits.Pos})
	}
	if c := &cfg.Limits.PerClient; c.Mode != config.LimitOff {
		lines = append(lines, limitText{clientsInWords(c), c.Pos})
	}
	r := &cfg.Routes[route].Limits
	for _, text := range routeLimitsInWords(r) {
		lines = append(lines, limitText{"of the route: " + text, r.Pos})
	}
	return lines
}

// deniedAt returns the lines on account of which the address is denied: those that name it, and the files that may.
func (l *limiting) deniedAt(listener int, addr netip.Addr) (where []config.Position) {
	whole, own := &l.gen.cfg.Limits, &l.gen.cfg.Listeners[listener].Limits
	for _, s := range slices.Concat(whole.Deny, own.Deny) {
		if s.File == "" && s.Prefix.Contains(addr) {
			return []config.Position{s.Pos}
		}
	}
	for _, s := range slices.Concat(whole.Deny, own.Deny) {
		if s.File != "" && inFile(s.File, addr) {
			where = append(where, s.Pos)
		}
	}
	if len(where) > 0 {
		return where
	}
	allow := whole.Allow
	if len(own.Allow) > 0 {
		allow = own.Allow
	}
	for _, s := range allow {
		where = append(where, s.Pos)
	}
	return where
}

// inFile reports whether the address is on the list in a file.
func inFile(file string, addr netip.Addr) bool {
	lists := &limit.Lists{DenyFiles: []string{file}}
	return lists.Load() == nil && lists.Denies(addr) != nil
}

// reportClients says what each client gets, and warns where others can reach the listener and nothing is said.
func (l *limiting) reportClients(of *config.Listener, say func(warning bool, format string, args ...any)) {
	c := &of.Limits.PerClient
	if c.Mode == config.LimitOff {
		say(!allLoopback(of.Listen), "%s: limits.per_client is off: one client can take all connections", of.Name)
		return
	}
	say(false, "%s: %s", of.Name, clientsInWords(c))
}

func wholeInWords(w *config.Whole) string {
	var words []string
	if w.MaxConnections > 0 {
		words = append(words, fmt.Sprintf("up to %d connections", w.MaxConnections))
	}
	if !w.Rate.Off() {
		words = append(words, "new connections "+rateInWords(w.Rate, w.Burst))
	}
	return inMode(w.Mode, words)
}

// limitsInWords says nothing of limits that are not there.
func limitsInWords(l *config.Limits) (lines []string) {
	var words []string
	if !l.Rate.Off() {
		words = append(words, "new connections "+rateInWords(l.Rate, l.Burst))
	}
	if !l.HandshakeRate.Off() {
		words = append(words, "handshakes "+rateInWords(l.HandshakeRate, l.HandshakeBurst))
	}
	if l.Bandwidth.Given() {
		words = append(words, bandwidthInWords(l.Bandwidth)+" in all")
	}
	if text := inMode(l.Mode, words); text != "" {
		lines = append(lines, text)
	}
	if l.ConnectionBandwidth.Given() {
		lines = append(lines, "each connection: "+bandwidthInWords(l.ConnectionBandwidth))
	}
	return lines
}

func routeLimitsInWords(l *config.RouteLimits) (lines []string) {
	var words []string
	if l.MaxConnections > 0 {
		words = append(words, fmt.Sprintf("up to %d connections", l.MaxConnections))
	}
	if !l.Rate.Off() {
		words = append(words, "new connections "+rateInWords(l.Rate, l.Burst))
	}
	if text := inMode(l.Mode, words); text != "" {
		lines = append(lines, text)
	}
	if l.PerClient.Mode != config.LimitOff {
		lines = append(lines, clientsInWords(&l.PerClient))
	}
	return lines
}

func clientsInWords(c *config.PerClient) string {
	var words []string
	if c.Connections > 0 {
		words = append(words, fmt.Sprintf("%d connections", c.Connections))
	}
	if !c.Rate.Off() {
		words = append(words, "new ones "+rateInWords(c.Rate, c.Burst))
	}
	if !c.HandshakeRate.Off() {
		words = append(words, "handshakes "+rateInWords(c.HandshakeRate, c.HandshakeBurst))
	}
	if c.Bandwidth.Given() {
		words = append(words, bandwidthInWords(c.Bandwidth))
	}
	if len(words) == 0 {
		words = []string{"anything"}
	}
	return "each " + clientInWords(c.By) + ": " + inMode(c.Mode, words)
}

// inMode says of what becomes of limits only what is not to be expected.
func inMode(mode config.LimitMode, words []string) string {
	text := strings.Join(words, ", ")
	if text != "" && mode == config.LimitShadow {
		text += "; shadow: only counted"
	}
	return text
}

func rateInWords(r config.Rate, burst int) string {
	return fmt.Sprintf("%s, %d at once", r, burst)
}

func bandwidthInWords(b config.Bandwidth) string {
	var words []string
	if b.Up > 0 {
		words = append(words, b.Up.String()+" up")
	}
	if b.Down > 0 {
		words = append(words, b.Down.String()+" down")
	}
	return strings.Join(words, ", ")
}

func listsInWords(allow, deny int, only bool) string {
	switch {
	case only && deny > 0:
		return fmt.Sprintf("only clients of %d prefixes are let in, without those of %d", allow, deny)
	case only:
		return fmt.Sprintf("only clients of %d prefixes are let in", allow)
	}
	return fmt.Sprintf("clients of %d prefixes are turned away", deny)
}
