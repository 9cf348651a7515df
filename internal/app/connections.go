package app

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/internal/admin"
	"github.com/levee-net/levee/internal/config"
)

// The phases of a connection.
const (
	phaseArriving = "arriving"
	phaseServing  = "serving"
	phaseDraining = "draining"
)

// A line is an open connection in a list.
type line struct {
	levee.Sight
	key sortKey
}

// A sortKey is a place in a list. Of those with the same number and address the id decides, so that no two are alike.
type sortKey struct {
	number int64
	addr   netip.AddrPort
	id     uint64
}

func (k sortKey) compare(other sortKey) int {
	return cmp.Or(cmp.Compare(k.number, other.number), k.addr.Compare(other.addr), cmp.Compare(k.id, other.id))
}

// An order is what a list is sorted by.
type order struct {
	word       string
	key        func(levee.Sight) sortKey // by value: there is one for each connection, and none is to be on the heap
	descending bool
}

var errNoOrder = errors.New(`sort: takes id, accepted, in, out, idle or client, with a "-" before it for the other way round`)

func orderOf(word string) (order, error) {
	o := order{word: cmp.Or(word, "id")}
	name, descending := strings.CutPrefix(o.word, "-")
	o.descending = descending
	switch name {
	case "id":
		o.key = func(levee.Sight) sortKey { return sortKey{} }
	case "accepted":
		o.key = func(s levee.Sight) sortKey { return sortKey{number: s.Conn.Accepted().UnixNano()} }
	case "in":
		o.key = func(s levee.Sight) sortKey { in, _ := s.Conn.Traffic(); return sortKey{number: in} }
	case "out":
		o.key = func(s levee.Sight) sortKey { _, out := s.Conn.Traffic(); return sortKey{number: out} }
	case "idle":
		o.key = func(s levee.Sight) sortKey { return sortKey{number: -lastMoved(s)} } // what is idle stays where it is
	case "client":
		o.key = func(s levee.Sight) sortKey { return sortKey{addr: s.Conn.ClientAddr()} }
	default:
		return order{}, errNoOrder
	}
	return o, nil
}

// lastMoved is in Unix time. What does not show counts as this moment's: its handler is at work.
func lastMoved(s levee.Sight) int64 {
	if s.Moved.IsZero() {
		return 1<<63 - 1
	}
	return s.Moved.UnixNano()
}

func (o *order) compare(a, b sortKey) int {
	if o.descending {
		return b.compare(a)
	}
	return a.compare(b)
}

// of returns a connection's place.
func (o *order) of(s levee.Sight) sortKey {
	k := o.key(s)
	k.id = s.Conn.ID()
	return k
}

// A cursor is the place of the last connection of a page, in text: those after it are next, whoever has come or gone
// meanwhile.
func (o *order) cursor(k sortKey) string {
	addr := ""
	if k.addr.IsValid() {
		addr = k.addr.String()
	}
	return strings.Join([]string{o.word, strconv.FormatInt(k.number, 10), addr, strconv.FormatUint(k.id, 10)}, ",")
}

func (o *order) parseCursor(text string) (k sortKey, err error) {
	parts := strings.Split(text, ",")
	if len(parts) != 4 || parts[0] != o.word {
		return sortKey{}, fmt.Errorf("after: %q is not the next of a page sorted by %s", text, o.word)
	}
	var problems [3]error
	k.number, problems[0] = strconv.ParseInt(parts[1], 10, 64)
	if parts[2] != "" {
		k.addr, problems[1] = netip.ParseAddrPort(parts[2])
	}
	k.id, problems[2] = strconv.ParseUint(parts[3], 10, 64)
	if errors.Join(problems[:]...) != nil {
		return sortKey{}, fmt.Errorf("after: %q is not the next of a page", text)
	}
	return k, nil
}

// A selection says whether a connection is asked for.
type selection struct {
	admin.Query
	client netip.Prefix
}

func selectionOf(q admin.Query) (s selection, err error) {
	s.Query = q
	switch q.Phase {
	case "", phaseArriving, phaseServing, phaseDraining:
	default:
		return s, fmt.Errorf("phase: %q is none of %s, %s and %s", q.Phase, phaseArriving, phaseServing, phaseDraining)
	}
	if q.Client != "" {
		if s.client, err = config.ParsePrefix(q.Client); err != nil {
			return s, fmt.Errorf("client: %w", err)
		}
	}
	return s, nil
}

func (s *selection) takes(seen levee.Sight) bool {
	c := seen.Conn
	switch {
	case s.Listener != "" && c.Server().Name != s.Listener,
		s.Phase != "" && phaseOf(seen) != s.Phase,
		s.client.IsValid() && !s.client.Contains(c.ClientAddr().Addr()),
		s.Route != "" && c.Route() != s.Route:
		return false
	}
	if s.Upstream == "" && s.Server == "" {
		return true
	}
	to := c.Target()
	return to != nil && (s.Upstream == "" || s.Upstream == to.Upstream) && (s.Server == "" || s.Server == to.Server)
}

func phaseOf(s levee.Sight) string {
	switch {
	case s.Draining:
		return phaseDraining
	case s.Arriving:
		return phaseArriving
	}
	return phaseServing
}

// toldConnections returns a page of the open connections. It looks at all of them, and keeps no more than two pages.
func (f *front) toldConnections(q admin.Query) (admin.Connections, error) {
	page := admin.Connections{Connections: []admin.Connection{}}
	order, err := orderOf(q.Sort)
	if err != nil {
		return page, err
	}
	wanted, err := selectionOf(q)
	if err != nil {
		return page, err
	}
	after := sortKey{}
	if q.After != "" {
		if after, err = order.parseCursor(q.After); err != nil {
			return page, err
		}
	}
	limit := max(1, q.Limit)
	first := make([]line, 0, 2*limit)
	behind := 0        // the cursor
	var worst *sortKey // of a page that is full; nobody behind it can be on it
	sorted := func() { slices.SortFunc(first, func(a, b line) int { return order.compare(a.key, b.key) }) }
	for _, server := range f.allServers() {
		for seen := range server.Sights() {
			page.Total++
			if !wanted.takes(seen) {
				continue
			}
			page.Matching++
			key := order.of(seen)
			if q.After != "" && order.compare(key, after) <= 0 {
				continue
			}
			behind++
			if worst != nil && order.compare(key, *worst) > 0 {
				continue
			}
			if first = append(first, line{seen, key}); len(first) == cap(first) {
				sorted()
				first = first[:limit]
				last := first[limit-1].key
				worst = &last
			}
		}
	}
	sorted()
	first = first[:min(len(first), limit)]
	now := time.Now()
	for i := range first {
		page.Connections = append(page.Connections, f.toldSight(first[i].Sight, now))
	}
	if behind > limit {
		page.Next = order.cursor(first[limit-1].key)
	}
	return page, nil
}

func (f *front) toldConnection(id uint64) (admin.Connection, bool) {
	for _, server := range f.allServers() {
		c := server.Conn(id)
		if c == nil {
			continue
		}
		for seen := range server.Sights() { // what shows of it is had with the others
			if seen.Conn == c {
				return f.toldSight(seen, time.Now()), true
			}
		}
	}
	return admin.Connection{}, false
}

// toldSight is what is told of a connection.
func (f *front) toldSight(s levee.Sight, now time.Time) admin.Connection {
	c := s.Conn
	told := admin.Connection{
		ID: c.ID(), Listener: c.Server().Name, Client: c.RemoteAddr().String(), Local: c.LocalAddr().String(),
		Accepted: c.Accepted(), Phase: phaseOf(s), Engine: "goroutine", Idle: -1, Waits: int64(s.Held),
	}
	if peer := c.PeerAddr().String(); peer != told.Client {
		told.Peer = peer
	}
	if l := f.listenerOf(c); l != nil {
		told.Generation = l.generationOf(c)
	}
	if s.OnLoop {
		told.Engine = "loop"
	}
	if !s.Moved.IsZero() {
		told.Idle = max(0, now.Sub(s.Moved).Seconds())
	}
	told.In, told.Out = c.Traffic()
	if state := c.TLS(); state != nil {
		told.TLS, told.SNI, told.ALPN = tls.VersionName(state.Version), state.ServerName, state.NegotiatedProtocol
		if len(state.PeerCertificates) > 0 {
			told.Identity = identityOf(state.PeerCertificates[0])
		}
	}
	told.Route = c.Route()
	if to := c.Target(); to != nil {
		told.Upstream, told.Server = to.Upstream, to.Server
	}
	return told
}

// identityOf is whom a certificate is for, by the name that is the most telling.
func identityOf(leaf *x509.Certificate) string {
	switch {
	case len(leaf.URIs) > 0:
		return leaf.URIs[0].String()
	case len(leaf.DNSNames) > 0:
		return leaf.DNSNames[0]
	case len(leaf.EmailAddresses) > 0:
		return leaf.EmailAddresses[0]
	}
	return leaf.Subject.CommonName
}

var errByOperator = errors.New("by an operator")

func (f *front) end(id uint64) (found bool) {
	for _, server := range f.allServers() {
		if c := server.Conn(id); c != nil {
			c.Kill(errByOperator)
			f.log.Warn("ended a connection", "conn", id, "by", "an operator")
			return true
		}
	}
	return false
}

func (f *front) endAll(q admin.Query) (ended int, err error) {
	wanted, err := selectionOf(q)
	if err != nil {
		return 0, err
	}
	for _, server := range f.allServers() {
		for seen := range server.Sights() {
			if wanted.takes(seen) {
				seen.Conn.Kill(errByOperator)
				ended++
			}
		}
	}
	f.log.Warn("ended connections", "count", ended, "by", "an operator")
	return ended, nil
}
