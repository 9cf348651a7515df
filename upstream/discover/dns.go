package discover

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"

	"github.com/levee-net/levee/upstream"
)

// DNS is a source of servers that are the addresses of one host name: its A and AAAA
// records. It asks again when their TTL is over, but not more often than once a second
// and not more rarely than every five minutes; "there is none" is good for as long as
// the zone says (RFC 2308), within the same bounds.
//
// An entry in the hosts file comes before DNS, and is looked at every five seconds.
// A name that is an IP address is a server that never changes. Of more than 128 addresses
// the lowest 128 are heeded, and Problem is told.
type DNS struct {
	Name string // a host's; one that is not complete goes through the search list
	Port int    // of the servers, 1 to 65535

	// Single says that the addresses are those of one and the same server. It is named
	// like "db.example.com:5432". Otherwise each address is a server of its own, named
	// like "10.0.0.7:5432". In TLS the certificates are for Name in either case, unless
	// the pool's configuration has a ServerName: whoever can change what DNS says must
	// not choose what certificate will do.
	Single bool

	// Hold is how long the servers are kept when DNS says for certain that there are
	// none any more, after which it is believed. Zero means 30 seconds, as in HAProxy;
	// negative means not at all. While DNS does not answer they are kept in any case,
	// as in Envoy.
	Hold time.Duration

	Resolver *Resolver   // nil means the machine's
	Problem  func(error) // if set, is told what goes wrong
}

// Run tells the servers until ctx ends. It may run several times at once.
func (d *DNS) Run(ctx context.Context, update func([]upstream.Server)) error {
	if d.Port < 1 || d.Port > 65535 {
		return fmt.Errorf("port %d of %s is not one", d.Port, d.Name)
	}
	if addr, err := netip.ParseAddr(d.Name); err == nil {
		return Static(d.servers([]netip.Addr{addr})).Run(ctx, update)
	}
	if err := checkName(d.Name); err != nil {
		return err
	}
	r, h := resolver(d.Resolver), &host{name: d.Name}
	ask := func(ctx context.Context) ([]upstream.Server, time.Duration, error) {
		addrs, next, err := h.ask(ctx, r)
		addrs, excess := bounded(addrs)
		if excess > 0 {
			err = errors.Join(err, fmt.Errorf("look up %s: it has %d addresses more than the %d that are heeded", strings.TrimSuffix(d.Name, "."), excess, maxAddresses))
		}
		return d.servers(addrs), next, err
	}
	poll := Poll{Ask: hold(d.Name, d.Hold, ask), Problem: d.Problem}
	return poll.Run(ctx, update)
}

func (d *DNS) servers(addrs []netip.Addr) (servers []upstream.Server) {
	texts, host := join(addrs, d.Port), strings.TrimSuffix(d.Name, ".")
	switch {
	case len(texts) == 0:
		return nil
	case d.Single:
		return []upstream.Server{{Name: net.JoinHostPort(host, strconv.Itoa(d.Port)), Addresses: texts}}
	}
	for i, text := range texts {
		servers = append(servers, upstream.Server{Name: text, ServerName: host, Addresses: texts[i : i+1]})
	}
	return servers
}

// maxAddresses bounds a name's addresses that are heeded: each is a server, with health
// checks of its own.
const maxAddresses = 128

// bounded returns each address once, and no more than may be: always the same of them. It
// also returns how many there are beyond that.
func bounded(addrs []netip.Addr) (heeded []netip.Addr, excess int) {
	addrs = unique(addrs)
	excess = max(0, len(addrs)-maxAddresses)
	return addrs[:len(addrs)-excess], excess
}

func unique(addrs []netip.Addr) []netip.Addr {
	return slices.Compact(slices.SortedFunc(slices.Values(addrs), netip.Addr.Compare))
}

// join returns each address once, with the port.
func join(addrs []netip.Addr, port int) (texts []string) {
	for _, addr := range unique(addrs) {
		texts = append(texts, netip.AddrPortFrom(addr, uint16(port)).String())
	}
	return texts
}

func resolver(r *Resolver) *Resolver {
	if r == nil {
		return new(Resolver)
	}
	return r
}

func checkName(name string) error {
	if _, ok := dns.IsDomainName(name); !ok || name == "" || name == "." || strings.ContainsAny(name, " /:\\") {
		return fmt.Errorf("%q is no name for DNS", name)
	}
	return nil
}

// A host is a name and the addresses that it is known to have, of each family.
type host struct {
	name  string
	known [2][]netip.Addr
}

// incompleteTTL is how soon the question is put again if an answer is not all.
const incompleteTTL = 10 * time.Second

// ask returns the host's addresses, and in how long to ask again. Of a family for which
// there is no answer, they are those that were known, together with the error. None
// and no error means that there are none for certain: the hosts file, too, could be read.
func (h *host) ask(ctx context.Context, r *Resolver) (addrs []netip.Addr, next time.Duration, err error) {
	found, err := r.host(ctx, h.name)
	next = maxTTL
	for i, f := range found {
		switch {
		case f.err != nil:
			err = f.err
			next = min(next, incompleteTTL)
		case len(f.addrs) > 0, len(found[1-i].addrs) == 0:
			next = min(next, f.ttl) // that one family has none is looked at anew when the other is
		}
		if f.err == nil {
			h.known[i] = f.addrs
		}
	}
	if found[0].err != nil && found[1].err != nil {
		next = 0
	}
	return slices.Concat(h.known[:]...), next, err
}

// learn takes the host's addresses out of what came along with an answer, if they are
// there.
func (h *host) learn(extra []dns.RR) (addrs []netip.Addr, next time.Duration) {
	var known [2][]netip.Addr
	next = maxTTL
	for i, kind := range []uint16{dns.TypeA, dns.TypeAAAA} {
		found, _, ttl := follow(extra, h.name, kind)
		for _, record := range found {
			if addr, ok := addressOf(record); ok {
				known[i] = append(known[i], addr)
				next = min(next, max(ttl, minTTL))
			}
		}
	}
	if addrs = slices.Concat(known[:]...); len(addrs) > 0 {
		h.known = known
	}
	return addrs, next
}

// hold makes an Ask of a function for which no servers and no error is the certain
// answer that there are none: for so long it is not believed.
func hold(name string, limit time.Duration,
	ask func(context.Context) ([]upstream.Server, time.Duration, error),
) func(context.Context) ([]upstream.Server, time.Duration, error) {
	if limit == 0 {
		limit = 30 * time.Second
	}
	var since time.Time // of the first of the answers that there are none, up to now
	return func(ctx context.Context) ([]upstream.Server, time.Duration, error) {
		servers, next, err := ask(ctx)
		switch {
		case len(servers) > 0:
			since = time.Time{}
			return servers, next, err
		case err != nil:
			return nil, next, err
		case since.IsZero():
			since = time.Now()
		}
		none := absence(name)
		if left := limit - time.Since(since); left > 0 {
			return nil, min(next, left), none
		}
		return []upstream.Server{}, next, none
	}
}

// ErrAbsent is what a Problem is, for errors.Is, if DNS says for certain that there is no
// such name, or nothing for it.
var ErrAbsent = errors.New("it does not exist, or has no addresses")

func absence(name string) error {
	return fmt.Errorf("look up %s: %w", strings.TrimSuffix(name, "."), ErrAbsent)
}

// SRV is a source of the servers that a name's SRV records (RFC 2782) name. It asks
// again as [DNS] does.
//
// A record's priority becomes the server's tier, of which the lowest is 0 and none is
// left out, and its weight the weight; a weight of 0 becomes 1. Addresses that come
// along with the answer are used, and others looked up. Each server is named like its
// target and port, "db1.example.com:5432", and has all of the target's addresses. For
// TLS give the pool's configuration a ServerName: otherwise the certificates are for the
// targets, which whoever can change what DNS says chooses. A server
// whose target cannot be found is left out, or keeps the addresses that it had if
// nobody answers, and Problem is told.
type SRV struct {
	Name string // such as "_postgresql._tcp.example.com"

	Hold     time.Duration // as DNS.Hold
	Resolver *Resolver     // nil means the machine's
	Problem  func(error)   // if set, is told what goes wrong
}

// Run tells the servers until ctx ends. It may run several times at once.
func (s *SRV) Run(ctx context.Context, update func([]upstream.Server)) error {
	if err := checkName(s.Name); err != nil {
		return err
	}
	known := service{name: s.Name, resolver: resolver(s.Resolver)}
	poll := Poll{Ask: hold(s.Name, s.Hold, known.ask), Problem: s.Problem}
	return poll.Run(ctx, update)
}

// maxTargets bounds the records of a service that are heeded, and with them the
// questions that are open at once.
const maxTargets = 128

// A service is a name and the hosts that its records name.
type service struct {
	name     string
	resolver *Resolver
	hosts    map[string]*host
}

func (s *service) ask(ctx context.Context) (servers []upstream.Server, next time.Duration, err error) {
	found, err := s.resolver.services(ctx, s.name)
	if err != nil {
		return nil, 0, err
	}
	targets := targetsOf(found.records)
	places := s.places(ctx, targets, found.extra)
	var (
		problems []error
		failed   bool
		tier     = -1
		priority = -1
	)
	next = found.ttl
	for _, t := range targets {
		at := places[t.Target]
		switch {
		case at.err != nil:
			failed = true
			next = min(next, incompleteTTL)
			problems = append(problems, at.err)
		case len(at.addrs) == 0:
			problems = append(problems, absence(t.Target))
		}
		if at.err == nil {
			next = min(next, at.next)
		}
		if len(at.addrs) == 0 {
			continue
		}
		if int(t.Priority) != priority {
			tier, priority = tier+1, int(t.Priority)
		}
		servers = append(servers, upstream.Server{
			Name:      net.JoinHostPort(strings.TrimSuffix(t.Target, "."), strconv.Itoa(int(t.Port))),
			Addresses: join(at.addrs, int(t.Port)),
			Weight:    max(1, int(t.Weight)),
			Tier:      tier,
		})
	}
	switch {
	case len(servers) > 0:
		return servers, next, errors.Join(problems...)
	case failed:
		return nil, 0, errors.Join(problems...)
	}
	return nil, next, nil
}

// A place is where a target is.
type place struct {
	addrs []netip.Addr
	next  time.Duration
	err   error
}

// places finds all targets at the same time.
func (s *service) places(ctx context.Context, targets []*dns.SRV, extra []dns.RR) map[string]*place {
	hosts, places := make(map[string]*host), make(map[string]*place)
	var all sync.WaitGroup
	for _, t := range targets {
		if places[t.Target] != nil {
			continue
		}
		h, at := s.hosts[t.Target], new(place)
		if h == nil {
			h = &host{name: t.Target}
		}
		hosts[t.Target], places[t.Target] = h, at
		if at.addrs, at.next = h.learn(extra); len(at.addrs) == 0 {
			all.Go(func() { at.addrs, at.next, at.err = h.ask(ctx, s.resolver) }) // until its answer or the last time-out
		}
	}
	all.Wait()
	s.hosts = hosts
	return places
}

// targetsOf returns the records in the order of their priority, each target and port
// once. A target of "." says that there is no such service, and a port of 0 nothing.
func targetsOf(found []dns.RR) (targets []*dns.SRV) {
	for _, record := range found {
		if t, ok := record.(*dns.SRV); ok && t.Target != "." && t.Port != 0 {
			t.Target = strings.ToLower(t.Target)
			targets = append(targets, t)
		}
	}
	slices.SortFunc(targets, func(a, b *dns.SRV) int {
		return cmp.Or(cmp.Compare(a.Priority, b.Priority), cmp.Compare(b.Weight, a.Weight),
			strings.Compare(a.Target, b.Target), cmp.Compare(a.Port, b.Port))
	})
	type key struct {
		target string
		port   uint16
	}
	seen := make(map[key]bool)
	targets = slices.DeleteFunc(targets, func(t *dns.SRV) bool {
		k := key{t.Target, t.Port}
		again := seen[k]
		seen[k] = true
		return again
	})
	return targets[:min(len(targets), maxTargets)]
}
