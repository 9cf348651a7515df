package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"go.yaml.in/yaml/v4"
)

// maxSize of a file. The largest fleet needs a few hundred lines; a megabyte bounds what a wrong path can cost.
const maxSize = 1 << 20

// Load reads, parses and checks a file. If the file can be read but not used, the error is a *Problems; otherwise it
// says in one line why it cannot be read, and matches fs.ErrNotExist and the like.
func Load(path string) (*Config, error) {
	doc, err := readFile(path)
	if err != nil {
		return nil, err
	}
	return Parse(path, doc)
}

// readFile reads a regular file of bounded size, and opens nothing else: a pipe would block, a device never end.
func readFile(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, brief(path, err)
	}
	if err := readable(path, info); err != nil {
		return nil, err
	}
	// Another file may have taken the name since: do not block on a pipe, and look again.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, brief(path, err)
	}
	defer f.Close()
	if info, err = f.Stat(); err != nil {
		return nil, brief(path, err)
	}
	if err := readable(path, info); err != nil {
		return nil, err
	}
	doc, err := io.ReadAll(io.LimitReader(f, maxSize+1)) // it may grow, and files in /proc have no size
	if err != nil {
		return nil, brief(path, err)
	}
	return doc, nil
}

func readable(path string, info fs.FileInfo) error {
	switch {
	case info.IsDir():
		return fmt.Errorf("%s: is a folder; name the file in it, such as %s", path, filepath.Join(path, "levee.yaml"))
	case !info.Mode().IsRegular():
		return fmt.Errorf("%s: is not a regular file", path)
	case info.Size() > maxSize:
		return fmt.Errorf("%s: has %d bytes; a configuration has at most %d", path, info.Size(), maxSize)
	}
	return nil
}

// brief keeps the path in front, like in every other message, and drops the name of the system call.
func brief(path string, err error) error {
	if pathError, ok := errors.AsType[*fs.PathError](err); ok {
		err = pathError.Err
	}
	return fmt.Errorf("%s: %w", path, err)
}

// Parse parses and checks a document. The name stands in positions, and its folder is what the document's relative
// paths are relative to. The error is a *Problems.
func Parse(name string, doc []byte) (*Config, error) {
	r := reader{file: name}
	var cfg Config
	if root := r.compose(doc); root != nil {
		r.read(object{of: &cfg}, "", root)
		cfg.settle()
		cfg.check(&r.problems)
	}
	for i := range r.problems.List {
		clamp(&r.problems.List[i].Pos, doc)
	}
	if err := r.problems.err(); err != nil {
		return nil, err
	}
	cfg.resolvePaths(filepath.Dir(name))
	return &cfg, nil
}

// settle fills in the defaults that depend on another setting.
func (c *Config) settle() {
	c.settleLimits()
	for i := range c.Listeners {
		l := &c.Listeners[i]
		switch {
		case l.Timeouts.Idle != 0:
		case l.Proxies():
			l.Timeouts.Idle = time.Hour // who is behind has limits of its own, and pools of connections to it are idle for long
		default:
			l.Timeouts.Idle = 5 * time.Minute
		}
	}
	for i := range c.Upstreams {
		h := &c.Upstreams[i].Health
		switch {
		case h.Probe != "":
		case h.Send != "" || h.Expect != "":
			h.Probe = ProbeSendExpect
		default:
			h.Probe = ProbeConnect
		}
	}
}

// resolvePaths makes the paths of files independent of the folder that the process happens to be in.
func (c *Config) resolvePaths(folder string) {
	if absolute, err := filepath.Abs(folder); err == nil { // else the process has no folder, and relative is what is left
		folder = absolute
	}
	resolve := func(path *string) {
		if *path != "" && !filepath.IsAbs(*path) {
			*path = filepath.Join(folder, *path)
		}
	}
	lists := func(sources []Source) {
		for i := range sources {
			resolve(&sources[i].File)
		}
	}
	for _, path := range []*string{&c.Admin.TokenFile, &c.Admin.TLS.Cert, &c.Admin.TLS.Key, &c.Admin.TLS.ClientCA} {
		resolve(path)
	}
	lists(c.Limits.Allow)
	lists(c.Limits.Deny)
	for i := range c.Listeners {
		l := &c.Listeners[i]
		lists(l.Limits.Allow)
		lists(l.Limits.Deny)
		l.TLS.resolvePaths(resolve)
		for j := range l.Routes {
			l.Routes[j].TLS.resolvePaths(resolve)
		}
	}
	resolve(&c.Upgrade.PIDFile)
	resolve(&c.Telemetry.Logs.AccessFile)
	resolve(&c.Telemetry.Traces.CA)
	resolve(&c.Redis.CA)
	for i := range c.Upstreams {
		tls := &c.Upstreams[i].TLS
		resolve(&tls.CA)
		resolve(&tls.Certificate)
		resolve(&tls.Key)
	}
}

// YAML returns the normal form of the configuration: every default written out, no comments, and passwords as they are.
// Parse reads it back to the same Config, but for positions.
func (c *Config) YAML() []byte { return []byte(Said(c)) }

// Redacted is YAML without passwords: "redacted" stands in their place.
func (c *Config) Redacted() []byte {
	return said(c, func(string) string { return "redacted" })
}

// Said returns what a section of the configuration says, in its normal form: the same text for two that
// differ in their positions alone.
func Said(section keyed) string {
	return string(said(section, func(secret string) string { return secret }))
}

func said(section keyed, secret func(string) string) []byte {
	root := object{of: section}.write()
	if root != nil { // it says something
		tell(root, secret)
	}
	text, err := yaml.Dump(root)
	if err != nil {
		panic(fmt.Sprintf("config: the key table makes no YAML: %v", err)) // nodes that this package built itself
	}
	return text
}

// tell puts into the secrets' places what is to be told of them.
func tell(n *yaml.Node, secret func(string) string) {
	if n.Tag == secretTag {
		n.Tag, n.Value = "!!str", secret(n.Value)
	}
	for _, inner := range n.Content {
		tell(inner, secret)
	}
}

// reader collects the problems of one document.
type reader struct {
	file     string
	problems Problems
}

func (r *reader) at(n *yaml.Node) Position { return Position{r.file, n.Line, n.Column} }

func (r *reader) refuse(n *yaml.Node, path, format string, args ...any) {
	r.problems.add(r.at(n), path, format, args...)
}

// mistaken says that n is not what v takes.
func (r *reader) mistaken(path string, n *yaml.Node, v value) {
	r.refuse(n, path, "must be %s, not %s", v.takes(), describe(n))
}

// read lets v read n, after what no value may be.
func (r *reader) read(v value, path string, n *yaml.Node) {
	switch {
	case !r.plain(path, n):
	case n.Kind == yaml.ScalarNode && n.Tag == "!!null":
		r.refuse(n, path, "has no value; remove the key, or give it %s", v.takes())
	default:
		v.read(r, path, n)
	}
}

// plain refuses the parts of YAML that make one text mean another. They would save a few lines in a file that has few.
func (r *reader) plain(path string, n *yaml.Node) bool {
	switch {
	case n.Kind == yaml.AliasNode:
		r.refuse(n, path, "alias %s: aliases are not supported; write the value out", quote(n.Value))
	case n.Anchor != "":
		r.refuse(n, path, "anchor %s: anchors are not supported; remove it", quote(n.Anchor))
	case n.Style&yaml.TaggedStyle != 0:
		r.refuse(n, path, "tag %s: tags are not supported; remove it", quote(n.Tag))
	default:
		return true
	}
	return false
}

// describe says what n is, to complete "must be …, not …".
func describe(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	}
	if n.Tag == "!!str" {
		return quote(n.Value)
	}
	return clip(n.Value) // YAML reads only short printable words as anything but text
}

// clamp moves a position that lies beyond the end of a line or of the document, as YAML's are when something is
// missing there, onto the end.
func clamp(p *Position, doc []byte) {
	lines := bytes.Split(bytes.TrimSuffix(doc, []byte("\n")), []byte("\n"))
	if p.Line > len(lines) {
		p.Line, p.Column = len(lines), maxSize+1
	}
	p.Line = max(p.Line, 1)
	p.Column = min(max(p.Column, 1), len(bytes.Runes(lines[p.Line-1]))+1)
}
