package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// A schema is as much of a JSON schema as levee's has.
type schema struct {
	Type        string
	Description string
	Default     json.RawMessage
	Pattern     string
	Enum        []any
	Minimum     *float64
	Maximum     *float64
	Above       *float64 `json:"exclusiveMinimum"`
	Properties  properties
	Required    []string
	Items       *schema
	AnyOf       []*schema
}

// properties are an object's, in the order of the schema.
type properties []property

type property struct {
	name string
	of   *schema
}

func (p *properties) UnmarshalJSON(text []byte) error {
	d := json.NewDecoder(bytes.NewReader(text))
	if _, err := d.Token(); err != nil {
		return err
	}
	for d.More() {
		name, err := d.Token()
		if err != nil {
			return err
		}
		s := new(schema)
		if err := d.Decode(s); err != nil {
			return err
		}
		*p = append(*p, property{fmt.Sprint(name), s})
	}
	return nil
}

const configurationHead = `# Configuration

Every key of the configuration file, from the schema that levee checks it by. ` + "`levee schema`" + ` prints that for your editor,
` + "`levee check -c FILE`" + ` says what is wrong with a file, as file:line:column, or what it amounts to.

A file is YAML and begins with ` + "`version: 1`" + `. Unknown keys are errors. Paths are relative to the folder of the file. Durations are written like
250ms, 10s, 1m30s, 24h, rates like 50/s, 600/m, 10/h, and ` + "`off`" + ` means no limit where it is listed. In a key, ` + "`[]`" + ` stands for each
element of a list. Why the defaults are as they are stands in [Defaults and their reasons](defaults.md); the [built-in
configuration](#the-built-in-configuration) at the end shows all keys at their places.
`

// configuration is the page of all keys.
func configuration(ctx context.Context, levee string) (string, error) {
	text, err := said(ctx, levee, "schema")
	if err != nil {
		return "", err
	}
	root := new(schema)
	if err := json.Unmarshal(text, root); err != nil {
		return "", err
	}
	builtIn, err := os.ReadFile(filepath.Join(repository, "internal/config/default.yaml"))
	if err != nil {
		return "", err
	}
	var b strings.Builder
	b.WriteString(configurationHead)
	b.WriteString("\n## Top level\n\n")
	root.table(&b, "")
	for _, p := range root.Properties {
		if o := p.of.object(); o != nil {
			o.sections(&b, p.name+p.of.many(), 2)
		}
	}
	b.WriteString("\n## The built-in configuration\n\nWhat `levee` serves without a file.\n\n```yaml\n")
	b.Write(builtIn)
	b.WriteString("```\n")
	return b.String(), nil
}

// sections writes an object's keys, and after them those of the objects in it.
func (s *schema) sections(b *strings.Builder, path string, level int) {
	fmt.Fprintf(b, "\n%s %s\n\n", strings.Repeat("#", level), path)
	s.table(b, path+".")
	for _, p := range s.Properties {
		if o := p.of.object(); o != nil {
			o.sections(b, path+"."+p.name+p.of.many(), min(level+1, 4))
		}
	}
}

func (s *schema) table(b *strings.Builder, path string) {
	b.WriteString("| key | value | default | what it is |\n|---|---|---|---|\n")
	for _, p := range s.Properties {
		needed := ""
		if slices.Contains(s.Required, p.name) {
			needed = "required"
		}
		name := code(p.name)
		if p.of.object() != nil {
			name = "[" + name + "](#" + anchor(path+p.name+p.of.many()) + ")"
		}
		fmt.Fprintf(b, "| %s | %s | %s | %s |\n", name, p.of.kind(), needed+code(p.of.usual()), cell(p.of.Description))
	}
}

// object is the schema of the keys below a key, if there are any.
func (s *schema) object() *schema {
	for _, one := range append([]*schema{s, s.Items}, s.AnyOf...) {
		if one != nil && len(one.Properties) > 0 {
			return one
		}
	}
	for _, one := range s.AnyOf {
		if one.Items != nil && len(one.Items.Properties) > 0 {
			return one.Items
		}
	}
	return nil
}

// many is what follows a key whose value may be a list of objects.
func (s *schema) many() string {
	if s.Type == "array" || slices.ContainsFunc(s.AnyOf, func(o *schema) bool { return o.Type == "array" }) {
		return "[]"
	}
	return ""
}

// usual is what leaving the key out amounts to.
func (s *schema) usual() string {
	var text string
	if json.Unmarshal(s.Default, &text) == nil {
		return text
	}
	return string(s.Default)
}

// kind is which values there may be.
func (s *schema) kind() string {
	switch {
	case len(s.AnyOf) > 0:
		var all []string
		for _, one := range s.AnyOf {
			if k := one.kind(); !slices.Contains(all, k) {
				all = append(all, k)
			}
		}
		return strings.Join(all, ", or ")
	case len(s.Enum) > 0:
		var all []string
		for _, word := range s.Enum {
			all = append(all, code(fmt.Sprint(word)))
		}
		return strings.Join(all, ", ")
	case s.Type == "array":
		return "list: " + s.Items.kind()
	case s.Type == "object":
		return "keys"
	case s.Type == "boolean":
		return "`true`, `false`"
	case s.Type == "integer" || s.Type == "number":
		return "number" + s.bounds()
	case strings.Contains(s.Pattern, "ns|us") && strings.HasPrefix(s.Pattern, "^(off|"):
		return "duration, or `off`"
	case strings.Contains(s.Pattern, "ns|us"):
		return "duration"
	}
	return "text"
}

func (s *schema) bounds() string {
	word := func(f float64) string { return strconv.FormatFloat(f, 'f', -1, 64) }
	switch {
	case s.Maximum == nil:
		return ""
	case s.Above != nil:
		return ", above " + word(*s.Above) + " and up to " + word(*s.Maximum)
	case s.Minimum != nil && *s.Minimum == *s.Maximum:
		return ": " + word(*s.Minimum)
	case s.Minimum != nil:
		return ", " + word(*s.Minimum) + " to " + word(*s.Maximum)
	}
	return ", up to " + word(*s.Maximum)
}
