package app

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/levee-net/levee/internal/attack"
)

func floodCommand(env Env) *cli.Command {
	return &cli.Command{
		Name:      "flood",
		Usage:     "attack a server of yours and see whether its other clients notice",
		UsageText: "levee flood --target ADDR [--attack NAME,… | --all] [--tls] [--admin ADDR [--token-file FILE]] [--duration D]\nlevee flood --list",
		Description: "While an attack goes on, a well-behaved client makes round trips, on a connection that it keeps and on new\n" +
			"ones. The server has held if 99.9 % of them go well, their p99 is at most three times that of the idle server\n" +
			"(or 30 ms: see --floor), and it is as before within 5 seconds after. Any TCP server will do.\n" +
			"Without --attack or --all the best known attacks are made. The target must be on this machine, unless you say\n" +
			"that it is yours. On 127.0.0.0/8 the attackers come from 127.0.0.1 and the well-behaved client from 127.77.0.1,\n" +
			"so that limits per client can tell them apart.\n" +
			"Exit codes: 0 it held; 1 it did not, or the flood was cut short; 2 bad usage; 3 no connection.",
		OnUsageError: usageError,
		Flags: append([]cli.Flag{
			&cli.StringFlag{Name: "target", Usage: "the server's `ADDR` (host:port)"},
			&cli.StringSliceFlag{Name: "attack", Usage: "make the attacks called `NAME`, separated by commas"},
			&cli.BoolFlag{Name: "all", Usage: "make all attacks that are any on this server"},
			&cli.BoolFlag{Name: "list", Usage: "say what attacks there are"},
			&cli.StringFlag{Name: "protocol", Usage: "what the server speaks, as `NAME`: echo or http (default: found out)"},
			&cli.StringFlag{Name: "send", Usage: "or what to send, as `TEXT` with Go's escapes (PING\\r\\n)"},
			&cli.StringFlag{Name: "expect", Usage: "and what is the answer to that, as `TEXT`"},
			&cli.BoolFlag{Name: "tls", Usage: "the server speaks TLS; without it, handshakes are tried, but messages are plaintext"},
			&cli.StringFlag{Name: "sni", Usage: "the `NAME` to ask for in TLS and HTTP (default: the target's host)"},
			&cli.StringFlag{Name: "ca", Usage: "who vouches for the server, as a PEM `FILE`", TakesFile: true},
			&cli.BoolFlag{Name: "insecure-skip-verify", Usage: "believe every certificate"},
			&cli.BoolFlag{Name: "proxy-header", Usage: "begin connections with a PROXY protocol header"},
			&cli.IntFlag{Name: "connections", Aliases: []string{"c"}, Value: 5000, Usage: "hold up to `N` connections, at most 15000"},
			&cli.Float64Flag{Name: "rate", Value: 5000, Usage: "open up to `N` connections a second"},
			&cli.DurationFlag{Name: "duration", Aliases: []string{"d"}, Value: 12 * time.Second, Usage: "make each attack for `D`, at most 10m"},
			&cli.DurationFlag{Name: "floor", Value: 10 * time.Millisecond, Usage: "take the idle server's p99 for `D` at least: more where the machine has other things to do"},
			&cli.StringFlag{Name: "probe-source", Usage: "where the well-behaved client connects from, as `IP`"},
			&cli.StringFlag{Name: "prefix", Usage: "where rotating attackers come from, as an IPv6 `PREFIX` of 48 bits that is routed here", Value: attack.DefaultPrefix.String()},
			&cli.BoolFlag{Name: "json", Usage: "print the result as JSON"},
			&cli.BoolFlag{Name: "i-own-this-target", Usage: "the target is mine although it is not on this machine"},
			adminFlag("admin", "ADMIN", "", "levee's admin `ADDR`, for what the server spends (default: its process, if it is on this machine)"),
		}, keyFlags("admin-ca")...),
		Action: func(ctx context.Context, c *cli.Command) error {
			if err := alone(c); err != nil {
				return err
			}
			if c.Bool("list") {
				return listAttacks(env.Stdout, c.Bool("json"))
			}
			f, err := floodOf(ctx, c)
			if said, ok := errors.AsType[*exitError](err); ok { // of the admin address, as every command has it
				return said
			}
			if err != nil {
				return exit(exitUsage, fmt.Errorf("flood: %w", err))
			}
			return flood(ctx, env, c, f)
		},
	}
}

// attackersCommand is the other side of a flood: its attackers, in a process of their own.
func attackersCommand(env Env) *cli.Command {
	return &cli.Command{
		Name:         "attackers",
		Hidden:       true,
		Usage:        "make the attack that standard input says, for levee flood",
		OnUsageError: usageError,
		Action: func(ctx context.Context, c *cli.Command) error {
			if err := alone(c); err != nil {
				return err
			}
			return exit(exitCut, attack.Serve(ctx, env.Stdin, env.Stdout))
		},
	}
}

func listAttacks(w io.Writer, asJSON bool) error {
	if asJSON {
		return json.NewEncoder(w).Encode(attackReports())
	}
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, a := range attack.All() {
		needs := ""
		if words := a.Needs(); len(words) > 0 {
			needs = "(" + strings.Join(words, ", ") + ")"
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\n", a.Name, a.Phase, a.Does, needs)
	}
	return table.Flush()
}

// floodOf is the flood that the command line asks for.
func floodOf(ctx context.Context, c *cli.Command) (f attack.Flood, err error) {
	f = attack.Flood{
		Owned:       c.Bool("i-own-this-target"),
		ServerName:  c.String("sni"),
		ProxyHeader: c.Bool("proxy-header"),
		Connections: c.Int("connections"),
		Rate:        c.Float64("rate"),
		Duration:    c.Duration("duration"),
		Floor:       c.Duration("floor"),
	}
	switch {
	case c.String("target") == "":
		return f, errors.New("which server? name it with --target ADDR")
	case f.Connections < 1 || f.Duration <= 0 || f.Rate <= 0 || f.Floor <= 0:
		return f, errors.New("--connections, --rate, --duration and --floor: above 0")
	case c.IsSet("attack") && c.Bool("all"):
		return f, errors.New("--attack and --all: choose one")
	case !c.Bool("tls") && (c.IsSet("ca") || c.Bool("insecure-skip-verify")):
		return f, errors.New("--ca and --insecure-skip-verify: only with --tls")
	}
	if f.Attacks, err = attacksOf(c); err != nil {
		return f, err
	}
	if f.Protocol, err = protocolOf(c); err != nil {
		return f, err
	}
	if c.Bool("tls") {
		if f.TLS, err = floodTLS(c); err != nil {
			return f, err
		}
	}
	if c.String("admin") != "" {
		there, err := reachBy(c, "admin-ca")
		if err != nil {
			return f, err
		}
		f.Vitals = attack.FromMetrics(c.String("admin"), there.metrics)
		if _, err := f.Vitals(ctx); err != nil { // later on it may be too busy to answer
			return f, fmt.Errorf("--admin: %w", err)
		}
	}
	if source := c.String("probe-source"); source != "" {
		if f.ProbeSource, err = netip.ParseAddr(source); err != nil {
			return f, fmt.Errorf("--probe-source: %w", err)
		}
	}
	if f.Prefix, err = netip.ParsePrefix(c.String("prefix")); err != nil {
		return f, fmt.Errorf("--prefix: %w", err)
	}
	target, err := allowedTarget(ctx, c.String("target"), f.Owned)
	if err != nil {
		return f, err
	}
	if f.Target, err = netip.ParseAddrPort(target); err != nil {
		return f, fmt.Errorf("--target: %w", err)
	}
	return f, f.Check()
}

// attacksOf returns those that are asked for.
func attacksOf(c *cli.Command) ([]attack.Attack, error) {
	all := attack.All()
	switch {
	case c.Bool("all"):
		return all, nil
	case !c.IsSet("attack"):
		return attack.BestKnown(), nil
	}
	var chosen []attack.Attack
	for _, name := range c.StringSlice("attack") {
		a, ok := attack.Named(name)
		if !ok {
			return nil, fmt.Errorf("--attack %s: there is none of that name; --list says which there are", name)
		}
		chosen = append(chosen, a)
	}
	return chosen, nil
}

func protocolOf(c *cli.Command) (attack.Protocol, error) {
	exchange := c.IsSet("send") || c.IsSet("expect")
	if exchange && c.IsSet("protocol") {
		return attack.Protocol{}, errors.New("--protocol, or --send and --expect: choose one")
	}
	if exchange {
		send, err := unescape(c, "send")
		if err != nil {
			return attack.Protocol{}, err
		}
		expect, err := unescape(c, "expect")
		if err != nil {
			return attack.Protocol{}, err
		}
		return attack.Exchange(send, expect), nil
	}
	switch name := c.String("protocol"); name {
	case "":
		return attack.Protocol{}, nil
	case "echo":
		return attack.Echo(), nil
	case "http":
		host := c.String("sni")
		if host == "" {
			host = c.String("target")
		}
		return attack.HTTP(host, "/"), nil
	default:
		return attack.Protocol{}, fmt.Errorf("--protocol %s: echo or http, or --send and --expect", name)
	}
}

// unescape reads a flag's text as Go would between quotes.
func unescape(c *cli.Command, flag string) ([]byte, error) {
	text, err := strconv.Unquote(`"` + strings.ReplaceAll(c.String(flag), `"`, `\"`) + `"`)
	if err != nil || text == "" {
		return nil, fmt.Errorf("--%s: want some text, with Go's escapes", flag)
	}
	return []byte(text), nil
}

func floodTLS(c *cli.Command) (*tls.Config, error) {
	config := &tls.Config{ServerName: c.String("sni"), InsecureSkipVerify: c.Bool("insecure-skip-verify")} //nolint:gosec // that is what the flag says
	if config.ServerName == "" {
		host, _, err := net.SplitHostPort(c.String("target"))
		if err != nil {
			return nil, fmt.Errorf("--target %s: want host:port", c.String("target"))
		}
		config.ServerName = host
	}
	if file := c.String("ca"); file != "" {
		pem, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("--ca: %w", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("--ca %s: no certificate in it", file)
		}
	}
	return config, nil
}

// flood makes the attacks and says what came of them.
func flood(ctx context.Context, env Env, c *cli.Command, f attack.Flood) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go cancelOnSignal(ctx, cancel, env.Signals)
	if env.Executable != "" {
		f.Elsewhere = func(ctx context.Context) *exec.Cmd {
			attackers := exec.CommandContext(ctx, env.Executable, "attackers")
			attackers.Stderr = env.Stderr
			return attackers
		}
	}
	if env.Terminal {
		f.Progress = func(p attack.Progress) {
			fmt.Fprintf(env.Stderr, "\r\x1b[K%d of %d  %s  %.0f s  %d attempts, %d open, %d refused, %d ended  probe ok %.1f %%  p99 %s", p.Index+1, p.Of, p.Attack,
				p.Elapsed.Seconds(), p.Tally.Attempts, p.Tally.Held, p.Tally.Refused, p.Tally.Ended, 100*p.Probe.OK(), digits(p.Probe.All.P99))
		}
	}
	report, err := f.Run(ctx)
	if env.Terminal {
		fmt.Fprint(env.Stderr, "\r\x1b[K")
	}
	switch {
	case ctx.Err() != nil && report == nil:
		return exit(exitCut, fmt.Errorf("flood: %w", context.Cause(ctx)))
	case err != nil:
		return exit(exitNotStart, fmt.Errorf("flood: %s: %w", c.String("target"), err))
	}
	if err := printFlood(env.Stdout, c, f, report); err != nil {
		return err
	}
	switch {
	case report.Interrupted:
		return exit(exitCut, fmt.Errorf("flood: %w", context.Cause(ctx)))
	case report.Suffered():
		return exit(exitCut, errors.New("flood: the server did not hold"))
	}
	return nil
}

func printFlood(w io.Writer, c *cli.Command, f attack.Flood, r *attack.Report) error {
	if c.Bool("json") {
		return json.NewEncoder(w).Encode(newFloodReport(c.String("target"), f, r))
	}
	fmt.Fprintf(w, "%s, which speaks %s; up to %d connections at once\n", c.String("target"), r.Protocol, r.Connections)
	for _, remark := range r.Remarks {
		fmt.Fprintln(w, remark)
	}
	return r.WriteTable(w)
}
