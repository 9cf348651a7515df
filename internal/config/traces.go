package config

import (
	"errors"
	"fmt"
	"maps"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/google/jsonschema-go/jsonschema"
	"go.yaml.in/yaml/v4"
)

// Traces is whether connections become OpenTelemetry spans, and where these are sent.
type Traces struct {
	Pos      Position
	OTLP     string // a URL; empty is nowhere
	Ratio    float64
	Headers  map[string]string // their values are secrets
	CA       string            // empty is what the system trusts
	Service  string            // empty is what the environment says, or levee
	Resource map[string]string
	Queue    int
	Timeout  time.Duration
}

// On reports whether there are spans.
func (t *Traces) On() bool { return t.OTLP != "" }

func (t *Traces) keys() []key {
	return []key{
		{
			"otlp", optional,
			parsed[string]{
				p: &t.OTLP, parse: parseOTLP, format: verbatim,
				wants: "a URL such as http://127.0.0.1:4318", pattern: `^(|(https?|grpcs?)://.+)$`,
			},
			"Where spans are sent: http:// or https:// and HOST:PORT for OTLP over HTTP, at /v1/traces if no path is given; grpc:// or grpcs:// for OTLP over gRPC. Without it there are none.",
		},
		{
			"ratio", optional,
			number{p: &t.Ratio, def: 0.01, max: 1, zero: true},
			"The share of the connections that become spans, unless the PROXY header of a connection says whether it is to. 0 is only those of which that says so.",
		},
		{
			"headers", optional,
			pairs{
				p: &t.Headers, of: "headers, such as api-key: secret", wrongName: notHeaderName, wrongValue: notHeaderValue,
				namePattern: headerNamePattern, secret: true,
			},
			"What goes along with each request to the receiver, such as a key that it asks for. The values are shown nowhere.",
		},
		{
			"ca", optional, filePath(&t.CA),
			"The authorities that the receiver's certificate must be from: a PEM file, relative to this file's folder. Without it, those of the system.",
		},
		{
			"service", optional, text(&t.Service, "a name such as edge", 255, hasControl),
			"The service.name of the spans. Without it, what OTEL_SERVICE_NAME says, or levee.",
		},
		{
			"resource", optional,
			pairs{
				p: &t.Resource, of: "attributes, such as deployment.environment.name: production",
				wrongName: notAttributeName, wrongValue: hasControl, namePattern: attributeNamePattern,
			},
			"What else the spans say of where they come from, beside what OTEL_RESOURCE_ATTRIBUTES does.",
		},
		{
			"queue", optional,
			integer{p: &t.Queue, def: 4096, min: 64, max: 1_000_000},
			"How many spans may wait for the receiver, at about 1 KiB each. What comes when there are so many is dropped, and counted.",
		},
		{
			"timeout", optional,
			duration{p: &t.Timeout, def: 10 * time.Second, min: 10 * time.Millisecond, max: time.Minute},
			"How long a batch of spans may take to be sent, further tries included. Then it is dropped, and counted.",
		},
	}
}

// parseOTLP does not quote what may have a password in it.
func parseOTLP(s string) (string, error) {
	if s == "" {
		return "", nil
	}
	u, err := url.Parse(s)
	if err != nil || hasControl(s) != nil {
		return "", errors.New("is not a URL; write one such as http://127.0.0.1:4318")
	}
	if u.User != nil {
		return "", errors.New("has a user or a password in it; put those into headers")
	}
	switch u.Scheme {
	case "http", "https", "grpc", "grpcs":
	default:
		return "", fmt.Errorf("%s does not begin with http://, https://, grpc:// or grpcs://; write a URL such as http://127.0.0.1:4318", quote(s))
	}
	overGRPC := strings.HasPrefix(u.Scheme, "grpc")
	_, err = parseHostPort(u.Host)
	switch {
	case u.Hostname() == "" || u.Port() == "":
		port := "4318"
		if overGRPC {
			port = "4317"
		}
		return "", fmt.Errorf("%s has no host and port; write a URL such as %s://127.0.0.1:%s", quote(s), u.Scheme, port)
	case err != nil:
		return "", err
	case u.RawQuery != "" || u.Fragment != "":
		return "", fmt.Errorf("%s has more than a path; remove that", quote(s))
	case overGRPC && strings.Trim(u.Path, "/") != "":
		return "", fmt.Errorf("%s has a path, and gRPC knows none; remove it", quote(s))
	}
	return s, nil
}

func (t *Traces) check(ps *Problems, path string) {
	says := ""
	switch {
	case len(t.Headers) > 0:
		says = "headers"
	case t.CA != "":
		says = "ca"
	}
	switch {
	case !ps.clean(path):
	case !t.On() && says != "":
		ps.add(t.Pos, path, "has %s, yet no otlp that it is for; add otlp: http://127.0.0.1:4318, or remove it", says)
	case t.CA != "" && !strings.HasPrefix(t.OTLP, "https:") && !strings.HasPrefix(t.OTLP, "grpcs:"):
		ps.add(t.Pos, path, "has ca, yet otlp is in plaintext; write https:// or grpcs://, or remove ca")
	}
}

const (
	headerNamePattern    = `^[A-Za-z0-9!#$%&'*+.^_|~-]+$` // RFC 9110, section 5.6.2, without the grave accent
	attributeNamePattern = `^[A-Za-z0-9._/-]+$`
)

var (
	headerName    = regexp.MustCompile(headerNamePattern)
	attributeName = regexp.MustCompile(attributeNamePattern)
)

func notHeaderName(s string) error {
	if !headerName.MatchString(s) {
		return fmt.Errorf("%s is not the name of a header", quote(s))
	}
	return nil
}

// notHeaderValue does not quote what is a secret.
func notHeaderValue(s string) error {
	if s == "" || strings.TrimSpace(s) != s || strings.ContainsFunc(s, func(c rune) bool { return c < ' ' || c > '~' }) {
		return errors.New("must be printable ASCII, without spaces at its ends")
	}
	return nil
}

func notAttributeName(s string) error {
	if !attributeName.MatchString(s) {
		return fmt.Errorf("%s is not the name of an attribute; use letters, digits and . _ / -", quote(s))
	}
	return nil
}

// mostPairs is more than a receiver asks for, and longestPair more than a token takes.
const (
	mostPairs   = 64
	longestPair = 8 << 10
)

// pairs is a mapping of names that are the file's own to text.
type pairs struct {
	p                     *map[string]string
	of                    string // what they are, and an example
	wrongName, wrongValue func(string) error
	namePattern           string
	secret                bool // no message quotes a value
}

func (m pairs) read(r *reader, path string, n *yaml.Node) {
	switch {
	case n.Kind != yaml.MappingNode:
		if m.secret && n.Kind == yaml.ScalarNode {
			r.refuse(n, path, "must be %s", m.takes())
			return
		}
		r.mistaken(path, n, m)
		return
	case len(n.Content) > 2*mostPairs:
		r.refuse(n, path, "has %d entries; the most is %d", len(n.Content)/2, mostPairs)
		return
	}
	*m.p = make(map[string]string, len(n.Content)/2)
	for i := 0; i+1 < len(n.Content); i += 2 {
		m.readPair(r, path, n.Content[i], n.Content[i+1])
	}
	if len(*m.p) == 0 {
		*m.p = nil
	}
}

func (m pairs) readPair(r *reader, path string, name, content *yaml.Node) {
	if name.Kind != yaml.ScalarNode || name.Tag == "!!null" || name.Tag == "!!merge" {
		r.refuse(name, path, "a key must be a plain word")
		return
	}
	if !r.plain(path, name) {
		return
	}
	if err := m.wrongName(name.Value); err != nil {
		r.refuse(name, path, "%v", err)
		return
	}
	at := joinKey(path, clip(name.Value))
	for known := range *m.p {
		if strings.EqualFold(known, name.Value) {
			r.refuse(name, at, "is given twice")
			return
		}
	}
	var value string
	v := text(&value, "text", longestPair, m.wrongValue).(parsed[string])
	v.secret = m.secret
	r.read(v, at, content)
	(*m.p)[name.Value] = value
}

func (m pairs) absent() { *m.p = nil }

func (m pairs) write() *yaml.Node {
	if len(*m.p) == 0 {
		return nil
	}
	out := &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"}
	for _, name := range slices.Sorted(maps.Keys(*m.p)) {
		out.Content = append(out.Content, scalar("!!str", name), scalar("!!str", (*m.p)[name]))
	}
	return out
}

func (m pairs) takes() string { return "a mapping of " + m.of }

func (m pairs) schema() *jsonschema.Schema {
	return &jsonschema.Schema{
		Type:                 "object",
		PropertyNames:        &jsonschema.Schema{Pattern: m.namePattern},
		AdditionalProperties: &jsonschema.Schema{Type: "string"},
		MaxProperties:        new(mostPairs),
	}
}
