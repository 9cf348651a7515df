package main

import (
	"context"
	"fmt"
	"regexp"
	"strings"
)

const commandLineHead = `# Command line

Every command with its flags, from levee's own help (` + "`levee help COMMAND`" + `).

**Exit codes.** 0: all connections left in their own time. 1: some had to be cut; ` + "`levee flood`" + `: the server did not hold. 2: bad usage or
configuration, or a running levee that refused what it was asked. 3: it could not start, or nobody answered.

**Signals.** SIGINT and SIGTERM let connections finish, a second one cuts them at once; SIGHUP reloads configuration, certificates and lists, and opens log
files anew; SIGUSR2 has a new process take over.

**A running levee** is asked at its admin address: ` + "`--admin`" + `, or ` + "`LEVEE_ADMIN`" + `, 127.0.0.1:9180 by default.

`

// A help is what a command says of itself.
type help struct {
	name     string
	purpose  string
	sections map[string]string // by their titles, without the space in front of lines
}

// commandLine is the page of all commands.
func commandLine(ctx context.Context, levee string) (string, error) {
	var b strings.Builder
	b.WriteString(commandLineHead)
	root, err := helpOf(ctx, levee)
	if err != nil {
		return "", err
	}
	root.write(&b, 2)
	for _, command := range root.commands() {
		if err := writeCommand(ctx, &b, levee, 2, command); err != nil {
			return "", err
		}
	}
	return b.String(), nil
}

func writeCommand(ctx context.Context, b *strings.Builder, levee string, level int, names ...string) error {
	h, err := helpOf(ctx, levee, names...)
	if err != nil {
		return err
	}
	h.write(b, level)
	if h.name == "levee completion" {
		return nil // each of its commands is a shell, and all is said
	}
	for _, command := range h.commands() {
		if err := writeCommand(ctx, b, levee, level+1, append(names, command)...); err != nil {
			return err
		}
	}
	return nil
}

var title = regexp.MustCompile(`(?m)^([A-Z][A-Z ]+):\n`)

func helpOf(ctx context.Context, levee string, names ...string) (*help, error) {
	out, err := said(ctx, levee, append(names, "--help")...)
	if err != nil {
		return nil, err
	}
	h := &help{sections: make(map[string]string)}
	at := title.FindAllStringSubmatchIndex(string(out), -1)
	for i, m := range at {
		end := len(out)
		if i+1 < len(at) {
			end = at[i+1][0]
		}
		body := strings.ReplaceAll("\n"+string(out[m[1]:end]), "\n   ", "\n")
		h.sections[string(out[m[2]:m[3]])] = strings.Trim(body, "\n")
	}
	h.name, h.purpose, _ = strings.Cut(h.sections["NAME"], " - ")
	if h.name == "" || h.purpose == "" {
		return nil, fmt.Errorf("%v --help does not say what it is", names)
	}
	return h, nil
}

// row is a line of a list: what stands first, two spaces or more, and what is said of it.
var row = regexp.MustCompile(`(?m)^(\S.*?) {2,}(\S.*)$`)

// commands are the names of those below this one, without help and its like.
func (h *help) commands() (names []string) {
	for _, m := range row.FindAllStringSubmatch(h.sections["COMMANDS"], -1) {
		name, _, _ := strings.Cut(m[1], ",")
		names = append(names, name)
	}
	return names
}

func (h *help) write(b *strings.Builder, level int) {
	if h.name == "levee" {
		fmt.Fprintf(b, "## levee\n\n")
	} else {
		fmt.Fprintf(b, "\n%s %s\n\n", strings.Repeat("#", level), h.name)
	}
	fmt.Fprintf(b, "%s.\n\n```text\n%s\n```\n", sentence(h.purpose), h.sections["USAGE"])
	if text := h.sections["DESCRIPTION"]; text != "" && h.name == "levee completion" {
		fmt.Fprintf(b, "\n```text\n%s\n```\n", text)
	} else if text != "" {
		fmt.Fprintf(b, "\n%s\n", plainly(text))
	}
	h.list(b, "COMMANDS", "command")
	h.list(b, "OPTIONS", "flag")
	h.list(b, "GLOBAL OPTIONS", "flag")
}

func (h *help) list(b *strings.Builder, section, what string) {
	rows := row.FindAllStringSubmatch(h.sections[section], -1)
	if len(rows) == 0 {
		return
	}
	fmt.Fprintf(b, "\n| %s | |\n|---|---|\n", what)
	for _, m := range rows {
		fmt.Fprintf(b, "| %s | %s |\n", code(m[1]), plainly(cell(m[2])))
	}
}

// plainly keeps Markdown from taking signs for its own.
func plainly(text string) string { return signs.ReplaceAllString(text, `\${0}`) }

var signs = regexp.MustCompile(`[<>*_\[\]\\]`)

func sentence(text string) string { return strings.ToUpper(text[:1]) + text[1:] }
