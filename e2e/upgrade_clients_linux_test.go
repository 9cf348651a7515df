package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// comesAndGoes makes a connection, has an echo, and leaves without a trace in the kernel: a minute of such clients is more than
// there are ports.
func comesAndGoes(address string) error {
	c, err := net.DialTimeout("tcp", address, patience)
	if err != nil {
		return err
	}
	defer reset(c)
	_ = c.SetDeadline(time.Now().Add(patience))
	return echoesOn(c)
}

func TestNewcomersDoNotNoticeUpgrades(t *testing.T) {
	besideOthers(t)
	const perSecond = 700
	upgrades := upgradeSized(t, "upgrades", 2, 20)
	each := upgradeSized(t, "time for each upgrade", time.Second, 3*time.Second)
	l := begin(t, config(t, quickly, ""))
	address := l.address()
	come := func(during func()) *outcome {
		ctx, cancel := context.WithCancel(t.Context())
		all := make(chan *outcome, 1)
		go func() { all <- atRate(ctx, perSecond, func() error { return comesAndGoes(address) }) }() // ends with ctx
		during()
		cancel()
		return <-all
	}
	before := come(func() { <-time.After(time.Duration(upgrades) * each) })
	during := come(func() {
		for range upgrades {
			next := time.After(each)
			l.succeeds()
			<-next
		}
	})
	for _, o := range []*outcome{before, during} {
		t.Logf("%d newcomers, %d failed; median %v, p99 %v, slowest %v", len(o.served)+len(o.refused), len(o.refused), quantile(o.served, 0.5), p99(o.served), slices.Max(o.served))
		if len(o.refused) > 0 {
			t.Errorf("%d of %d newcomers failed: %v", len(o.refused), len(o.served)+len(o.refused), o.failure)
		}
	}
	if want := int(float64(perSecond) * each.Seconds() * float64(upgrades)); len(during.served) < want*95/100 {
		t.Errorf("%d were served, want %d", len(during.served), want)
	}
	if more := slices.Max(during.served) - slices.Max(before.served); inFull() && more > 50*time.Millisecond {
		t.Errorf("the slowest newcomer took %v more than without upgrades", more)
	}
}

// parked are connections that have asked, and that nobody has accepted.
func parked(t *testing.T, address string, n int) (answered func() int) {
	t.Helper()
	conns := dialMany(t, address, n)
	for i, c := range conns {
		if _, err := fmt.Fprintf(c, "client %4d\n", i); err != nil {
			t.Fatal(err)
		}
	}
	return func() (good int) {
		late := time.Now().Add(patience)
		for i, c := range conns {
			want := fmt.Sprintf("client %4d\n", i)
			_ = c.SetDeadline(late)
			got := make([]byte, len(want))
			if _, err := io.ReadFull(c, got); err == nil && string(got) == want {
				good++
			} else if good == i { // the first
				t.Errorf("client %d: %q, %v", i, got, err)
			}
			c.Close()
		}
		return good
	}
}

func TestWhoWaitsInTheQueueIsAnsweredAlsoIfTheProcessIsReplaced(t *testing.T) {
	const clients = 500
	l := begin(t, config(t, quickly, ""))
	address, old := l.address(), l.pid()
	l.freeze()
	answered := parked(t, address, clients)
	l.signal(syscall.SIGUSR2)
	l.signal(syscall.SIGCONT)
	if n := answered(); n != clients {
		t.Errorf("%d of %d were answered", n, clients)
	}
	if code := l.gone(old); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if s := l.mustTell(); s.PID == old || s.Predecessor == nil || s.Predecessor.PID != old {
		t.Errorf("%+v", s)
	}
}

// The new process is ready, and does not wait for ever for one that is frozen to say that it may accept.
func TestWhoWaitsInTheQueueOfAFrozenProcessIsAnsweredByTheNewOne(t *testing.T) {
	const clients = 500
	l := begin(t, config(t, upgrading("settle: 1s, probation: 2s"), ""))
	address, old := l.address(), l.pid()
	thawed := false
	thaw := func() {
		if !thawed {
			thawed = true
			l.signal(syscall.SIGCONT)
		}
	}
	defer thaw()
	l.signal(syscall.SIGUSR2)
	l.reaches(settling, old)
	l.freeze()
	began := time.Now()
	answered := parked(t, address, clients)
	n := answered()
	t.Logf("%d of %d were answered, %v after the old process froze", n, clients, time.Since(began))
	if n != clients {
		t.Errorf("%d of %d were answered", n, clients)
	}
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("that took %v", took)
	}
	thaw()
	if code := l.gone(old); code != 0 {
		t.Errorf("exit code %d of the one that was frozen", code)
	}
	if err := meets(address); err != nil {
		t.Error(err)
	}
	if all := l.processes(); len(all) != 1 || all[0] == old {
		t.Errorf("processes %v are left, and the old one was %d", all, old)
	}
}

func TestPostgreSQLTransactionsDoNotNoticeUpgrades(t *testing.T) {
	besideOthers(t)
	need(t, "pgbench")
	upgrades := upgradeSized(t, "upgrades", 1, 5)
	seconds := upgradeSized(t, "seconds", "3", "25")
	server := newCluster(t).start()
	l := begin(t, proxying(t, server, quickly, "", "health: {probe: postgres, interval: 1s}"))
	way := psql{address: l.address()}
	way.run(t, "postgres", "CREATE DATABASE bench")
	run(t, "pgbench", "-q", "-i", "-s", "1", way.uri("bench"))
	var clients sync.WaitGroup
	for _, args := range [][]string{
		{"-c", "8", "-M", "prepared"},
		{"-c", "2", "-S", "-C"}, // a connection for each
	} {
		clients.Go(func() {
			args = append(append([]string{"-n", "-T", seconds}, args...), way.uri("bench"))
			out, err := client(t, "", "pgbench", args...)
			if err != nil || !strings.Contains(out, "number of failed transactions: 0 ") || strings.Contains(out, "aborted") {
				t.Errorf("%v\n%s", err, out)
			}
			for line := range strings.Lines(out) {
				if strings.HasPrefix(line, "number of transactions") || strings.HasPrefix(line, "tps") {
					t.Logf("pgbench %s: %s", args[3:len(args)-1], strings.TrimSpace(line))
				}
			}
		})
	}
	eventually(t, "its clients are there", func() bool { return l.scrape().of("levee_connections_active") >= 8 })
	moved := 0
	for range upgrades {
		next := time.After(4 * time.Second)
		u := l.succeeds()
		if moved += u.Moved; u.Moved < 8 {
			t.Errorf("%d connections moved, %d have not", u.Moved, u.Left)
		}
		if upgrades > 1 {
			<-next
		}
	}
	clients.Wait()
	t.Logf("%d upgrades moved %d connections", upgrades, moved)
}
