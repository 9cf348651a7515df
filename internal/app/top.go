package app

import (
	"bufio"
	"context"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/levee-net/levee/internal/admin"
	"github.com/levee-net/levee/internal/top"
)

const (
	shortestLook = 100 * time.Millisecond // between two looks
	longestLook  = time.Hour
)

func topCommand(env Env) *cli.Command {
	return &cli.Command{
		Name:      "top",
		Usage:     "watch a running levee: its connections, upstreams and listeners",
		UsageText: "levee top [--every 1s] [--admin ADDR]\nlevee top --once [--json] [--limit N] [--admin ADDR]",
		Description: `The last line names the keys. It needs a terminal, no colours (NO_COLOR), and no UTF-8 if the locale has none.
--once is for scripts: a table, or with --json everything there is to know of so many connections.`,
		OnUsageError: usageError,
		Flags: adminFlags(
			&cli.DurationFlag{Name: "every", Aliases: []string{"d"}, Value: time.Second, Usage: "look again after `D`", Local: true},
			&cli.BoolFlag{Name: "once", Usage: "look once, and write that", HideDefault: true, Local: true},
			&cli.IntFlag{Name: "limit", Aliases: []string{"n"}, Value: 20, Usage: "with --once: up to `N` connections, 1000 at most", Local: true},
			jsonFlag(),
		),
		Action: func(ctx context.Context, c *cli.Command) error {
			if err := alone(c); err != nil {
				return err
			}
			every := c.Duration("every")
			switch limit := c.Int("limit"); {
			case every < shortestLook || every > longestLook:
				return usage(c, "top: --every: from %s to %s", shortestLook, shortDuration(longestLook))
			case limit < 1 || limit > largestPage:
				return usage(c, "top: --limit: from 1 to %d", largestPage)
			case c.Bool("json") && !c.Bool("once"):
				return usage(c, "top: --json goes with --once")
			case !c.Bool("once") && !env.Screen:
				return usage(c, "top: this is no terminal; say --once")
			}
			there, err := reach(c)
			if err != nil {
				return err
			}
			defer there.close()
			if c.Bool("once") {
				return topOnce(ctx, env, c, there)
			}
			return watchTop(ctx, env, there, every)
		},
	}
}

func topOnce(ctx context.Context, env Env, c *cli.Command, there *reached) error {
	seen, err := top.Once(ctx, there, admin.Query{Sort: "-out", Limit: c.Int("limit")})
	if err != nil {
		return err
	}
	if c.Bool("json") {
		return writeJSON(env, seen)
	}
	out := bufio.NewWriter(env.Stdout)
	seen.Write(out)
	return out.Flush()
}

// watchTop shows the levee until a key or a signal ends it. One that does not answer to begin with may have another
// address, so that is an error, where later on it is waited for.
func watchTop(ctx context.Context, env Env, there *reached, every time.Duration) error {
	if _, err := there.Status(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go cancelOnSignal(ctx, cancel, env.Signals)
	return top.Run(ctx, there, top.Terminal{
		Input: env.Stdin, Output: env.Stdout, Environ: env.Environ,
		Address: there.address.String(), Every: every,
	})
}
