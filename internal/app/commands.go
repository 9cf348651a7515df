package app

import (
	"context"
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/urfave/cli/v3"

	"github.com/levee-net/levee/internal/config"
)

func checkCommand(env Env) *cli.Command {
	return &cli.Command{
		Name:         "check",
		Usage:        "say what is wrong with a configuration file, or what it amounts to",
		UsageText:    "levee check -c FILE",
		OnUsageError: usageError,
		Flags:        []cli.Flag{fileFlag()},
		Action: func(_ context.Context, c *cli.Command) error {
			if err := alone(c); err != nil {
				return err
			}
			cfg, err := load(c)
			if err != nil {
				return err
			}
			env.lookOnly = true
			f, err := assemble(cfg, env)
			if err != nil {
				return err
			}
			for _, line := range f.now.Load().report() {
				fmt.Fprintln(env.Stdout, line)
			}
			fmt.Fprintf(env.Stdout, "%s: ok\n", c.String("config"))
			return nil
		},
	}
}

func schemaCommand(env Env) *cli.Command {
	return &cli.Command{
		Name:         "schema",
		Usage:        "print the JSON schema of the configuration",
		UsageText:    "levee schema > levee.schema.json",
		OnUsageError: usageError,
		Action: func(_ context.Context, c *cli.Command) error {
			if err := alone(c); err != nil {
				return err
			}
			_, err := fmt.Fprintf(env.Stdout, "%s\n", config.Schema())
			return err
		},
	}
}

func versionCommand(env Env) *cli.Command {
	return &cli.Command{
		Name:         "version",
		Usage:        "print the version",
		UsageText:    "levee version",
		OnUsageError: usageError,
		Action: func(_ context.Context, c *cli.Command) error {
			if err := alone(c); err != nil {
				return err
			}
			return printVersion(env)
		},
	}
}

func printVersion(env Env) error {
	_, err := fmt.Fprintln(env.Stdout, version())
	return err
}

// version says what is running: the module's version, the commit where it was
// built from a checkout, Go's version and the platform.
func version() string {
	commit := builtWith("vcs.revision")
	if commit != "" {
		commit = " " + commit
	}
	return fmt.Sprintf("levee %s%s %s %s/%s", release(), commit, runtime.Version(), runtime.GOOS, runtime.GOARCH)
}

// builtWith returns a setting of the build, or "" if it is not known.
func builtWith(key string) string {
	info, _ := debug.ReadBuildInfo()
	if info == nil {
		return ""
	}
	for _, s := range info.Settings {
		if s.Key == key {
			return s.Value
		}
	}
	return ""
}

// releaseVersion is set by the linker when a release is built (scripts/release), also where there is no git to ask.
var releaseVersion string

// release is the version of the release, or else the module's.
func release() string {
	if releaseVersion != "" {
		return releaseVersion
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		return info.Main.Version
	}
	return "unknown"
}
