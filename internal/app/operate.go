package app

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/levee-net/levee/internal/admin"
	"github.com/levee-net/levee/internal/config"
	"github.com/levee-net/levee/internal/top"
)

const (
	operatorTimeout = 10 * time.Second // for an answer of the running levee
	longestAnswer   = 16 << 20         // bytes: 10,000 bans are one MiB
)

func banCommand(env Env) *cli.Command {
	return &cli.Command{
		Name:      "ban",
		Usage:     "have a running levee keep clients out for a while",
		UsageText: "levee ban PREFIX [--for 10m] [--why TEXT] [--admin ADDR]",
		Description: `PREFIX is an address or a prefix such as 192.0.2.0/24. The connections that its clients have open are ended.
With redis in the configuration, all machines that have it keep them out.`,
		OnUsageError: usageError,
		Flags: adminFlags(
			&cli.StringFlag{Name: "for", Value: "10m", Usage: "how `LONG`, such as 90s, 10m or 24h", Local: true},
			&cli.StringFlag{Name: "why", Value: "by hand", Usage: "a line of `TEXT` for those who wonder later", Local: true},
		),
		Action: func(ctx context.Context, c *cli.Command) error {
			prefix, err := onlyPrefix(c)
			if err != nil {
				return err
			}
			body, err := json.Marshal(map[string]string{"prefix": prefix, "for": c.String("for"), "why": c.String("why")})
			if err != nil {
				return exit(exitUsage, err)
			}
			var made admin.Ban
			if _, err := ask(ctx, c, http.MethodPost, "/api/v1/bans", body, &made); err != nil {
				return err
			}
			left := shortDuration(time.Until(made.Until).Round(time.Second))
			_, err = fmt.Fprintf(env.Stdout, "%s is banned for %s%s\n", top.Plain(made.Prefix), left, besides(made.Prefix))
			return err
		},
	}
}

// besides says what a ban of less than an IPv6 network leaves to whoever is meant.
func besides(banned string) string {
	p, err := netip.ParsePrefix(banned)
	if err != nil || !p.Addr().Is6() || p.Bits() <= 64 {
		return ""
	}
	network := netip.PrefixFrom(p.Addr(), 64).Masked()
	return fmt.Sprintf("; whoever has it has other addresses of %s, which are not", network)
}

func unbanCommand(env Env) *cli.Command {
	return &cli.Command{
		Name:         "unban",
		Usage:        "have a running levee let banned clients in again",
		UsageText:    "levee unban PREFIX [--admin ADDR]",
		OnUsageError: usageError,
		Flags:        adminFlags(),
		Action: func(ctx context.Context, c *cli.Command) error {
			prefix, err := onlyPrefix(c)
			if err != nil {
				return err
			}
			if _, err := ask(ctx, c, http.MethodDelete, "/api/v1/bans/"+url.PathEscape(prefix), nil, nil); err != nil {
				return err
			}
			_, err = fmt.Fprintf(env.Stdout, "%s is not banned any more\n", prefix)
			return err
		},
	}
}

func bansCommand(env Env) *cli.Command {
	return &cli.Command{
		Name:         "bans",
		Usage:        "show whom a running levee keeps out",
		UsageText:    "levee bans [--json] [--admin ADDR]",
		OnUsageError: usageError,
		Flags:        adminFlags(jsonFlag()),
		Action: func(ctx context.Context, c *cli.Command) error {
			if err := alone(c); err != nil {
				return err
			}
			var bans admin.Bans
			text, err := ask(ctx, c, http.MethodGet, "/api/v1/bans", nil, &bans)
			if err != nil {
				return err
			}
			return show(env, c, text, func(out io.Writer) { writeBans(out, &bans) })
		},
	}
}

func limitsCommand(env Env) *cli.Command {
	return &cli.Command{
		Name:         "limits",
		Usage:        "show what the limits of a running levee have decided",
		UsageText:    "levee limits [--json] [--admin ADDR]",
		OnUsageError: usageError,
		Flags:        adminFlags(jsonFlag()),
		Action: func(ctx context.Context, c *cli.Command) error {
			if err := alone(c); err != nil {
				return err
			}
			var limits admin.Limits
			text, err := ask(ctx, c, http.MethodGet, "/api/v1/limits", nil, &limits)
			if err != nil {
				return err
			}
			return show(env, c, text, func(out io.Writer) { writeLimits(out, &limits) })
		},
	}
}

func jsonFlag() cli.Flag {
	return &cli.BoolFlag{Name: "json", Usage: "as JSON, for programs", HideDefault: true, Local: true}
}

// onlyPrefix returns the command's one argument.
func onlyPrefix(c *cli.Command) (string, error) {
	switch text := c.Args().First(); {
	case text == "":
		return "", usage(c, "%s: whom? name an address, or a prefix such as 192.0.2.0/24", c.Name)
	case c.Args().Len() > 1:
		return "", usage(c, "%s: unexpected argument %q", c.Name, c.Args().Get(1))
	default:
		if err := nothingBefore(c); err != nil {
			return "", err
		}
		prefix, err := config.ParsePrefix(text)
		if err != nil {
			return "", usage(c, "%s: %v", c.Name, err)
		}
		return prefix.String(), nil
	}
}

// ask has a running levee do what its API can, and returns its answer, which is also read into the value.
func ask(ctx context.Context, c *cli.Command, method, path string, body []byte, into any) (text []byte, err error) {
	return askWithin(ctx, c, operatorTimeout, method, path, body, into)
}

// askWithin is ask for what may take longer.
func askWithin(ctx context.Context, c *cli.Command, limit time.Duration, method, path string, body []byte, into any) (text []byte, err error) {
	there, err := reach(c)
	if err != nil {
		return nil, err
	}
	defer there.close()
	return there.askWithin(ctx, limit, method, path, body, into)
}

// understand reads an answer, or makes an error of it.
func understand(answer *http.Response, address config.Address, text []byte, into any) error {
	if answer.StatusCode >= http.StatusBadRequest {
		var told objection
		err := json.Unmarshal(text, &told)
		switch {
		case bytes.HasPrefix(text, []byte("Client sent an HTTP request to an HTTPS server")): // as net/http says it
			return exit(exitUsage, fmt.Errorf("%s speaks TLS; say whose certificate it has with --ca", address))
		case err != nil || told.Error == "":
			return exit(exitNotStart, fmt.Errorf("%s does not answer as levee does (%s); its admin address is said with --admin", address, answer.Status))
		case answer.StatusCode == http.StatusUnauthorized:
			return exit(exitUsage, fmt.Errorf("%w; name the file that has it with --token-file", told.problems()))
		}
		return exit(exitUsage, told.problems())
	}
	if into == nil {
		return nil
	}
	if err := json.Unmarshal(text, into); err != nil {
		return exit(exitNotStart, fmt.Errorf("%s does not answer as levee does: %w", address, err))
	}
	return nil
}

// An objection is how levee's API says why not.
type objection struct{ Error string }

// problems are those that it tells of, each on a line of its own.
func (o *objection) problems() error {
	var problems []error
	for line := range strings.Lines(o.Error) {
		problems = append(problems, errors.New(top.Plain(strings.TrimSuffix(line, "\n"))))
	}
	return errors.Join(problems...)
}

// show writes an answer as it came, or as a table.
func show(env Env, c *cli.Command, text []byte, table func(io.Writer)) error {
	if c.Bool("json") {
		_, err := env.Stdout.Write(text)
		return err
	}
	out := tabwriter.NewWriter(env.Stdout, 0, 0, 2, ' ', 0)
	table(out)
	return out.Flush()
}

func writeBans(out io.Writer, bans *admin.Bans) {
	if len(bans.Bans) == 0 {
		fmt.Fprintln(out, "nobody is banned")
		return
	}
	fmt.Fprintln(out, "PREFIX\tMODE\tFOR ANOTHER\tWHY")
	for _, b := range bans.Bans {
		mode := config.LimitEnforce
		if b.Shadow {
			mode = config.LimitShadow
		}
		left := max(0, time.Until(b.Until)).Round(time.Second)
		fmt.Fprintf(out, "%s\t%s\t%s\t%s\n", top.Plain(b.Prefix), mode, shortDuration(left), top.Plain(b.Why))
	}
	if more := bans.Active - len(bans.Bans); more > 0 {
		fmt.Fprintf(out, "and at least %d more\n", more)
	}
}

func writeLimits(out io.Writer, limits *admin.Limits) {
	fmt.Fprintln(out, "LIMIT\tMODE\tSETTING\tALLOWED\tREFUSED\tWOULD REFUSE")
	for _, l := range limits.Limits {
		fmt.Fprintf(out, "%s\t%s\t%s\t%d\t%d\t%d\n", top.Plain(l.Name), l.Mode, top.Plain(l.Setting), l.Allowed, l.Refused, l.WouldRefuse)
	}
	if len(limits.Clients) > 0 {
		fmt.Fprintln(out, "\nCLIENTS\tREMEMBERED\tOF\tEVICTED\tCROWDED")
	}
	for _, t := range limits.Clients {
		fmt.Fprintf(out, "%s\t%d\t%d\t%d\t%d\n", top.Plain(t.Name), t.Used, t.Entries, t.Evicted, t.Crowded)
	}
	if len(limits.Lists) > 0 {
		fmt.Fprintln(out, "\nLIST\tALLOWS\tDENIES\tREFUSED\tPROBLEM")
	}
	for _, l := range limits.Lists {
		fmt.Fprintf(out, "%s\t%d\t%d\t%d\t%s\n", top.Plain(l.Name), l.Allow, l.Deny, l.Refused, top.Plain(l.Problem))
	}
	for _, s := range limits.Shared {
		fmt.Fprintf(out, "\nredis was asked %d times, %d without an answer in time\n", s.Asked, s.Failed)
		if s.Problem != "" {
			fmt.Fprintf(out, "it has been failing for %s: %s\n", shortDuration(time.Since(s.FailingSince).Round(time.Second)), top.Plain(s.Problem))
		}
	}
}
