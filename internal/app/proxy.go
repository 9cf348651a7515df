package app

import (
	"context"
	"fmt"
	"strings"

	"github.com/urfave/cli/v3"

	"github.com/levee-net/levee/internal/config"
	"github.com/levee-net/levee/proxy"
	"github.com/levee-net/levee/upstream"
)

func proxyCommand(env Env) *cli.Command {
	return &cli.Command{
		Name:  "proxy",
		Usage: "stand in front of a service, in one line",
		UsageText: `levee proxy --listen ADDR --to ADDR[,ADDR…] [--tls off|dev|CERT,KEY] [--admin ADDR|off]

levee proxy --listen 127.0.0.1:6432 --to 10.0.0.7:5432,10.0.0.8:5432
levee proxy --listen :6432 --tls server.pem,server-key.pem --to db.example.com:5432 --balance least_connections`,
		Description: `A server is HOST:PORT, unix:/PATH, dns://NAME:PORT (each address a server), dns+srv://NAME or file:///PATH.
Without --tls a listener on loopback is plaintext; any other has to be told: dev, CERT,KEY, or off with --insecure.`,
		OnUsageError: usageError,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "listen", Usage: "accept connections on `ADDR` (host:port)", Local: true},
			&cli.StringFlag{Name: "to", Usage: "the `SERVERS`, with commas between them", Local: true},
			&cli.StringFlag{Name: "tls", Usage: "encrypt towards clients: off, dev (a certificate of this machine's own), or `CERT,KEY`", Local: true},
			&cli.BoolFlag{Name: "insecure", Usage: "plaintext beyond loopback is meant", HideDefault: true, Local: true},
			&cli.StringFlag{Name: "balance", Value: "round_robin", Usage: "`HOW` servers are picked: round_robin, least_connections, p2c, source_hash, maglev", Local: true},
			&cli.StringFlag{Name: "send-proxy", Usage: "tell servers the client's address in a PROXY header: `v1|v2`", Local: true},
			&cli.StringFlag{Name: "admin", Usage: "serve metrics and health on `ADDR` (host:port, unix:/path or off)", Local: true},
		},
		Action: func(ctx context.Context, c *cli.Command) error {
			if err := alone(c); err != nil {
				return err
			}
			cfg, err := proxyConfig(c)
			if err != nil {
				return exit(exitUsage, err)
			}
			return serveWith(ctx, env, cfg, c, false, nil)
		},
	}
}

// proxyBase is what the command line does not say.
const proxyBase = `version: 1
listeners:
  - name: proxy
    listen: ["127.0.0.1:0"]
    insecure: %t
    tls: {mode: off}
    routes: [{upstream: servers}]
upstreams:
  - name: servers
    servers: ["127.0.0.1:1"]
`

// proxyConfig is the configuration that the command line amounts to; its addresses to
// listen on come later. What is wrong is said in terms of the command line.
func proxyConfig(c *cli.Command) (*config.Config, error) {
	for _, needed := range []string{"listen", "to"} {
		if c.String(needed) == "" {
			return nil, usage(c, "proxy: --%s is missing: levee proxy --listen ADDR --to ADDR", needed)
		}
	}
	cfg, err := config.Parse("levee proxy", fmt.Appendf(nil, proxyBase, c.Bool("insecure")))
	if err != nil {
		return nil, err
	}
	to := &cfg.Upstreams[0]
	to.Servers = nil
	for text := range strings.SplitSeq(c.String("to"), ",") {
		server, err := config.ParseServer(strings.TrimSpace(text))
		if err != nil {
			return nil, fmt.Errorf("--to: %w", err)
		}
		server.Pos.File = "--to"
		to.Servers = append(to.Servers, server)
	}
	to.Balance, to.SendProxy = c.String("balance"), c.String("send-proxy")
	if _, err := upstream.ParseBalance(to.Balance); err != nil {
		return nil, fmt.Errorf("--balance: %w", err)
	}
	if _, err := proxy.ParseHeader(to.SendProxy); err != nil {
		return nil, fmt.Errorf("--send-proxy: %w", err)
	}
	return cfg, proxyTLS(c, &cfg.Listeners[0])
}

// proxyTLS puts --tls into the configuration.
func proxyTLS(c *cli.Command, l *config.Listener) error {
	address, err := config.ParseAddress(c.String("listen"))
	if err != nil {
		return fmt.Errorf("--listen: %w", err)
	}
	mode := c.String("tls")
	cert, key, files := strings.Cut(mode, ",")
	switch {
	case mode == "" && !address.Loopback() && !l.Insecure:
		return fmt.Errorf("--tls is missing: other machines can reach %q; say --tls CERT,KEY, --tls dev, or --tls off --insecure", address)
	case mode == "off" && !address.Loopback() && !l.Insecure:
		return fmt.Errorf("--tls off: other machines can reach %q, and would talk in plaintext; say --insecure if that is meant", address)
	case mode == "" || mode == "off":
		return nil
	case mode == "dev":
		l.TLS = config.TLS{Mode: config.TLSTerminate, Development: true}
		return nil
	case files && cert != "" && key != "":
		l.TLS = config.TLS{Mode: config.TLSTerminate, Certificates: []config.Certificate{{Pos: config.Position{File: "--tls"}, Cert: cert, Key: key}}}
		return nil
	}
	return fmt.Errorf("--tls: %q is neither off nor dev nor two files, CERT,KEY", mode)
}
