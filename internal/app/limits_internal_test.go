package app

import (
	"testing"

	"github.com/levee-net/levee/internal/config"
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
