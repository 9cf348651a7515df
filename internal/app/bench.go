package app

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"strconv"
	"time"

	"github.com/urfave/cli/v3"

	workload "github.com/levee-net/levee/internal/load" // load is a function here
)

const defaultSize = 64 // bytes of a message

func benchCommand(env Env) *cli.Command {
	return &cli.Command{
		Name:      "bench",
		Usage:     "put a server of yours under load and measure what its clients feel",
		UsageText: "levee bench --target ADDR [--http] [--rate N] [--connections N] [--duration D]",
		Description: "Without --rate each connection sends its next message when one has come back, so that a slow server is\n" +
			"asked less. With it messages are due at fixed times, and latency counts from when a message was due.\n" +
			"The target must be on this machine, unless you say that it is yours.",
		OnUsageError: usageError,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "target", Usage: "the server's `ADDR` (host:port), or with --http its URL"},
			&cli.BoolFlag{Name: "echo", Usage: "the server sends back what it is sent (the default)"},
			&cli.BoolFlag{Name: "http", Usage: "GET over HTTP/1.1 with keep-alive"},
			&cli.Float64Flag{Name: "rate", Usage: "send `N` messages a second in all, whatever comes back"},
			&cli.IntFlag{Name: "connections", Aliases: []string{"c"}, Value: 64, Usage: "hold `N` connections open"},
			&cli.IntFlag{Name: "size", Value: defaultSize, Usage: "`BYTES` in a message of --echo"},
			&cli.IntFlag{Name: "depth", Value: 1, Usage: "keep up to `N` messages under way on a connection"},
			&cli.DurationFlag{Name: "duration", Aliases: []string{"d"}, Value: 10 * time.Second, Usage: "measure for `D`"},
			&cli.DurationFlag{Name: "warmup", Value: time.Second, Usage: "load the server for `D` before that"},
			&cli.BoolFlag{Name: "json", Usage: "print the result as JSON"},
			&cli.StringFlag{Name: "plot", Usage: "write the result to `FILE` as a web page", TakesFile: true},
			&cli.BoolFlag{Name: "i-own-this-target", Usage: "the target is mine although it is not on this machine"},
		},
		Action: func(ctx context.Context, c *cli.Command) error {
			if err := alone(c); err != nil {
				return err
			}
			l, err := benchLoad(ctx, c)
			if err != nil {
				return exit(exitUsage, fmt.Errorf("bench: %w", err))
			}
			return bench(ctx, env, c, l)
		},
	}
}

// benchLoad is the load that the command line asks for.
func benchLoad(ctx context.Context, c *cli.Command) (workload.Load, error) {
	l := workload.Load{
		Addr:        c.String("target"),
		Connections: c.Int("connections"),
		Depth:       c.Int("depth"),
		Rate:        c.Float64("rate"),
		Warmup:      c.Duration("warmup"),
		Duration:    c.Duration("duration"),
	}
	var err error
	switch {
	case l.Addr == "":
		return l, errors.New("which server? name it with --target ADDR")
	case c.Bool("echo") && c.Bool("http"):
		return l, errors.New("--echo and --http: choose one")
	case c.Bool("http") && c.IsSet("size"):
		return l, errors.New("--size: what a server answers to --http is its own affair")
	case l.Connections < 1 || l.Depth < 1:
		return l, errors.New("--connections and --depth: at least 1")
	case c.IsSet("rate") && l.Rate <= 0:
		return l, errors.New("--rate: above 0")
	case c.Bool("http"):
		l.Addr, l.Protocol, err = httpTarget(l.Addr)
	default:
		l.Protocol, err = workload.Echo(c.Int("size"))
	}
	if err != nil {
		return l, err
	}
	l.Addr, err = allowedTarget(ctx, l.Addr, c.Bool("i-own-this-target"))
	if err != nil {
		return l, err
	}
	return l, l.Check()
}

// httpTarget is what to connect to and what to say there, of a URL or an address.
func httpTarget(target string) (string, workload.Protocol, error) {
	u, err := url.Parse(target)
	if err != nil || u.Host == "" {
		u, err = url.Parse("http://" + target)
	}
	if err != nil {
		return "", workload.Protocol{}, fmt.Errorf("--target %s: want a URL or host:port", target)
	}
	if u.Scheme != "http" {
		return "", workload.Protocol{}, fmt.Errorf("--target %s: only http:// is spoken here", target)
	}
	port := u.Port()
	if port == "" {
		port = "80"
	}
	return net.JoinHostPort(u.Hostname(), port), workload.HTTP(u), nil
}

// allowedTarget resolves the target to one address, once, so that the load goes to
// what was looked at. A name that has one elsewhere is elsewhere. A load is an attack when its target has not agreed to it, so
// by default it does not leave this machine.
func allowedTarget(ctx context.Context, target string, owned bool) (string, error) {
	host, port, err := net.SplitHostPort(target)
	if err != nil {
		return "", fmt.Errorf("--target %s: want host:port", target)
	}
	number, err := strconv.ParseUint(port, 10, 16)
	if err != nil || number == 0 {
		return "", fmt.Errorf("--target %s: want a port from 1 to 65535", target)
	}
	if host == "" {
		host = "localhost"
	}
	found, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return "", fmt.Errorf("--target %s: %w", target, err)
	}
	for _, ip := range found {
		if !ip.Unmap().IsLoopback() && !owned {
			return "", fmt.Errorf("--target %s: %s is not on this machine; if you own it, say --i-own-this-target", target, ip.Unmap())
		}
	}
	return net.JoinHostPort(found[0].Unmap().String(), port), nil
}

// bench runs the load and says what came of it.
func bench(ctx context.Context, env Env, c *cli.Command, l workload.Load) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go cancelOnSignal(ctx, cancel, env.Signals)

	plot, err := createPlot(c.String("plot"))
	if err != nil {
		return exit(exitNotStart, fmt.Errorf("bench: %w", err))
	}
	if plot != nil {
		defer plot.Close()
	}
	if env.Terminal {
		l.Progress = func(i workload.Interval) {
			fmt.Fprintf(env.Stderr, "\r\x1b[K%3.0f s  %9.0f messages/s  p50 %s  p99 %s  max %s", i.At.Seconds(), i.Rate(), digits(i.P50), digits(i.P99), digits(i.Max))
		}
	}
	started := false
	l.Mark = func() { started = true }
	result, err := l.Run(ctx)
	if env.Terminal {
		fmt.Fprint(env.Stderr, "\r\x1b[K")
	}
	switch {
	case ctx.Err() != nil:
		return exit(exitCut, fmt.Errorf("bench: %w", context.Cause(ctx)))
	case err != nil && !started:
		return exit(exitNotStart, fmt.Errorf("bench: %w", err))
	case err != nil:
		return exit(exitCut, fmt.Errorf("bench: %w", err))
	}
	if plot != nil {
		if err := errors.Join(result.WritePlot(plot, "levee bench "+c.String("target")), plot.Close()); err != nil {
			return exit(exitCut, fmt.Errorf("bench: %w", err))
		}
	}
	return printResult(env.Stdout, c, l, result)
}

var errInterrupted = errors.New("interrupted")

// cancelOnSignal ends with ctx.
func cancelOnSignal(ctx context.Context, cancel context.CancelCauseFunc, signals <-chan os.Signal) {
	select {
	case <-signals:
		cancel(errInterrupted)
	case <-ctx.Done():
	}
}

// createPlot creates the file before the load, not after it: it would be a pity.
func createPlot(name string) (*os.File, error) {
	if name == "" {
		return nil, nil
	}
	return os.Create(name)
}

// A benchReport is the result as JSON; latencies are in microseconds.
type benchReport struct {
	Target      string             `json:"target"`
	Protocol    string             `json:"protocol"`
	Connections int                `json:"connections"`
	Depth       int                `json:"depth"`
	TargetRate  float64            `json:"target_rate,omitempty"`
	Seconds     float64            `json:"seconds"`
	Messages    int64              `json:"messages"`
	Rate        float64            `json:"rate"`
	Unanswered  int64              `json:"unanswered"`
	Refused     int64              `json:"refused"`
	Latency     map[string]float64 `json:"latency_us"`
}

var percentiles = []float64{50, 90, 99, 99.9, 99.99}

func printResult(w io.Writer, c *cli.Command, l workload.Load, r *workload.Result) error {
	report := benchReport{
		Target: c.String("target"), Protocol: "echo", Connections: l.Connections, Depth: l.Depth, TargetRate: l.Rate,
		Seconds: r.Elapsed.Seconds(), Messages: r.Messages, Rate: r.Rate(), Unanswered: r.Unanswered, Refused: r.Refused,
		Latency: map[string]float64{"mean": microseconds(r.Mean()), "max": microseconds(r.Max())},
	}
	if c.Bool("http") {
		report.Protocol = "http"
	}
	for _, p := range percentiles {
		report.Latency[fmt.Sprintf("p%g", p)] = microseconds(r.Percentile(p))
	}
	if c.Bool("json") {
		return json.NewEncoder(w).Encode(report)
	}
	fmt.Fprintf(w, "%s to %s, %d connections, %d messages in %.1f s: %.0f messages/s\n",
		report.Protocol, report.Target, l.Connections, r.Messages, r.Elapsed.Seconds(), r.Rate())
	if r.Unanswered > 0 {
		fmt.Fprintf(w, "%d more were due but not answered; they count below with the age they had\n", r.Unanswered)
	}
	if r.Refused > 0 {
		fmt.Fprintf(w, "%d of them were answered with a status of 400 or above\n", r.Refused)
	}
	fmt.Fprint(w, "latency")
	for _, p := range percentiles {
		fmt.Fprintf(w, "  p%g %s", p, digits(r.Percentile(p)))
	}
	fmt.Fprintf(w, "  max %s\n", digits(r.Max()))
	return nil
}

func microseconds(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

// digits is a latency to about three digits.
func digits(d time.Duration) time.Duration {
	switch {
	case d > 100*time.Millisecond:
		return d.Round(time.Millisecond)
	case d > time.Millisecond:
		return d.Round(10 * time.Microsecond)
	}
	return d.Round(100 * time.Nanosecond)
}
