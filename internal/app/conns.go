package app

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/levee-net/levee/internal/admin"
	"github.com/levee-net/levee/internal/top"
)

const largestPage = 1000 // connections, which is what the admin API gives at once

// filterFlags say which connections are meant.
func filterFlags(own ...cli.Flag) []cli.Flag {
	flag := func(name, usage string) cli.Flag { return &cli.StringFlag{Name: name, Usage: usage, Local: true} }
	return append(
		own,
		flag("client", "of clients in `PREFIX`, or of one address"),
		flag("listener", "of the listener `NAME`"),
		flag("route", "of the route `NAME`"),
		flag("upstream", "of the upstream `NAME`"),
		flag("server", "of an upstream's `SERVER`"),
		flag("phase", "those that are `arriving`, serving or draining"),
	)
}

// filtered is the query that the flags amount to.
func filtered(c *cli.Command) (admin.Query, error) {
	q := admin.Query{
		Client: c.String("client"), Listener: c.String("listener"), Route: c.String("route"),
		Upstream: c.String("upstream"), Server: c.String("server"), Phase: c.String("phase"),
	}
	if q.Client != "" && !isPrefix(q.Client) {
		return q, usage(c, "%s: --client: %q is not an address, nor a prefix such as 192.0.2.0/24", c.Name, q.Client)
	}
	return q, nil
}

func isPrefix(text string) bool {
	_, err := netip.ParseAddr(text)
	if err != nil {
		_, err = netip.ParsePrefix(text)
	}
	return err == nil
}

func connsCommand(env Env) *cli.Command {
	return &cli.Command{
		Name:      "conns",
		Aliases:   []string{"connections"},
		Usage:     "show the open connections of a running levee",
		UsageText: "levee conns [--client PREFIX] [--listener NAME] [--sort out] [--limit N] [--json] [--admin ADDR]",
		Description: `--sort goes by id, accepted, in, out, idle or client; with a "-" before it the other way round.
Without it those that have sent the most come first.`,
		OnUsageError: usageError,
		Flags: adminFlags(filterFlags(
			&cli.StringFlag{Name: "sort", Value: "-out", Usage: "by `WHAT`", Local: true},
			&cli.IntFlag{Name: "limit", Aliases: []string{"n"}, Value: 100, Usage: "up to `N` of them; 0 is all", Local: true},
			jsonFlag(),
		)...),
		Action: func(ctx context.Context, c *cli.Command) error {
			if err := alone(c); err != nil {
				return err
			}
			q, err := filtered(c)
			if err != nil {
				return err
			}
			limit := c.Int("limit")
			if limit < 0 {
				return usage(c, "conns: --limit: at least 0, which is all")
			}
			there, err := reach(c)
			if err != nil {
				return err
			}
			defer there.close()
			q.Sort = c.String("sort")
			found, err := pagesOf(ctx, there, q, limit)
			if err != nil {
				return err
			}
			if c.Bool("json") {
				return writeJSON(env, found)
			}
			return writeConns(env, &found)
		},
	}
}

// pagesOf asks page by page for up to so many connections, or for all. The counts are those of the first page.
func pagesOf(ctx context.Context, there *reached, q admin.Query, limit int) (admin.Connections, error) {
	var all admin.Connections
	for {
		q.Limit = largestPage
		if left := limit - len(all.Connections); limit > 0 {
			q.Limit = min(left, largestPage)
		}
		page, err := there.Connections(ctx, q)
		if err != nil {
			return all, err
		}
		if q.After == "" {
			all.Total, all.Matching, all.Connections = page.Total, page.Matching, []admin.Connection{}
		}
		all.Connections = append(all.Connections, page.Connections...)
		all.Next = page.Next
		enough := limit > 0 && len(all.Connections) >= limit
		if page.Next == "" || enough || len(page.Connections) == 0 {
			return all, nil
		}
		q.After = page.Next
	}
}

func writeConns(env Env, found *admin.Connections) error {
	out := bufio.NewWriter(env.Stdout)
	if len(found.Connections) == 0 {
		fmt.Fprintf(out, "no connection of %d is like that\n", found.Total)
		if found.Total == 0 {
			out.Reset(env.Stdout)
			fmt.Fprintln(out, "there are no connections")
		}
		return out.Flush()
	}
	top.WriteConnections(out, found.Connections, time.Now())
	if more := found.Matching - len(found.Connections); more > 0 && found.Next != "" {
		fmt.Fprintf(out, "and %d more; --limit says how many\n", more)
	}
	return out.Flush()
}

func writeJSON(env Env, content any) error {
	text, err := json.MarshalIndent(content, "", "  ")
	if err != nil {
		return exit(exitUsage, err)
	}
	_, err = env.Stdout.Write(append(text, '\n'))
	return err
}

func killCommand(env Env) *cli.Command {
	return &cli.Command{
		Name:      "kill",
		Usage:     "end connections of a running levee at once",
		UsageText: "levee kill ID… [--admin ADDR]\nlevee kill --client PREFIX | --listener NAME | …  [--yes] [--admin ADDR]",
		Description: `levee conns shows the IDs. Of those that are named by what they have in common the number is shown first, and
asked whether that is meant.`,
		OnUsageError: usageError,
		Flags: adminFlags(filterFlags(
			&cli.BoolFlag{Name: "yes", Aliases: []string{"y"}, Usage: "do not ask", HideDefault: true, Local: true},
			jsonFlag(),
		)...),
		Action: func(ctx context.Context, c *cli.Command) error {
			if err := nothingBefore(c); err != nil {
				return err
			}
			q, err := filtered(c)
			if err != nil {
				return err
			}
			switch chosen := q != (admin.Query{}); {
			case chosen && c.Args().Present():
				return usage(c, "kill: an ID and what connections have in common: name one or the other")
			case !chosen && !c.Args().Present():
				return usage(c, "kill: which? name an ID of levee conns, or what they have in common, such as --client")
			case chosen:
				return killAll(ctx, env, c, q)
			}
			return killEach(ctx, env, c)
		},
	}
}

// killEach ends the connections that the arguments name.
func killEach(ctx context.Context, env Env, c *cli.Command) error {
	ids := make([]uint64, c.Args().Len())
	for i := range ids {
		text := c.Args().Get(i)
		id, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			return usage(c, "kill: %q is not the ID of a connection; levee conns shows them", text)
		}
		ids[i] = id
	}
	there, err := reach(c)
	if err != nil {
		return err
	}
	defer there.close()
	ended := 0
	var failed []error
	for _, id := range ids {
		if err := there.Kill(ctx, id); err != nil {
			failed = append(failed, err)
			continue
		}
		ended++
		if !c.Bool("json") {
			fmt.Fprintf(env.Stdout, "connection %d was killed\n", id)
		}
	}
	if c.Bool("json") {
		failed = append(failed, writeJSON(env, admin.Ended{Ended: ended}))
	}
	return errors.Join(failed...)
}

// killAll ends the connections that are alike, if that is meant.
func killAll(ctx context.Context, env Env, c *cli.Command, q admin.Query) error {
	there, err := reach(c)
	if err != nil {
		return err
	}
	defer there.close()
	if !c.Bool("yes") {
		if err := meant(ctx, env, there, q); err != nil {
			return err
		}
	}
	ended, err := there.KillAll(ctx, q)
	switch {
	case err != nil:
		return err
	case c.Bool("json"):
		return writeJSON(env, admin.Ended{Ended: ended})
	}
	_, err = fmt.Fprintf(env.Stdout, "%s\n", counted(ended, "connection was killed", "connections were killed"))
	return err
}

// meant asks whether so many are meant, and returns an error if not.
func meant(ctx context.Context, env Env, there *reached, q admin.Query) error {
	q.Limit = 1
	page, err := there.Connections(ctx, q)
	if err != nil {
		return err
	}
	if page.Matching == 0 {
		return exit(exitUsage, fmt.Errorf("kill: no connection of %d is like that", page.Total))
	}
	fmt.Fprintf(env.Stderr, "kill %s of %d? [y/N] ", counted(page.Matching, "connection", "connections"), page.Total)
	said := ""
	if env.Stdin != nil {
		said, _ = bufio.NewReader(env.Stdin).ReadString('\n') // an end without a word is a no
	}
	if said == "" {
		fmt.Fprintln(env.Stderr)
		return exit(exitUsage, errors.New("kill: nobody answered, and nothing was done; say --yes"))
	}
	if answer := strings.ToLower(strings.TrimSpace(said)); answer != "y" && answer != "yes" {
		return exit(exitUsage, errors.New("kill: nothing was done"))
	}
	return nil
}

func counted(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}
