package kubernetes_test

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
	"testing"
	"time"

	"k8s.io/client-go/rest"

	"github.com/levee-net/levee/upstream"
	"github.com/levee-net/levee/upstream/kubernetes"
)

// There is no cluster here. What the API server says is written down instead, as it is
// on the wire: lists, watches, bookmarks and its errors.

const path = "/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices"

// An event is what watchers are told.
type event struct {
	version int
	kind    string // ADDED, MODIFIED, DELETED
	slice   string // JSON, with VERSION for its version
}

// An api is an API server that knows one namespace's EndpointSlices.
type api struct {
	t   *testing.T
	old bool // a watch cannot begin with what there is

	mu      sync.Mutex
	version int
	events  []event
	oldest  int // versions before it are forgotten
	down    bool
	lists   int           // so many have been asked for
	watches int           // so many are open
	more    chan struct{} // closed when something is new
}

func newAPI(t *testing.T, old bool) *api {
	return &api{t: t, old: old, version: 100, more: make(chan struct{})}
}

func (a *api) change(f func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	f()
	close(a.more)
	a.more = make(chan struct{})
}

func (a *api) happens(kind, slice string) {
	a.change(func() {
		a.version++
		a.events = append(a.events, event{a.version, kind, slice})
	})
}

// disconnect ends all watches, and forgets all versions but the newest if it forgets.
// What happens meanwhile is told to nobody.
func (a *api) disconnect(forget bool, meanwhile func()) {
	a.change(func() { a.down = true })
	for {
		a.mu.Lock()
		open, more := a.watches, a.more
		a.mu.Unlock()
		if open == 0 {
			break
		}
		<-more
	}
	meanwhile()
	a.change(func() {
		a.down = false
		if forget {
			a.oldest = a.version
		}
	})
}

// present is what there is: the newest version of each slice.
func (a *api) present() (present []event) {
	for _, e := range a.events {
		present = slices.DeleteFunc(present, func(p event) bool { return nameOf(p.slice) == nameOf(e.slice) })
		if e.kind != "DELETED" {
			present = append(present, e)
		}
	}
	return present
}

func nameOf(slice string) string {
	_, after, _ := strings.Cut(slice, `"name":"`)
	name, _, _ := strings.Cut(after, `"`)
	return name
}

func (e event) json() string {
	return strings.ReplaceAll(e.slice, "VERSION", strconv.Itoa(e.version))
}

func (a *api) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	w.Header().Set("Content-Type", "application/json")
	if r.URL.Path != path || query.Get("labelSelector") != "kubernetes.io/service-name=db" {
		a.t.Errorf("asked for %s", r.URL)
	}
	a.mu.Lock()
	down := a.down
	a.mu.Unlock()
	switch {
	case down:
		fail(w, http.StatusServiceUnavailable, "ServiceUnavailable", "the API server is tired")
	case query.Get("watch") == "":
		a.list(w)
	case query.Get("sendInitialEvents") == "true" && a.old:
		fail(w, http.StatusUnprocessableEntity, "Invalid", "sendInitialEvents is forbidden")
	default:
		a.watch(w, r)
	}
}

func fail(w http.ResponseWriter, code int, reason, message string) {
	w.WriteHeader(code)
	fmt.Fprint(w, status(code, reason, message))
}

func status(code int, reason, message string) string {
	return fmt.Sprintf(`{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":%q,"reason":%q,"code":%d}`, message, reason, code)
}

func (a *api) list(w http.ResponseWriter) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.lists++
	var items []string
	for _, e := range a.present() {
		items = append(items, e.json())
	}
	fmt.Fprintf(w, `{"kind":"EndpointSliceList","apiVersion":"discovery.k8s.io/v1","metadata":{"resourceVersion":"%d"},"items":[%s]}`,
		a.version, strings.Join(items, ","))
}

func (a *api) watch(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	seen, _ := strconv.Atoi(query.Get("resourceVersion"))
	send := func(kind, object string) {
		fmt.Fprintf(w, `{"type":%q,"object":%s}`+"\n", kind, object)
	}
	a.change(func() { a.watches++ })
	defer a.change(func() { a.watches-- })
	a.mu.Lock()
	switch {
	case query.Get("sendInitialEvents") == "true":
		for _, e := range a.present() {
			send("ADDED", e.json())
		}
		seen = a.version
		send("BOOKMARK", fmt.Sprintf(`{"kind":"EndpointSlice","apiVersion":"discovery.k8s.io/v1","metadata":{"resourceVersion":"%d",`+
			`"annotations":{"k8s.io/initial-events-end":"true"}},"addressType":"","endpoints":null,"ports":null}`, a.version))
	case seen < a.oldest:
		a.mu.Unlock()
		send("ERROR", status(http.StatusGone, "Expired", "too old resource version"))
		return
	}
	a.mu.Unlock()
	for {
		a.mu.Lock()
		if a.down {
			a.mu.Unlock()
			return
		}
		for _, e := range a.events {
			if e.version > seen {
				seen = e.version
				send(e.kind, e.json())
			}
		}
		more := a.more
		a.mu.Unlock()
		w.(http.Flusher).Flush()
		select {
		case <-more:
		case <-r.Context().Done():
			return
		}
	}
}

// slice is an EndpointSlice as the control plane writes it.
func slice(name, family, port string, endpoints ...string) string {
	return fmt.Sprintf(`{"kind":"EndpointSlice","apiVersion":"discovery.k8s.io/v1",`+
		`"metadata":{"name":%q,"namespace":"shop","resourceVersion":"VERSION","labels":{"kubernetes.io/service-name":"db"}},`+
		`"addressType":%q,"ports":[{"name":%q,"port":5432,"protocol":"TCP"},{"name":"metrics","port":9187,"protocol":"TCP"}],"endpoints":[%s]}`,
		name, family, port, strings.Join(endpoints, ","))
}

func pod(name, address, conditions string) string {
	return fmt.Sprintf(`{"addresses":[%q],"conditions":{%s},"nodeName":"node-1","targetRef":{"kind":"Pod","namespace":"shop","name":%q}}`,
		address, conditions, name)
}

const ready = `"ready":true,"serving":true,"terminating":false`

// A run is a running source, and what it has told.
type run struct {
	t        *testing.T
	updates  chan string
	problems chan error
}

func start(t *testing.T, a *api, port string) *run {
	t.Helper()
	server := httptest.NewServer(a)
	t.Cleanup(server.Close)
	r := &run{t, make(chan string, 100), make(chan error, 100)}
	where := &kubernetes.Service{
		Namespace: "shop", Name: "db", Port: port,
		Config:  &rest.Config{Host: server.URL},
		Problem: func(err error) { r.problems <- err },
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- where.Run(ctx, r.update) }() // until the clean-up
	t.Cleanup(func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("Run returned %v", err)
		}
		a.change(func() { a.down = true }) // or the server waits for watches
	})
	return r
}

func (r *run) update(servers []upstream.Server) {
	var texts []string
	for _, s := range servers {
		texts = append(texts, fmt.Sprint(s.Name, s.Addresses))
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

func (r *run) expectProblem(part string) {
	r.t.Helper()
	select {
	case err := <-r.problems:
		if !strings.Contains(err.Error(), part) {
			r.t.Errorf("problem %v, want %s", err, part)
		}
	case <-time.After(30 * time.Second):
		r.t.Fatalf("no problem: %s", part)
	}
}

// both runs a test against an API server whose watches begin with what there is, and
// against one of before.
func both(t *testing.T, test func(t *testing.T, a *api)) {
	for _, old := range []bool{false, true} {
		t.Run(fmt.Sprintf("old=%v", old), func(t *testing.T) {
			t.Parallel()
			test(t, newAPI(t, old))
		})
	}
}

func TestPodsThatAreReadyAndStayAreServers(t *testing.T) {
	both(t, func(t *testing.T, a *api) {
		a.happens("ADDED", slice("db-v4", "IPv4", "postgresql",
			pod("db-1", "10.1.0.1", ready),
			pod("db-0", "10.1.0.10", ``), // nothing is known: as good as ready
			pod("db-2", "10.1.0.2", `"ready":false,"serving":false,"terminating":false`),
			pod("db-3", "10.1.0.3", `"ready":false,"serving":true,"terminating":true`),
			pod("db-4", "10.1.0.4", `"ready":true,"serving":true,"terminating":true`), // publishNotReadyAddresses
			`{"addresses":["192.0.2.1"]}`, // not a pod
		))
		a.happens("ADDED", slice("db-v6", "IPv6", "postgresql", pod("db-1", "fd00::1", ready)))
		a.happens("ADDED", slice("db-again", "IPv4", "postgresql", pod("db-1", "10.1.0.1", ready)))
		a.happens("ADDED", slice("db-names", "FQDN", "postgresql", pod("db-9", "db.example.com", ready)))
		r := start(t, a, "postgresql")
		const all = "192.0.2.1:5432[192.0.2.1:5432] db-0[10.1.0.10:5432] db-1[10.1.0.1:5432 [fd00::1]:5432]"
		r.expect(all)

		a.happens("DELETED", slice("db-again", "IPv4", "postgresql")) // no change
		a.happens("MODIFIED", slice("db-v6", "IPv6", "postgresql"))
		r.expect("192.0.2.1:5432[192.0.2.1:5432] db-0[10.1.0.10:5432] db-1[10.1.0.1:5432]")
		a.happens("DELETED", slice("db-v4", "IPv4", "postgresql"))
		r.expect("")
	})
}

func TestServiceWithoutEndpointsIsToldToo(t *testing.T) {
	both(t, func(t *testing.T, a *api) {
		r := start(t, a, "postgresql")
		r.expect("")
		a.happens("ADDED", slice("db-1", "IPv4", "postgresql", pod("db-0", "10.1.0.1", ready)))
		r.expect("db-0[10.1.0.1:5432]")
	})
}

func TestPortIsFoundByItsName(t *testing.T) {
	t.Parallel()
	a := newAPI(t, false)
	a.happens("ADDED", slice("db-1", "IPv4", "postgresql", pod("db-0", "10.1.0.1", ready)))
	start(t, a, "metrics").expect("db-0[10.1.0.1:9187]")
	r := start(t, a, "mysql")
	r.expect("")
	r.expectProblem(`service shop/db: db-1 has no port "mysql"`)
	r = start(t, a, "")
	r.expect("")
	r.expectProblem(`service shop/db: db-1 has no port ""`) // it has two

	a = newAPI(t, false)
	a.happens("ADDED", slice("db-1", "IPv4", "", pod("db-0", "10.1.0.1", ready)))
	start(t, a, "").expect("db-0[10.1.0.1:5432]")
}

func TestPortThatIsRenamedLosesNoServer(t *testing.T) {
	both(t, func(t *testing.T, a *api) {
		one, two := pod("db-0", "10.1.0.1", ready), pod("db-1", "10.1.0.2", ready)
		a.happens("ADDED", slice("db-1", "IPv4", "postgresql", one))
		r := start(t, a, "postgresql")
		r.expect("db-0[10.1.0.1:5432]")
		a.happens("MODIFIED", slice("db-1", "IPv4", "mysql", one))
		r.expectProblem(`service shop/db: db-1 has no port "postgresql"`)
		a.happens("MODIFIED", slice("db-1", "IPv4", "postgresql", two))
		r.expect("db-1[10.1.0.2:5432]") // and nothing in between
		a.happens("MODIFIED", slice("db-1", "IPv4", "mysql", pod("db-1", "10.1.0.2", `"ready":false`)))
		r.expect("") // with or without a port
	})
}

func TestChangesDuringADisconnectionAreNotMissed(t *testing.T) {
	both(t, func(t *testing.T, a *api) {
		a.happens("ADDED", slice("db-1", "IPv4", "postgresql", pod("db-0", "10.1.0.1", ready)))
		r := start(t, a, "postgresql")
		r.expect("db-0[10.1.0.1:5432]")
		a.disconnect(false, func() {
			a.happens("MODIFIED", slice("db-1", "IPv4", "postgresql", pod("db-0", "10.1.0.2", ready)))
		})
		r.expect("db-0[10.1.0.2:5432]")
	})
}

func TestVersionThatIsGoneIsListedAnew(t *testing.T) {
	both(t, func(t *testing.T, a *api) {
		a.happens("ADDED", slice("db-1", "IPv4", "postgresql", pod("db-0", "10.1.0.1", ready)))
		a.happens("ADDED", slice("db-2", "IPv4", "postgresql", pod("db-1", "10.1.0.2", ready)))
		r := start(t, a, "postgresql")
		r.expect("db-0[10.1.0.1:5432] db-1[10.1.0.2:5432]")
		a.disconnect(true, func() {
			a.happens("DELETED", slice("db-1", "IPv4", "postgresql"))
			a.happens("ADDED", slice("db-3", "IPv4", "postgresql", pod("db-2", "10.1.0.3", ready)))
		})
		r.expect("db-1[10.1.0.2:5432] db-2[10.1.0.3:5432]")
		a.mu.Lock()
		defer a.mu.Unlock()
		if a.old && a.lists < 2 {
			t.Errorf("%d lists", a.lists)
		}
	})
}

func TestWhileTheAPIServerIsDownTheServersAreKept(t *testing.T) {
	both(t, func(t *testing.T, a *api) {
		a.happens("ADDED", slice("db-1", "IPv4", "postgresql", pod("db-0", "10.1.0.1", ready)))
		r := start(t, a, "postgresql")
		r.expect("db-0[10.1.0.1:5432]")
		a.disconnect(true, func() { r.expectProblem("service shop/db: ") })
		a.happens("MODIFIED", slice("db-1", "IPv4", "postgresql", pod("db-0", "10.1.0.2", ready)))
		r.expect("db-0[10.1.0.2:5432]") // and nothing in between
	})
}

func TestOutsideOfAClusterThereIsNoClient(t *testing.T) {
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	err := (&kubernetes.Service{Name: "db"}).Run(t.Context(), nil)
	if !errors.Is(err, rest.ErrNotInCluster) {
		t.Errorf("got %v", err)
	}
}
