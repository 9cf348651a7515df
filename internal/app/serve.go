package app

import (
	"context"
	"fmt"
	"os"

	"github.com/urfave/cli/v3"

	"github.com/levee-net/levee/handover"
	"github.com/levee-net/levee/internal/config"
)

func serveCommand(env Env) *cli.Command {
	return &cli.Command{
		Name:         "serve",
		Usage:        "serve what a configuration file says",
		UsageText:    "levee serve -c FILE [--watch] [--supervise] [--listen ADDR] [--admin ADDR]",
		OnUsageError: usageError,
		Flags:        append([]cli.Flag{fileFlag(), watchFlag(), superviseFlag()}, addressFlags()...),
		Action: func(ctx context.Context, c *cli.Command) error {
			if err := alone(c); err != nil {
				return err
			}
			cfg, err := load(c)
			if err != nil {
				return err
			}
			again := &reloads{
				file: c.String("config"), watch: c.Bool("watch"),
				read: func() (*config.Config, error) {
					cfg, err := config.Load(c.String("config"))
					if err != nil {
						return nil, err
					}
					return cfg, override(cfg, c, false)
				},
			}
			return serveWith(ctx, env, cfg, c, false, again)
		},
	}
}

func fileFlag() cli.Flag {
	return &cli.StringFlag{Name: "config", Aliases: []string{"c"}, Usage: "the configuration `FILE`", TakesFile: true}
}

func watchFlag() cli.Flag {
	return &cli.BoolFlag{Name: "watch", Usage: "reload the configuration when its file has changed, as at SIGHUP", HideDefault: true, Local: true}
}

func superviseFlag() cli.Flag {
	return &cli.BoolFlag{Name: "supervise", Usage: "serve in a child, so that this process outlives upgrades (process 1 does so anyway)", HideDefault: true, Local: true}
}

// supervised is set for those that have a supervisor.
const supervised = "LEVEE_SUPERVISED"

// isToSupervise reports whether this process is to be a supervisor: if it is asked to, or is the first of a container,
// which ends with it.
func (env Env) isToSupervise(asked bool) bool {
	return (asked || canSupervise && os.Getpid() == 1) && env.Executable != "" && os.Getenv(supervised) == ""
}

// load reads the file that the command line names.
func load(c *cli.Command) (*config.Config, error) {
	file := c.String("config")
	if file == "" { // as Required, package cli would complain of it before anything else
		return nil, usage(c, "%s: which configuration? name it with -c FILE", c.Name)
	}
	cfg, err := config.Load(file)
	return cfg, exit(exitUsage, err)
}

func addressFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "listen", Usage: "listen on `ADDR` (host:port) instead of what the configuration says", Local: true},
		&cli.StringFlag{Name: "admin", Usage: "serve metrics and health on `ADDR` (host:port, unix:/path or off)", Local: true},
	}
}

// serveWith serves the configuration, with the flags' addresses in place of its
// own. A configuration that is from a file is read again as again says, which is nil for others.
func serveWith(ctx context.Context, env Env, cfg *config.Config, c *cli.Command, demo bool, again *reloads) error {
	if err := override(cfg, c, demo); err != nil {
		return exit(exitUsage, err)
	}
	if env.isToSupervise(c.Bool("supervise")) {
		return supervise(ctx, env, env.args)
	}
	var err error
	if env.process, err = handover.Begin(); err != nil {
		return exit(exitNotStart, err)
	}
	f, err := assemble(cfg, env)
	if err != nil {
		return err
	}
	if again != nil {
		f.reloads.read, f.reloads.file, f.reloads.watch = again.read, again.file, again.watch
	}
	p, err := f.open(ctx)
	if err != nil {
		return exit(exitNotStart, err)
	}
	f.limitMemory()
	f.announce(demo, p)
	return f.run(ctx, p)
}

// override puts the flags' addresses into the configuration. What is wrong with
// them is said in terms of the command line.
func override(cfg *config.Config, c *cli.Command, demo bool) error {
	if c.IsSet("listen") {
		if len(cfg.Listeners) != 1 {
			return fmt.Errorf("--listen: the configuration has %d listeners; change the address there", len(cfg.Listeners))
		}
		address, err := config.ParseAddress(c.String("listen"))
		if err != nil {
			return fmt.Errorf("--listen: %w", err)
		}
		address.Pos.File = "--listen"
		l := &cfg.Listeners[0]
		l.Listen = []config.Address{address}
		if demo && !address.Loopback() {
			return fmt.Errorf("--listen: other machines can reach %q, and the built-in configuration lets plaintext in; use 127.0.0.1, or write a configuration with TLS (levee serve -c FILE)", address)
		}
	}
	if c.IsSet("admin") {
		address, err := config.ParseAdminAddress(c.String("admin"))
		if err != nil {
			return fmt.Errorf("--admin: %w", err)
		}
		address.Pos.File = "--admin"
		cfg.Admin.Listen = address
	}
	return cfg.Check()
}
