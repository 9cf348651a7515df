package app

import (
	"context"
	"fmt"
	"strings"

	"github.com/urfave/cli/v3"
)

// usageError says what is wrong with the command line, and where help is.
func usageError(_ context.Context, c *cli.Command, err error, _ bool) error {
	return usage(c, "%s", inOurWords(c, err.Error()))
}

func usage(c *cli.Command, format string, args ...any) error {
	return exit(exitUsage, fmt.Errorf("%s (see %s --help)", fmt.Sprintf(format, args...), c.FullName()))
}

// inOurWords goes by text, as package cli has no other account of what is wrong.
// A text that is not known here is passed on.
func inOurWords(c *cli.Command, text string) string {
	if name, ok := strings.CutPrefix(text, "flag provided but not defined: -"); ok {
		return "unknown flag " + dashed(name) + hint(cli.SuggestFlag(c.Flags, name, false), name)
	}
	if flag, ok := strings.CutPrefix(text, "flag needs an argument: "); ok {
		return flag + " needs a value"
	}
	return text
}

func dashed(name string) string {
	if len(name) == 1 {
		return "-" + name
	}
	return "--" + name
}

// hint asks whether the nearest name was meant, if it is near at all: package
// cli's nearest may share no more than a letter.
func hint(nearest, given string) string {
	bare := strings.TrimLeft(nearest, "-")
	if bare == "" || given == "" || bare[0] != given[0] {
		return ""
	}
	return fmt.Sprintf("; did you mean %s?", nearest)
}

func unknownCommand(root *cli.Command, name string) error {
	return usage(root, "unknown command %q%s", name, hint(cli.SuggestCommand(root.VisibleCommands(), name), name))
}

// alone refuses what a command without arguments would not look at.
func alone(c *cli.Command) error {
	if c.Args().Present() {
		return usage(c, "%s: unexpected argument %q", c.Name, c.Args().First())
	}
	return nothingBefore(c)
}

// nothingBefore refuses flags in front of the command: they are the built-in
// configuration's.
func nothingBefore(c *cli.Command) error {
	for _, flag := range c.Root().Flags {
		if flag.IsSet() {
			return usage(c, "--%s stands before %q, where it has no effect", flag.Names()[0], c.Name)
		}
	}
	return nil
}

func helpCommand() *cli.Command {
	return &cli.Command{
		Name:         "help",
		Usage:        "show this, or the help of a command",
		UsageText:    "levee help [COMMAND]",
		OnUsageError: usageError,
		Action: func(ctx context.Context, c *cli.Command) error {
			name := c.Args().First()
			switch root := c.Root(); {
			case name == "":
				return cli.ShowRootCommandHelp(root)
			case root.Command(name) == nil:
				return unknownCommand(root, name)
			default:
				return cli.ShowCommandHelp(ctx, root, name)
			}
		},
	}
}

// completionCommand gives package cli's own command a place in the help, and its
// errors an exit code.
func completionCommand(c *cli.Command) {
	c.Hidden = false
	c.Usage = "print a completion script: bash, zsh, fish or pwsh"
	c.UsageText = "levee completion bash|zsh|fish|pwsh"
	c.Description = `bash: source <(levee completion bash)    in ~/.bashrc
zsh:  source <(levee completion zsh)     in ~/.zshrc, after compinit
fish: levee completion fish > ~/.config/fish/completions/levee.fish
pwsh: levee completion pwsh > levee.ps1, and run that`
	c.OnUsageError = usageError
	c.HideHelpCommand = true
	c.Action = func(_ context.Context, c *cli.Command) error {
		if name := c.Args().First(); name != "" {
			return usage(c, "no completion for %q: bash, zsh, fish or pwsh", name)
		}
		return usage(c, "completion for which shell? bash, zsh, fish or pwsh")
	}
	for _, shell := range c.Commands {
		shell.Usage = "print the script for " + shell.Name
		shell.OnUsageError = usageError
	}
}
