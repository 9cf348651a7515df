// Package app is the levee binary: its command line, and the joining of the rooms
// that a configuration asks for into one running front door.
//
//	os.Exit(app.Run(context.Background(), os.Args, app.Process()))
//
// It is the only package that knows all the others.
package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/urfave/cli/v3"

	"github.com/levee-net/levee/handover"
	"github.com/levee-net/levee/internal/config"
	"github.com/levee-net/levee/telemetry"
)

// The exit codes. They are part of levee's interface.
const (
	exitClean    = 0 // every connection left in its own time
	exitCut      = 1 // connections had to be cut
	exitUsage    = 2 // bad usage or configuration
	exitNotStart = 3 // could not start: bind, permission
)

// Env is what a run of levee sees of the world.
type Env struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	Terminal       bool                   // whether Stderr is one
	Screen         bool                   // whether Stdin and Stdout are a terminal
	Environ        []string               // what that can do, and its language
	ConfigDir      func() (string, error) // the user's folder for configuration
	Signals        <-chan os.Signal
	Executable     string // to start another levee, or nothing

	args     []string          // that it was started with
	process  *handover.Process // nil unless it serves
	lookOnly bool              // write nothing: this is a check
	logs     *telemetry.Writer // to Stderr
}

// Process returns the Env of the running process. From then on the signals that
// levee knows are levee's, and a reader of its output that goes away does not take
// it along.
func Process() Env {
	signal.Ignore(syscall.SIGPIPE)
	signals := make(chan os.Signal, 4) // a burst is kept; beyond that they say nothing new
	signal.Notify(signals, knownSignals()...)
	executable := executable() // without it, what would be in a process of its own is not
	return Env{
		Stdin:      os.Stdin,
		Executable: executable,
		Stdout:     os.Stdout,
		Stderr:     os.Stderr,
		Terminal:   isTerminal(os.Stderr),
		Screen:     isTerminal(os.Stdin) && isTerminal(os.Stdout),
		Environ:    os.Environ(),
		ConfigDir:  os.UserConfigDir,
		Signals:    signals,
	}
}

// executable returns where levee is, or nothing. It is the path that it was started by, which may be a link
// that leads elsewhere by the time of an upgrade, if that leads here.
func executable() string {
	real, err := os.Executable()
	if err != nil {
		return ""
	}
	given, err := exec.LookPath(os.Args[0])
	if err != nil {
		return real
	}
	if given, err = filepath.Abs(given); err != nil {
		return real
	}
	here, err := os.Stat(real)
	if err != nil {
		return real
	}
	if there, err := os.Stat(given); err != nil || !os.SameFile(here, there) {
		return real
	}
	return given
}

// An exitError is an error with the exit code that belongs to it.
type exitError struct {
	code int
	err  error // nil if the log has it already
}

func (e *exitError) Error() string {
	if e.err == nil {
		return ""
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

func exit(code int, err error) error {
	if err == nil {
		return nil
	}
	return &exitError{code, err}
}

// Run runs levee with the arguments, of which the first is the program's name,
// until it is done or ctx ends, and returns its exit code. What went wrong stands
// on env.Stderr, a line for each problem.
func Run(ctx context.Context, args []string, env Env) int {
	env.args, env.logs = args, telemetry.NewWriter(env.Stderr, 0)
	err := command(env).Run(ctx, args)
	env.logs.Flush(flushTime)
	if err == nil {
		return exitClean
	}
	for line := range strings.Lines(err.Error()) {
		fmt.Fprintf(env.Stderr, "levee: %s\n", strings.TrimSuffix(line, "\n"))
	}
	if exit := (*exitError)(nil); errors.As(err, &exit) {
		return exit.code
	}
	return exitUsage
}

// command is levee's command line.
func command(env Env) *cli.Command {
	return &cli.Command{
		Name:      "levee",
		Usage:     "a hardened front door for TCP",
		UsageText: "levee [--listen ADDR] [--admin ADDR]    serve the built-in configuration\nlevee COMMAND [OPTION…]",
		Description: `SIGINT or SIGTERM lets connections finish, a second one cuts them at once.
Exit codes: 0 all left in their own time; 1 some had to be cut; 2 bad usage or configuration; 3 could not start.`,
		Writer:                          env.Stdout,
		ErrWriter:                       env.Stderr,
		EnableShellCompletion:           true,
		ConfigureShellCompletionCommand: completionCommand,
		HideVersion:                     true,
		HideHelpCommand:                 true, // ours says what is wrong in our words
		ExitErrHandler:                  func(context.Context, *cli.Command, error) {},
		OnUsageError:                    usageError,
		Flags: append(addressFlags(),
			superviseFlag(),
			&cli.BoolFlag{Name: "version", Usage: "print the version", HideDefault: true, Local: true}),
		Action: func(ctx context.Context, c *cli.Command) error {
			if name := c.Args().First(); name != "" {
				return unknownCommand(c, name)
			}
			if c.Bool("version") {
				return printVersion(env)
			}
			cfg, err := config.Parse("built-in configuration", config.DefaultYAML())
			if err != nil {
				return exit(exitUsage, err)
			}
			return serveWith(ctx, env, cfg, c, true, nil)
		},
		Commands: []*cli.Command{
			serveCommand(env),
			proxyCommand(env),
			checkCommand(env),
			explainCommand(env),
			topCommand(env),
			statusCommand(env),
			connsCommand(env),
			killCommand(env),
			upstreamsCommand(env),
			drainCommand(env),
			reloadCommand(env),
			upgradeCommand(env),
			limitsCommand(env),
			bansCommand(env),
			banCommand(env),
			unbanCommand(env),
			benchCommand(env),
			floodCommand(env),
			attackersCommand(env),
			schemaCommand(env),
			versionCommand(env),
			manCommand(env),
			helpCommand(),
		},
	}
}

// developmentDir is where the development CA is kept.
func (env Env) developmentDir() (string, error) {
	dir, err := env.ConfigDir()
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, "levee"), nil
}
