package upstream

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"time"
)

const (
	stagger     = 250 * time.Millisecond // RFC 8305 section 5: the recommended Connection Attempt Delay
	mostTargets = 32                     // addresses of one server; a name may have been given any number
)

// reach connects to the first of a server's addresses that answers.
func (p *Pool) reach(ctx context.Context, addresses []address) (net.Conn, error) {
	if len(addresses) == 1 && addresses[0].host == "" {
		conn, err := p.connect(ctx, addresses[0])
		if err != nil {
			return nil, plain(err)
		}
		return conn, nil
	}
	targets, err := lookUp(ctx, addresses)
	if err != nil {
		return nil, err
	}
	return p.race(ctx, interleave(targets))
}

// lookUp returns the addresses with those in place of each host that it has. A host that
// cannot be looked up is an error only if nothing else is left.
func lookUp(ctx context.Context, addresses []address) (targets []address, err error) {
	for _, a := range addresses {
		if a.host == "" {
			targets = append(targets, a)
			continue
		}
		ips, failure := net.DefaultResolver.LookupNetIP(ctx, "ip", a.host)
		if failure != nil {
			err = failure
			continue
		}
		for _, ip := range ips {
			targets = append(targets, socketAddress(netip.AddrPortFrom(ip.Unmap(), a.socket.Port())))
		}
	}
	if len(targets) > 0 {
		return targets, nil
	}
	return nil, err
}

// interleave has the families take turns, the first address's first (RFC 8305 section 4).
func interleave(addresses []address) []address {
	var queues [ipv6 + 1][]address
	var order []family
	for _, a := range addresses {
		f := a.family()
		if queues[f] == nil {
			order = append(order, f)
		}
		queues[f] = append(queues[f], a)
	}
	mixed := make([]address, 0, min(len(addresses), mostTargets))
	for turn := 0; len(mixed) < cap(mixed); turn++ {
		for _, f := range order {
			if turn < len(queues[f]) && len(mixed) < cap(mixed) {
				mixed = append(mixed, queues[f][turn])
			}
		}
	}
	return mixed
}

// An attempt is the end of one of several that connect at once.
type attempt struct {
	to   address
	conn net.Conn
	err  error
}

// race connects to one target after the other, each a little after the one before or as
// soon as one has failed, and returns the first connection. If there is none, the error
// is that of the first that failed.
func (p *Pool) race(ctx context.Context, targets []address) (net.Conn, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ends := make(chan attempt)
	delay := time.NewTimer(0)
	defer delay.Stop()
	var first error
	for begun, failed := 0, 0; failed < len(targets); {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-delay.C:
			if begun < len(targets) {
				go p.compete(ctx, targets[begun], ends) // ends with ctx at the latest
				begun++
				delay.Reset(stagger)
			}
		case end := <-ends:
			if end.err == nil {
				return end.conn, nil
			}
			failed++
			if first == nil {
				first = fmt.Errorf("%v: %w", end.to, plain(end.err))
			}
			delay.Reset(0)
		}
	}
	return nil, first
}

// compete connects, and closes the connection if the race is over.
func (p *Pool) compete(ctx context.Context, to address, ends chan<- attempt) {
	conn, err := p.connect(ctx, to)
	select {
	case ends <- attempt{to, conn, err}:
	case <-ctx.Done():
		if conn != nil {
			conn.Close()
		}
	}
}
