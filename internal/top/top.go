// Package top shows a running levee in a terminal: as it changes, and as a table at one look.
//
//	err := top.Run(ctx, levee, top.Terminal{Input: os.Stdin, Output: os.Stdout, Environ: os.Environ()})
//
// Its secret is how much fits: it asks for no more connections than the screen has lines, whatever there are, and what
// has no room on a narrow screen is left out in the order of what operators can do without.
//
// What it shows has come from strangers, such as the server name that a client has asked for. None of that reaches the
// terminal without [Plain].
package top

import (
	"context"
	"errors"
	"io"
	"strings"
	"time"
	"unicode"

	tea "charm.land/bubbletea/v2"

	"github.com/levee-net/levee/internal/admin"
)

// A Levee is a running one, as it is asked. Its methods are called by several goroutines.
type Levee interface {
	Status(ctx context.Context) (admin.Status, error)
	Overload(ctx context.Context) (admin.Overload, error)
	Listeners(ctx context.Context) ([]admin.Listener, error)
	Upstreams(ctx context.Context) ([]admin.Upstream, error)

	// Connections returns a page of those that the query is for.
	Connections(ctx context.Context, q admin.Query) (admin.Connections, error)

	// Kill ends a connection.
	Kill(ctx context.Context, id uint64) error
	// DrainServer keeps new connections from an upstream's server, or lets them there again.
	DrainServer(ctx context.Context, upstream, server string, drain bool) error
}

// Terminal is where Run shows what there is to see.
type Terminal struct {
	Input   io.Reader
	Output  io.Writer
	Environ []string // as that of os.Environ: what the terminal can do

	Address string        // of the levee, as whoever looks knows it
	Every   time.Duration // between two looks; zero is a second
}

// Run shows the levee until whoever looks has enough of it or ctx ends, which is no error. A levee that does not
// answer is waited for. The terminal is left as it was found, after a panic too.
//
// A terminal that cannot move its cursor (TERM=dumb) gets a table for each look.
func Run(ctx context.Context, levee Levee, t Terminal) error {
	if t.Every <= 0 {
		t.Every = time.Second
	}
	if variable(t.Environ, "TERM") == "dumb" {
		return again(ctx, levee, t)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // what is being asked
	m := newModel(ctx, levee, t)
	program := tea.NewProgram(m, tea.WithInput(t.Input), tea.WithOutput(t.Output), tea.WithEnvironment(t.Environ), tea.WithoutSignalHandler())
	stop := context.AfterFunc(ctx, program.Quit)
	defer stop()
	_, err := program.Run()
	return errors.Join(err, m.crash)
}

// again writes a table for each look, below each other.
func again(ctx context.Context, levee Levee, t Terminal) error {
	next := time.NewTicker(t.Every)
	defer next.Stop()
	for {
		seen, err := Once(ctx, levee, admin.Query{Sort: busiest, Limit: mostAtOnce})
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			_, err = io.WriteString(t.Output, Plain(err.Error())+"\n\n")
		default:
			var text strings.Builder
			seen.Write(&text)
			_, err = io.WriteString(t.Output, text.String()+"\n")
		}
		if err != nil {
			return err
		}
		select {
		case <-next.C:
		case <-ctx.Done():
			return nil
		}
	}
}

const (
	busiest    = "-out" // as in admin.Query
	mostAtOnce = 20     // connections, where no screen says how many there is room for
)

// Snapshot is what there is to see at one look.
type Snapshot struct {
	Status      admin.Status      `json:"status"`
	Overload    admin.Overload    `json:"overload"`
	Listeners   []admin.Listener  `json:"listeners"`
	Upstreams   []admin.Upstream  `json:"upstreams"`
	Connections admin.Connections `json:"connections"` // a page
}

// Once looks once.
func Once(ctx context.Context, levee Levee, q admin.Query) (s Snapshot, err error) {
	var errs [5]error
	if s.Status, errs[0] = levee.Status(ctx); errs[0] != nil {
		return s, errs[0] // the others would say the same
	}
	s.Overload, errs[1] = levee.Overload(ctx)
	s.Listeners, errs[2] = levee.Listeners(ctx)
	s.Upstreams, errs[3] = levee.Upstreams(ctx)
	s.Connections, errs[4] = levee.Connections(ctx, q)
	return s, errors.Join(errs[:]...)
}

// Plain keeps what came from elsewhere from controlling a terminal: what does not print becomes a question mark.
func Plain(s string) string {
	return strings.Map(func(c rune) rune {
		if unicode.IsPrint(c) {
			return c
		}
		return '?'
	}, s)
}

// variable is an environment's variable; the last one counts.
func variable(environ []string, name string) (value string) {
	for _, v := range environ {
		if text, found := strings.CutPrefix(v, name+"="); found {
			value = text
		}
	}
	return value
}
