package config

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

// FuzzParse holds Parse to its promises: what it accepts, the schema accepts too, and its normal form means the same;
// what it rejects, it rejects in a bounded number of printable lines that point into the document.
func FuzzParse(f *testing.F) {
	f.Add(DefaultYAML())
	for _, c := range accepted {
		f.Add([]byte(c.doc))
		f.Add(c.want.YAML())
	}
	for _, c := range acceptedTLS {
		f.Add([]byte(listenerWith(c.keys, c.routes)))
	}
	for _, c := range acceptedLimits {
		f.Add([]byte(limitedRoute(c.listener, c.route)))
	}
	for _, c := range rejected {
		f.Add([]byte(c.doc))
	}
	schema := schemaValidator(f)
	f.Fuzz(func(t *testing.T, doc []byte) {
		cfg, err := Parse("levee.yaml", doc)
		if err != nil {
			checkProblems(t, doc, err)
			return
		}
		if err := validate(t, schema, string(doc)); err != nil {
			t.Errorf("the schema rejects what Parse accepts: %v", err)
		}
		normal := cfg.YAML()
		again, err := Parse("levee.yaml", normal)
		if err != nil {
			t.Fatalf("the normal form is rejected: %v in:\n%s", err, normal)
		}
		if diff := cmp.Diff(cfg, again, sameConfig); diff != "" {
			t.Errorf("the normal form means something else:\n%s", diff)
		}
	})
}

func checkProblems(t *testing.T, doc []byte, err error) {
	t.Helper()
	var problems *Problems
	if !errors.As(err, &problems) {
		t.Fatalf("the error is a %T", err)
	}
	if n := len(problems.List); n == 0 || n > 20 || n < 20 && problems.More > 0 {
		t.Errorf("%d problems and %d more", n, problems.More)
	}
	lines := bytes.Split(doc, []byte("\n"))
	for _, p := range problems.List {
		if p.Pos.Line < 1 || p.Pos.Line > len(lines) {
			t.Errorf("%s: the document has %d lines", p, len(lines))
		} else if width := utf8.RuneCount(lines[p.Pos.Line-1]); p.Pos.Column < 1 || p.Pos.Column > width+1 {
			t.Errorf("%s: that line has %d columns", p, width)
		}
		if strings.ContainsFunc(p.String(), func(c rune) bool { return !unicode.IsPrint(c) }) || len(p.String()) > 700 {
			t.Errorf("not a printable line: %q", p)
		}
	}
}

// FuzzParseServer holds an entry of servers to its promises: what is accepted reads back to the same from its normal
// form, the schema accepts it too, and what it names is a socket that can be connected to, or a name to look up.
func FuzzParseServer(f *testing.F) {
	for _, text := range []string{
		"10.0.0.7:5432", "[::ffff:10.0.0.7]:80", "[fe80::1%eth0]:080", "DB.example.com.:1", "unix:/run/a.sock", "unix:///a",
		"dns://db:5432", "dns+srv://_postgresql._tcp.example.com", "file:///etc/servers", "kubernetes://a/b", "://", ":1", "0.0.0.0:1",
	} {
		f.Add(text)
	}
	pattern := regexp.MustCompile(serverPattern)
	f.Fuzz(func(t *testing.T, text string) {
		got, err := parseServer(text)
		if err != nil {
			if strings.ContainsFunc(err.Error(), func(c rune) bool { return !unicode.IsPrint(c) }) || len(err.Error()) > 600 {
				t.Errorf("not a printable line: %q", err)
			}
			return
		}
		if again, err := parseServer(got.String()); err != nil || again != got || again.identity() != got.identity() {
			t.Errorf("%q is %+v, which is written %q and read as %+v: %v", text, got, got, again, err)
		}
		if !pattern.MatchString(text) || !pattern.MatchString(got.String()) {
			t.Errorf("the schema rejects %q or %q", text, got)
		}
		if strings.HasPrefix(got.Address, "unix:/") || got.Kind == KindSRV || got.Kind == KindFile && got.Address[0] == '/' {
			return
		}
		host, port, err := net.SplitHostPort(got.Address)
		n, _ := strconv.Atoi(port)
		if _, notIP := netip.ParseAddr(host); err != nil || host == "" || n < 1 || n > 65535 || (notIP == nil) != (got.Kind == KindAddress) {
			t.Errorf("%q is %+v, which cannot be dialled", text, got)
		}
	})
}
