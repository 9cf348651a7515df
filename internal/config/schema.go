package config

import (
	"encoding/json"
	"fmt"

	"github.com/google/jsonschema-go/jsonschema"
	"go.yaml.in/yaml/v4"
)

// Schema returns the JSON schema (draft 2020-12) of a configuration file, for editors and for checks outside levee. It
// knows keys, types, words and patterns; what depends on several keys at once only Parse knows.
func Schema() []byte {
	root := object{of: &Config{}}.schema()
	root.Schema = "https://json-schema.org/draft/2020-12/schema"
	root.Title = "levee configuration"
	root.Description = "What levee listens on, whom it lets in and who serves them."
	text, err := json.MarshalIndent(root, "", "  ")
	if err != nil {
		panic(fmt.Sprintf("config: the key table makes no schema: %v", err)) // a fixed table: every test would see it
	}
	return append(text, '\n')
}

func (o object) schema() *jsonschema.Schema {
	keys := o.of.keys()
	s := &jsonschema.Schema{
		Type:                 "object",
		Properties:           make(map[string]*jsonschema.Schema, len(keys)),
		PropertyOrder:        keyList(keys),
		AdditionalProperties: &jsonschema.Schema{Not: &jsonschema.Schema{}}, // marshals as false
	}
	for _, k := range keys {
		property := k.value.schema()
		property.Description = k.doc
		if k.required {
			s.Required = append(s.Required, k.name)
		} else {
			property.Default = defaultOf(k.value)
		}
		s.Properties[k.name] = property
	}
	if o.filled {
		s.MinProperties = new(1)
	}
	return s
}

// defaultOf is what leaving out the value amounts to, if a single word or number says it.
func defaultOf(v value) json.RawMessage {
	v.absent()
	n := v.write()
	if n == nil || n.Kind != yaml.ScalarNode {
		return nil
	}
	if n.Tag != "!!str" {
		return json.RawMessage(n.Value) // numbers and booleans are written alike in YAML and JSON
	}
	text, _ := json.Marshal(n.Value) // a string always marshals
	return text
}

func (l list[T]) schema() *jsonschema.Schema {
	return &jsonschema.Schema{Type: "array", MinItems: new(1), Items: l.item(new(T)).schema()}
}

func (s some[T]) schema() *jsonschema.Schema {
	return &jsonschema.Schema{AnyOf: []*jsonschema.Schema{s.item(new(T)).schema(), s.list.schema()}}
}

func (t parsed[T]) schema() *jsonschema.Schema {
	return &jsonschema.Schema{Type: "string", Pattern: t.pattern}
}

func (c choice[T]) schema() *jsonschema.Schema {
	s := &jsonschema.Schema{Type: "string"}
	for _, o := range c.options {
		s.Enum = append(s.Enum, o.word)
	}
	return s
}

func (b boolean) schema() *jsonschema.Schema { return &jsonschema.Schema{Type: "boolean"} }

func (m maybe) schema() *jsonschema.Schema { return boolean{}.schema() }

func (i integer) schema() *jsonschema.Schema {
	return schemaOrOff(i.off, &jsonschema.Schema{
		Type:    "integer",
		Minimum: new(float64(i.min)),
		Maximum: new(float64(i.max)),
	})
}

func (f number) schema() *jsonschema.Schema {
	s := &jsonschema.Schema{Type: "number", Maximum: new(f.max)}
	if f.zero {
		s.Minimum = new(0.0)
	} else {
		s.ExclusiveMinimum = new(0.0)
	}
	return schemaOrOff(f.off, s)
}

func schemaOrOff(off bool, s *jsonschema.Schema) *jsonschema.Schema {
	if !off {
		return s
	}
	return &jsonschema.Schema{AnyOf: []*jsonschema.Schema{s, {Type: "string", Enum: []any{"off"}}}}
}

func (d duration) schema() *jsonschema.Schema {
	s := &jsonschema.Schema{Type: "string", Pattern: `^` + durationPattern + `$`}
	if d.off {
		s.Pattern = `^(off|` + durationPattern + `)$`
	}
	return s
}
