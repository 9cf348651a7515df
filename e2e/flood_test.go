package e2e

import (
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"
)

// TestFloodSeesSlowAttackersEndedAtTheirDeadline: a byte a second does not move it.
func TestFloodSeesSlowAttackersEndedAtTheirDeadline(t *testing.T) {
	target := start(t, "serve", "-c", write(t, "levee.yaml", `version: 1
admin: {listen: 127.0.0.1:0}
listeners:
  - name: main
    listen: ["127.0.0.1:0"]
    tls: {mode: optional, development: true}
    timeouts: {arrival: 2s, sniff: 2s}
    routes:
      - {match: {protocol: http}, handler: hello}
      - {handler: echo}
`))
	flood := start(t, "flood", "--target", target.address(), "--admin", strings.TrimPrefix(target.admin(""), "http://"),
		"--attack", "hold,slow-hello", "--connections", "50", "--duration", "2500ms", "--floor", "1s", "--json")
	if code := flood.wait(); code != 0 {
		t.Fatalf("exit code %d", code)
	}
	var report struct {
		Held    bool
		Attacks []struct {
			Attack   string
			Attempts int
			Ended    struct {
				Count  int
				Median float64 `json:"median_us"`
			}
			Server struct {
				Recovered *float64 `json:"recovered_seconds"`
			}
		}
	}
	if err := json.Unmarshal([]byte(flood.stdout.String()), &report); err != nil || !report.Held || len(report.Attacks) != 2 {
		t.Fatalf("%v: %+v", err, report)
	}
	for _, a := range report.Attacks {
		median := time.Duration(a.Ended.Median) * time.Microsecond
		if a.Ended.Count < 50 || (median-2*time.Second).Abs() > 400*time.Millisecond || a.Server.Recovered == nil {
			t.Errorf("%+v", a)
		}
	}
}

func TestGuideToFlood(t *testing.T) {
	t.Parallel()
	g := newGuide(t, "flood.md", "nobody", "nobody", "no.example.com", "8080")
	g.has = map[string]int{"console": 1}
	g.play()
}

// TestAttackersEndWithTheirFlood, however that ends.
func TestAttackersEndWithTheirFlood(t *testing.T) {
	t.Parallel()
	target := start(t, free...)
	flood := start(t, "flood", "--target", target.address(), "--attack", "hold", "--connections", "50", "--duration", "1m")
	connected := func() float64 { return target.scrape().of("levee_connections_active") }
	eventually(t, "the attackers are there", func() bool { return connected() >= 50 })
	flood.signal(os.Kill)
	eventually(t, "the attackers are gone", func() bool { return connected() == 0 })
}
