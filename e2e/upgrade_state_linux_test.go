package e2e

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// counts reports whether a metric never goes down as long as levee is there, whichever process that is.
func counts(name string) bool {
	name, _, _ = strings.Cut(name, "{")
	if !strings.HasPrefix(name, "levee_") {
		return false // what the process uses
	}
	for _, kind := range []string{"_total", "_count", "_bucket", "_sum"} {
		if strings.HasSuffix(name, kind) {
			return true
		}
	}
	return false
}

// A monitor scrapes all the time.
type monitor struct {
	scrapes int
	wrong   []string
	leave   chan struct{}
	left    chan struct{}
}

func (l *lineage) watch() *monitor {
	m := &monitor{leave: make(chan struct{}), left: make(chan struct{})}
	url := l.admin("/metrics")
	go func() { // ends with leave
		defer close(m.left)
		most := make(scrape)
		for {
			status, body, err := fetch(l.t.Context(), http.MethodGet, url, patience)
			if m.scrapes++; err != nil || status != http.StatusOK {
				m.wrong = append(m.wrong, fmt.Sprintf("scrape %d: status %d, %v", m.scrapes, status, err))
			}
			now := newScrape(body)
			for name, before := range most {
				if after, there := now[name]; err == nil && (!there || after < before) {
					m.wrong = append(m.wrong, fmt.Sprintf("scrape %d: %s was %v, and is %v (there: %t)", m.scrapes, name, before, after, there))
				}
			}
			for name, value := range now {
				if counts(name) {
					most[name] = value
				}
			}
			select {
			case <-m.leave:
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
	}()
	return m
}

func (m *monitor) ends(t *testing.T) {
	t.Helper()
	close(m.leave)
	<-m.left
	t.Logf("%d scrapes", m.scrapes)
	for _, what := range m.wrong[:min(len(m.wrong), 20)] {
		t.Error(what)
	}
	if len(m.wrong) > 20 {
		t.Errorf("and %d more", len(m.wrong)-20)
	}
}

// A tally is what clients know of themselves.
type tally struct{ conns, bytes atomic.Int64 }

// busy has clients come and go, and talk on connections that stay, until it is stopped.
func (ta *tally) busy(t *testing.T, address string, chats []*chat) (stop func()) {
	t.Helper()
	var all sync.WaitGroup
	leave := make(chan struct{})
	until := func(do func() error) {
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-leave:
				return
			case <-tick.C:
			}
			if err := do(); err != nil {
				t.Error(err)
				return
			}
			ta.bytes.Add(3)
		}
	}
	all.Go(func() { // one comes after the other
		until(func() error {
			ta.conns.Add(1)
			return echoes(address)
		})
	})
	all.Go(func() { // they take turns
		n := 0
		until(func() error {
			n++
			return chats[n%len(chats)].round()
		})
	})
	return func() {
		close(leave)
		all.Wait()
	}
}

// A told is a connection as the API tells of it.
type told struct {
	ID       uint64    `json:"id"`
	Listener string    `json:"listener"`
	Client   string    `json:"client"`
	Local    string    `json:"local"`
	Accepted time.Time `json:"accepted"`
	Phase    string    `json:"phase"`
	Engine   string    `json:"engine"`
	Route    string    `json:"route"`
	Upstream string    `json:"upstream"`
	Server   string    `json:"server"`
	In       int64     `json:"in"`
	Out      int64     `json:"out"`
}

// connections are those that are open, by their clients' addresses.
func (l *lineage) connections() map[string]told {
	l.t.Helper()
	status, body := get(l.t, l.admin("/api/v1/connections?limit=1000"))
	var list struct{ Connections []told }
	if err := json.Unmarshal([]byte(body), &list); err != nil || status != http.StatusOK {
		l.t.Fatalf("%d %s: %v", status, body, err)
	}
	all := make(map[string]told)
	for _, c := range list.Connections {
		all[c.Client] = c
	}
	return all
}

func TestCountsAndConnectionsAreTheSameInTheNewProcess(t *testing.T) {
	t.Parallel()
	const upgrades = 3
	echo := answering(t, echoing)
	configuration := `version: 1
admin: {listen: "127.0.0.1:0"}
overload: {mode: off}
upgrade: {settle: 100ms, probation: 300ms}
limits: {deny: [192.0.2.1]}
listeners:
  - name: main
    listen: ["127.0.0.1:0"]
    routes:
      - {name: special, match: {source: 127.0.0.3}, upstream: servers}
      - {name: usual, match: {source: 127.0.0.0/30}, upstream: servers}
      - {name: direct, handler: echo}
upstreams:
  - {name: servers, servers: ["` + echo + `"], balance: round_robin, health: {interval: off}}
`
	path := write(t, "levee.yaml", configuration)
	l := begin(t, path)
	address := l.address()
	var (
		ta    tally
		chats []*chat
	)
	for i := range 30 {
		c, err := dialFrom(fmt.Sprintf("127.0.0.%d", 2+i%3), address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		chats = append(chats, &chat{Conn: c})
		if err := chats[i].round(); err != nil {
			t.Fatal(err)
		}
		ta.conns.Add(1)
		ta.bytes.Add(3)
	}
	quiet := func(when string) {
		t.Helper()
		bytes := func(s scrape, direction string) float64 {
			return s[`levee_bytes_total{direction="`+direction+`",listener="main"}`]
		}
		var s scrape
		late := time.Now().Add(5 * time.Second)
		for {
			s = l.scrape()
			if s.addsUp() && s.of("levee_connections_accepted_total") == float64(ta.conns.Load()) && s.of("levee_connections_active") == float64(len(chats)) &&
				bytes(s, "in") == float64(ta.bytes.Load()) && bytes(s, "out") == float64(ta.bytes.Load()) {
				return
			}
			if time.Now().After(late) {
				break
			}
			<-time.After(10 * time.Millisecond)
		}
		t.Errorf("%s: %v accepted, %v active, %v bytes in, %v out; want %d, %d, %d and as many; it adds up: %t", when, s.of("levee_connections_accepted_total"),
			s.of("levee_connections_active"), bytes(s, "in"), bytes(s, "out"), ta.conns.Load(), len(chats), ta.bytes.Load(), s.addsUp())
	}
	quiet("before")
	monitor := l.watch()
	// What a pool and a list have counted goes on when others take their place, in this process and the next.
	changed := strings.NewReplacer("round_robin", "p2c", "192.0.2.1", "192.0.2.2").Replace(configuration)
	if err := os.WriteFile(path, []byte(changed), 0o600); err != nil {
		t.Fatal(err)
	}
	l.signal(syscall.SIGHUP)
	l.logged("reloaded")
	for n := range upgrades {
		stop := ta.busy(t, address, chats)
		<-time.After(200 * time.Millisecond)
		stop()
		quiet(fmt.Sprintf("before upgrade %d", n+1))
		before, old := l.connections(), l.mustTell().PID
		if n == 0 { // the others are busy in the middle of it
			l.succeeds()
		} else {
			stop := ta.busy(t, address, chats)
			l.succeeds()
			stop()
		}
		l.gone(old)
		quiet(fmt.Sprintf("after upgrade %d", n+1))
		after, differ := l.connections(), 0
		for client, was := range before {
			is := after[client]
			if n > 0 { // what it has moved since
				is.In, is.Out = was.In, was.Out
			}
			if is != was {
				differ++
				t.Logf("upgrade %d: the connection was\n%+v, and is\n%+v", n+1, was, is)
			}
			if differ > 2 {
				break
			}
		}
		if differ > 0 {
			t.Errorf("upgrade %d: connections are told of differently", n+1)
		}
		if len(before) != len(chats) || len(after) != len(chats) {
			t.Errorf("upgrade %d: %d connections before, %d after", n+1, len(before), len(after))
		}
	}
	s := l.scrape()
	if done, moved := s[`levee_upgrades_total{result="done"}`], s["levee_handed_over_connections_total"]; done != upgrades || moved < upgrades*float64(len(chats)) {
		t.Errorf("%v upgrades and %v connections that moved are counted", done, moved)
	}
	eventually(t, "each process has read its files when its turn came, and the count of that goes on", func() bool {
		return l.scrape()[`levee_reloads_total{result="ok"}`] == 1+upgrades
	})
	monitor.ends(t)
	upstream := func(direction string) float64 {
		return l.scrape()[fmt.Sprintf("levee_upstream_bytes_total{direction=%q,server=%q,upstream=\"servers\"}", direction, echo)]
	}
	newer := make(map[uint64]bool) // an id is nobody else's
	for _, c := range chatsOn(t, address, 5) {
		newer[l.connections()[c.LocalAddr().String()].ID] = true
	}
	for _, c := range chats {
		if id := l.connections()[c.LocalAddr().String()].ID; id == 0 || newer[id] {
			t.Errorf("id %d", id)
		}
	}
	direct := 0 // bytes that no upstream has seen
	for i, c := range chats {
		c.Close()
		if i%3 == 2 {
			direct += 3 * c.rounds
		}
	}
	eventually(t, "they are gone", func() bool { return l.scrape().of("levee_connections_active") == 5 })
	proxied := float64(int(ta.bytes.Load()) - direct)
	if sent, received := upstream("sent"), upstream("received"); sent != proxied || received != proxied {
		t.Errorf("the upstream counts %v bytes that were sent and %v that were received, want %v", sent, received, proxied)
	}
}

func TestABanHoldsAndATicketResumesInTheNewProcess(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	l := begin(t, s.put("levee.yaml", []byte(`version: 1
admin: {listen: "127.0.0.1:0"}
overload: {mode: off}
upgrade: {settle: 100ms, probation: 300ms}
listeners:
  - name: main
    listen: ["127.0.0.1:0"]
    tls: {certificates: [{cert: a.pem, key: a-key.pem}]}
    routes: [{handler: echo}]
`)))
	address := l.address()
	session := new(anySession)
	config := s.as("a.example")
	config.ClientSessionCache = session
	c, err := secured(address, config)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	early := *session
	if early.last == nil || c.ConnectionState().DidResume {
		t.Fatal("there is no ticket")
	}
	if text, code := l.operator("ban", "127.0.0.64/26", "--for", "1h", "--why", "it floods"); code != 0 {
		t.Fatal(text)
	}
	_, was := l.operator("bans")
	for range 2 {
		old := l.mustTell().PID
		l.succeeds()
		l.gone(old)
	}
	if _, ok := served(t, "127.0.0.66", address); ok {
		t.Error("who was banned is served")
	}
	if text, code := l.operator("bans"); code != was || !strings.Contains(text, "127.0.0.64/26  enforce  ") || !strings.Contains(text, "it floods") {
		t.Errorf("%d %s", code, text)
	}
	config.ClientSessionCache = &early
	c, err = secured(address, config)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if !c.ConnectionState().DidResume {
		t.Error("the ticket is not taken")
	}
	if text, code := l.operator("unban", "127.0.0.64/26"); code != 0 {
		t.Error(text)
	}
}

func TestWhatCannotMoveFinishesInTheOldProcess(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	l := begin(t, s.put("levee.yaml", []byte(`version: 1
admin: {listen: "127.0.0.1:0"}
overload: {mode: off}
upgrade: {settle: 100ms, probation: 300ms}
drain: {timeout: 20s}
listeners:
  - name: plain
    listen: ["127.0.0.1:0"]
    routes: [{match: {protocol: http}, handler: hello}, {handler: echo}]
  - name: secure
    listen: ["127.0.0.1:0"]
    tls: {certificates: [{cert: a.pem, key: a-key.pem}]}
    routes: [{match: {protocol: http}, handler: hello}, {handler: echo}]
`)))
	old := l.pid()
	moves := chatsOn(t, l.addressOf(0), 3)
	stays := tls.Client(dial(t, l.addressOf(1)), s.as("a.example"))
	if _, err := io.WriteString(stays, "GET / HTTP/1.1\r\nHo"); err != nil { // what waits for a request could leave
		t.Fatal(err)
	}
	eventually(t, "all are in", func() bool { return len(l.connections()) == 4 })
	u := l.succeeds()
	if u.Moved != 3 || u.Left != 1 {
		t.Errorf("%+v", u)
	}
	if _, err := roundOfAll(moves); err != nil {
		t.Error(err)
	}
	eventually(t, "the new process tells of the old one", func() bool { // which reports now and then
		now := l.mustTell()
		return now.PID == u.PID && now.Predecessor != nil && now.Predecessor.PID == old && !now.Predecessor.Gone && now.Predecessor.Left == 1 && now.Predecessor.Adopted == 3
	})
	if n := len(l.processes()); n != 2 {
		t.Errorf("%d processes while one connection finishes", n)
	}
	if _, err := io.WriteString(stays, "st: x\r\n\r\n"); err != nil {
		t.Error(err)
	}
	answer := make([]byte, 15)
	if _, err := io.ReadFull(stays, answer); err != nil || string(answer) != "HTTP/1.1 200 OK" {
		t.Errorf("%q, %v", answer, err)
	}
	finished := time.Now()
	stays.Close()
	if code := l.gone(old); code != 0 || time.Since(finished) > time.Second {
		t.Errorf("exit code %d, %v after its last connection", code, time.Since(finished))
	}
	eventually(t, "it is known to be gone", func() bool { return l.mustTell().Predecessor.Gone })
	if _, err := roundOfAll(moves); err != nil {
		t.Error(err)
	}
}

// The admin port moves too: whoever asks is answered, all the time, and learns which process answers.
func TestTheProcessIDFileNamesTheNewProcessBeforeTheOldOneIsGone(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "levee.pid")
	l := begin(t, config(t, upgrading("settle: 100ms, probation: 300ms, pid_file: "+file), ""))
	names := func() int {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var pid int
		if _, err := fmt.Sscanf(string(text), "%d\n", &pid); err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		return pid
	}
	ready := l.admin("/readyz")
	eventually(t, "it is ready", func() bool {
		status, _, err := fetch(t.Context(), http.MethodGet, ready, patience)
		return err == nil && status == http.StatusOK
	})
	if n := names(); n != l.pid() {
		t.Errorf("the file names %d, and %d serves", n, l.pid())
	}
	for range 2 {
		old := l.mustTell().PID
		done := make(chan upgrade, 1)
		go func() { // ends with the upgrade
			_, u, err := l.asks(t.Context())
			if err != nil {
				t.Error(err)
			}
			done <- u
		}()
		for looks := 0; ; looks++ {
			gone := !l.has(old)
			named := names()
			if gone && named == old {
				t.Fatal("the old one is gone, and named still")
			}
			if gone {
				break
			}
			if looks > 10_000 {
				t.Fatal("the old one does not go")
			}
			<-time.After(time.Millisecond)
		}
		if u := <-done; u.State != "done" || u.PID != names() {
			t.Errorf("%+v, and the file names %d", u, names())
		}
	}
	if _, err := net.Dial("tcp", l.address()); err != nil {
		t.Error(err)
	}
}
