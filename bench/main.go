//go:build linux

// Command bench measures levee beside its peers, in one go on the reader's own
// machine: make bench.
//
// There are three suites: servers that echo, proxies with a backend behind them, and
// such proxies that end TLS. In four more levee is measured against itself: without its
// limits, and with an access log and spans.
//
// Server and load are pinned to a core each, so that neither takes from the other; a
// backend is part of the load.
// The servers take turns within each round, so that whatever else the machine does
// happens to all of them; a ratio is the median over the rounds of the ratios
// within a round. CPU per message is the steadier figure: it does not depend on who
// had to wait for whom. levee runs as its users get it, with timeouts, limits,
// metrics and logs; its peers run bare.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

type options struct {
	rounds   int
	duration time.Duration
	only     string
	peers    string
	quick    bool
	strict   bool
	flood    bool
	out      string
}

func main() {
	var o options
	flag.IntVar(&o.rounds, "rounds", 5, "`rounds`, in each of which every server does every work once")
	flag.DurationVar(&o.duration, "duration", 2*time.Second, "measured `time` of a work")
	flag.StringVar(&o.only, "only", "", "only these `works`: "+strings.Join(workKeys(suites), ","))
	flag.StringVar(&o.peers, "peers", "", "only these `servers`: "+strings.Join(peerKeys(suites), ","))
	flag.BoolVar(&o.quick, "quick", false, "one short round: about two minutes, and only good for a first look")
	flag.BoolVar(&o.strict, "strict", false, "exit 1 when a bar is missed")
	flag.BoolVar(&o.flood, "flood", false, "attack servers instead: --duration is that of an attack (12s), --only names attacks")
	flag.StringVar(&o.out, "out", "", "`folder` for results.json and the pictures (default results, or .build for a part of a run)")
	flag.Parse()
	if o.flood && !isSet("duration") {
		o.duration = 12 * time.Second
	}
	if o.quick {
		o.rounds, o.duration = 1, 400*time.Millisecond
	}
	if o.out == "" {
		o.out = "results"
		if o.quick || o.only != "" || o.peers != "" {
			o.out = buildFolder // what the README shows is a whole run
		}
	}
	missed, err := run(o)
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(2)
	}
	if missed && o.strict {
		os.Exit(1)
	}
}

func isSet(name string) (set bool) {
	flag.Visit(func(f *flag.Flag) { set = set || f.Name == name })
	return set
}

func run(o options) (missed bool, err error) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if flag.NArg() > 0 || o.rounds < 1 || o.duration <= 0 {
		return false, errors.New("no arguments, at least one round, and a duration above 0; see --help")
	}
	b := &bench{options: o, began: time.Now()}
	if o.flood {
		b.machine = inspect(ctx)
		if b.cores, err = pin(); err != nil {
			return false, err
		}
		return false, b.flood(ctx)
	}
	if b.suites, err = choose(suites, o.only, o.peers); err != nil {
		return false, err
	}
	if b.collector, err = collect(ctx); err != nil {
		return false, err
	}
	for _, s := range b.suites {
		if err := s.build(ctx); err != nil {
			return false, err
		}
	}
	b.machine = inspect(ctx)
	if b.cores, err = pin(); err != nil {
		return false, err
	}
	for _, s := range b.suites {
		if err := b.audition(ctx, s); err != nil {
			return false, err
		}
	}
	fmt.Printf("\n%s\nserver on core %d, load on core %d; %d rounds of %s, about %s in all\n\n",
		b.machine, b.cores.server, b.cores.load, o.rounds, o.duration, b.estimate().Round(10*time.Second))
	if err := b.rounds(ctx); err != nil {
		return false, err
	}
	b.loadAfter = loadAverage()
	missed = b.print(os.Stdout)
	if err := b.save(); err != nil {
		return false, err
	}
	where := o.out
	if !filepath.IsAbs(where) {
		where = filepath.Join("bench", where) // as seen from where make is
	}
	fmt.Printf("\nwritten to %s\n", where)
	return missed, nil
}

// choose returns the suites with the works and the peers that comma-separated lists
// name by their keys, or by a suite's for all its works. An empty list names all.
func choose(all []suite, works, peers string) (chosen []*suite, err error) {
	wanted, err := naming(works, workKeys(all))
	if err != nil {
		return nil, fmt.Errorf("--only: %w", err)
	}
	invited, err := naming(peers, peerKeys(all))
	if err != nil {
		return nil, fmt.Errorf("--peers: %w", err)
	}
	for _, s := range all {
		s.works = slices.DeleteFunc(slices.Clone(s.works), func(w work) bool { return !wanted(w.key) && !wanted(s.key) })
		s.peers = slices.DeleteFunc(slices.Clone(s.peers), func(p peer) bool { return !invited(p.key) })
		if len(s.works) > 0 && len(s.peers) > 0 {
			chosen = append(chosen, &s)
		}
	}
	if len(chosen) == 0 {
		return nil, errors.New("none of these servers does any of these works; see --help")
	}
	return chosen, nil
}

// naming returns whether a list names a key.
func naming(list string, keys []string) (func(key string) bool, error) {
	if list == "" {
		return func(string) bool { return true }, nil
	}
	names := strings.Split(list, ",")
	for _, name := range names {
		if !slices.Contains(keys, name) {
			return nil, fmt.Errorf("%q is not known; see --help", name)
		}
	}
	return func(key string) bool { return slices.Contains(names, key) }, nil
}

// workKeys are those of the suites too.
func workKeys(all []suite) (keys []string) {
	for _, s := range all {
		keys = append(keys, s.key)
		for _, w := range s.works {
			keys = append(keys, w.key)
		}
	}
	return keys
}

func peerKeys(all []suite) (keys []string) {
	for _, s := range all {
		for _, p := range s.peers {
			if !slices.Contains(keys, p.key) {
				keys = append(keys, p.key)
			}
		}
	}
	return keys
}
