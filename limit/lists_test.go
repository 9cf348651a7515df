package limit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/levee-net/levee"
)

func write(t testing.TB, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	rewrite(t, path, content)
	return path
}

func rewrite(t testing.TB, path, content string) {
	t.Helper()
	if err := os.WriteFile(path+"~", []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+"~", path); err != nil {
		t.Fatal(err)
	}
}

func TestListsSayWhoMayComeIn(t *testing.T) {
	file := write(t, "deny.txt", "# bad company\n\n198.51.100.0/24\r\n  2001:db8:bad::/48 # since May\n203.0.113.9\n::ffff:192.0.2.0/120")
	deny := []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}
	allow := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("198.51.100.7/32")}
	for _, c := range []struct {
		lists *Lists
		addr  string
		want  error
	}{
		{&Lists{}, "10.0.0.1", nil},
		{&Lists{DenyFiles: []string{file}}, "10.0.0.1", nil},
		{&Lists{DenyFiles: []string{file}}, "198.51.100.7", ErrDenied},
		{&Lists{DenyFiles: []string{file}}, "::ffff:198.51.100.7", ErrDenied},
		{&Lists{DenyFiles: []string{file}}, "203.0.113.9", ErrDenied},
		{&Lists{DenyFiles: []string{file}}, "203.0.113.10", nil},
		{&Lists{DenyFiles: []string{file}}, "192.0.2.77", ErrDenied},
		{&Lists{DenyFiles: []string{file}}, "2001:db8:bad:1::1", ErrDenied},
		{&Lists{DenyFiles: []string{file}}, "2001:db8:bad:1::1%eth0", ErrDenied},
		{&Lists{DenyFiles: []string{file}}, "2001:db8:bae::1", nil},
		{&Lists{Allow: allow}, "10.0.0.1", nil},
		{&Lists{Allow: allow}, "11.0.0.1", ErrNotAllowed},
		{&Lists{Allow: allow}, "2001:db8::1", ErrNotAllowed},
		{&Lists{Allow: allow, Deny: deny}, "10.1.2.3", ErrDenied},
		{&Lists{Allow: allow, DenyFiles: []string{file}}, "198.51.100.7", ErrDenied},
		{&Lists{AllowFiles: []string{write(t, "allow.txt", "# nobody\n")}}, "10.0.0.1", ErrNotAllowed},
	} {
		if err := c.lists.Denies(netip.MustParseAddr(c.addr)); !errors.Is(err, ErrNotLoaded) {
			t.Errorf("before Load: %v", err)
		}
		if err := c.lists.Load(); err != nil {
			t.Fatal(err)
		}
		if err := c.lists.Denies(netip.MustParseAddr(c.addr)); err != c.want {
			t.Errorf("%s: %v; want %v", c.addr, err, c.want)
		}
	}
}

func TestAMistakeInAListIsNamedByItsLine(t *testing.T) {
	for line, want := range map[string]string{
		"10.0.0.0/33":             `"10.0.0.0/33": prefix length out of range`,
		"10.0.0.1/8":              `"10.0.0.1/8": the address has bits beyond the prefix; is it 10.0.0.0/8, or 10.0.0.1?`,
		"10.0.0":                  `"10.0.0": not an address or a prefix`,
		"10.0.0.0/":               `"10.0.0.0/": not an address or a prefix`,
		"10.0.0.0/08":             `"10.0.0.0/08": not an address or a prefix`,
		"10.0.0.0/-1":             `"10.0.0.0/-1": not an address or a prefix`,
		"fe80::1%eth0":            `"fe80::1%eth0": a zone is of no address elsewhere`,
		"::ffff:10.0.0.0/64":      `"::ffff:10.0.0.0/64": a prefix of IPv4 in IPv6 has at least 96 bits`,
		"10.0.0.0/8 11.0.0.0":     `"10.0.0.0/8 11.0.0.0": not an address or a prefix`,
		"\x1b[2J":                 `"\x1b[2J": not an address or a prefix`,
		strings.Repeat("x", 9999): `"` + strings.Repeat("x", 80) + `": not an address or a prefix`,
	} {
		path := write(t, "deny.txt", "10.0.0.0/8\n\n# a comment\n"+line+"\n10.0.0.0/99\n")
		err := (&Lists{DenyFiles: []string{path}}).Load()
		if want := path + ":4: " + want; err == nil || err.Error() != want {
			t.Errorf("%v\nwant %s", err, want)
		}
	}
	err := (&Lists{Allow: []netip.Prefix{netip.MustParsePrefix("10.0.0.1/8")}}).Load()
	if want := `allow list: "10.0.0.1/8": the address has bits beyond the prefix; is it 10.0.0.0/8, or 10.0.0.1?`; err == nil || err.Error() != want {
		t.Errorf("%v\nwant %s", err, want)
	}
	if err := (&Lists{DenyFiles: []string{filepath.Join(t.TempDir(), "none")}}).Load(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
}

func TestAListWithAMistakeLeavesTheOldOneInForce(t *testing.T) {
	path := write(t, "deny.txt", "10.0.0.0/8\n")
	problems, changed := make(chan error, 10), make(chan struct{}, 10)
	l := &Lists{
		DenyFiles: []string{path}, Interval: 20 * time.Millisecond,
		Problem: func(err error) { problems <- err },
		Changed: func() { changed <- struct{}{} },
	}
	g := &Gate{Lists: l}
	watched := make(chan error)
	ctx := t.Context()
	go func() { watched <- l.Watch(ctx) }() // ends with ctx
	t.Cleanup(func() {
		if err := <-watched; !errors.Is(err, context.Canceled) {
			t.Errorf("Watch: %v", err)
		}
	})
	<-changed
	denies := func(addr string, want error) {
		t.Helper()
		if err := g.Denies(netip.MustParseAddr(addr)); err != want {
			t.Errorf("%s: %v; want %v", addr, err, want)
		}
	}
	denies("10.0.0.1", ErrDenied)
	rewrite(t, path, "11.0.0.0/8\n12.0.0.0/33\n")
	if err := <-problems; err.Error() != path+`:2: "12.0.0.0/33": prefix length out of range` {
		t.Errorf("problem: %v", err)
	}
	denies("10.0.0.1", ErrDenied)
	denies("11.0.0.1", nil)
	if err := l.Stats().Err; err == nil {
		t.Error("Stats tell of no error")
	}
	rewrite(t, path, "11.0.0.0/8\n12.0.0.0/8\n")
	<-changed
	denies("10.0.0.1", nil)
	denies("11.0.0.1", ErrDenied)
	if stats := l.Stats(); stats.Err != nil || stats.Deny != 2 {
		t.Errorf("%+v", stats)
	}
	if len(problems) > 0 {
		t.Errorf("told again: %v", <-problems)
	}
}

func TestListsRefuseAtTheGate(t *testing.T) {
	deny := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	g := &Gate{Lists: &Lists{Deny: deny}, Manner: levee.Politely}
	isRefused(t, g, "11.0.0.1", "the lists are not loaded yet")
	if err := g.Lists.Load(); err != nil {
		t.Fatal(err)
	}
	comes(t, g, "11.0.0.1")
	isRefused(t, g, "10.0.0.1", "on the deny list")
	if _, refusal := come(g, netip.MustParseAddr("10.0.0.1")); refusal.Reason != levee.Denied || refusal.Manner != levee.Politely {
		t.Errorf("%+v", refusal)
	}
	if got, want := g.Lists.Stats().Decisions, (Decisions{Limit: "lists", Allowed: 1, Refused: 3}); got != want {
		t.Errorf("%+v; want %+v", got, want)
	}
	shadow := &Gate{Lists: &Lists{Deny: deny, Mode: Shadow}}
	_ = shadow.Lists.Load()
	comes(t, shadow, "10.0.0.1")
	if got, want := shadow.Lists.Stats().Decisions, (Decisions{Limit: "lists", WouldRefuse: 1}); got != want {
		t.Errorf("%+v; want %+v", got, want)
	}
	if err := shadow.Denies(netip.MustParseAddr("10.0.0.1")); err != nil {
		t.Errorf("in shadow a connection that is there would be ended: %v", err)
	}
}

// million returns as many prefixes as a list is made for, of both families.
func million() string {
	var b bytes.Buffer
	for i := range 700_000 {
		fmt.Fprintf(&b, "%d.%d.%d.0/24\n", 1+i>>16, i>>8&255, i&255)
	}
	for i := range 300_000 {
		fmt.Fprintf(&b, "2a00:%x:%x::/48\n", i>>16, i&0xffff)
	}
	return b.String()
}

func TestAMillionPrefixesLoad(t *testing.T) {
	notUnderRace(t)
	l := &Lists{DenyFiles: []string{write(t, "deny.txt", million())}}
	begin := time.Now()
	if err := l.Load(); err != nil {
		t.Fatal(err)
	}
	t.Logf("loaded in %s", time.Since(begin).Round(time.Millisecond))
	if n := l.Stats().Deny; n != 1_000_000 {
		t.Errorf("%d prefixes", n)
	}
	for addr, want := range map[string]error{"1.2.3.4": ErrDenied, "99.2.3.4": nil, "2a00:1:2::1": ErrDenied, "2a01:1:2::1": nil} {
		if err := l.Denies(netip.MustParseAddr(addr)); err != want {
			t.Errorf("%s: %v; want %v", addr, err, want)
		}
	}
}

// What is read is what net/netip reads, less what would mean something else than it says.
func FuzzPrefix(f *testing.F) {
	for _, s := range []string{"10.0.0.0/8", "10.0.0.1", "2001:db8::/32", "::ffff:10.0.0.0/104", "::/0", "fe80::1%eth0", "10.0.0.0/33", "1.2.3.4/08", "/8", "::1/128"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got, err := parsePrefix(text)
		want, wantErr := netip.ParsePrefix(text)
		if addr, err := netip.ParseAddr(text); err == nil {
			want, wantErr = netip.PrefixFrom(addr, addr.BitLen()), nil
			if addr.Zone() != "" {
				wantErr = errors.New("zone")
			}
		}
		if wantErr != nil {
			if err == nil {
				t.Fatalf("%q is read as %s; net/netip: %v", text, got, wantErr)
			}
			return
		}
		mapped := want.Addr().Is4In6()
		if err != nil {
			if want == want.Masked() && (!mapped || want.Bits() >= 96) {
				t.Fatalf("%q: %v; net/netip reads %s", text, err, want)
			}
			return
		}
		if got != got.Masked() || got.Addr().Is4In6() {
			t.Fatalf("%q is read as %s, by which nothing is found", text, got)
		}
		if mapped {
			want = netip.PrefixFrom(want.Addr().Unmap(), want.Bits()-96)
		}
		if got != want {
			t.Fatalf("%q is read as %s; want %s", text, got, want)
		}
	})
}
