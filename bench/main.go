//go:build linux

// Command bench measures levee beside its peers, in one go on the reader's own
// machine: make bench.
//
// Server and load are pinned to a core each, so that neither takes from the other.
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
	out      string
}

func main() {
	var o options
	flag.IntVar(&o.rounds, "rounds", 5, "`rounds`, in each of which every server does every work once")
	flag.DurationVar(&o.duration, "duration", 2*time.Second, "measured `time` of a work")
	flag.StringVar(&o.only, "only", "", "only these `works`: "+strings.Join(workKeys(), ","))
	flag.StringVar(&o.peers, "peers", "", "only these `servers`: "+strings.Join(peerKeys(), ","))
	flag.BoolVar(&o.quick, "quick", false, "one short round: about a minute, and only good for a first look")
	flag.BoolVar(&o.strict, "strict", false, "exit 1 when a bar is missed")
	flag.StringVar(&o.out, "out", "", "`folder` for results.json and results.svg (default results, or .build for a part of a run)")
	flag.Parse()
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

func run(o options) (missed bool, err error) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if flag.NArg() > 0 || o.rounds < 1 || o.duration <= 0 {
		return false, errors.New("no arguments, at least one round, and a duration above 0; see --help")
	}
	todo, err := choose(works, o.only, func(w work) string { return w.key })
	if err != nil {
		return false, fmt.Errorf("--only: %w", err)
	}
	chosen, err := choose(peers, o.peers, func(p peer) string { return p.key })
	if err != nil {
		return false, fmt.Errorf("--peers: %w", err)
	}
	servers, err := build(ctx, chosen)
	if err != nil {
		return false, err
	}
	b := &bench{options: o, works: todo, servers: servers, began: time.Now(), machine: inspect(ctx)}
	if b.cores, err = pin(); err != nil {
		return false, err
	}
	fmt.Printf("%s\nserver on core %d, load on core %d; %d rounds of %s, about %s in all\n\n",
		b.machine, b.cores.server, b.cores.load, o.rounds, o.duration, b.estimate().Round(10*time.Second))
	if err := b.rounds(ctx); err != nil {
		return false, err
	}
	b.loadAfter = loadAverage()
	missed = b.print(os.Stdout)
	if err := b.save(); err != nil {
		return false, err
	}
	fmt.Printf("\nwritten to %s\n", filepath.Join("bench", o.out))
	return missed, nil
}

// choose returns those of the table that a comma-separated list of keys names; an
// empty one names all.
func choose[T any](table []T, list string, key func(T) string) ([]T, error) {
	if list == "" {
		return table, nil
	}
	var chosen []T
	for want := range strings.SplitSeq(list, ",") {
		n := len(chosen)
		for _, t := range table {
			if key(t) == want {
				chosen = append(chosen, t)
			}
		}
		if len(chosen) == n {
			return nil, fmt.Errorf("%q is not known; see --help", want)
		}
	}
	return chosen, nil
}
