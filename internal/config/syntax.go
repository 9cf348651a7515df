package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v4"
	"go.yaml.in/yaml/v4/plugin/loaderlimits"
)

// maxDepth of nesting. The deepest key is six levels down, and a list of mappings counts twice.
const maxDepth = 32

var errDepth = errors.New("nested too deeply")

func limitDepth(depth int, _ *yaml.DepthContext) error {
	if depth > maxDepth {
		return errDepth
	}
	return nil
}

// compose returns the root of the one document in doc, or nil after saying why there is none.
func (r *reader) compose(doc []byte) *yaml.Node {
	if !r.cleanText(doc) {
		return nil
	}
	loader, err := yaml.NewLoader(bytes.NewReader(doc), yaml.WithPlugin(loaderlimits.New(loaderlimits.DepthFunc(limitDepth))))
	if err != nil {
		panic(fmt.Sprintf("config: YAML options: %v", err)) // the options are fixed
	}
	var first, second yaml.Node
	switch err := loader.Load(&first); {
	case errors.Is(err, io.EOF):
		r.empty()
		return nil
	case err != nil:
		r.syntax(doc, err)
		return nil
	}
	switch err := loader.Load(&second); {
	case err == nil:
		r.refuse(&second, "", "a second document starts here; a configuration is one document")
	case !errors.Is(err, io.EOF):
		r.syntax(doc, err)
	}
	if len(first.Content) != 1 || first.Content[0].Tag == "!!null" && first.Content[0].Kind == yaml.ScalarNode {
		r.empty()
		return nil
	}
	return first.Content[0]
}

func (r *reader) empty() {
	r.problems.add(Position{r.file, 1, 1}, "", "is empty; begin with version: 1")
}

// cleanText refuses what a YAML reader should not even see: the position is then ours, and lines are what editors call
// lines.
func (r *reader) cleanText(doc []byte) bool {
	if len(doc) > maxSize {
		r.problems.add(Position{r.file, 1, 1}, "", "has more than %d bytes", maxSize)
		return false
	}
	line, column := 1, 1
	for i := 0; i < len(doc); column++ {
		c, size := utf8.DecodeRune(doc[i:])
		if text := unclean(doc, i, c, size, column); text != "" {
			r.problems.add(Position{r.file, line, column}, "", "%s", text)
			return false
		}
		i += size
		if c == '\n' {
			line, column = line+1, 0
		}
	}
	return true
}

// unclean says what is wrong with the character c at doc[i:], or nothing.
func unclean(doc []byte, i int, c rune, size, column int) string {
	switch {
	case c == utf8.RuneError && size == 1:
		return fmt.Sprintf("byte 0x%02x is not UTF-8; save the file as UTF-8", doc[i])
	case c == '\n', c == '\t', c == '\ufeff' && i == 0:
		return ""
	case c == '\r':
		if bytes.HasPrefix(doc[i:], []byte("\r\n")) {
			return ""
		}
		return "a carriage return without a line feed; save the file with Unix line ends"
	case c < ' ', c >= 0x7f && c < 0xa0, c == '\u2028', c == '\u2029', c == '\ufeff', c == '\ufffe', c == '\uffff':
		return fmt.Sprintf("control character %U; remove it", c)
	case c == '%' && column == 1:
		// Also a guard: a megabyte of %TAG lines takes the YAML reader ten seconds.
		return "a line that begins with % is a YAML directive, which is not supported; indent or quote it"
	}
	return ""
}

// syntax says what the YAML reader stumbled over.
func (r *reader) syntax(doc []byte, err error) {
	pos := Position{File: r.file, Line: 1, Column: 1}
	load, ok := errors.AsType[*yaml.LoadError](err)
	if !ok {
		r.problems.add(pos, "", "is not YAML: %s", oneLine(err.Error()))
		return
	}
	mark := load.Mark
	unclosed := load.ContextMark.Line > 0 && mark.Index >= len(bytes.TrimRight(doc, " \r\n"))
	if unclosed || mark.Line == 0 {
		mark = load.ContextMark // where it began: at the end of the file there is nothing to see
	}
	pos.Line, pos.Column = mark.Line, mark.Column
	r.problems.add(pos, "", "%s", explain(load, characterAt(doc, pos), unclosed))
}

// explain says in an operator's words what the YAML reader says in a parser's. It has no codes for its errors, so this
// goes by text; a text that is not known here is passed on.
func explain(load *yaml.LoadError, at rune, unclosed bool) string {
	message := load.Message
	switch {
	case strings.Contains(message, errDepth.Error()):
		return fmt.Sprintf("is nested more than %d levels deep", maxDepth)
	case unclosed && strings.Contains(load.ContextMsg, "quoted scalar"):
		return "this quote is never closed"
	case unclosed && strings.Contains(load.ContextMsg, "flow sequence"):
		return `this "[" is never closed`
	case unclosed && strings.Contains(load.ContextMsg, "flow mapping"):
		return `this "{" is never closed`
	case strings.Contains(message, "cannot start any token") && at == '\t':
		return "a tab cannot indent; use spaces"
	case strings.Contains(message, "cannot start any token"):
		return fmt.Sprintf("text cannot begin with %s; put it in quotes", quote(string(at)))
	case strings.Contains(message, "mapping values are not allowed"):
		return `unexpected ":"; check the indentation, and put quotes around text that has ": " in it`
	case strings.Contains(message, "could not find expected ':'"):
		return `a key without ":"; write key: value`
	case strings.Contains(message, "did not find expected key"), strings.Contains(message, "expected '-' indicator"):
		return "does not fit what is above it; check the indentation, and the brackets and quotes before it"
	case unclosed && strings.Contains(message, "expected node content"):
		return "the file ends where a value is expected; look for a bracket that is never closed"
	case strings.Contains(message, "expected node content"):
		return "a value is missing here"
	case strings.Contains(message, "unknown anchor"):
		return "aliases (*name) are not supported; put quotes around text that begins with *"
	}
	if load.ContextMsg != "" {
		message = load.ContextMsg + ": " + message
	}
	return "is not YAML: " + oneLine(message)
}

// characterAt returns the character at a position, or a space beyond the end.
func characterAt(doc []byte, p Position) rune {
	lines := bytes.Split(doc, []byte("\n"))
	if p.Line < 1 || p.Line > len(lines) {
		return ' '
	}
	line := bytes.Runes(lines[p.Line-1])
	if p.Column < 1 || p.Column > len(line) {
		return ' '
	}
	return line[p.Column-1]
}

// oneLine makes somebody else's message fit for a line of ours.
func oneLine(s string) string { return clipTo(200, strings.Join(strings.Fields(s), " ")) }
