package app

import (
	"testing"

	"github.com/levee-net/levee/internal/config"
	"github.com/levee-net/levee/limit"
)

// Names that are not known share one account: so those that are must be, however the configuration writes them.
func TestNamesOfAnAuthorityAreKnownHoweverTheyAreWritten(t *testing.T) {
	issued := &terms{cfg: config.TLS{ACME: config.ACME{Domains: []config.Word{{Text: "Bücher.example"}, {Text: "DB.example"}}}}}
	known := knownTo([]*terms{issued})
	for name, want := range map[string]bool{"xn--bcher-kva.example": true, "db.example": true, "other.example": false, "": false} {
		if got := known(name); got != want {
			t.Errorf("%q: %t", name, got)
		}
	}
}

// What limits have decided does not become less by a reload and an upgrade behind it.
func TestDecisionsOfLimitsThatAreGoneGoOnInTheNextProcess(t *testing.T) {
	const name = "lists"
	tells := func(p *past, want limit.Decisions) {
		t.Helper()
		since := []limit.Decisions{{Limit: name, Allowed: 1}}
		if p.add(since); since[0] != want {
			t.Errorf("%+v, want %+v", since[0], want)
		}
	}
	first := &past{decisions: map[string]limit.Decisions{name: {Limit: name, Allowed: 1000, Refused: 7, WouldRefuse: 3}}}
	tells(first, limit.Decisions{Limit: name, Allowed: 1001, Refused: 7, WouldRefuse: 3})
	second := new(past)
	for range 2 {
		inherits(t, second, first)
		tells(second, limit.Decisions{Limit: name, Allowed: 1001, Refused: 7, WouldRefuse: 3})
	}
	second.decisions = map[string]limit.Decisions{name: {Limit: name, Allowed: 10}} // by a reload of its own
	third := new(past)
	inherits(t, third, second)
	tells(third, limit.Decisions{Limit: name, Allowed: 1011, Refused: 7, WouldRefuse: 3})
	if err := third.Restore([]byte("?")); err == nil {
		t.Error("nonsense is taken")
	}
	tells(third, limit.Decisions{Limit: name, Allowed: 1011, Refused: 7, WouldRefuse: 3})
}
