package consul_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/levee-net/levee/upstream"
	"github.com/levee-net/levee/upstream/consul"
)

// There is no Consul here. What an agent says is written down instead, as it is on
// the wire: JSON, X-Consul-Index, and an answer that comes when the index has risen.

// An agent is a Consul agent that knows one service.
type agent struct {
	t *testing.T

	mu      sync.Mutex
	index   uint64
	entries []string
	down    bool
	waits   []string      // the indexes that it has been asked with
	more    chan struct{} // closed when something is new
}

func newAgent(t *testing.T, entries ...string) *agent {
	return &agent{t: t, index: 10, entries: entries, more: make(chan struct{})}
}

func (a *agent) change(f func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	f()
	close(a.more)
	a.more = make(chan struct{})
}

func (a *agent) become(index uint64, entries ...string) {
	a.change(func() { a.index, a.entries = index, entries })
}

func (a *agent) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	if r.URL.Path != "/v1/health/service/db" || query.Get("passing") != "1" || query.Get("tag") != "replica" || r.Header.Get("X-Consul-Token") != "secret" {
		a.t.Errorf("asked for %s with %v", r.URL, r.Header)
	}
	wait, _ := strconv.ParseUint(query.Get("index"), 10, 64)
	a.mu.Lock()
	a.waits = append(a.waits, query.Get("index"))
	for wait != 0 && a.index == wait && !a.down {
		more := a.more
		a.mu.Unlock()
		select {
		case <-more:
		case <-r.Context().Done():
			return
		}
		a.mu.Lock()
	}
	defer a.mu.Unlock()
	if a.down {
		w.WriteHeader(http.StatusInternalServerError)
		fmt.Fprint(w, "No cluster leader")
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Consul-Index", strconv.FormatUint(a.index, 10))
	fmt.Fprintf(w, "[%s]", strings.Join(a.entries, ","))
}

// entry is an instance as the health endpoint tells it.
func entry(node, address string, port, weight int) string {
	return fmt.Sprintf(`{"Node":{"ID":"40e4a748","Node":"node-1","Address":%q,"Datacenter":"dc1","TaggedAddresses":{"lan":%[1]q},"Meta":{},"CreateIndex":5,"ModifyIndex":6},`+
		`"Service":{"ID":"db-%d","Service":"db","Tags":["replica"],"Address":%q,"Meta":null,"Port":%[2]d,"Weights":{"Passing":%[4]d,"Warning":1},"EnableTagOverride":false,"CreateIndex":8,"ModifyIndex":9},`+
		`"Checks":[{"Node":"node-1","CheckID":"service:db","Name":"tcp","Status":"passing","ServiceID":"db","ServiceName":"db"}]}`,
		node, port, address, weight)
}

// A run is a running source, and what it has told.
type run struct {
	t        *testing.T
	updates  chan string
	problems chan error
}

func start(t *testing.T, a *agent) *run {
	t.Helper()
	server := httptest.NewServer(a)
	t.Cleanup(server.Close)
	r := &run{t, make(chan string, 100), make(chan error, 100)}
	config := &api.Config{Address: server.URL, Token: "secret"}
	where := &consul.Service{Name: "db", Tag: "replica", Config: config, Problem: func(err error) { r.problems <- err }}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- where.Run(ctx, r.update) }() // until the clean-up
	t.Cleanup(func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("Run returned %v", err)
		}
		if config.Transport != nil || config.Scheme != "" {
			t.Errorf("the configuration has become %+v", config)
		}
	})
	return r
}

func (r *run) update(servers []upstream.Server) {
	var texts []string
	for _, s := range servers {
		texts = append(texts, fmt.Sprintf("%s*%d", s.Name, s.Weight))
	}
	r.updates <- strings.Join(texts, " ")
}

// expect wants the next update to be this.
func (r *run) expect(want string) {
	r.t.Helper()
	select {
	case got := <-r.updates:
		if got != want {
			r.t.Fatalf("told %s, want %s", got, want)
		}
	case <-time.After(30 * time.Second):
		r.t.Fatalf("never told %s", want)
	}
}

func TestInstancesAreToldWhenTheyChange(t *testing.T) {
	t.Parallel()
	a := newAgent(t,
		entry("10.0.0.1", "", 5432, 1),
		entry("10.0.0.2", "2001:db8::2", 5433, 10),
		entry("10.0.0.3", "", 0, 1),    // nowhere
		entry("10.0.0.1", "", 5432, 1), // once more
	)
	r := start(t, a)
	r.expect("10.0.0.1:5432*1 [2001:db8::2]:5433*10")
	a.become(11, entry("10.0.0.2", "2001:db8::2", 5433, 10), entry("10.0.0.1", "", 5432, 1)) // the same
	a.become(12, entry("10.0.0.1", "", 5432, 0))
	r.expect("10.0.0.1:5432*1")
	a.become(13)
	r.expect("")
	a.become(14, entry("10.0.0.4", "", 5432, 1))
	r.expect("10.0.0.4:5432*1")
}

func TestIndexThatGoesBackIsForgotten(t *testing.T) {
	t.Parallel()
	a := newAgent(t, entry("10.0.0.1", "", 5432, 1))
	r := start(t, a)
	r.expect("10.0.0.1:5432*1")
	a.become(3, entry("10.0.0.2", "", 5432, 1)) // restored from a snapshot
	r.expect("10.0.0.2:5432*1")
	a.become(4, entry("10.0.0.3", "", 5432, 1))
	r.expect("10.0.0.3:5432*1")
	a.mu.Lock()
	defer a.mu.Unlock()
	if !slices.Equal(a.waits[:3], []string{"", "10", ""}) {
		t.Errorf("asked with indexes %q", a.waits)
	}
}

func TestWhileConsulIsDownTheServersAreKept(t *testing.T) {
	t.Parallel()
	a := newAgent(t, entry("10.0.0.1", "", 5432, 1))
	r := start(t, a)
	r.expect("10.0.0.1:5432*1")
	a.change(func() { a.down = true })
	if err := <-r.problems; !strings.HasPrefix(err.Error(), "service db: ") || !strings.Contains(err.Error(), "No cluster leader") {
		t.Errorf("problem: %v", err)
	}
	a.change(func() { a.down, a.entries = false, []string{entry("10.0.0.2", "", 5432, 1)} })
	r.expect("10.0.0.2:5432*1") // though the index has not risen, and nothing in between
}

// A deafTransport answers nothing, and counts how often it is asked.
type deafTransport struct{ asked atomic.Int64 }

func (d *deafTransport) RoundTrip(*http.Request) (*http.Response, error) {
	d.asked.Add(1)
	return nil, errors.New("no route to host")
}

func TestConsulThatDoesNotAnswerIsAskedLessAndLess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var deaf deafTransport
		where := &consul.Service{Name: "db", Config: &api.Config{HttpClient: &http.Client{Transport: &deaf}}}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
		defer cancel()
		if err := where.Run(ctx, func([]upstream.Server) { t.Error("told") }); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Run returned %v", err)
		}
		if n := deaf.asked.Load(); n < 10 || n > 30 {
			t.Errorf("asked %d times in 5 minutes", n)
		}
	})
}

func TestIndexOfZeroIsNotAskedInALoop(t *testing.T) {
	t.Parallel()
	a := newAgent(t, entry("10.0.0.1", "", 5432, 1))
	a.index = 0
	r := start(t, a)
	r.expect("10.0.0.1:5432*1")
	began := time.Now()
	a.become(0, entry("10.0.0.2", "", 5432, 1))
	r.expect("10.0.0.2:5432*1")
	a.mu.Lock()
	defer a.mu.Unlock()
	if most := 2 + int(time.Since(began)/(200*time.Millisecond)); len(a.waits) > most {
		t.Errorf("asked %d times in %v", len(a.waits), time.Since(began))
	}
}

func TestAddressThatIsNoneEndsTheRun(t *testing.T) {
	where := &consul.Service{Name: "db", Config: &api.Config{Address: "ftp://127.0.0.1"}}
	if err := where.Run(t.Context(), nil); err == nil || errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}
