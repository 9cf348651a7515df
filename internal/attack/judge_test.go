package attack_test

import (
	"fmt"
	"io"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/levee-net/levee/internal/attack"
)

func TestVerdict(t *testing.T) {
	const ms = time.Millisecond
	health := func(tried, failed int64, p99 time.Duration) attack.Health {
		n := attack.Numbers{Tried: tried, Failed: failed, P99: p99}
		if failed > 0 {
			n.FirstError = "reset"
		}
		return attack.Health{All: n}
	}
	for name, test := range map[string]struct {
		idle, during, after attack.Health
		want                string
	}{
		"nothing":                         {health(60, 0, ms), health(240, 0, ms), health(20, 0, ms), ""},
		"one of a thousand":               {health(60, 0, ms), health(1000, 1, ms), health(20, 0, ms), ""},
		"two of a thousand":               {health(60, 0, ms), health(1000, 2, ms), health(20, 0, ms), "99.80 % of the probe went well: reset"},
		"one of a few after it":           {health(60, 0, ms), health(1000, 0, ms), health(20, 1, ms), "95.00 % of the probe went well after it: reset"},
		"at the floor":                    {health(60, 0, ms), health(240, 0, 30*ms), health(20, 0, ms), ""},
		"above the floor":                 {health(60, 0, ms), health(240, 0, 31*ms), health(20, 0, ms), "p99 31ms, above 30ms"},
		"three times idle":                {health(60, 0, 20*ms), health(240, 0, 60*ms), health(20, 0, ms), ""},
		"more than that":                  {health(60, 0, 20*ms), health(240, 0, 61*ms), health(20, 0, ms), "p99 61ms, above 60ms"},
		"afterwards it may take its time": {health(60, 0, ms), health(240, 0, ms), health(20, 0, time.Second), ""},
		"nobody was asked":                {attack.Health{}, attack.Health{}, attack.Health{}, ""},
	} {
		if got := strings.Join(attack.Judge(test.idle, test.during, test.after, 10*ms), "; "); got != test.want {
			t.Errorf("%s: got %q, want %q", name, got, test.want)
		}
	}
}

func TestMetricsAreRead(t *testing.T) {
	v, err := attack.ReadMetrics(strings.NewReader(`# HELP levee_connections_active Open connections.
# TYPE levee_connections_active gauge
levee_connections_active{listener="a"} 3
levee_connections_active{listener="b } c"} 4 1700000000
levee_connections_active_not 9
go_goroutines 12
process_cpu_seconds_total 1.5
process_resident_memory_bytes 2.097152e+07
process_open_fds 17
strange
`))
	want := attack.Vitals{CPU: 1500 * time.Millisecond, Memory: 20 << 20, Files: 17, Connections: 7, Goroutines: 12}
	if err != nil || v != want {
		t.Errorf("got %+v, %v, want %+v", v, err, want)
	}
	if v, _ := attack.ReadMetrics(strings.NewReader("")); v.Connections != -1 || v.Goroutines != -1 || v.Files != -1 {
		t.Errorf("what is not there is taken for %+v", v)
	}
}

// FuzzMetrics: the sum of two samples is the sum of their values, whatever the labels.
func FuzzMetrics(f *testing.F) {
	f.Add("a", 1.0, "b} x", 2.0)
	f.Add("", -1.5, "{", 1e9)
	f.Fuzz(func(t *testing.T, label1 string, value1 float64, label2 string, value2 float64) {
		sum := value1 + value2
		if math.IsNaN(sum) || math.Abs(sum) > 1e9 || len(label1)+len(label2) > 1000 {
			t.Skip()
		}
		text := fmt.Sprintf("go_goroutines{l=%q} %g\nother{l=%q} 7\ngo_goroutines{l=%q} %g\n", label1, value1, label1, label2, value2)
		v, err := attack.ReadMetrics(strings.NewReader(text))
		if err != nil || v.Goroutines != int(sum) {
			t.Errorf("%q: got %d, %v, want %d", text, v.Goroutines, err, int(sum))
		}
		if _, err := attack.ReadMetrics(io.MultiReader(strings.NewReader(label1), strings.NewReader(label2))); err != nil {
			t.Error(err)
		}
	})
}
