package levee

import (
	"errors"
	"testing"

	"github.com/levee-net/levee/internal/reactor"
)

// There is nothing by which crypto/tls could be made to panic, so here there is no crypto/tls.
func TestAPanicInTLSStaysOnItsSideOfTheWall(t *testing.T) {
	p := new(sealedPair)
	_, _, opened := p.Open([]byte("x"), false, make([]byte, 0, 16))
	_, sealed := p.Seal([]byte("x"), nil)
	for what, err := range map[string]error{"Open": opened, "Seal": sealed} {
		caught, ok := errors.AsType[*reactor.PanicError](err)
		if !ok || len(caught.Stack) == 0 {
			t.Errorf("%s returns %v", what, err)
		}
	}
	if end := p.SealEnd(); len(end) > 0 {
		t.Errorf("an end of %q", end)
	}
}
