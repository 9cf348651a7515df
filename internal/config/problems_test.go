package config

import "testing"

func TestNearestNamesOnlyWhatWasProbablyMeant(t *testing.T) {
	names := keyList((&Timeouts{}).keys())
	for got, want := range map[string]string{
		"idel":        "idle",        // swapped
		"idl":         "idle",        // dropped
		"idlee":       "idle",        // doubled
		"idke":        "idle",        // slipped
		"Idle":        "idle",        // capitals
		"half-closed": "half_closed", // dash
		"writeStall":  "write_stall", // camels
		"life":        "lifetime",    // abbreviated
		"idle_time":   "idle",        // adorned
		"connect":     "",
		"i":           "",
		"":            "",
		"off":         "",
		"héhé":        "",
	} {
		if near := nearest(got, names); near != want {
			t.Errorf("nearest(%q) = %q, want %q", got, near, want)
		}
	}
}

func TestPositionOfNowhere(t *testing.T) {
	for want, p := range map[string]Position{
		"config":         {},
		"levee.yaml":     {File: "levee.yaml"},
		"levee.yaml:1:2": {File: "levee.yaml", Line: 1, Column: 2},
	} {
		if p.String() != want {
			t.Errorf("%#v is %q, want %q", p, p.String(), want)
		}
	}
}
