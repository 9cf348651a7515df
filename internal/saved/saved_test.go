package saved_test

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/levee-net/levee/internal/saved"
)

type state struct {
	Name  string `json:"name"`
	Count int    `json:"count"`
}

func TestWhatIsWrittenIsReadWithItsAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		want := state{"a", 7}
		b, err := saved.Write(1, want)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(3 * time.Second) // virtual time
		if got, age, err := saved.Read[state](b, 2, len(b)); got != want || age != 3*time.Second || err != nil {
			t.Errorf("%+v, %v, %v", got, age, err)
		}
		if got, age, err := saved.Read[state](nil, 1, 0); got != (state{}) || age != 0 || err != nil {
			t.Errorf("of nothing: %+v, %v, %v", got, age, err)
		}
	})
}

func TestOtherVersionsAreUnderstoodOrRefused(t *testing.T) {
	for text, want := range map[string]string{
		`{"version":1,"state":{"name":"a","count":7,"added":[{}]},"more":1}`: "", // of a newer process
		`{"version":1,"state":{"name":"a"}}`:                                 "", // of an older one
		`{"version":3,"state":[]}`:                                           "saved state is of version 3, and versions up to 2 are understood",
		`{"state":{}}`:                                                       "saved state is of version 0, and versions up to 2 are understood",
		`{"version":1,"state":{"count":"7"}}`:                                "saved state: json: cannot unmarshal string",
		`{"version":1,"state":{}`:                                            "saved state: unexpected end of JSON input",
		strings.Repeat(" ", 101):                                             "101 bytes of saved state, where 100 are the most",
	} {
		got, _, err := saved.Read[state]([]byte(text), 2, 100)
		switch {
		case want == "" && (err != nil || got.Name != "a"):
			t.Errorf("%s: %+v, %v", text, got, err)
		case want != "" && (err == nil || !strings.HasPrefix(err.Error(), want)):
			t.Errorf("%s: %v, want %s", text, err, want)
		}
	}
}

// A clock that was set back between the two does not make an age negative.
func TestAnAgeIsNeverNegative(t *testing.T) {
	for text, want := range map[string]time.Duration{
		`{"version":1,"at":9000000000000000000,"state":{}}`:  0,                           // in 2255
		`{"version":1,"at":-9000000000000000000,"state":{}}`: 9_000_000_000 * time.Second, // in 1684, or more
	} {
		if _, age, err := saved.Read[state]([]byte(text), 1, 1000); err != nil || want == 0 && age != 0 || age < want {
			t.Errorf("%s: %v, %v", text, age, err)
		}
	}
}
