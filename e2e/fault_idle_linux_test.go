package e2e

import (
	"bufio"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// files is how many files a process has open: the least of a few looks, as a scrape has one
// for a moment.
func files(t *testing.T, pid int) int {
	t.Helper()
	least := math.MaxInt
	look := time.NewTicker(20 * time.Millisecond)
	defer look.Stop()
	for range 10 {
		open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
		if err != nil {
			t.Fatal(err)
		}
		least = min(least, len(open))
		<-look.C
	}
	return least
}

// anonymous is the memory, in bytes, that a process has to itself.
func anonymous(t *testing.T, pid int) int {
	t.Helper()
	maps, err := os.Open(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer maps.Close()
	for lines := bufio.NewScanner(maps); lines.Scan(); {
		if size, ok := strings.CutPrefix(lines.Text(), "Anonymous:"); ok {
			var kib int
			if _, err := fmt.Sscanf(size, "%d kB", &kib); err != nil {
				t.Fatal(err)
			}
			return kib << 10
		}
	}
	t.Fatal("smaps_rollup has no Anonymous")
	return 0
}

// dialMany makes connections, a few at a time.
func dialMany(t *testing.T, address string, n int) []net.Conn {
	t.Helper()
	conns := make([]net.Conn, n)
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			for at := i; at < n; at += 8 {
				c, err := net.DialTimeout("tcp", address, patience)
				if err != nil {
					t.Error(err)
					return
				}
				conns[at] = c
			}
		})
	}
	all.Wait()
	if t.Failed() {
		t.FailNow()
	}
	return conns
}

func TestNineThousandIdlePairsTakeTwoFilesEachAndAlmostNoMemory(t *testing.T) {
	const (
		pairs      = 9000
		nofile     = 20_000
		mostMemory = 2500             // bytes for each; 1,700 are usual, and what Go has not given back yet is among it
		quickly    = 10 * time.Second // five of them in quiet
	)
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil || limit.Cur < nofile {
		t.Skipf("skipped: a process may have %d open files, and %d are needed (%v)", limit.Cur, nofile, err)
	}
	far := startEcho(t, "127.0.0.1:0")
	p := start(t, "serve", "-c", ways(t, way{"main", ", timeouts: {idle: off}", servers(far.address()) + `, health: {interval: off}`}))
	address, upstream := p.addressOf(0), far.address()
	for _, c := range dialMany(t, address, 100) { // what is made once is made
		if err := echoesOn(c); err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
	eventually(t, "all are gone", func() bool { return p.scrape().of("levee_connections_active") == 0 })
	emptyFiles, emptyMemory := files(t, p.pid()), anonymous(t, p.pid())

	conns := dialMany(t, address, pairs)
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	eventually(t, "all are joined", func() bool { return p.scrape().active(upstream) == pairs })
	idleFiles := files(t, p.pid()) - emptyFiles
	each := float64(anonymous(t, p.pid())-emptyMemory) / pairs
	t.Logf("%.3f files and %.0f bytes for each of %d pairs", float64(idleFiles)/pairs, each, pairs)
	if idleFiles != 2*pairs {
		t.Errorf("%d files for %d pairs", idleFiles, pairs)
	}
	if each > mostMemory {
		t.Errorf("%.0f bytes for each", each)
	}

	for i, c := range conns {
		_ = c.SetDeadline(time.Now().Add(patience))
		if _, err := c.Write([]byte{byte(i)}); err != nil {
			t.Fatal(err)
		}
	}
	for i, c := range conns {
		var got [1]byte
		if _, err := io.ReadFull(c, got[:]); err != nil || got[0] != byte(i) {
			t.Fatalf("connection %d: %v, %v", i, got, err)
		}
	}
	left := time.Now()
	p.signal(syscall.SIGTERM)
	if code, took := p.wait(), p.ended.Sub(left); code != 0 || took > quickly {
		t.Errorf("exit code %d after %v", code, took)
	}
	for i, c := range conns {
		if n, err := c.Read(make([]byte, 1)); n != 0 || err != io.EOF {
			t.Fatalf("connection %d ends with %v", i, err)
		}
	}
}
