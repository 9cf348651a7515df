package app

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/levee-net/levee/internal/config"
)

// The manual's pages, as `levee man` knows them.
const (
	pageOfCommand = "levee"
	pageOfFile    = "levee.yaml"
)

func manCommand(env Env) *cli.Command {
	return &cli.Command{
		Name:         "man",
		Usage:        "print the manual: levee, or levee.yaml",
		UsageText:    "levee man levee|levee.yaml | man -l -",
		OnUsageError: usageError,
		Action: func(_ context.Context, c *cli.Command) error {
			page := c.Args().First()
			switch {
			case c.Args().Len() > 1:
				return usage(c, "man: unexpected argument %q", c.Args().Get(1))
			case page == "" || page == pageOfCommand:
				writeCommandPage(roff{env.Stdout}, c.Root())
			case page == pageOfFile:
				writeFilePage(roff{env.Stdout})
			default:
				return usage(c, "no manual for %q: levee or levee.yaml", page)
			}
			return nothingBefore(c)
		},
	}
}

// roff writes what man reads: man(7).
type roff struct{ out io.Writer }

// request writes a line of roff.
func (r roff) request(format string, args ...any) { fmt.Fprintf(r.out, format+"\n", args...) }

// text writes words that are no roff.
func (r roff) text(words string) {
	for line := range strings.Lines(words) {
		line = plainRoff(strings.TrimSuffix(line, "\n"))
		if strings.HasPrefix(line, ".") || strings.HasPrefix(line, "'") {
			line = `\&` + line // or it would be a request
		}
		r.request("%s", line)
	}
}

// literally writes words as they stand.
func (r roff) literally(words string) {
	r.request(".nf")
	r.text(words)
	r.request(".fi")
}

// plainRoff has every character mean itself: a hyphen that is typed is a minus to roff, and what is copied from the page a hyphen.
func plainRoff(s string) string {
	return strings.NewReplacer(`\`, `\e`, "-", `\-`, "~", `\(ti`, "^", `\(ha`, "`", `\(ga`).Replace(s)
}

func (r roff) header(name string, section int, does string) {
	r.request(`.TH %s %d "%s" "levee %s" "levee"`, strings.ToUpper(name), section, plainRoff(releaseDate()), plainRoff(release()))
	r.request(".SH NAME")
	r.request(`%s \- %s`, name, plainRoff(does))
}

// releaseDate is the day of the commit, if that is known.
func releaseDate() string {
	at, err := time.Parse(time.RFC3339, builtWith("vcs.time"))
	if err != nil {
		return ""
	}
	return at.Format(time.DateOnly)
}

// writeCommandPage writes levee(1): what help says, of all commands.
func writeCommandPage(r roff, root *cli.Command) {
	r.header(root.Name, 1, root.Usage)
	r.request(".SH SYNOPSIS")
	r.literally(root.UsageText)
	r.request(".SH DESCRIPTION")
	r.text(root.Description)
	r.request(".SH OPTIONS")
	r.options(root)
	r.request(".SH COMMANDS")
	for _, c := range root.Commands { // VisibleCommands would leave our help out
		if !c.Hidden {
			r.command(c, c.Name)
		}
	}
	r.request(".SH SIGNALS")
	r.text("SIGINT and SIGTERM drain, and a second one cuts what is left. SIGHUP reloads the configuration, certificates and lists. " +
		"SIGUSR2 has a new process take this one's place, as levee upgrade has.")
	r.request(".SH SEE ALSO")
	r.request(`.BR levee.yaml (5)`)
}

// command describes a command, and those below it.
func (r roff) command(c *cli.Command, name string) {
	r.request(".SS %s", plainRoff(strings.Join(append([]string{name}, c.Aliases...), ", ")))
	r.text(asSentence(c.Usage))
	if c.UsageText != "" {
		r.request(".PP")
		r.literally(c.UsageText)
	}
	if c.Description != "" {
		r.request(".PP")
		r.text(c.Description)
	}
	r.options(c)
	for _, below := range c.VisibleCommands() {
		if below.Name != "help" {
			r.command(below, name+" "+below.Name)
		}
	}
}

// options lists flags in the words of the help.
func (r roff) options(c *cli.Command) {
	for _, f := range c.VisibleFlags() {
		flag, does, _ := strings.Cut(f.String(), "\t")
		r.request(".TP")
		r.request(`\fB%s\fR`, plainRoff(strings.TrimSpace(flag)))
		r.text(asSentence(strings.TrimSpace(does)))
	}
}

func asSentence(s string) string {
	if s == "" {
		return ""
	}
	return strings.ToUpper(s[:1]) + s[1:] + "."
}

// writeFilePage writes levee.yaml(5), which is the built-in configuration: it has every key, with what that means.
func writeFilePage(r roff) {
	r.header(pageOfFile, 5, "levee's configuration")
	r.request(".SH DESCRIPTION")
	r.literally(string(config.DefaultYAML()))
	r.request(".SH SEE ALSO")
	r.request(`.BR levee (1)`)
}
