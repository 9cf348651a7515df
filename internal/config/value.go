package config

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/google/jsonschema-go/jsonschema"
	"go.yaml.in/yaml/v4"
)

const (
	day   = 24 * time.Hour
	month = 30 * day
)

const (
	optional = false
	required = true
)

// A key is one line of a mapping's table, and the only place where its name, default, bounds and description stand.
type key struct {
	name     string
	required bool
	value    value
	doc      string
}

// keyed is a struct that can list its keys. The values in the list point at the struct's own fields.
type keyed interface{ keys() []key }

// A value is one kind of thing that a key takes, bound to the Go variable behind it.
type value interface {
	read(r *reader, path string, n *yaml.Node) // sets the variable, or says to r what is wrong
	absent()                                   // sets the variable to what leaving out the key means
	write() *yaml.Node                         // the variable as YAML that read accepts; nil is to leave out the key
	schema() *jsonschema.Schema
	takes() string // completes the sentences "must be …" and "it takes …"
}

// object is a mapping with the keys of a struct.
type object struct {
	of     keyed
	pos    *Position // set to where the mapping starts
	unset  func()    // what leaving it out means, where that is not every key at its default
	filled bool      // an empty mapping is an error
}

func (o object) read(r *reader, path string, n *yaml.Node) {
	if n.Kind != yaml.MappingNode {
		r.mistaken(path, n, o)
		return
	}
	if o.pos != nil {
		*o.pos = r.at(n)
	}
	if o.filled && len(n.Content) == 0 {
		r.refuse(n, path, "is empty; remove it, or give it %s", keyNames(o.of.keys()))
	}
	m := mapping{path: path, keys: o.of.keys(), line: make(map[string]int), meant: make(map[string]bool)}
	for i := 0; i+1 < len(n.Content); i += 2 {
		m.readPair(r, n.Content[i], n.Content[i+1])
	}
	for _, k := range m.keys {
		switch {
		case m.line[k.name] != 0 || m.meant[k.name]:
		case k.required:
			r.refuse(n, joinKey(path, k.name), "is missing; it takes %s", k.value.takes())
		default:
			k.value.absent()
		}
	}
}

// mapping is a mapping while it is read.
type mapping struct {
	path  string
	keys  []key
	line  map[string]int  // where a key was given
	meant map[string]bool // the keys that were given misspelt, so that they are not also said to be missing
}

func (m *mapping) readPair(r *reader, name, content *yaml.Node) {
	switch {
	case name.Tag == "!!merge":
		r.refuse(name, m.path, "merge keys (<<) are not supported; write the keys out")
		return
	case name.Kind != yaml.ScalarNode || name.Tag == "!!null":
		r.refuse(name, m.path, "a key must be a plain word")
		return
	case !r.plain(m.path, name):
		return
	}
	i := slices.IndexFunc(m.keys, func(k key) bool { return k.name == name.Value })
	if i < 0 {
		m.unknown(r, name)
		return
	}
	k := m.keys[i]
	path := joinKey(m.path, k.name)
	if first := m.line[k.name]; first != 0 {
		r.refuse(name, path, "is given twice; the first is on line %d", first)
		return
	}
	m.line[k.name] = name.Line
	r.read(k.value, path, content)
}

func (m *mapping) unknown(r *reader, name *yaml.Node) {
	near := nearest(name.Value, keyList(m.keys))
	if near == "" {
		r.refuse(name, m.path, "unknown key %s; the keys here are %s", quote(name.Value), keyNames(m.keys))
		return
	}
	r.refuse(name, m.path, "unknown key %s; did you mean %q?", quote(name.Value), near)
	m.meant[near] = true
}

func (o object) absent() {
	if o.unset != nil {
		o.unset()
		return
	}
	for _, k := range o.of.keys() {
		k.value.absent()
	}
}

func (o object) write() *yaml.Node {
	out := &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"}
	for _, k := range o.of.keys() {
		if n := k.value.write(); n != nil {
			out.Content = append(out.Content, scalar("!!str", k.name), n)
		}
	}
	if len(out.Content) == 0 {
		return nil
	}
	return out
}

// whole is an object that is there as a whole or not at all.
type whole struct {
	object
	given func() bool
}

func (w whole) write() *yaml.Node {
	if !w.given() {
		return nil
	}
	return w.object.write()
}

func (o object) takes() string { return "a mapping with " + keyNames(o.of.keys()) }

func keyList(keys []key) []string {
	names := make([]string, len(keys))
	for i, k := range keys {
		names[i] = k.name
	}
	return names
}

func keyNames(keys []key) string { return enumerate(keyList(keys), "and") }

// list is a sequence of at least one entry.
type list[T any] struct {
	p    *[]T
	of   string // what the entries are, in the plural
	item func(*T) value
}

func (l list[T]) read(r *reader, path string, n *yaml.Node) {
	switch {
	case n.Kind == yaml.ScalarNode && n.Tag == "!!str":
		r.refuse(n, path, "must be a list; write [%s]", quote(n.Value))
		return
	case n.Kind != yaml.SequenceNode:
		r.mistaken(path, n, l)
		return
	case len(n.Content) == 0:
		r.refuse(n, path, "is empty; it takes %s", l.takes())
		return
	}
	*l.p = make([]T, len(n.Content)) // broken entries stay in it as zeros, so that the others keep their index
	for i := range n.Content {
		r.read(l.item(&(*l.p)[i]), fmt.Sprintf("%s[%d]", path, i), n.Content[i])
	}
}

func (l list[T]) absent() { *l.p = nil }

func (l list[T]) write() *yaml.Node {
	if len(*l.p) == 0 {
		return nil
	}
	out := &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq"}
	for i := range *l.p {
		out.Content = append(out.Content, l.item(&(*l.p)[i]).write())
	}
	return out
}

func (l list[T]) takes() string { return "a list of " + l.of }

// some is a list that may also be written as its only entry.
type some[T any] struct{ list[T] }

func (s some[T]) read(r *reader, path string, n *yaml.Node) {
	switch n.Kind {
	case yaml.SequenceNode:
		s.list.read(r, path, n)
	case yaml.ScalarNode:
		*s.p = make([]T, 1)
		s.item(&(*s.p)[0]).read(r, path, n)
	default:
		r.mistaken(path, n, s)
	}
}

func (s some[T]) takes() string { return s.list.takes() + ", or a single one" }

// A Word is text with its place in the file.
type Word struct {
	Pos  Position
	Text string
}

// wordsOf is one or several words. The function says what is wrong with one.
func wordsOf(p *[]Word, of, wants string, wrong func(string) error) value {
	return some[Word]{list[Word]{p: p, of: of, item: func(w *Word) value {
		return parsed[Word]{
			p: w, pos: &w.Pos, wants: wants, pattern: ".",
			parse: func(text string) (Word, error) {
				if text == "" {
					return Word{}, fmt.Errorf("is empty; it takes %s", wants)
				}
				return Word{Text: text}, wrong(text)
			},
			format: func(w Word) string { return w.Text },
		}
	}}}
}

// parsed is text with a grammar of its own.
type parsed[T any] struct {
	p       *T
	pos     *Position // set to where the text starts
	def     string    // empty is none
	parse   func(string) (T, error)
	format  func(T) string
	wants   string
	pattern string // for the schema; may accept more than parse
	secret  bool   // no message quotes it
}

func (t parsed[T]) read(r *reader, path string, n *yaml.Node) {
	if n.Kind != yaml.ScalarNode {
		r.mistaken(path, n, t)
		return
	}
	v, err := t.parse(n.Value)
	switch {
	case n.Tag != "!!str" && t.secret:
		r.refuse(n, path, "must be text; put it in quotes")
		return
	case n.Tag != "!!str" && err == nil:
		r.refuse(n, path, "must be text; put it in quotes: %s", quote(n.Value))
		return
	case n.Tag != "!!str":
		r.mistaken(path, n, t)
		return
	case err != nil:
		r.refuse(n, path, "%v", err)
		return
	}
	*t.p = v
	if t.pos != nil { // after the value, which may contain it
		*t.pos = r.at(n)
	}
}

func (t parsed[T]) absent() {
	var v T
	if t.def != "" {
		v, _ = t.parse(t.def) // the defaults are known to be good: a test reads them all
	}
	*t.p = v
}

func (t parsed[T]) write() *yaml.Node {
	written := t.format(*t.p)
	if written == "" {
		return nil
	}
	n := scalar("!!str", written)
	if t.secret {
		n.Tag = secretTag
	}
	if strings.ContainsFunc(written, func(c rune) bool { return !unicode.IsPrint(c) }) {
		n.Style = yaml.DoubleQuotedStyle // the only one with escapes: what is read may not have control characters in it
	}
	return n
}

func (t parsed[T]) takes() string { return t.wants }

// secretTag marks secrets in what write returns, until it is text.
const secretTag = "!secret"

func verbatim(s string) string { return s }

const namePattern = `^[a-z0-9][a-z0-9_-]{0,62}$`

var nameRegexp = regexp.MustCompile(namePattern)

func parseName(s string) (string, error) {
	if !nameRegexp.MatchString(s) {
		return "", fmt.Errorf("%s is not a name; use up to 63 of a-z, 0-9, _ and -, and begin with a letter or digit", quote(s))
	}
	return s, nil
}

// text is a string that may be empty, which is what leaving it out means. The function says what is wrong with it.
func text(p *string, wants string, most int, wrong func(string) error) value {
	return parsed[string]{p: p, format: verbatim, wants: wants, parse: func(s string) (string, error) {
		switch {
		case len(s) > most:
			return "", fmt.Errorf("has %d bytes; the most is %d", len(s), most)
		case s == "" || wrong == nil:
			return s, nil
		}
		return s, wrong(s)
	}}
}

func secret(p *string, wants string, most int, wrong func(string) error) value {
	v := text(p, wants, most, wrong).(parsed[string])
	v.secret = true
	return v
}

func filePath(p *string) value { return pathOf("a PEM file", p, nil) }

// logFile is the path of a file that need not be there.
func logFile(p *string) value { return pathOf("a file", p, nil) }

func pathOf(what string, p *string, pos *Position) value {
	parse := func(s string) (string, error) {
		if s == "" {
			return "", fmt.Errorf("is empty; it takes the path of %s", what)
		}
		return s, hasControl(s)
	}
	return parsed[string]{p: p, pos: pos, parse: parse, format: verbatim, wants: "the path of " + what, pattern: `^[^\x00-\x1f\x7f]+$`}
}

// hasControl says of s that it has a control character, if it has.
func hasControl(s string) error {
	if strings.ContainsFunc(s, func(c rune) bool { return c < ' ' || c == 0x7f }) {
		return fmt.Errorf("%s has a control character in it", quote(s))
	}
	return nil
}

// choice is one of a few words, each of which stands for a Go value.
type choice[T comparable] struct {
	p       *T
	def     T
	options []option[T]
}

type option[T comparable] struct {
	word string
	is   T
}

// words makes options of values that are their own word.
func words[T ~string](all ...T) []option[T] {
	options := make([]option[T], len(all))
	for i, w := range all {
		options[i] = option[T]{string(w), w}
	}
	return options
}

func (c choice[T]) read(r *reader, path string, n *yaml.Node) {
	// A bare "off" is text to YAML 1.2 and a boolean to YAML 1.1: what counts is how it is written.
	if n.Kind != yaml.ScalarNode {
		r.mistaken(path, n, c)
		return
	}
	for _, o := range c.options {
		if o.word == n.Value {
			*c.p = o.is
			return
		}
	}
	if n.Tag != "!!str" {
		r.mistaken(path, n, c)
		return
	}
	if near := nearest(n.Value, c.wordList()); near != "" {
		r.refuse(n, path, "unknown %s %s; did you mean %q?", lastKey(path), quote(n.Value), near)
		return
	}
	r.refuse(n, path, "unknown %s %s; it takes %s", lastKey(path), quote(n.Value), c.takes())
}

func (c choice[T]) absent() { *c.p = c.def }

func (c choice[T]) write() *yaml.Node {
	for _, o := range c.options {
		if o.is == *c.p {
			return scalar("!!str", o.word)
		}
	}
	return nil
}

// wordList returns the words to tell people; the empty one is only understood.
func (c choice[T]) wordList() []string {
	var list []string
	for _, o := range c.options {
		if o.word != "" {
			list = append(list, o.word)
		}
	}
	return list
}

func (c choice[T]) takes() string { return enumerate(c.wordList(), "or") }

// boolean is true or false; false when left out.
type boolean struct{ p *bool }

func (b boolean) read(r *reader, path string, n *yaml.Node) {
	// YAML 1.1's yes, no, on and off are refused with the rest: they mean something else in other readers.
	if n.Kind != yaml.ScalarNode || n.Tag != "!!bool" {
		r.mistaken(path, n, b)
		return
	}
	*b.p = strings.EqualFold(n.Value, "true")
}

func (b boolean) absent()           { *b.p = false }
func (b boolean) write() *yaml.Node { return scalar("!!bool", strconv.FormatBool(*b.p)) }
func (b boolean) takes() string     { return "true or false" }

// maybe is true or false; nil when left out, which is settled later.
type maybe struct{ p **bool }

func (m maybe) read(r *reader, path string, n *yaml.Node) {
	var b bool
	boolean{&b}.read(r, path, n)
	*m.p = &b
}

func (m maybe) absent() { *m.p = nil }

func (m maybe) write() *yaml.Node {
	if *m.p == nil {
		return nil
	}
	return boolean{*m.p}.write()
}

func (m maybe) takes() string { return boolean{}.takes() }

// integer is a whole number within bounds.
type integer struct {
	p        *int
	def      int
	min, max int
	off      bool // it may be off, which is negative
}

// decimal leaves out what YAML's versions disagree about: 010, 0x10, 1_000.
var decimal = regexp.MustCompile(`^(0|-?[1-9][0-9]*)$`)

func (i integer) read(r *reader, path string, n *yaml.Node) {
	if i.off && n.Kind == yaml.ScalarNode && n.Value == "off" {
		*i.p = int(Off)
		return
	}
	v, err := strconv.Atoi(n.Value)
	if n.Kind != yaml.ScalarNode || n.Tag != "!!int" || !decimal.MatchString(n.Value) || err != nil || v < i.min || v > i.max {
		r.mistaken(path, n, i)
		return
	}
	*i.p = v
}

func (i integer) absent() { *i.p = i.def }

func (i integer) write() *yaml.Node {
	if *i.p == 0 && i.min > 0 { // left out, and no number is its default
		return nil
	}
	if *i.p < 0 {
		return scalar("!!str", "off")
	}
	return scalar("!!int", strconv.Itoa(*i.p))
}

func (i integer) takes() string {
	if i.min == i.max {
		return "the number " + strconv.Itoa(i.min)
	}
	return fmt.Sprintf("a whole number from %d to %d", i.min, i.max) + orOff(i.off)
}

// number is a share or a rate: above zero, and at most max.
type number struct {
	p    *float64
	def  float64
	max  float64
	zero bool // it may be 0
	off  bool // it may be off, which is negative
}

// fraction leaves out 1e3, .5 and infinity: a share or a rate needs none of them.
var fraction = regexp.MustCompile(`^(0|[1-9][0-9]*)(\.[0-9]+)?$`)

func (f number) read(r *reader, path string, n *yaml.Node) {
	if f.off && n.Kind == yaml.ScalarNode && n.Value == "off" {
		*f.p = float64(Off)
		return
	}
	v, err := strconv.ParseFloat(n.Value, 64)
	numeric := n.Kind == yaml.ScalarNode && (n.Tag == "!!int" || n.Tag == "!!float") && fraction.MatchString(n.Value)
	if !numeric || err != nil || v == 0 && !f.zero || v > f.max {
		r.mistaken(path, n, f)
		return
	}
	*f.p = v
}

func (f number) absent() { *f.p = f.def }

func (f number) write() *yaml.Node {
	if *f.p < 0 {
		return scalar("!!str", "off")
	}
	written := strconv.FormatFloat(*f.p, 'f', -1, 64)
	if strings.Contains(written, ".") {
		return scalar("!!float", written)
	}
	return scalar("!!int", written)
}

func (f number) takes() string {
	most := strconv.FormatFloat(f.max, 'f', -1, 64)
	if f.zero {
		return "a number from 0 to " + most + orOff(f.off)
	}
	return "a number above 0, up to " + most + orOff(f.off)
}

func orOff(off bool) string {
	if off {
		return ", or off"
	}
	return ""
}

// duration is a time span in Go's notation.
type duration struct {
	p        *time.Duration
	def      time.Duration
	min, max time.Duration
	off      bool // it may be off
}

// timeout is a duration that may be off. A millisecond is its least: under that, a unit was mistaken.
func timeout(p *time.Duration, def, most time.Duration) value {
	return duration{p: p, def: def, min: time.Millisecond, max: most, off: true}
}

const durationPattern = `([0-9]+(\.[0-9]+)?(ns|us|µs|ms|s|m|h))+`

var durationRegexp = regexp.MustCompile(`^` + durationPattern + `$`)

func (d duration) read(r *reader, path string, n *yaml.Node) {
	if n.Kind != yaml.ScalarNode {
		r.mistaken(path, n, d)
		return
	}
	if d.off && n.Value == "off" {
		*d.p = Off
		return
	}
	v, problem := d.parse(n)
	if problem != "" {
		r.refuse(n, path, "%s", problem)
		return
	}
	*d.p = v
}

// parse returns the duration that n writes, or what is wrong with it.
func (d duration) parse(n *yaml.Node) (time.Duration, string) {
	number, err := strconv.ParseFloat(n.Value, 64)
	switch {
	case err == nil && number == 0 && d.min > 0:
		return 0, d.zero()
	case strings.HasPrefix(n.Value, "-"):
		return 0, "must not be negative" + d.offer()
	case err == nil && decimalStart(n.Value):
		return 0, fmt.Sprintf("%s has no unit; write %ss if you mean seconds", clip(n.Value), clip(n.Value))
	case n.Tag != "!!str":
		return 0, fmt.Sprintf("must be %s, not %s", d.takes(), describe(n))
	case !durationRegexp.MatchString(n.Value):
		return 0, fmt.Sprintf("%s is not a duration; write one such as 250ms, 10s, 1m30s or 24h", quote(n.Value))
	}
	v, err := time.ParseDuration(n.Value)
	switch {
	case err != nil || v > d.max: // the only error that the pattern leaves is overflow
		return 0, fmt.Sprintf("%s is too long; the most is %s%s", quote(n.Value), formatDuration(d.max), d.offer())
	case v == 0 && d.min > 0:
		return 0, d.zero()
	case v < d.min:
		return 0, fmt.Sprintf("%s is too short; the least is %s", quote(n.Value), formatDuration(d.min))
	}
	return v, ""
}

// decimalStart keeps ParseFloat's Inf, NaN and hexadecimals from being taken for a number that lacks a unit.
func decimalStart(s string) bool {
	return strings.Trim(s, "0123456789.") == ""
}

func (d duration) zero() string {
	if d.off {
		return "must not be 0; say off to disable it"
	}
	return "must be more than 0"
}

func (d duration) offer() string {
	if d.off {
		return "; say off to disable it"
	}
	return ""
}

func (d duration) absent() { *d.p = d.def }

func (d duration) write() *yaml.Node {
	if *d.p == 0 && d.min > 0 { // left out, and no duration is its default
		return nil
	}
	return scalar("!!str", formatDuration(*d.p))
}

func (d duration) takes() string { return "a duration such as 10s" + orOff(d.off) }

// formatDuration is Duration.String without the zeros at its end: 5m, not 5m0s.
func formatDuration(d time.Duration) string {
	if d < 0 {
		return "off"
	}
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

func scalar(tag, text string) *yaml.Node {
	return &yaml.Node{Kind: yaml.ScalarNode, Tag: tag, Value: text}
}
