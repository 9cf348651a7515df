package config

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"unicode"

	"github.com/google/jsonschema-go/jsonschema"
	"go.yaml.in/yaml/v4"
)

// schemaValidator reads the schema as another program would.
func schemaValidator(t testing.TB) *jsonschema.Resolved {
	t.Helper()
	var s jsonschema.Schema
	if err := json.Unmarshal(Schema(), &s); err != nil {
		t.Fatal(err)
	}
	resolved, err := s.Resolve(&jsonschema.ResolveOptions{ValidateDefaults: true})
	if err != nil {
		t.Fatal(err)
	}
	return resolved
}

// validate holds a document against the schema, the way an editor does: as the JSON that the YAML amounts to.
func validate(t testing.TB, schema *jsonschema.Resolved, doc string) error {
	t.Helper()
	var content any
	if err := yaml.Load([]byte(doc), &content); err != nil {
		t.Fatalf("%v in:\n%s", err, doc)
	}
	text, err := json.Marshal(content)
	if err != nil {
		t.Fatal(err)
	}
	var instance any
	if err := json.Unmarshal(text, &instance); err != nil {
		t.Fatal(err)
	}
	return schema.Validate(instance)
}

func TestTheSchemaAcceptsWhatParseAccepts(t *testing.T) {
	schema := schemaValidator(t)
	if err := validate(t, schema, string(DefaultYAML())); err != nil {
		t.Errorf("default.yaml: %v", err)
	}
	for _, c := range accepted {
		for _, doc := range []string{c.doc, string(c.want.YAML())} {
			if err := validate(t, schema, doc); err != nil {
				t.Errorf("%s: %v in:\n%s", c.name, err, doc)
			}
		}
	}
}

func TestTheSchemaRejectsWhatParseRejects(t *testing.T) {
	schema := schemaValidator(t)
	for _, c := range rejected {
		if c.structural && validate(t, schema, c.doc) == nil {
			t.Errorf("%s: the schema accepts:\n%s", c.name, c.doc)
		}
	}
}

func TestTheSchemaIsTheSameEachTime(t *testing.T) {
	first := Schema()
	for range 20 {
		if !bytes.Equal(first, Schema()) {
			t.Fatal("differs")
		}
	}
	if !bytes.HasSuffix(first, []byte("\n}\n")) || !bytes.Contains(first, []byte(`"$schema": "https://json-schema.org/draft/2020-12/schema"`)) {
		t.Errorf("starts with %.200s", first)
	}
}

// schemaKeys returns every key of the schema by its path, lists left out: listeners.tls.mode.
func schemaKeys(t *testing.T) map[string]*jsonschema.Schema {
	t.Helper()
	var root jsonschema.Schema
	if err := json.Unmarshal(Schema(), &root); err != nil {
		t.Fatal(err)
	}
	keys := make(map[string]*jsonschema.Schema)
	var walk func(path string, s *jsonschema.Schema)
	walk = func(path string, s *jsonschema.Schema) {
		if s.Items != nil {
			s = s.Items
		}
		for _, form := range s.AnyOf {
			walk(path, form)
		}
		if s.Type == "object" && s.PropertyNames == nil && (s.AdditionalProperties == nil || s.AdditionalProperties.Not == nil) {
			t.Errorf("%s: takes keys that it does not know", path)
		}
		for name, property := range s.Properties {
			keys[joinKey(path, name)] = property
			walk(joinKey(path, name), property)
		}
	}
	walk("", &root)
	return keys
}

// A field without its line in the table would be silently ignored.
func TestEveryFieldHasAKeyInTheSchemaWithADescription(t *testing.T) {
	inSchema := schemaKeys(t)
	var walk func(path string, typ reflect.Type)
	walk = func(path string, typ reflect.Type) {
		for field := range typ.Fields() {
			if field.Type == reflect.TypeFor[Position]() {
				continue
			}
			key := joinKey(path, snake(field.Name))
			if field.Type == reflect.TypeFor[ServerAddress]() {
				key = joinKey(path, "address")
			}
			s, ok := inSchema[key]
			if !ok {
				t.Errorf("%s.%s: no key %s in the schema", typ, field.Name, key)
				continue
			}
			delete(inSchema, key)
			if len(s.Description) < 10 || !strings.HasSuffix(s.Description, ".") {
				t.Errorf("%s: description %q", key, s.Description)
			}
			inner := field.Type
			if inner.Kind() == reflect.Slice {
				inner = inner.Elem()
			}
			if reflect.PointerTo(inner).Implements(reflect.TypeFor[keyed]()) {
				walk(key, inner)
			}
		}
	}
	walk("", reflect.TypeFor[Config]())
	for key := range inSchema {
		t.Errorf("%s stands in the schema but in no struct", key)
	}
}

// Optional keys are either described by their own keys, or say their default, or are absent by default.
func TestTheSchemaTellsDefaults(t *testing.T) {
	keys := schemaKeys(t)
	for path, want := range map[string]string{
		"admin.listen":                     `"127.0.0.1:9180"`,
		"drain.timeout":                    `"25s"`,
		"drain.pre_stop":                   `"0s"`,
		"drain.spread":                     ``,
		"upstreams.protocol":               ``,
		"telemetry.logs.level":             `"info"`,
		"listeners.insecure":               `false`,
		"listeners.tls.mode":               `"terminate"`,
		"listeners.limits.max_connections": `0`,
		"listeners.limits.rate":            ``,
		"listeners.limits.bandwidth.up":    `"off"`,
		"listeners.limits.mode":            `"enforce"`,
		"listeners.limits.per_client.mode": `"shadow"`,
		"limits.clients":                   `131072`,
		"limits.bans.mode":                 `"shadow"`,
		"overload.mode":                    `"on"`,
		"upstreams.balance":                `"round_robin"`,
		"upstreams.tls.mode":               `"off"`,
		"upstreams.health.fall":            `3`,
		"upstreams.health.send":            ``,
		"upstreams.health.interval":        `"5s"`,
		"upstreams.breaker.mode":           `"on"`,
		"upstreams.breaker.failures":       `5`,
		"upstreams.dial.retry_budget":      `0.2`,
		"upstreams.dial.source":            ``,
		"upstreams.queue.length":           `1024`,
		"upstreams.queue.timeout":          ``,
		"upstreams.on_down.rate":           `100`,
		"upstreams.rebalance":              `0`,
		"upstreams.send_proxy":             `"off"`,
		"upstreams.servers.weight":         `1`,
		"upstreams.servers.name":           ``,
		"listeners.timeouts.lifetime":      `"off"`,
		"listeners.routes.match.protocol":  ``,
		"listeners.name":                   ``,
	} {
		if got := string(keys[path].Default); got != want {
			t.Errorf("%s: default %s, want %s", path, got, want)
		}
	}
}

// snake turns MaxConnections into max_connections, TLS into tls and SNIRegexp into sni_regexp.
func snake(name string) string {
	var b strings.Builder
	for i, c := range name {
		ends := i+1 < len(name) && unicode.IsLower(rune(name[i+1]))
		if i > 0 && unicode.IsUpper(c) && (unicode.IsLower(rune(name[i-1])) || ends) {
			b.WriteByte('_')
		}
		b.WriteRune(unicode.ToLower(c))
	}
	return b.String()
}
