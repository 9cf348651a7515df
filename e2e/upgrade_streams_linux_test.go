package e2e

import (
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"
)

func TestStreamsMoveFromProcessToProcessByteExact(t *testing.T) {
	streams := upgradeSized(t, "streams", 300, 2000)
	upgrades := upgradeSized(t, "upgrades", 2, 10)
	fs := newFlows(t, streams, 4)
	l := begin(t, proxied(t, quickly, fs.server))
	fs.start(l.address())
	<-time.After(2 * trickle.every)
	undisturbed := fs.stalls()
	var stalls, goes []time.Duration
	for i := range upgrades {
		old := l.mustTell().PID
		began := time.Now()
		u := l.succeeds()
		done := time.Since(began)
		l.gone(old)
		goes = append(goes, time.Since(began))
		if u.Moved != streams || u.Left != 0 {
			t.Errorf("upgrade %d: %d moved, %d are left, of %d", i+1, u.Moved, u.Left, streams)
		}
		<-time.After(trickle.every) // what was under way has arrived
		these := fs.stalls()
		t.Logf("upgrade %d: done after %v, the old process gone after %v; the p99 of stalls is %v, the longest %v", i+1, done, goes[i], p99(these), slices.Max(these))
		stalls = append(stalls, these...)
	}
	fs.areWhole()
	t.Logf("stalls: p99 %v, %v without upgrades; the longest %v, %v without", p99(stalls), p99(undisturbed), slices.Max(stalls), slices.Max(undisturbed))
	if inFull() && p99(stalls) > 100*time.Millisecond+p99(undisturbed) {
		t.Errorf("the p99 of stalls is %v, and %v without upgrades", p99(stalls), p99(undisturbed))
	}
	if slowest := slices.Max(goes); slowest > isOnTrial+2*time.Second {
		t.Errorf("an old process was there for %v, with a trial of %v", slowest, isOnTrial)
	}
}

func TestIdlePairsMoveWithinASecond(t *testing.T) {
	const nofile = 20_000
	pairs := upgradeSized(t, "pairs", 2000, 9000)
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil || limit.Cur < nofile {
		t.Skipf("skipped: a process may have %d open files, and %d are needed (%v)", limit.Cur, nofile, err)
	}
	far := startEcho(t, "127.0.0.1:0")
	l := begin(t, proxying(t, far.address(), quickly, "timeouts: {idle: off}", "health: {interval: off}"))
	conns := dialMany(t, l.address(), pairs)
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	joined := fmt.Sprintf("levee_upstream_connections_active{server=%q,upstream=\"servers\"}", far.address())
	eventually(t, "all are joined", func() bool { return l.scrape()[joined] == float64(pairs) })
	old := l.pid()
	u := l.succeeds()
	if u.Moved != pairs || u.Left != 0 {
		t.Errorf("%d moved, %d are left, of %d", u.Moved, u.Left, pairs)
	}
	moving, err := time.ParseDuration(fmt.Sprint(l.logged("upgraded: another process serves")["moving"], "s"))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d pairs moved in %v; the upgrade took %v", u.Moved, moving, u.Ended.Sub(u.Began))
	if moving > time.Second {
		t.Errorf("%d pairs moved in %v", u.Moved, moving)
	}
	if code := l.gone(old); code != 0 {
		t.Errorf("exit code %d", code)
	}
	for i, c := range conns {
		_ = c.SetDeadline(time.Now().Add(patience))
		if _, err := c.Write([]byte{byte(i)}); err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
	}
	for i, c := range conns {
		var got [1]byte
		if _, err := io.ReadFull(c, got[:]); err != nil || got[0] != byte(i) {
			t.Fatalf("connection %d: %v, %v", i, got, err)
		}
	}
	if n := l.scrape()[joined]; n != float64(pairs) {
		t.Errorf("%v are counted on the upstream's server", n)
	}
}

func TestUpgradesOnUpgradesSucceedOrAreRefused(t *testing.T) {
	besideOthers(t)
	const streams, upgrades = 200, 10
	each := upgradeSized(t, "time for each upgrade", 250*time.Millisecond, time.Second)
	fs := newFlows(t, streams, 2)
	l := begin(t, proxied(t, upgrading("settle: 100ms, probation: 300ms"), fs.server))
	fs.start(l.address())
	census := l.count(10 * time.Millisecond)
	var (
		asking sync.WaitGroup
		mu     sync.Mutex
		came   = make(map[int]int)
	)
	for range upgrades {
		asking.Go(func() {
			status, u, err := l.asks(t.Context())
			mu.Lock()
			defer mu.Unlock()
			came[status]++
			switch {
			case err != nil:
				t.Error(err)
			case status == http.StatusOK && u.State == "done", status == http.StatusConflict && u.Error != "":
			default:
				t.Errorf("status %d: %+v", status, u)
			}
		})
		<-time.After(each)
	}
	asking.Wait()
	most := census.ends()
	fs.areWhole()
	t.Logf("%d of %d upgrades were done, %d refused; never more than %d processes", came[http.StatusOK], upgrades, came[http.StatusConflict], most)
	if most > 2 {
		t.Errorf("there were %d processes", most)
	}
	if came[http.StatusOK] < 2 {
		t.Errorf("%d upgrades were done", came[http.StatusOK])
	}
	eventually(t, "one is left", func() bool { return len(l.processes()) == 1 })
}
