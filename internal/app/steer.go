package app

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/levee-net/levee/internal/admin"
	"github.com/levee-net/levee/internal/top"
)

func statusCommand(env Env) *cli.Command {
	return &cli.Command{
		Name:      "status",
		Usage:     "show how it goes with a running levee, and whether it is ready",
		UsageText: "levee status [--json] [--admin ADDR]",
		Description: `Exit codes: 0 it is ready for connections; 1 it is not, as while it drains; 2 bad usage; 3 no levee answers.
So it does as a container's health check.`,
		OnUsageError: usageError,
		Flags:        adminFlags(jsonFlag()),
		Action: func(ctx context.Context, c *cli.Command) error {
			if err := alone(c); err != nil {
				return err
			}
			var status admin.Status
			text, err := ask(ctx, c, http.MethodGet, api+"status", nil, &status)
			if err != nil {
				return err
			}
			out := bufio.NewWriter(env.Stdout)
			if c.Bool("json") {
				_, _ = out.Write(text)
			} else {
				top.WriteStatus(out, &status, &admin.Overload{}, time.Now())
			}
			if err := out.Flush(); err != nil {
				return err
			}
			if !status.Ready {
				return exit(exitCut, fmt.Errorf("it is not ready: it is %s", top.Plain(status.State)))
			}
			return nil
		},
	}
}

func drainCommand(env Env) *cli.Command {
	return &cli.Command{
		Name:      "drain",
		Usage:     "have a running levee let its connections finish, and end",
		UsageText: "levee drain [--wait] [--json] [--admin ADDR]",
		Description: `It is what SIGTERM does: it takes no new connections, and cuts those that are left when drain.timeout is over.
With --wait this ends when it has ended, which it must within that time and a little.`,
		OnUsageError: usageError,
		Flags: adminFlags(
			&cli.BoolFlag{Name: "wait", Usage: "until it has ended", HideDefault: true, Local: true},
			jsonFlag(),
		),
		Action: func(ctx context.Context, c *cli.Command) error {
			if err := alone(c); err != nil {
				return err
			}
			var s admin.Status
			text, err := ask(ctx, c, http.MethodPost, api+"drain", nil, &s)
			switch {
			case err != nil:
				return err
			case c.Bool("json"):
				_, err = env.Stdout.Write(text)
			default:
				said := "it drains"
				if d := s.Drain; d != nil {
					left := max(0, time.Until(d.Until)).Round(time.Second)
					said += fmt.Sprintf(": %s left, cut in %s", counted(int(d.Left), "connection", "connections"), shortDuration(left))
				}
				_, err = fmt.Fprintln(env.Stdout, said)
			}
			if err != nil || !c.Bool("wait") {
				return err
			}
			return awaitEnd(ctx, env, c)
		},
	}
}

// awaitEnd returns when no levee answers any more.
func awaitEnd(ctx context.Context, env Env, c *cli.Command) error {
	r, err := reach(c)
	if err != nil {
		return err
	}
	defer r.close()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go cancelOnSignal(ctx, cancel, env.Signals)
	var last *admin.Drain
	for {
		s, err := r.Status(ctx)
		switch {
		case ctx.Err() != nil:
			return exit(exitCut, fmt.Errorf("drain: %w", context.Cause(ctx)))
		case isGone(err):
			if last != nil {
				was := "were"
				if last.Left == 1 {
					was = "was"
				}
				fmt.Fprintf(env.Stdout, "%d left when they were asked to, %d by themselves, %d were cut, and %d %s still there when it was asked last\n", last.Drained, last.Gone, last.Cut, last.Left, was)
			}
			_, err = fmt.Fprintln(env.Stdout, "it has ended")
			return err
		case err != nil:
			return err
		case s.Drain != nil && time.Since(s.Drain.Until) > operatorTimeout:
			return exit(exitCut, errors.New("drain: its time is over, and it still answers"))
		}
		last = s.Drain
		pause(ctx, 200*time.Millisecond)
	}
}

// isGone reports whether no levee answers.
func isGone(err error) bool {
	of, ok := errors.AsType[*exitError](err)
	return ok && of.code == exitNotStart
}

// pause reports whether the time has passed, and not ctx.
func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

func reloadCommand(env Env) *cli.Command {
	return &cli.Command{
		Name:      "reload",
		Usage:     "have a running levee take its configuration as the files have it now",
		UsageText: "levee reload [--json] [--admin ADDR]",
		Description: `It is what SIGHUP does, and says what came of it. A configuration with something wrong in it is not taken: the
one before stays in force, and the exit code is 2.`,
		OnUsageError: usageError,
		Flags:        adminFlags(jsonFlag()),
		Action: func(ctx context.Context, c *cli.Command) error {
			if err := alone(c); err != nil {
				return err
			}
			var g admin.Generation
			text, err := ask(ctx, c, http.MethodPost, api+"reload", nil, &g)
			switch {
			case err != nil:
				return err
			case c.Bool("json"):
				_, err = env.Stdout.Write(text)
				return err
			}
			_, err = fmt.Fprintf(env.Stdout, "generation %d is in force\n", g.Number)
			return err
		},
	}
}

// upgradeTimeout is longer than all that an upgrade may take: its settings' longest, and the moving.
const upgradeTimeout = 5 * time.Minute

func upgradeCommand(env Env) *cli.Command {
	return &cli.Command{
		Name:      "upgrade",
		Usage:     "have a new process take the place of a running levee, with its open connections",
		UsageText: "levee upgrade [--json] [--admin ADDR]",
		Description: `It is what SIGUSR2 does, and says what came of it. The new process is the binary that is at the old one's path
now, with the same arguments. If it does not start, or fails before it has proven itself, the old one goes on, and
the exit code is 2. It returns when connections have moved: those that cannot, as they are of TLS, finish in the old one.`,
		OnUsageError: usageError,
		Flags:        adminFlags(jsonFlag()),
		Action: func(ctx context.Context, c *cli.Command) error {
			if err := alone(c); err != nil {
				return err
			}
			var u admin.Upgrade
			text, err := askWithin(ctx, c, upgradeTimeout, http.MethodPost, api+"upgrade", nil, &u)
			switch {
			case err != nil:
				return err
			case c.Bool("json"):
				_, err = env.Stdout.Write(text)
				return err
			}
			said := fmt.Sprintf("process %d serves now: %s moved to it", u.PID, counted(int(u.Moved), "connection", "connections"))
			if u.Left > 0 {
				said += fmt.Sprintf(", %d finish in the old one", u.Left)
			}
			_, err = fmt.Fprintln(env.Stdout, said)
			return err
		},
	}
}

func upstreamsCommand(env Env) *cli.Command {
	return &cli.Command{
		Name:         "upstreams",
		Usage:        "show the upstreams of a running levee, and drain their servers",
		UsageText:    "levee upstreams [--json] [--admin ADDR]\nlevee upstreams drain|undrain UPSTREAM SERVER [--admin ADDR]",
		OnUsageError: usageError,
		Flags:        adminFlags(jsonFlag()),
		Commands: []*cli.Command{
			serverCommand(env, "drain", "send no new connections to a server", "%s of %s gets no new connections\n", true),
			serverCommand(env, "undrain", "send new connections to a server again", "%s of %s gets new connections again\n", false),
		},
		HideHelpCommand: true,
		Action: func(ctx context.Context, c *cli.Command) error {
			if err := alone(c); err != nil {
				return err
			}
			var all admin.Upstreams
			text, err := ask(ctx, c, http.MethodGet, api+"upstreams", nil, &all)
			if err != nil {
				return err
			}
			out := bufio.NewWriter(env.Stdout)
			switch {
			case c.Bool("json"):
				_, _ = out.Write(text)
			case len(all.Upstreams) == 0:
				fmt.Fprintln(out, "there are no upstreams")
			default:
				top.WriteUpstreams(out, all.Upstreams, time.Now())
			}
			return out.Flush()
		},
	}
}

func serverCommand(env Env, name, does, done string, drain bool) *cli.Command {
	return &cli.Command{
		Name:         name,
		Usage:        does,
		UsageText:    "levee upstreams " + name + " UPSTREAM SERVER [--admin ADDR]",
		OnUsageError: usageError,
		Flags:        adminFlags(),
		Action: func(ctx context.Context, c *cli.Command) error {
			upstream, server := c.Args().First(), c.Args().Get(1)
			switch {
			case server == "":
				return usage(c, "%s: which? name an upstream and its server, as levee upstreams shows them", name)
			case c.Args().Len() > 2:
				return usage(c, "%s: unexpected argument %q", name, c.Args().Get(2))
			}
			if err := nothingBefore(c); err != nil {
				return err
			}
			there, err := reach(c)
			if err != nil {
				return err
			}
			defer there.close()
			if err := there.DrainServer(ctx, upstream, server, drain); err != nil {
				return err
			}
			_, err = fmt.Fprintf(env.Stdout, done, top.Plain(server), top.Plain(upstream))
			return err
		},
	}
}
