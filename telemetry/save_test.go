package telemetry_test

import (
	"crypto/tls"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"google.golang.org/protobuf/proto"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/leveetest"
	"github.com/levee-net/levee/telemetry"
)

// A process is servers, and the metrics of them.
type process struct {
	registry *prometheus.Registry
	metrics  *telemetry.Metrics
}

func newProcess() *process {
	p := &process{registry: prometheus.NewPedanticRegistry()}
	p.metrics = telemetry.NewMetrics(p.registry)
	return p
}

func (p *process) serve(t *testing.T, srv *levee.Server) *leveetest.Listener {
	srv.Trace, srv.Logger = p.metrics.Trace(), discard
	p.metrics.Watch(srv)
	return serve(t, srv)
}

// growing are the metrics that must not fall.
func (p *process) growing(t *testing.T) map[string]*dto.MetricFamily {
	t.Helper()
	all := make(map[string]*dto.MetricFamily)
	for _, f := range gather(t, p.registry) {
		if f.GetType() != dto.MetricType_GAUGE {
			all[f.GetName()] = f
		}
	}
	return all
}

func (p *process) save(t *testing.T) []byte {
	t.Helper()
	saved, err := p.metrics.Save()
	if err != nil {
		t.Fatal(err)
	}
	return saved
}

func (p *process) restore(t *testing.T, saved []byte) {
	t.Helper()
	if err := p.metrics.Restore(saved); err != nil {
		t.Fatal(err)
	}
}

func wantSame(t *testing.T, got, want map[string]*dto.MetricFamily) {
	t.Helper()
	if len(got) != len(want) || len(got) < 5 {
		t.Errorf("%d metrics, want %d", len(got), len(want))
	}
	for name := range want {
		if !proto.Equal(got[name], want[name]) {
			t.Errorf("%s is\n%v, want\n%v", name, got[name], want[name])
		}
	}
}

// happen has all sorts of things happen to connections of a server.
func happen(t *testing.T, l *leveetest.Listener, client *tls.Config) {
	for _, text := range []string{"e", "p", "b", "xhello"} {
		c := tls.Client(dial(t, l), client)
		_, _ = io.WriteString(c, text)
		time.Sleep(123 * time.Millisecond) // virtual time
		_ = c.Close()
	}
	dial(t, l).Reset()
	time.Sleep(10 * time.Second) // virtual time
}

func TestCountersGoOnInAnotherProcess(t *testing.T) {
	ca := leveetest.NewCA(t)
	synctest.Test(t, func(t *testing.T) {
		public := func() *levee.Server {
			return &levee.Server{Name: "public", Handler: moody, TLSConfig: ca.ServerConfig("x"), Gate: &after{most: 100}}
		}
		before := newProcess()
		old := before.serve(t, public())
		gone := before.serve(t, &levee.Server{Name: "gone", Handler: moody, TLSConfig: ca.ServerConfig("x")})
		happen(t, old, ca.ClientConfig("x"))
		saved := before.save(t)
		want := before.growing(t)
		happen(t, gone, ca.ClientConfig("x"))

		now := newProcess()
		l := now.serve(t, public())
		now.restore(t, saved)
		got := now.growing(t)
		for _, all := range []map[string]*dto.MetricFamily{got, want} { // of one name, as there are no others now
			for _, f := range all {
				f.Metric = deleteFunc(f.Metric, func(m *dto.Metric) bool { return strings.Contains(m.String(), `"gone"`) })
			}
		}
		wantSame(t, got, want)

		// What happens here is added, and so is what goes on there, once.
		happen(t, l, ca.ClientConfig("x"))
		happen(t, old, ca.ClientConfig("x"))
		saved = before.save(t)
		now.restore(t, saved)
		now.restore(t, saved)
		families := gather(t, now.registry)
		if n := value(t, families, "levee_connections_accepted_total", "public"); n != 15 {
			t.Errorf("%v accepted, want 15", n)
		}
		if n := histogram(t, families, "levee_connection_duration_seconds").GetSampleCount(); n != 20 { // of all servers
			t.Errorf("%d have ended, want 20", n)
		}
		if n := value(t, families, "levee_handler_panics_total", "public"); n != 3 {
			t.Errorf("%v panics, want 3", n)
		}

		// The process after that has it all.
		next := newProcess()
		next.serve(t, public())
		want = now.growing(t)
		next.restore(t, now.save(t))
		wantSame(t, next.growing(t), want)
	})
}

func deleteFunc(all []*dto.Metric, del func(*dto.Metric) bool) (kept []*dto.Metric) {
	for _, m := range all {
		if !del(m) {
			kept = append(kept, m)
		}
	}
	return kept
}

func TestAServersCountsFromAnotherProcessEndWithIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		before, now := newProcess(), newProcess()
		happen(t, before.serve(t, &levee.Server{Name: "public", Handler: moody}), &tls.Config{InsecureSkipVerify: true})
		now.restore(t, before.save(t))
		accepted := func() float64 {
			return value(t, gather(t, now.registry), "levee_connections_accepted_total", "public")
		}
		one, other := &levee.Server{Name: "public", Handler: moody}, &levee.Server{Name: "public", Handler: moody}
		now.metrics.Watch(one)
		now.metrics.Watch(other)
		now.metrics.Unwatch(one)
		if n := accepted(); n != 5 {
			t.Errorf("%v accepted, want 5", n)
		}
		now.metrics.Unwatch(other)
		now.metrics.Watch(one)
		if n := accepted(); n != 0 {
			t.Errorf("%v accepted by another of the name, want 0", n)
		}
	})
}

func TestMetricsThatCannotBeReadChangeNothing(t *testing.T) {
	p := newProcess()
	before := p.growing(t)
	for _, text := range []string{"{", `{"version":9,"state":{}}`, `{"version":1,"state":{"servers":{"a":{"counts":{"accepted":1.5}}}}}`, strings.Repeat(" ", 16<<20+1)} {
		if err := p.metrics.Restore([]byte(text)); err == nil || !strings.HasPrefix(err.Error(), "metrics: ") {
			t.Errorf("%.50s: %v", text, err)
		}
	}
	p.restore(t, nil)
	wantSame(t, p.growing(t), before)
}

// Whatever is said, a scrape goes well and shows counts; and what is then saved shows the same in another process.
func FuzzRestoreMetrics(f *testing.F) {
	saved, _ := newProcess().metrics.Save()
	f.Add(saved)
	f.Add([]byte(`{"version":1,"state":{"servers":{"a":{"counts":{"accepted":-1,"read":9223372036854775807},"closed":{"drained":7,"x":1},"refused":{"limited":3}}},"histograms":{"duration":{"born":1,"sum":-5,"cells":{"-1":3,"9223372036854775807":9223372036854775807,"1000000":2}},"phase sniff":{"born":-1,"sum":9223372036854775807,"cells":{"7":-7}}}}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		p := newProcess()
		p.metrics.Watch(&levee.Server{Name: "a", Handler: moody})
		if p.metrics.Restore(b) != nil {
			return
		}
		p.restore(t, b) // the same again is no more
		got := p.growing(t)
		for name, family := range got {
			for _, m := range family.Metric {
				if m.GetCounter().GetValue() < 0 || m.GetHistogram().GetSampleSum() < 0 || m.GetHistogram().GetSampleCount() > 1<<60 {
					t.Fatalf("%s: %v", name, m)
				}
			}
		}
		q := newProcess()
		q.metrics.Watch(&levee.Server{Name: "a", Handler: moody})
		q.restore(t, p.save(t))
		wantSame(t, q.growing(t), got)
	})
}
