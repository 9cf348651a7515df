package top

import (
	"math"
	"strings"
	"testing"
	"time"

	"github.com/levee-net/levee/internal/admin"
)

func TestNumbersAreShort(t *testing.T) {
	for v, want := range map[float64]string{
		0: "0", 1: "1", 999: "999", 999.6: "1.0k", 1000: "1.0k", 1234: "1.2k", 9949: "9.9k", 9950: "10k", 34_567_890: "35M",
		999_499: "999k", 999_500: "1.0M", 1e18: "1.0E", math.MaxInt64: "9.2E", -1: "-", math.Inf(1): "-", math.NaN(): "-",
	} {
		if got := short(v); got != want {
			t.Errorf("%g is %s, not %s", v, got, want)
		}
	}
	for n, want := range map[int64]string{0: "0", -7: "-7", 999: "999", 1000: "1,000", 1_234_567: "1,234,567", -1000: "-1,000", math.MinInt64: "-9,223,372,036,854,775,808"} {
		if got := number(n); got != want {
			t.Errorf("%d is %s, not %s", n, got, want)
		}
	}
	for d, want := range map[time.Duration]string{-time.Second: "0s", 59 * time.Second: "59s", time.Minute: "1m", 99 * time.Hour: "99h", 100 * time.Hour: "4d"} {
		if got := ago(d); got != want {
			t.Errorf("%s is %s, not %s", d, got, want)
		}
	}
	for s, want := range map[float64]string{0: "-", 0.0000004: "0µs", 0.000012: "12µs", 0.0001: "0.1ms", 0.0123: "12ms", 1.25: "1.2s"} {
		if got := seconds(s); got != want {
			t.Errorf("%g s is %s, not %s", s, got, want)
		}
	}
	for v, want := range map[float64]string{0: "0/s", 0.25: "0.2/s", 2: "2/s", 2.5: "2.5/s", 120: "120/s", 1200: "1.2k/s"} {
		if got := per(v); got != want {
			t.Errorf("%g is %s, not %s", v, got, want)
		}
	}
	if got := size(1234); got != "1.2 kB" {
		t.Error(got)
	}
}

func TestSparklinesHaveTheNewestAtTheRightAndRemember200(t *testing.T) {
	var h history
	levels := charsetOf([]string{"LANG=en_US.UTF-8"}).levels
	if got := h.spark(4, levels); got != "    " {
		t.Errorf("%q", got)
	}
	for _, v := range []float64{-5, 1, 50, 100} {
		h.add(v)
	}
	if got := h.spark(6, levels); got != "  ▁▂▅█" {
		t.Errorf("%q", got)
	}
	if got := h.spark(2, levels); got != "▅█" {
		t.Errorf("%q", got)
	}
	for range 1000 {
		h.add(0)
	}
	if got := h.spark(3, levels); got != "▁▁▁" || len(h) != longestHistory {
		t.Errorf("%q, %d", got, len(h))
	}
}

func TestALocaleWithoutUTF8GetsASCII(t *testing.T) {
	for _, environ := range [][]string{nil, {"LANG=C"}, {"LANG=en_US.UTF-8", "LC_ALL=POSIX"}, {"LC_CTYPE=de_DE.ISO-8859-1"}} {
		chars := charsetOf(environ)
		if strings.ContainsFunc(string(chars.levels)+chars.cut+chars.up+chars.down, func(c rune) bool { return c > 126 }) {
			t.Errorf("%q: %+v", environ, chars)
		}
	}
	for _, environ := range [][]string{{"LANG=C.utf8"}, {"LANG=C", "LC_CTYPE=UTF-8"}} {
		if charsetOf(environ).cut != "…" {
			t.Errorf("%q is taken for one without", environ)
		}
	}
}

func FuzzAFilterMeansWhatItSays(f *testing.F) {
	for _, text := range []string{"", "10.0.0.0/8", "client=::1 listener=main", "phase=serving route=a upstream=b server=c:1", "x=1", "client=", "=", "listener=a listener=b", "route==a"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		q, err := parseFilter(text)
		if err != nil {
			if q != (admin.Query{}) {
				t.Errorf("%q: an error and %+v", text, q)
			}
			return
		}
		again, err := parseFilter(filterText(q))
		if err != nil || again != q {
			t.Errorf("%q is %+v, and written %q is %+v, %v", text, q, filterText(q), again, err)
		}
		if got, want := len(strings.Fields(filterText(q))), len(strings.Fields(text)); got != want {
			t.Errorf("%q: %d words of %d are in %+v", text, got, want, q)
		}
	})
}
