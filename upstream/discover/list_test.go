package discover

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"github.com/levee-net/levee/upstream"
)

func TestListOfServersIsRead(t *testing.T) {
	two := []upstream.Server{{Addresses: []string{"10.0.0.7:5432"}}, {Name: "db2", Addresses: []string{"[2001:db8::8]:5432"}, Weight: 3, Tier: 1}}
	for text, want := range map[string][]upstream.Server{
		"10.0.0.7:5432\n[2001:db8::8]:5432 tier=1 name=db2 weight=3":                                              two,
		"\r\n# two\r\n10.0.0.7:5432 #one\r\n\t[2001:db8::8]:5432\tweight=3 tier=1 name=db2\r\n\r\n":               two,
		` ["10.0.0.7:5432", {"name": "db2", "addresses": ["[2001:db8::8]:5432"], "weight": 3, "tier": 1}]` + "\n": two,
		"[2001:db8::8]:5432": {{Addresses: []string{"[2001:db8::8]:5432"}}},
		"[::1]:1":            {{Addresses: []string{"[::1]:1"}}},
		"unix:/run/a#b":      {{Addresses: []string{"unix:/run/a#b"}}},
		"[\n]":               nil,
		`[{"name": "db:1"}]`: {{Name: "db:1"}},
		`[{"name": "d", "addresses": ["a:1", "b:1"]}]`: {{Name: "d", Addresses: []string{"a:1", "b:1"}}},
	} {
		got, _, err := parseServers([]byte(text))
		if err != nil || len(got) != len(want) || !slices.EqualFunc(canonical(got), canonical(want), same) {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
}

func TestMistakeInAListIsNamedWithItsLine(t *testing.T) {
	for text, want := range map[string]string{
		"":                                     "1: no servers; if that is meant, write []",
		"# none\n\n":                           "2: no servers; if that is meant, write []",
		"a:1\n\n10.0.0.7":                      `3: "10.0.0.7" is no address like 10.0.0.7:5432, [2001:db8::7]:5432, db:5432 or unix:/path`,
		":80":                                  `1: ":80" is no address like 10.0.0.7:5432, [2001:db8::7]:5432, db:5432 or unix:/path`,
		"unix:":                                `1: port "" is no number from 1 to 65535`,
		"a:0":                                  `1: port "0" is no number from 1 to 65535`,
		"a:+1":                                 `1: port "+1" is no number from 1 to 65535`,
		"a:65536":                              `1: port "65536" is no number from 1 to 65535`,
		"a:http":                               `1: port "http" is no number from 1 to 65535`,
		"a:1\na:2 weight=0":                    `2: weight "0" is no number from 1 to 65535`,
		"a:1 weight":                           `1: weight "" is no number from 1 to 65535`,
		"a:1 tier=256":                         `1: tier "256" is no number from 0 to 255`,
		"a:1 tier=1 tier=1":                    "1: a second tier",
		"a:1 b:1":                              `1: "b:1" is none of weight=, tier= and name=`,
		"a:1 name=":                            `1: "" is no name for a server`,
		"a:1 name=\xff":                        `1: "\xff" is no name for a server`,
		"a:1\nb:1 name=a:1":                    "2: line 1 has a server named a:1 already",
		"[\"a:1\",\n\n\"a:1\"]":                "3: line 1 has a server named a:1 already",
		"[\"a:1\",\n{\"naem\": \"b\"}]":        `2: unknown field "naem"`,
		"[\"a:1\",\n{\"weight\": \"b\"}]":      "2: string is not what belongs into weight",
		"[\"a:1\",\n\n{\"weight\": 0}]":        `3: weight "0" is no number from 1 to 65535`,
		"[\"a:1\", {\"tier\": -1}]":            `1: tier "-1" is no number from 0 to 255`,
		"[\"a:1\",\n7]":                        "2: number is not what belongs into the list",
		"[\"a:1\",\nnull]":                     `2: "" is no address like 10.0.0.7:5432, [2001:db8::7]:5432, db:5432 or unix:/path`,
		"[\"a:1\",\n\"b:1\"\n":                 "3: unexpected end of JSON input",
		"[\"a:1\",\n\"b:1\"\n}":                "3: invalid character '}' after array element",
		"[\"a:1\"] []":                         "1: invalid character '[' after top-level value",
		"[{\"addresses\":[\"a b:1\"]}]":        `1: "a b:1" is no address like 10.0.0.7:5432, [2001:db8::7]:5432, db:5432 or unix:/path`,
		"[\"\\u001b[2J:1\"]":                   `1: "\x1b[2J:1" is no address like 10.0.0.7:5432, [2001:db8::7]:5432, db:5432 or unix:/path`,
		"a:1 name=" + strings.Repeat("x", 256): `1: "` + strings.Repeat("x", 256) + `" is no name for a server`,
	} {
		_, line, err := parseServers([]byte(text))
		if got := fmt.Sprintf("%d: %v", line, err); got != want {
			t.Errorf("%q:\n got %s\nwant %s", text, got, want)
		}
	}
}

// What has been read can be written in both forms and read again, and is what a pool
// takes.
func FuzzServers(f *testing.F) {
	for _, text := range []string{
		"10.0.0.7:5432 weight=3 name=db # x\r\n[2001:db8::8]:1 tier=1\nunix:/run/x",
		`["a:1", {"name": "db2", "addresses": ["b:1", "c:1"], "weight": 3, "tier": 1}]`,
		"[\n]", "[ \"", "a:1 a:1", "a:1\na:1",
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		servers, line, err := parseServers(text)
		if err != nil {
			if line < 1 || line > 1+bytes.Count(text, []byte("\n")) {
				t.Fatalf("line %d: %v", line, err)
			}
			return
		}
		names := make(map[string]bool)
		for _, s := range canonical(servers) {
			if names[s.Name] || s.Name == "" || s.Weight < 1 || s.Weight > 65535 || s.Tier < 0 || s.Tier > 255 {
				t.Fatalf("%+v", s)
			}
			names[s.Name] = true
		}
		var (
			elements []map[string]any
			lines    strings.Builder
		)
		for _, s := range canonical(servers) {
			elements = append(elements, map[string]any{"name": s.Name, "addresses": s.Addresses, "weight": s.Weight, "tier": s.Tier})
			fmt.Fprintf(&lines, "%s name=%s weight=%d tier=%d\n", s.Addresses[0], s.Name, s.Weight, s.Tier)
		}
		asJSON, err := json.Marshal(elements)
		if err != nil {
			t.Fatal(err)
		}
		checkAgain(t, asJSON, servers)
		if slices.ContainsFunc(servers, func(s upstream.Server) bool { return len(s.Addresses) > 1 }) || len(servers) == 0 ||
			beginsJSON.MatchString(lines.String()) || strings.Contains("\n"+lines.String(), "\n#") {
			return // lines cannot say that
		}
		checkAgain(t, []byte(lines.String()), servers)
	})
}

func checkAgain(t *testing.T, text []byte, want []upstream.Server) {
	t.Helper()
	again, line, err := parseServers(text)
	if err != nil && !bytes.Equal(text, []byte("null")) {
		t.Fatalf("%q: %d: %v", text, line, err)
	}
	if !slices.EqualFunc(canonical(again), canonical(want), same) {
		t.Fatalf("%q was %+v, is %+v", text, want, again)
	}
}

// However wild a resolv.conf is, what comes of it is within bounds, and its nameservers
// are the first three that are addresses.
func FuzzConfig(f *testing.F) {
	f.Add("nameserver 10.0.0.53\nsearch a.test b.test\noptions ndots:5 timeout:1 attempts:3", "db")
	f.Add("nameserver fe80::1%eth0\nnameserver x\nnameserver ::1\n#\n; nameserver 1.1.1.1\nsearch .\noptions timeout:99999", "a.b.")
	f.Add("options ndots:-1 attempts:999999999999999999999", strings.Repeat("a.", 126))
	f.Fuzz(func(t *testing.T, text, name string) {
		config, err := readConfig(strings.NewReader(text))
		if err != nil {
			t.Fatal(err)
		}
		if config.Timeout < 1 || config.Timeout > 30 || config.Attempts < 1 || config.Attempts > 5 {
			t.Fatalf("%+v", config)
		}
		var want []string
		lines := bufio.NewScanner(strings.NewReader(text[:min(len(text), maxConfig)]))
		for lines.Scan() {
			words := append(strings.Fields(lines.Text()), "", "")
			if addr, err := netip.ParseAddr(words[1]); err == nil && words[0] == "nameserver" {
				want = append(want, netip.AddrPortFrom(addr, 53).String())
			}
		}
		want = append(want, "127.0.0.1:53")
		if last := len(want) - 1; last > 0 {
			want = want[:min(last, 3)]
		}
		if !slices.Equal(config.Servers, want) {
			t.Fatalf("%q, want %q", config.Servers, want)
		}
		if checkName(name) != nil {
			return
		}
		for _, candidate := range candidates(config, name) {
			query := new(dns.Msg).SetQuestion(candidate, dns.TypeA)
			if _, err := query.Pack(); err != nil || !strings.HasPrefix(candidate, strings.TrimSuffix(name, ".")) {
				t.Fatalf("%q: %v", candidate, err)
			}
		}
	})
}

// A name's addresses are those at the beginning of the lines that have the name later.
func FuzzHosts(f *testing.F) {
	f.Add("127.0.0.1 localhost\n10.0.0.7 db DB. # x\n::ffff:10.0.0.8\tdb\nfe80::1%eth0 db", "db")
	f.Add("db db\n1.2.3.4 1.2.3.4 db\n# 1.2.3.4 db", "db.")
	f.Fuzz(func(t *testing.T, text, name string) {
		found, err := findHost(strings.NewReader(text), name)
		if err != nil {
			return // a line of 64 KiB
		}
		name = strings.TrimSuffix(name, ".")
		var want []netip.Addr
		for line := range strings.SplitSeq(text, "\n") {
			before, _, _ := strings.Cut(line, "#")
			for i, word := range strings.Fields(before) {
				addr, err := netip.ParseAddr(strings.Fields(before)[0])
				if i > 0 && strings.EqualFold(word, name) && err == nil {
					want = append(want, addr.Unmap())
					break
				}
			}
		}
		got := slices.Concat(found[0].addrs, found[1].addrs)
		slices.SortFunc(got, netip.Addr.Compare)
		slices.SortFunc(want, netip.Addr.Compare)
		if !slices.Equal(got, want) {
			t.Fatalf("%v, want %v", got, want)
		}
	})
}

// What follow finds belongs to the name at the end, to which aliases lead from the name,
// and the TTL is one of theirs.
func FuzzAnswer(f *testing.F) {
	message := new(dns.Msg).SetQuestion("db.example.com.", dns.TypeA)
	for _, text := range []string{"db.example.com. 60 IN CNAME a.example.com.", "a.example.com. 30 IN A 10.0.0.7", "A.example.com. 20 IN A 10.0.0.8", "db.example.com. 60 CH A 10.0.0.9"} {
		if record, err := dns.NewRR(text); err == nil {
			message.Answer = append(message.Answer, record)
		}
	}
	packed, err := message.Pack()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(packed)
	f.Fuzz(func(t *testing.T, packed []byte) {
		answer := new(dns.Msg)
		if answer.Unpack(packed) != nil || len(answer.Question) != 1 {
			return
		}
		name := answer.Question[0].Name
		found, end, ttl := follow(answer.Answer, name, dns.TypeA)
		if ttl < 0 || ttl > maxTTL {
			t.Fatalf("good for %v", ttl)
		}
		var want []dns.RR
		for range maxAliases {
			at := slices.DeleteFunc(slices.Clone(answer.Answer), func(record dns.RR) bool {
				return record.Header().Class != dns.ClassINET || !strings.EqualFold(record.Header().Name, name)
			})
			want = slices.DeleteFunc(slices.Clone(at), func(record dns.RR) bool { return record.Header().Rrtype != dns.TypeA })
			aliases := slices.DeleteFunc(at, func(record dns.RR) bool {
				cname, ok := record.(*dns.CNAME)
				return !ok || cname.Target == "" // a record may come without content
			})
			if len(want) > 0 || len(aliases) == 0 {
				if !slices.Equal(found, want) || end != name {
					t.Fatalf("found %v at %s, want %v at %s", found, end, want, name)
				}
				return
			}
			name = aliases[len(aliases)-1].(*dns.CNAME).Target
		}
		if len(found) != 0 || end != "" {
			t.Fatalf("found %v at %s at the end of endless aliases", found, end)
		}
	})
}
