package dashboard_test

import (
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// palettes reads the colours from the style sheet: the light ones, and those with the dark ones over them.
func palettes(t *testing.T) map[string]map[string]string {
	t.Helper()
	light, dark, ok := strings.Cut(source(t, "dashboard.css"), "@media (prefers-color-scheme: dark)")
	if !ok {
		t.Fatal("there are no dark colours")
	}
	read := func(css string, into map[string]string) map[string]string {
		css, _, _ = strings.Cut(css, "}")
		for _, found := range regexp.MustCompile(`--([a-z-]+): (#[0-9a-f]{6});`).FindAllStringSubmatch(css, -1) {
			into[found[1]] = found[2]
		}
		return into
	}
	both := map[string]map[string]string{"light": read(light, map[string]string{}), "dark": read(dark, map[string]string{})}
	for name := range both["light"] {
		if both["dark"][name] == "" {
			t.Errorf("%s has no dark colour", name)
		}
	}
	return both
}

// luminance is a colour's as WCAG 2.2 has it (https://www.w3.org/TR/WCAG22/#dfn-relative-luminance).
func luminance(t *testing.T, colour string) float64 {
	t.Helper()
	n, err := strconv.ParseUint(strings.TrimPrefix(colour, "#"), 16, 32)
	if err != nil {
		t.Fatal(err)
	}
	channel := func(shift int) float64 {
		c := float64(n>>shift&0xff) / 255
		if c <= 0.04045 {
			return c / 12.92
		}
		return math.Pow((c+0.055)/1.055, 2.4)
	}
	return 0.2126*channel(16) + 0.7152*channel(8) + 0.0722*channel(0)
}

func contrast(t *testing.T, a, b string) float64 {
	t.Helper()
	bright, dim := luminance(t, a), luminance(t, b)
	if bright < dim {
		bright, dim = dim, bright
	}
	return (bright + 0.05) / (dim + 0.05)
}

func TestContrastIsComputedAsWCAGDoes(t *testing.T) {
	for _, test := range []struct {
		a, b string
		want string
	}{
		{"#000000", "#ffffff", "21.00"},
		{"#767676", "#ffffff", "4.54"}, // the lightest grey that text may have on white
		{"#ff0000", "#ffffff", "4.00"},
	} {
		if got := fmt.Sprintf("%.2f", contrast(t, test.a, test.b)); got != test.want {
			t.Errorf("%s on %s: %s, want %s", test.a, test.b, got, test.want)
		}
	}
}

// WCAG 2.2, level AA: 4.5 for text (1.4.3), 3 for the edges of controls and what a picture is made of (1.4.11).
func TestColoursCanBeToldApart(t *testing.T) {
	text := map[string][]string{
		"text":      {"ground", "panel", "raised", "good-ground", "warn-ground", "bad-ground"},
		"soft":      {"ground", "panel", "raised"},
		"quiet":     {"panel", "raised"},
		"link":      {"ground", "panel"},
		"good":      {"panel", "good-ground"},
		"warn":      {"panel", "raised", "warn-ground"},
		"bad":       {"panel", "raised", "bad-ground"},
		"on-danger": {"bad"},
	}
	parts := map[string][]string{
		"in": {"panel", "raised"}, "out": {"panel", "raised"}, "bad": {"panel", "raised"}, "warn": {"panel", "raised"}, "quiet": {"raised"},
		"good": {"panel"}, "control": {"panel", "raised"}, "focus": {"ground", "panel", "raised"},
	}
	for scheme, colours := range palettes(t) {
		for least, pairs := range map[float64]map[string][]string{4.5: text, 3: parts} {
			for name, grounds := range pairs {
				for _, ground := range grounds {
					if colours[name] == "" || colours[ground] == "" {
						t.Fatalf("%s has no colour %s or %s", scheme, name, ground)
					}
					if got := contrast(t, colours[name], colours[ground]); got < least {
						t.Errorf("%s: %s on %s is %.2f, want %.1f at least", scheme, name, ground, got, least)
					}
				}
			}
		}
	}
}
