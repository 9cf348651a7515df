package discover_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
	"go.uber.org/goleak"

	"github.com/levee-net/levee/upstream"
	"github.com/levee-net/levee/upstream/discover"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A source is what is tested here.
type source interface {
	Run(ctx context.Context, update func([]upstream.Server)) error
}

// A run is a running source, and what it has told.
type run struct {
	t        *testing.T
	mu       sync.Mutex
	updates  []string
	problems []string
	told     chan struct{} // has a token after an update or a problem
}

func newRun(t *testing.T) *run { return &run{t: t, told: make(chan struct{}, 1)} }

// start runs the source until the test ends.
func (r *run) start(s source) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx, r.update) }() // until the clean-up
	r.t.Cleanup(func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			r.t.Errorf("Run returned %v", err)
		}
	})
}

func (r *run) update(servers []upstream.Server) { r.note(&r.updates, describe(servers)) }
func (r *run) problem(err error)                { r.note(&r.problems, err.Error()) }

func (r *run) note(list *[]string, text string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	*list = append(*list, text)
	select {
	case r.told <- struct{}{}:
	default:
	}
}

// describe writes servers as "name[address address] weight=2 tier=1, ...".
func describe(servers []upstream.Server) string {
	var texts []string
	for _, s := range servers {
		text := s.Name
		if len(s.Addresses) > 0 && !slices.Equal(s.Addresses, []string{s.Name}) {
			text += fmt.Sprint(s.Addresses)
		}
		if s.Weight > 0 {
			text += fmt.Sprintf(" weight=%d", s.Weight)
		}
		if s.Tier > 0 {
			text += fmt.Sprintf(" tier=%d", s.Tier)
		}
		texts = append(texts, text)
	}
	return strings.Join(texts, ", ")
}

// expect checks what has been told since the last time, in a bubble once nothing moves.
func (r *run) expect(updates ...string) {
	r.t.Helper()
	synctest.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	if !slices.Equal(r.updates, updates) {
		r.t.Errorf("told %q, want %q", r.updates, updates)
	}
	r.updates = nil
}

// expectProblems checks what Problem has been told since the last time.
func (r *run) expectProblems(problems ...string) {
	r.t.Helper()
	synctest.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	if !slices.Equal(r.problems, problems) {
		r.t.Errorf("problems\n%q, want\n%q", r.problems, problems)
	}
	r.problems = nil
}

func (r *run) lastProblem() string {
	r.t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.problems) == 0 {
		r.t.Fatal("no problem")
	}
	return r.problems[len(r.problems)-1]
}

// await waits, outside of bubbles, until the last of the updates, or of the problems if
// it is one, is this.
func (r *run) await(last string) {
	r.t.Helper()
	late := time.After(15 * time.Second)
	for {
		r.mu.Lock()
		ends := func(list []string) bool { return len(list) > 0 && list[len(list)-1] == last }
		come := ends(r.updates) || ends(r.problems)
		r.mu.Unlock()
		if come {
			return
		}
		select {
		case <-r.told:
		case <-late:
			r.t.Fatalf("told %q and %q, still not %q", r.updates, r.problems, last)
		}
	}
}

// A zone is a DNS server that knows some records.
type zone struct {
	mu      sync.Mutex
	records []dns.RR
	fails   map[uint16]int // questions of a type that get this RCODE
	silent  bool
	mute    uint16 // a type that it does not answer about
	partly  bool   // aliases are not followed
	asked   []string
}

func newZone(t *testing.T, records ...string) *zone {
	z := &zone{fails: make(map[uint16]int)}
	z.set(t, records...)
	return z
}

// set replaces all records, such as "db.example.com. 30 IN A 10.0.0.7".
func (z *zone) set(t *testing.T, records ...string) {
	t.Helper()
	z.mu.Lock()
	defer z.mu.Unlock()
	z.records = nil
	for _, text := range records {
		record, err := dns.NewRR(text)
		if err != nil {
			t.Fatal(err)
		}
		z.records = append(z.records, record)
	}
}

func (z *zone) fail(kind uint16, rcode int) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.fails[kind] = rcode
}

func (z *zone) shutUp(silent bool) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.silent = silent
}

func (z *zone) followPartly(partly bool) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.partly = partly
}

// questions returns what it has been asked since the last time, such as "db.example.com. A".
func (z *zone) questions() []string {
	synctest.Wait()
	z.mu.Lock()
	defer z.mu.Unlock()
	asked := z.asked
	z.asked = nil
	slices.Sort(asked)
	return asked
}

// answer returns nil for silence.
func (z *zone) answer(query *dns.Msg) *dns.Msg {
	z.mu.Lock()
	defer z.mu.Unlock()
	q := query.Question[0]
	z.asked = append(z.asked, q.Name+" "+dns.TypeToString[q.Qtype])
	if z.silent || z.mute == q.Qtype {
		return nil
	}
	answer := new(dns.Msg).SetReply(query)
	answer.Rcode = z.fails[q.Qtype]
	if answer.Rcode != dns.RcodeSuccess {
		return answer
	}
	exists := false
	for name, hops := q.Name, 0; name != "" && hops < 20; hops++ {
		alias := ""
		for _, record := range z.records {
			head := record.Header()
			if head.Rrtype == dns.TypeSOA || !strings.EqualFold(head.Name, name) {
				continue
			}
			exists = true
			if cname, ok := record.(*dns.CNAME); ok {
				alias = cname.Target
				answer.Answer = append(answer.Answer, record)
			}
			if head.Rrtype == q.Qtype {
				answer.Answer = append(answer.Answer, record)
			}
		}
		name = alias
		if z.partly {
			break
		}
	}
	if !exists {
		answer.Rcode = dns.RcodeNameError
	}
	for _, record := range z.records {
		switch {
		case record.Header().Rrtype == dns.TypeSOA && len(answer.Answer) == 0:
			answer.Ns = append(answer.Ns, record)
		case q.Qtype == dns.TypeSRV && strings.HasPrefix(record.Header().Name, "extra"):
			answer.Extra = append(answer.Extra, record)
		}
	}
	return answer
}

// resolver asks the zone over connections in memory, in virtual time.
func (z *zone) resolver(t *testing.T, config string) *discover.Resolver {
	return &discover.Resolver{
		ConfigFile: write(t, "resolv.conf", config),
		HostsFile:  write(t, "hosts", "127.0.0.1 localhost\n"),
		Dial: func(context.Context, string, string) (net.Conn, error) {
			c, server := net.Pipe()
			go z.serve(server) // until c is closed
			return c, nil
		},
	}
}

func (z *zone) serve(c net.Conn) {
	defer c.Close()
	conn := &dns.Conn{Conn: c}
	for {
		query, err := conn.ReadMsg()
		if err != nil {
			return
		}
		if answer := z.answer(query); answer != nil {
			_ = conn.WriteMsg(answer)
		}
	}
}

// write writes a file into a folder of the test's own.
func write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	rewrite(t, path, text)
	return path
}

// rewrite replaces a file as it should be done: at once.
func rewrite(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}
