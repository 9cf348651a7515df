package app

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/internal/admin"
	"github.com/levee-net/levee/overload"
	"github.com/levee-net/levee/telemetry"
	"github.com/levee-net/levee/upstream"
)

func TestWhatHappensIsRecordedByItsKind(t *testing.T) {
	r := newRecord()
	r.reloaded(false, 1, nil)
	r.reloaded(true, 2, nil)
	r.reloaded(false, 2, errors.New("a.pem: no such file\nb.pem: no such file"))
	r.banned(3, "enforce")
	r.bannedByHand("192.0.2.0/24", 10*time.Minute, "too loud")
	r.unbanned("192.0.2.0/24")
	r.serverDown("db", "db-1", errors.New("connection refused"))
	r.serverUp("db", "db-1")
	r.breakerChanged("db", "db-1", upstream.BreakerClosed, upstream.BreakerOpen)
	r.overloaded(overload.State{Pressure: levee.RefuseNew, Since: time.Now()})
	r.overloaded(overload.State{TurnedAway: 0.25, Since: time.Now()})
	r.overloaded(overload.State{})
	r.draining(25 * time.Second)
	r.drained(levee.DrainReport{Drained: 7, Gone: 3, Cut: 2})
	want := []string{
		"reload: certificates, client policies, tickets and lists are read again",
		"reload: generation 2 of the configuration is in force",
		"reload: not reloaded; what was in force before is kept: a.pem: no such file (and 1 more)",
		"ban: 3 clients banned that were refused again and again (enforce)",
		"ban: 192.0.2.0/24 banned for 10m: too loud",
		"ban: 192.0.2.0/24 is not banned any more",
		"health: upstream db: server db-1 is down: connection refused",
		"health: upstream db: server db-1 is up",
		"breaker: upstream db: server db-1: breaker open, was closed",
		"overload: overload: refuse_new, by memory",
		"overload: overload: none, by memory; 25 % of newcomers are turned away",
		"overload: no overload any more",
		"drain: draining, for 25s at most",
		"drain: drained: of the connections 7 left, 3 ended by themselves, 2 were cut",
	}
	events := r.Events(0)
	for i, e := range events {
		got := e.Kind + ": " + e.Text
		if i >= len(want) || got != want[i] || e.ID != uint64(i+1) {
			t.Errorf("%d: %s", e.ID, got)
		}
	}
	if len(events) != len(want) {
		t.Errorf("%d events, want %d", len(events), len(want))
	}
	record{}.drained(levee.DrainReport{}) // a record of nothing does not mind
}

func TestAStoryIsShownAsTheAPIHasIt(t *testing.T) {
	story := levee.Story{
		Moments: levee.Moments{Routed: time.Second, DialBegun: time.Second, DialDone: 2 * time.Second},
		Route:   "all", Upstream: "db", Server: "db-1", Tries: 2, Engine: "loop",
		TLSVersion: 0x304, ServerName: "x.example.com", ALPN: "h2",
	}
	e := eventOf(&telemetry.Event{
		ID: 7, Kind: telemetry.KindClosed, Text: "conn 3 ended", Reason: levee.UpstreamReset,
		Ended: &telemetry.Ended{
			ID: 3, Listener: "main", Client: "192.0.2.1:1", Peer: "10.0.0.1:1", Local: "10.0.0.2:443", Duration: 5 * time.Second,
			Reason: levee.UpstreamReset, Err: "reset", Read: 1, Written: 2, Story: story, Spans: story.Spans(nil, 5*time.Second),
			TCP: &levee.TCPInfo{RTT: 20 * time.Millisecond, Retransmits: 4}, TraceID: "abc",
		},
	})
	text, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`"id":7`, `"kind":"closed"`, `"conn":3`, `"reason":"upstream_reset"`, `"listener":"main"`, `"client":"192.0.2.1:1"`, `"peer":"10.0.0.1:1"`,
		`"phase":"serving"`, `"engine":"loop"`, `"tls":"TLS 1.3"`, `"sni":"x.example.com"`, `"alpn":"h2"`, `"route":"all"`, `"upstream":"db"`, `"server":"db-1"`,
		`"in":1`, `"out":2`, `"error":"reset"`, `"duration":5`, `"rtt":0.02`, `"retrans":4`, `"trace":"abc"`,
		`"phases":[{"phase":"route","at":0,"took":1},{"phase":"dial","at":1,"took":1},{"phase":"first_byte","at":2,"took":3}]`,
	} {
		if !strings.Contains(string(text), want) {
			t.Errorf("there is no %s in %s", want, text)
		}
	}
}

func TestWhatIsRecordedIsShownToOperators(t *testing.T) {
	r := newRecord()
	var events admin.Events = r
	_, _, more := events.After(0, 10)
	r.drained(levee.DrainReport{})
	<-more
	r.draining(time.Second)
	shown, lost, more := events.After(0, 10)
	if len(shown) != 2 || shown[0].ID != 1 || shown[1].ID != 2 || shown[1].Kind != kindDrain || lost != 0 || more != nil || events.Last() != 2 {
		t.Errorf("%+v, %d lost", shown, lost)
	}
}
