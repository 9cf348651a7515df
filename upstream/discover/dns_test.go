package discover_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"

	"github.com/levee-net/levee/upstream"
	"github.com/levee-net/levee/upstream/discover"
)

const (
	soa     = "example.com. 600 IN SOA ns.example.com. root.example.com. 1 600 600 600 20" // "there is none" for 20 s
	nobody  = "look up db.example.com: it does not exist, or has no addresses"
	refused = "look up db.example.com: 127.0.0.1:53: SERVFAIL"
)

// db is the source that most tests look at, with the resolver's configuration.
func db(t *testing.T, z *zone, r *run, config string) *discover.DNS {
	return &discover.DNS{Name: "db.example.com", Port: 5432, Resolver: z.resolver(t, config), Problem: r.problem}
}

func TestEachAddressIsAServerAndIsAskedForWhenItsTTLIsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		z, r := newZone(t, soa, "db.example.com. 40 IN A 10.0.0.7", "db.example.com. 30 IN A 10.0.0.8", "db.example.com. 50 IN AAAA 2001:db8::7"), newRun(t)
		r.start(db(t, z, r, ""))
		r.expect("10.0.0.7:5432, 10.0.0.8:5432, [2001:db8::7]:5432")
		z.set(t, soa, "db.example.com. 30 IN A 10.0.0.9")
		z.questions()
		time.Sleep(29 * time.Second) // virtual time
		r.expect()
		if asked := z.questions(); len(asked) > 0 {
			t.Errorf("asked %q before the TTL was over", asked)
		}
		time.Sleep(time.Second) // virtual time
		r.expect("10.0.0.9:5432")
		if asked := z.questions(); !slices.Equal(asked, []string{"db.example.com. A", "db.example.com. AAAA"}) {
			t.Errorf("asked %q", asked)
		}
		time.Sleep(time.Minute) // virtual time
		r.expect()
		r.expectProblems()
	})
}

func TestTTLIsKeptInBounds(t *testing.T) {
	for ttl, want := range map[string]time.Duration{"0": time.Second, "1": time.Second, "299": 299 * time.Second, "86400": 5 * time.Minute} {
		synctest.Test(t, func(t *testing.T) {
			z, r := newZone(t, soa, "db.example.com. "+ttl+" IN A 10.0.0.7"), newRun(t)
			r.start(db(t, z, r, ""))
			z.questions()
			time.Sleep(want - time.Nanosecond) // virtual time
			if asked := z.questions(); len(asked) != 0 {
				t.Errorf("a TTL of %s s is over before %v", ttl, want)
			}
			time.Sleep(time.Nanosecond) // virtual time
			if asked := z.questions(); len(asked) != 2 {
				t.Errorf("a TTL of %s s is not over after %v", ttl, want)
			}
		})
	}
}

func TestSingleServerHasAllAddresses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		z, r := newZone(t, "db.example.com. 30 IN A 10.0.0.7", "db.example.com. 30 IN AAAA 2001:db8::7", "db.example.com. 30 IN A 10.0.0.7"), newRun(t)
		source := db(t, z, r, "")
		source.Name, source.Single = "db.example.com.", true
		r.start(source)
		r.expect("db.example.com:5432[10.0.0.7:5432 [2001:db8::7]:5432]")
		z.set(t, "db.example.com. 30 IN AAAA 2001:db8::7", "db.example.com. 30 IN A 10.0.0.7")
		time.Sleep(time.Minute) // virtual time
		r.expect()
	})
}

func TestCertificatesAreForTheNameThatIsLookedUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		z, r := newZone(t, "db.example.com. 30 IN A 10.0.0.7", "db.example.com. 30 IN A 10.0.0.8"), newRun(t)
		source := db(t, z, r, "")
		source.Name = "db.example.com."
		ctx, cancel := context.WithCancel(t.Context())
		_ = source.Run(ctx, func(servers []upstream.Server) {
			for _, s := range servers {
				if s.ServerName != "db.example.com" {
					t.Errorf("%+v", s)
				}
			}
			cancel()
		})
	})
}

func TestServersThatAreGoneAreHeldForAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		z, r := newZone(t, soa, "db.example.com. 10 IN A 10.0.0.7"), newRun(t)
		r.start(db(t, z, r, ""))
		r.expect("10.0.0.7:5432")
		z.set(t, soa)
		time.Sleep(10*time.Second + 29*time.Second) // virtual time
		r.expect()
		r.expectProblems(nobody, nobody) // the SOA says 20 seconds

		time.Sleep(time.Second) // virtual time
		r.expect("")
		r.expectProblems(nobody)

		z.set(t, soa, "db.example.com. 10 IN A 10.0.0.8")
		time.Sleep(20 * time.Second) // virtual time
		r.expect("10.0.0.8:5432")
		z.set(t, soa, "db.example.com. 10 IN TXT x") // the name is there, without an address

		time.Sleep(25 * time.Second) // virtual time
		z.set(t, soa, "db.example.com. 10 IN A 10.0.0.8")
		time.Sleep(time.Minute) // virtual time
		r.expect()              // they were back in time
	})
}

func TestWithoutHoldServersThatAreGoneAreGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		z, r := newZone(t, "db.example.com. 10 IN A 10.0.0.7"), newRun(t)
		source := db(t, z, r, "")
		source.Hold = -1
		r.start(source)
		r.expect("10.0.0.7:5432")
		z.set(t)
		time.Sleep(10 * time.Second) // virtual time
		r.expect("")
		z.set(t, "db.example.com. 10 IN A 10.0.0.7")
		// Without an SOA, "there is none" is good for five seconds.
		time.Sleep(5 * time.Second) // virtual time
		r.expect("10.0.0.7:5432")
	})
}

func TestWhileNobodyAnswersTheServersAreKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		z, r := newZone(t, "db.example.com. 10 IN A 10.0.0.7"), newRun(t)
		r.start(db(t, z, r, "options attempts:1"))
		r.expect("10.0.0.7:5432")
		z.set(t, "db.example.com. 10 IN A 10.0.0.8")
		z.fail(dns.TypeA, dns.RcodeServerFailure)
		z.fail(dns.TypeAAAA, dns.RcodeServerFailure)
		time.Sleep(10 * time.Second) // virtual time
		r.expectProblems(refused)
		time.Sleep(time.Hour) // virtual time
		r.expect()
		z.fail(dns.TypeA, dns.RcodeSuccess)
		z.fail(dns.TypeAAAA, dns.RcodeSuccess)
		time.Sleep(30 * time.Second) // virtual time
		r.expect("10.0.0.8:5432")
	})
}

func TestSilenceIsGivenUpByTimeoutAndAttempts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		z, r := newZone(t, "db.example.com. 10 IN A 10.0.0.7"), newRun(t)
		z.shutUp(true)
		r.start(db(t, z, r, "nameserver 10.0.0.53\nnameserver 10.0.0.54\noptions timeout:3 attempts:2"))
		time.Sleep(2*2*3*time.Second - time.Nanosecond) // virtual time
		r.expectProblems()
		time.Sleep(time.Nanosecond) // virtual time
		r.expectProblems("look up db.example.com: read pipe: i/o timeout")
		if asked := z.questions(); len(asked) != 2*2*2 {
			t.Errorf("asked %q", asked)
		}
	})
}

func TestFamilyWithoutAnAnswerKeepsItsAddresses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		z, r := newZone(t, "db.example.com. 60 IN A 10.0.0.7", "db.example.com. 60 IN AAAA 2001:db8::7"), newRun(t)
		r.start(db(t, z, r, "options attempts:1"))
		r.expect("10.0.0.7:5432, [2001:db8::7]:5432")
		z.set(t, "db.example.com. 60 IN A 10.0.0.8")
		z.fail(dns.TypeAAAA, dns.RcodeServerFailure)
		time.Sleep(time.Minute) // virtual time
		r.expect("10.0.0.8:5432, [2001:db8::7]:5432")
		r.expectProblems(refused)
		z.fail(dns.TypeAAAA, dns.RcodeSuccess)
		time.Sleep(10 * time.Second) // virtual time
		r.expect("10.0.0.8:5432")
	})
}

func TestFamilyThatIsNeverAnsweredDoesNotHideTheOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		z, r := newZone(t, "db.example.com. 5 IN A 10.0.0.7"), newRun(t)
		z.fail(dns.TypeAAAA, dns.RcodeNotImplemented)
		r.start(db(t, z, r, "options attempts:1"))
		r.expect("10.0.0.7:5432")
		z.set(t, "db.example.com. 5 IN A 10.0.0.8")
		time.Sleep(5 * time.Second) // virtual time
		r.expect("10.0.0.8:5432")
		r.expectProblems("look up db.example.com: 127.0.0.1:53: NOTIMP", "look up db.example.com: 127.0.0.1:53: NOTIMP")
	})
}

func TestSilenceAboutAFamilyDelaysTheOtherByASecond(t *testing.T) {
	for kind, want := range map[uint16]string{dns.TypeA: "[2001:db8::7]:5432", dns.TypeAAAA: "10.0.0.7:5432"} {
		synctest.Test(t, func(t *testing.T) {
			z, r := newZone(t, "db.example.com. 60 IN A 10.0.0.7", "db.example.com. 60 IN AAAA 2001:db8::7"), newRun(t)
			z.mute = kind
			r.start(db(t, z, r, "nameserver 10.0.0.53\nnameserver 10.0.0.54\noptions timeout:5 attempts:2"))
			time.Sleep(time.Second - time.Nanosecond) // virtual time
			r.expect()
			time.Sleep(time.Nanosecond) // virtual time
			r.expect(want)
			r.expectProblems("look up db.example.com: nobody answers about " + dns.TypeToString[kind] + " records")
		})
	}
}

func TestOfManyAddressesSomeAreHeeded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var records []string
		for i := range 200 {
			records = append(records, fmt.Sprintf("db.example.com. 60 IN A 10.0.0.%d", i))
		}
		z, r := newZone(t, records...), newRun(t)
		r.start(db(t, z, r, ""))
		var want []string
		for i := range 128 {
			want = append(want, fmt.Sprintf("10.0.0.%d:5432", i))
		}
		slices.Sort(want)
		synctest.Wait()
		got := strings.Split(r.updates[0], ", ")
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("told %q", got)
		}
		r.expectProblems("look up db.example.com: it has 72 addresses more than the 128 that are heeded")
	})
}

func TestWithoutAHostsFileThatCanBeReadDNSIsAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		z, r := newZone(t, soa, "db.example.com. 60 IN A 10.0.0.7"), newRun(t)
		source := db(t, z, r, "")
		source.Resolver.HostsFile = t.TempDir() // a folder
		r.start(source)
		r.expect("10.0.0.7:5432")
		if problem := r.lastProblem(); !strings.Contains(problem, source.Resolver.HostsFile) {
			t.Errorf("the problem is %s", problem)
		}
		z.set(t, soa)
		time.Sleep(time.Hour) // virtual time
		r.expect()            // it may stand where nobody can read it
	})
}

func TestAHostsFileThatIsOddInPartsIsHeededAsFarAsItGoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		z, r := newZone(t, "db.example.com. 60 IN A 10.0.0.7"), newRun(t)
		source := db(t, z, r, "")
		rewrite(t, source.Resolver.HostsFile, "10.1.0.1 db.example.com\n"+strings.Repeat("x", 100_000)+"\n")
		r.start(source)
		r.expect("10.1.0.1:5432")
		if problem := r.lastProblem(); !strings.Contains(problem, source.Resolver.HostsFile+": bufio.Scanner: token too long") {
			t.Errorf("the problem is %s", problem)
		}
	})
}

func TestAliasesAreFollowedWhoeverHasToAsk(t *testing.T) {
	for _, partly := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			z := newZone(t, "db.example.com. 60 IN CNAME a.Example.com.", "A.example.com. 15 IN CNAME b.example.net.", "b.example.net. 60 IN A 10.0.0.7")
			z.followPartly(partly)
			r := newRun(t)
			r.start(db(t, z, r, ""))
			r.expect("10.0.0.7:5432")
			z.set(t, "db.example.com. 60 IN A 10.0.0.8")
			// The shortest TTL of all.
			time.Sleep(15 * time.Second) // virtual time
			r.expect("10.0.0.8:5432")
			r.expectProblems()
		})
	}
}

func TestAliasesWithoutAnEndAreNoAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		z, r := newZone(t, "db.example.com. 10 IN A 10.0.0.7"), newRun(t)
		r.start(db(t, z, r, ""))
		r.expect("10.0.0.7:5432")
		z.set(t, "db.example.com. 60 IN CNAME a.example.com.", "a.example.com. 60 IN CNAME db.example.com.")
		for _, partly := range []bool{false, true} {
			z.followPartly(partly)
			time.Sleep(2 * time.Minute) // virtual time
			r.expect()
			if last := r.lastProblem(); !strings.HasSuffix(last, ".example.com: more than 8 aliases in a row") {
				t.Errorf("%q", last)
			}
		}
	})
}

func TestSearchListIsTriedInOrder(t *testing.T) {
	tests := []struct{ name, config, want string }{
		{"db", "search one.test two.test", "db.one.test. db.two.test. db."},
		{"db", "domain one.test", "db.one.test. db."},
		{"db", "search .", "db."},
		{"db.a", "search one.test", "db.a. db.a.one.test."},
		{"db.a", "search one.test\noptions ndots:2", "db.a.one.test. db.a."},
		{"db.", "search one.test", "db."},
	}
	for _, test := range tests {
		synctest.Test(t, func(t *testing.T) {
			z, r := newZone(t), newRun(t)
			r.start(&discover.DNS{Name: test.name, Port: 1, Resolver: z.resolver(t, test.config)})
			synctest.Wait()
			z.mu.Lock()
			asked := slices.DeleteFunc(slices.Clone(z.asked), func(q string) bool { return !strings.HasSuffix(q, " A") })
			z.mu.Unlock()
			if got := strings.ReplaceAll(strings.Join(asked, " "), " A", ""); got != test.want {
				t.Errorf("%s with %q: asked %s, want %s", test.name, test.config, got, test.want)
			}
		})
	}
}

func TestSearchEndsAtTheFirstNameThatExistsOrIsNotAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		z, r := newZone(t, "db.two.test. 10 IN A 10.0.0.2", "db. 10 IN A 10.0.0.3"), newRun(t)
		source := db(t, z, r, "search one.test two.test\noptions attempts:1")
		source.Name = "db"
		r.start(source)
		r.expect("10.0.0.2:5432")
		z.questions()
		z.fail(dns.TypeA, dns.RcodeRefused)
		time.Sleep(10 * time.Second) // virtual time
		r.expect()
		r.expectProblems("look up db.one.test: 127.0.0.1:53: REFUSED")
		if asked := z.questions(); len(asked) != 2 {
			t.Errorf("asked %q: a later name could be somebody else's", asked)
		}
	})
}

func TestHostsFileComesFirstAndMayChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		z, r := newZone(t, "db.example.com. 300 IN A 10.0.0.7"), newRun(t)
		source := db(t, z, r, "")
		hosts := source.Resolver.HostsFile
		rewrite(t, hosts, "# none\n10.1.0.1 other DB.example.com # not 10.1.0.9\n2001:db8::1\tdb.example.com\nnonsense db.example.com\n")
		r.start(source)
		r.expect("10.1.0.1:5432, [2001:db8::1]:5432")
		rewrite(t, hosts, "10.1.0.2 db.example.com")
		time.Sleep(5 * time.Second) // virtual time
		r.expect("10.1.0.2:5432")
		if asked := z.questions(); len(asked) > 0 {
			t.Errorf("asked %q", asked)
		}
		rewrite(t, hosts, "")
		time.Sleep(5 * time.Second) // virtual time
		r.expect("10.0.0.7:5432")
	})
}

func TestNameThatIsAnAddressIsNotLookedUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for name, want := range map[string]string{"10.0.0.7": "10.0.0.7:5432", "2001:db8::7": "[2001:db8::7]:5432"} {
			z, r := newZone(t), newRun(t)
			r.start(&discover.DNS{Name: name, Port: 5432, Resolver: z.resolver(t, "")})
			r.expect(want)
			if asked := z.questions(); len(asked) > 0 {
				t.Errorf("asked %q", asked)
			}
		}
	})
}

func TestAddressThatIsNoneBlocksTheName(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		z, r := newZone(t, "db.example.com. 10 IN A 0.0.0.0", "db.example.com. 10 IN AAAA ::"), newRun(t)
		r.start(db(t, z, r, ""))
		r.expect()
		r.expectProblems(nobody)
	})
}

func TestSettingsThatCanNeverWorkEndTheRun(t *testing.T) {
	for want, source := range map[string]source{
		"port 0 of db is not one":      &discover.DNS{Name: "db"},
		"port 65536 of db is not one":  &discover.DNS{Name: "db", Port: 65536},
		`"" is no name for DNS`:        &discover.DNS{Port: 1},
		`"db:5432" is no name for DNS`: &discover.DNS{Name: "db:5432", Port: 1},
		`"." is no name for DNS`:       &discover.SRV{Name: "."},
		`"a..b" is no name for DNS`:    &discover.SRV{Name: "a..b"},
		"no path to a file of servers": &discover.File{},
	} {
		if err := source.Run(t.Context(), nil); err == nil || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}

// pg is a source of services.
func pg(t *testing.T, z *zone, r *run) *discover.SRV {
	return &discover.SRV{Name: "_pg._tcp.example.com", Resolver: z.resolver(t, "options attempts:1"), Problem: r.problem}
}

func TestServicesAreRankedByPriorityAndWeight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		z, r := newZone(t,
			"_pg._tcp.example.com. 60 IN SRV 20 7 5433 c.example.com.",
			"_pg._tcp.example.com. 60 IN SRV 10 0 5432 a.example.com.",
			"_pg._tcp.example.com. 60 IN SRV 10 5 5432 B.example.com.",
			"_pg._tcp.example.com. 60 IN SRV 30 1 5432 c.example.com.",
			"_pg._tcp.example.com. 60 IN SRV 90 1 5433 c.example.com.", // once more
			"_pg._tcp.example.com. 60 IN SRV 40 1 0 a.example.com.",    // nowhere
			"a.example.com. 60 IN A 10.0.0.1",
			"b.example.com. 60 IN A 10.0.0.2", "b.example.com. 60 IN AAAA 2001:db8::2",
			"c.example.com. 60 IN A 10.0.0.3",
		), newRun(t)
		r.start(pg(t, z, r))
		r.expect("b.example.com:5432[10.0.0.2:5432 [2001:db8::2]:5432] weight=5, a.example.com:5432[10.0.0.1:5432] weight=1, " +
			"c.example.com:5433[10.0.0.3:5433] weight=7 tier=1, c.example.com:5432[10.0.0.3:5432] weight=1 tier=2")
		r.expectProblems()
		if asked := z.questions(); len(asked) != 1+2*3 {
			t.Errorf("asked %q", asked)
		}
	})
}

func TestAddressesThatComeAlongAreNotAskedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		z, r := newZone(t,
			"_pg._tcp.example.com. 60 IN SRV 0 0 5432 extra1.example.com.",
			"_pg._tcp.example.com. 60 IN SRV 0 0 5432 b.example.com.",
			"extra1.example.com. 20 IN A 10.0.0.1", "extra1.example.com. 20 IN AAAA 2001:db8::1",
			"b.example.com. 60 IN A 10.0.0.2",
		), newRun(t)
		r.start(pg(t, z, r))
		r.expect("b.example.com:5432[10.0.0.2:5432] weight=1, extra1.example.com:5432[10.0.0.1:5432 [2001:db8::1]:5432] weight=1")
		if asked := z.questions(); !slices.Equal(asked, []string{"_pg._tcp.example.com. SRV", "b.example.com. A", "b.example.com. AAAA"}) {
			t.Errorf("asked %q", asked)
		}
		// Their TTL counts.
		time.Sleep(20 * time.Second) // virtual time
		if asked := z.questions(); len(asked) != 3 {
			t.Errorf("asked %q", asked)
		}
	})
}

func TestTargetThatCannotBeFoundDoesNotHideTheOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		records := []string{
			"_pg._tcp.example.com. 60 IN SRV 1 0 5432 db.example.com.",
			"_pg._tcp.example.com. 60 IN SRV 2 0 5432 extra1.example.com.",
			"extra1.example.com. 60 IN A 10.0.0.1",
		}
		z, r := newZone(t, append(records, soa)...), newRun(t)
		r.start(pg(t, z, r))
		const alone = "extra1.example.com:5432[10.0.0.1:5432] weight=1"
		r.expect(alone)
		r.expectProblems(nobody)

		z.set(t, append(records, "db.example.com. 60 IN A 10.0.0.2")...)
		// For so long there was none.
		time.Sleep(20 * time.Second) // virtual time
		const both = "db.example.com:5432[10.0.0.2:5432] weight=1, " + alone + " tier=1"
		r.expect(both)

		z.fail(dns.TypeA, dns.RcodeServerFailure)
		z.fail(dns.TypeAAAA, dns.RcodeServerFailure)
		time.Sleep(time.Hour) // virtual time
		r.expect()            // nobody answers: it keeps its addresses
		if last := r.lastProblem(); last != refused {
			t.Errorf("%q", last)
		}
	})
}

func TestServiceThatIsGoneIsHeldForAWhile(t *testing.T) {
	for name, gone := range map[string][]string{
		"no record":     {soa},
		"not available": {soa, "_pg._tcp.example.com. 20 IN SRV 0 0 0 ."},
		"no target":     {soa, "_pg._tcp.example.com. 20 IN SRV 0 0 5432 nobody.example.com."},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				z, r := newZone(t, "_pg._tcp.example.com. 10 IN SRV 0 0 5432 extra1.example.com.", "extra1.example.com. 10 IN A 10.0.0.1"), newRun(t)
				r.start(pg(t, z, r))
				r.expect("extra1.example.com:5432[10.0.0.1:5432] weight=1")
				z.set(t, gone...)
				time.Sleep(10*time.Second + 29*time.Second) // virtual time
				r.expect()
				time.Sleep(time.Second) // virtual time
				r.expect("")
				r.expectProblems(slices.Repeat([]string{"look up _pg._tcp.example.com: it does not exist, or has no addresses"}, 3)...)
				z.fail(dns.TypeSRV, dns.RcodeServerFailure)
				time.Sleep(20 * time.Second) // virtual time
				r.expect()
				r.expectProblems("look up _pg._tcp.example.com: 127.0.0.1:53: SERVFAIL")
			})
		})
	}
}

func TestServiceWhoseTargetsAreNotAnsweredIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		z, r := newZone(t, "_pg._tcp.example.com. 10 IN SRV 0 0 5432 db.example.com."), newRun(t)
		z.fail(dns.TypeA, dns.RcodeServerFailure)
		z.fail(dns.TypeAAAA, dns.RcodeServerFailure)
		r.start(pg(t, z, r))
		time.Sleep(time.Minute) // virtual time
		r.expect()              // not that there are none, either
	})
}
