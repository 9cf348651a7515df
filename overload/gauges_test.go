package overload

import (
	"io/fs"
	"math"
	"os"
	"runtime/metrics"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/levee-net/levee"
)

// files is a file system of these.
func files(pairs ...string) fstest.MapFS {
	m := make(fstest.MapFS)
	for i := 0; i < len(pairs); i += 2 {
		m[pairs[i]] = &fstest.MapFile{Data: []byte(pairs[i+1])}
	}
	return m
}

const (
	mountV1 = "33 24 0:30 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n" +
		"35 24 0:32 ROOT /sys/fs/cgroup/memory rw,nosuid shared:11 - cgroup cgroup rw,memory\n"
	mountV2 = "30 23 0:26 ROOT /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
)

func TestTheCgroupsOfTheProcessAreFound(t *testing.T) {
	v1 := strings.ReplaceAll(mountV1, "ROOT", "/")
	for _, tt := range []struct {
		name         string
		files        fstest.MapFS
		usage, limit float64 // of the one with the least limit
		groups       int
	}{
		{name: "none", files: files()},
		{"version 2", files(
			"proc/self/cgroup", "0::/levee.slice/levee.service\n", "proc/self/mountinfo", strings.ReplaceAll(mountV2, "ROOT", "/"),
			"sys/fs/cgroup/levee.slice/memory.max", "max\n", "sys/fs/cgroup/levee.slice/memory.current", "900\n",
			"sys/fs/cgroup/levee.slice/levee.service/memory.max", "1000\n", "sys/fs/cgroup/levee.slice/levee.service/memory.current", "800\n",
			"sys/fs/cgroup/levee.slice/levee.service/memory.stat", "anon 500\nfile 300\nactive_file 100\ninactive_file 200\n",
		), 600, 1000, 2},
		{"version 2, limited from above", files(
			"proc/self/cgroup", "0::/pod/c\n", "proc/self/mountinfo", strings.ReplaceAll(mountV2, "ROOT", "/"),
			"sys/fs/cgroup/pod/memory.max", "500\n", "sys/fs/cgroup/pod/memory.current", "450\n",
			"sys/fs/cgroup/pod/c/memory.max", "1000\n", "sys/fs/cgroup/pod/c/memory.current", "400\n",
		), 450, 500, 2},
		{"version 2, in a namespace", files(
			"proc/self/cgroup", "0::/\n", "proc/self/mountinfo", strings.ReplaceAll(mountV2, "ROOT", "/"),
			"sys/fs/cgroup/memory.max", "1000\n", "sys/fs/cgroup/memory.current", "800\n",
		), 800, 1000, 1},
		{"version 1, with sockets", files(
			"proc/self/cgroup", "11:memory:/a/b\n4:cpu,cpuacct:/\n0::/x\n", "proc/self/mountinfo", v1,
			"sys/fs/cgroup/memory/a/b/memory.limit_in_bytes", "1000\n", "sys/fs/cgroup/memory/a/b/memory.usage_in_bytes", "400\n",
			"sys/fs/cgroup/memory/a/b/memory.kmem.tcp.usage_in_bytes", "300\n",
			"sys/fs/cgroup/memory/a/b/memory.stat", "inactive_file 5\ntotal_inactive_file 50\n",
		), 650, 1000, 1},
		{"version 1, in a container", files(
			"proc/self/cgroup", "11:memory:/docker/abc\n", "proc/self/mountinfo", strings.ReplaceAll(mountV1, "ROOT", "/docker/abc"),
			"sys/fs/cgroup/memory/memory.limit_in_bytes", "1000\n", "sys/fs/cgroup/memory/memory.usage_in_bytes", "400\n",
		), 400, 1000, 1},
		{"version 1, without a limit", files(
			"proc/self/cgroup", "11:memory:/\n", "proc/self/mountinfo", v1,
			"sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n", "sys/fs/cgroup/memory/memory.usage_in_bytes", "400\n",
		), 0, 0, 1},
	} {
		found := findCgroupsIn(tt.files)
		if len(found) != tt.groups {
			t.Errorf("%s: %d cgroups, want %d", tt.name, len(found), tt.groups)
		}
		if got := found.limit(); got != tt.limit {
			t.Errorf("%s: the limit is %v, want %v", tt.name, got, tt.limit)
		}
		for _, g := range found {
			if usage, limit := g.look(); limit == tt.limit && usage != tt.usage {
				t.Errorf("%s: in use is %v, want %v", tt.name, usage, tt.usage)
			}
		}
	}
}

// Whatever the kernel's files say, the search ends, within the mount.
func FuzzCgroups(f *testing.F) {
	f.Add("11:memory:/a/b\n0::/x\n", strings.ReplaceAll(mountV1, "ROOT", "/"))
	f.Add("0::/a/../..\n", strings.ReplaceAll(mountV2, "ROOT", "/a"))
	f.Add("0::/\n", "30 23 0:26 / / rw - cgroup2 cgroup2 rw\n")
	f.Add("0::x\n", "30 23 0:26 / x rw - cgroup2 cgroup2 rw\n")
	f.Fuzz(func(t *testing.T, own, mounts string) {
		for _, g := range findCgroupsIn(everything{own, mounts}) {
			if !strings.Contains(mounts, "cgroup") {
				t.Errorf("%q found where nothing is mounted", g.dir)
			}
		}
	})
}

// everything is a file system in which there is any file.
type everything struct{ own, mounts string }

func (e everything) Open(name string) (fs.File, error) {
	content := "1"
	switch name {
	case "proc/self/cgroup":
		content = e.own
	case "proc/self/mountinfo":
		content = e.mounts
	}
	if !fs.ValidPath(name) || name == "." {
		return nil, fs.ErrInvalid
	}
	return files(name, content).Open(name)
}

func TestTheWaitToBeAcceptedIsThatOfAStandingQueue(t *testing.T) {
	var g acceptGauge
	now := time.Now()
	for i, tt := range []struct {
		accepted int64
		queue    int
		pauses   int64
		paused   int
		want     time.Duration
	}{
		{1000, 0, 0, 0, 0},
		{1100, 500, 0, 0, 0}, // a crowd has just come
		{1200, 200, 0, 0, 200 * time.Millisecond},
		{2200, 200, 0, 0, 20 * time.Millisecond},
		{2200, 300, 0, 0, 0}, // it was not looked at
		{2300, 300, 1, 1, 0}, // it is full: nobody is let in
		{2310, 300, 1, 1, 0}, // but some are turned away
		{2320, 300, 1, 0, 0}, // it was full for a part of the time
		{2420, 300, 1, 0, 300 * time.Millisecond},
		{2430, 300, 2, 0, 0},
		{2530, 300, 2, 0, 300 * time.Millisecond},
	} {
		now = now.Add(100 * time.Millisecond)
		got, wanted := g.look(now, levee.Load{Accepted: tt.accepted, QueueLength: tt.queue, AcceptPauses: tt.pauses, AcceptsPaused: tt.paused})
		if got != tt.want || wanted != 1 {
			t.Errorf("look %d: %v, of %v; want %v, of 1", i, got, wanted, tt.want)
		}
	}
}

func TestTheWaitForAHandshakeIsThatOfAStandingQueue(t *testing.T) {
	var g queueGauge
	now := time.Now()
	for i, tt := range []struct {
		turns   int64
		waiting int
		want    time.Duration
	}{
		{1000, 500, 0}, // for how long is not known
		{1020, 500, 2500 * time.Millisecond},
		{1040, 0, 0},
		{1060, 30, 0}, // a crowd has just come
		{1080, 10, 50 * time.Millisecond},
		{1080, 10, 0}, // none gets on, for whatever reason
		{2080, 10, time.Millisecond},
		{2085, 9, 0}, // too few to be a crowd
	} {
		now = now.Add(100 * time.Millisecond)
		if got := g.look(now, tt.turns, tt.waiting).delay(handshakesLeast); got != tt.want {
			t.Errorf("look %d: %v, want %v", i, got, tt.want)
		}
	}
}

// A flood that the gate refuses is no reason to turn away the few that it lets in.
func TestTheWaitOfThoseWhoAreNotWantedDoesNotCount(t *testing.T) {
	var g acceptGauge
	now := time.Now()
	for i, tt := range []struct {
		accepted, unwanted int64
		want               float64
	}{
		{1000, 1000, 1}, // how long ago they came is not known
		{2000, 2000, 0},
		{3000, 2990, 0.01},
		{3000, 2990, 1}, // nobody came
		{3100, 2990, 1},
		{3200, 3040, 0.5},
	} {
		now = now.Add(100 * time.Millisecond)
		_, wanted := g.look(now, levee.Load{Accepted: tt.accepted, Unwanted: tt.unwanted, QueueLength: 100, MaxConns: -1})
		if math.Abs(wanted-tt.want) > 1e-9 {
			t.Errorf("look %d: %v, want %v", i, wanted, tt.want)
		}
	}
}

func TestTheMedianIsThatOfTheInterval(t *testing.T) {
	h := &metrics.Float64Histogram{Counts: []uint64{400, 85, 514, 1}, Buckets: []float64{math.Inf(-1), 0.001, 0.01, 0.1, math.Inf(1)}}
	if got := median(h, 1000); got != 10*time.Millisecond {
		t.Errorf("%v", got)
	}
	if got := median(&metrics.Float64Histogram{Counts: []uint64{0, 0}, Buckets: []float64{0, 1, 2}}, 0); got != 0 {
		t.Errorf("%v of nothing", got)
	}
	var s scheduler
	s.look()
	for range 1000 {
		done := make(chan struct{})
		go close(done)
		<-done
	}
	if got := s.look(); got > time.Second {
		t.Errorf("goroutines waited for %v here", got)
	}
}

func TestOpenFilesAreToldWithoutCounting(t *testing.T) {
	before := openFiles()
	if before == 0 {
		t.Skip("this system does not tell how many files are open")
	}
	var open []*os.File
	for range 100 {
		f, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, f)
	}
	for i, f := range open { // gaps
		if i%2 == 0 {
			f.Close()
		}
	}
	if got := openFiles() - before; got != 50 {
		t.Errorf("%v more, want 50", got)
	}
	for i, f := range open {
		if i%2 == 1 {
			f.Close()
		}
	}
	if fileLimit() < before {
		t.Errorf("of %v that may be", fileLimit())
	}
}
