package servername_test

import (
	"strings"
	"testing"

	"github.com/levee-net/levee/internal/servername"
)

func TestNamesThatMeanTheSameAreTheSame(t *testing.T) {
	for sent, want := range map[string]string{
		"":                      "",
		"db.example.com":        "db.example.com",
		"DB.Example.COM":        "db.example.com",
		"db.example.com.":       "db.example.com",
		"_sip.example":          "_sip.example",
		"localhost":             "localhost",
		"xn--bcher-kva.test":    "xn--bcher-kva.test",
		"XN--Bcher-KVA.test":    "xn--bcher-kva.test",
		"1.2.3.example":         "1.2.3.example",
		strings.Repeat("a", 63): strings.Repeat("a", 63),
	} {
		if got, err := servername.Normalize(sent); got != want || err != nil {
			t.Errorf("%q: %q, %v; want %q", sent, got, err, want)
		}
	}
}

func TestWhatIsNoNameIsRefused(t *testing.T) {
	for _, sent := range []string{
		".", "..", "a..b", ".a", "a.b..", "192.0.2.7", "192.0.2.7.", "::1", "fe80::1%eth0", "a b", "a\x00b", "a\n", "a/b", "bücher.test", "a\xff",
		"*.example.com", "-a.test", "a-.test", strings.Repeat("a", 64), strings.Repeat("a.", 127) + "a",
	} {
		if got, err := servername.Normalize(sent); err == nil {
			t.Errorf("%q is taken for %q", sent, got)
		}
	}
}

func TestAPatternMatchesItsNamesAndNoOther(t *testing.T) {
	for _, c := range []struct {
		pattern  string
		form     string
		yes, not []string
	}{
		{"DB.example.com.", "db.example.com", []string{"db.example.com"}, []string{"", "example.com", "a.db.example.com", "xdb.example.com"}},
		{"*.Example.com", "*.example.com", []string{"a.example.com", "xn--bcher-kva.example.com"}, []string{"", "example.com", ".example.com", "a.b.example.com", "aexample.com"}},
		{"bücher.test", "xn--bcher-kva.test", []string{"xn--bcher-kva.test"}, []string{"bcher.test"}},
		{"_x.test", "_x.test", []string{"_x.test"}, nil},
	} {
		p, err := servername.ParsePattern(c.pattern)
		if err != nil || p.String() != c.form {
			t.Errorf("%s: %v, %v", c.pattern, p, err)
		}
		for _, name := range c.yes {
			if !p.Matches(name) {
				t.Errorf("%s does not match %q", c.pattern, name)
			}
		}
		for _, name := range c.not {
			if p.Matches(name) {
				t.Errorf("%s matches %q", c.pattern, name)
			}
		}
	}
	for _, bad := range []string{"", "*", "*.", "*.*.test", "a.*.test", "*a.test", "10.0.0.1", "a b"} {
		if p, err := servername.ParsePattern(bad); err == nil {
			t.Errorf("%q is %v", bad, p)
		}
	}
}

func FuzzANormalNameIsNormal(f *testing.F) {
	for _, seed := range []string{"", "A.b.", "10.0.0.1", "xn--a", "a_b", "é"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, sent string) {
		name, err := servername.Normalize(sent)
		if err != nil {
			return
		}
		if again, err := servername.Normalize(name); again != name || err != nil {
			t.Fatalf("%q became %q, and that %q, %v", sent, name, again, err)
		}
		if upper, err := servername.Normalize(strings.ToUpper(sent)); upper != name || err != nil {
			t.Fatalf("%q became %q, in upper case %q, %v", sent, name, upper, err)
		}
	})
}
