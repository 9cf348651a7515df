package attack

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os/exec"
	"sync"
	"time"
)

// Attackers in a process of their own leave the well-behaved client to itself: in
// one with them it would wait for its turn among thousands of goroutines, and what it
// measures would be that.

// attackers are a force, here or elsewhere.
type attackers interface {
	strike(ctx context.Context) error // until ctx ends
	soFar() Tally
}

func (f *Flood) muster(a Attack, t *target) attackers {
	o := orders{
		Attack: a.Name, Target: t.addr, Owned: f.Owned, Host: t.host, Secure: t.tls != nil, ProxyHeader: t.proxyHeader, Request: t.protocol.request,
		Prefix: t.prefix, Connections: f.Connections, Rate: f.Rate, Duration: f.Duration,
	}
	if t.forTLS != nil {
		o.ServerName, o.NextProtos = t.forTLS.ServerName, t.forTLS.NextProtos
	}
	if f.Elsewhere == nil {
		return newForce(f, a, t)
	}
	return &distant{start: f.Elsewhere, orders: o}
}

// orders are all that attackers have to know.
type orders struct {
	Attack      string
	Target      netip.AddrPort
	Owned       bool
	Host        string
	Secure      bool
	ServerName  string
	NextProtos  []string
	ProxyHeader bool
	Request     []byte
	Prefix      netip.Prefix
	Connections int
	Rate        float64
	Duration    time.Duration
}

// A distant force is in another process.
type distant struct {
	start  func(context.Context) *exec.Cmd
	orders orders

	mu    sync.Mutex
	tally Tally
}

func (d *distant) soFar() Tally {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.tally
}

// strike starts the process, which ends with its standard input.
func (d *distant) strike(ctx context.Context) error {
	life, kill := context.WithCancel(context.WithoutCancel(ctx))
	defer kill()
	process := d.start(life)
	in, err := process.StdinPipe()
	if err != nil {
		return err
	}
	out, err := process.StdoutPipe()
	if err != nil {
		return err
	}
	if err := process.Start(); err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() {
		in.Close()
		time.AfterFunc(patience, kill)
	})()
	err = json.NewEncoder(in).Encode(d.orders)
	for news := json.NewDecoder(out); err == nil; {
		var t Tally
		if err = news.Decode(&t); err == nil {
			d.mu.Lock()
			d.tally = t
			d.mu.Unlock()
		}
	}
	ended := process.Wait()
	if ctx.Err() != nil { // then it may have had to be killed
		return nil
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return errors.Join(err, ended)
}

// Serve makes the one attack that it is ordered to make on in, and tells on out how it
// goes. It returns when its time is over, or as soon as in ends. It is the other side of
// [Flood.Elsewhere].
func Serve(ctx context.Context, in io.Reader, out io.Writer) error {
	var o orders
	if err := json.NewDecoder(in).Decode(&o); err != nil {
		return fmt.Errorf("orders for attackers: %w", err)
	}
	a, ok := Named(o.Attack)
	if !ok {
		return fmt.Errorf("there is no attack %q", o.Attack)
	}
	f := Flood{
		Target: o.Target, Owned: o.Owned, ServerName: o.ServerName, Attacks: []Attack{a}, Prefix: o.Prefix,
		Connections: o.Connections, Rate: o.Rate, Duration: o.Duration,
	}
	if err := f.Check(); err != nil {
		return err
	}
	f, _ = f.withDefaults() // who gives the orders has said what cannot be had
	t := &target{addr: f.Target, host: o.Host, forTLS: f.attackersTLS(), proxyHeader: o.ProxyHeader, protocol: Protocol{request: o.Request}, prefix: f.Prefix}
	t.forTLS.NextProtos = o.NextProtos
	if o.Secure {
		t.tls = t.forTLS
	}
	if err := standBack(); err != nil {
		return err
	}
	ctx, stop := context.WithTimeout(ctx, f.Duration)
	defer stop()
	go stopAtEnd(in, stop)
	force := newForce(&f, a, t)
	told := make(chan error)
	go func() { told <- tell(ctx, out, force) }()
	return errors.Join(force.strike(ctx), <-told)
}

// stopAtEnd ends with the reader.
func stopAtEnd(r io.Reader, stop func()) {
	_, _ = io.Copy(io.Discard, r)
	stop()
}

// tell writes how it goes, and what came of it.
func tell(ctx context.Context, w io.Writer, force *force) error {
	to := json.NewEncoder(w)
	for sleep(ctx, tick) {
		if err := to.Encode(force.soFar()); err != nil {
			return err
		}
	}
	<-force.over
	return to.Encode(force.soFar())
}
