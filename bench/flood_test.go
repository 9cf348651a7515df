//go:build linux

package main

import (
	"encoding/json"
	"strings"
	"testing"
)

func TestFloodTableHasALineForEachAttackThatIsOne(t *testing.T) {
	results := map[string]floodResult{}
	for server, text := range map[string]string{
		"gonet": `{"attacks": [
			{"attack": "hold", "during": {"ok": 1, "all": {"p99_us": 1300}}},
			{"attack": "slow-hello", "skipped": "the server does not speak TLS"},
			{"attack": "slow-header", "skipped": "no header"}]}`,
		"levee": `{"attacks": [
			{"attack": "hold", "during": {"ok": 0.905, "all": {"p99_us": 2000000}}, "complaints": ["slow"]},
			{"attack": "slow-hello", "during": {"ok": 1, "all": {"p99_us": 5000}}},
			{"attack": "slow-header", "skipped": "no header"}]}`,
	} {
		var r floodResult
		if err := json.Unmarshal([]byte(text), &r); err != nil {
			t.Fatal(err)
		}
		results[server] = r
	}
	var table strings.Builder
	err := printFlood(&table, []server{{peer: peer{key: "gonet", name: "Go net"}}, {peer: peer{key: "levee", name: "levee"}}}, results)
	const want = `| attack | Go net | levee |
| --- | --- | --- |
| hold | 1.3 ms | **90.5 % ok, 2000.0 ms** |
| slow-hello |  | 5.0 ms |
| held | 1 of 1 | 1 of 2 |
`
	if err != nil || table.String() != want {
		t.Errorf("%v\n%s\nwant\n%s", err, &table, want)
	}
}
