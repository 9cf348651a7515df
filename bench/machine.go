//go:build linux

package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

type cores struct{ server, load int }

// maxFiles is how many files a process may have open: what a container often has, and
// the same everywhere, because a server may size itself by it.
const maxFiles = 20_000

// pin moves this process, which makes the load, to a core of its own, and raises
// its limit of open files, which the servers inherit.
func pin() (cores, error) {
	var allowed unix.CPUSet
	if err := unix.SchedGetaffinity(0, &allowed); err != nil {
		return cores{}, os.NewSyscallError("sched_getaffinity", err)
	}
	if allowed.Count() < 2 {
		return cores{}, errors.New("two cores are needed: one for the server, one for the load")
	}
	c := cores{server: -1}
	for i := range len(allowed) * 64 {
		if !allowed.IsSet(i) {
			continue
		}
		if c.server < 0 {
			c.server = i
		}
		c.load = i
	}
	var own unix.CPUSet
	own.Set(c.load)
	for range 2 { // a thread that starts meanwhile has the affinity of the one that started it
		threads, err := filepath.Glob("/proc/self/task/*")
		if err != nil {
			return cores{}, err
		}
		for _, t := range threads {
			id, err := strconv.Atoi(filepath.Base(t))
			if err != nil {
				return cores{}, err
			}
			if err := unix.SchedSetaffinity(id, &own); err != nil && !errors.Is(err, unix.ESRCH) {
				return cores{}, os.NewSyscallError("sched_setaffinity", err)
			}
		}
	}
	runtime.GOMAXPROCS(1)

	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		return cores{}, os.NewSyscallError("getrlimit", err)
	}
	files.Cur = min(files.Max, maxFiles)
	// Go raises its own limit by itself, but hands the old one to its children unless it was set like this.
	return c, os.NewSyscallError("setrlimit", syscall.Setrlimit(syscall.RLIMIT_NOFILE, &files))
}

// A usage is how much processor time was used up to a moment.
type usage struct {
	server time.Duration // by the server
	load   time.Duration // by this process, and by the backend
	busy   time.Duration // on the server's core, by anybody
	err    error
}

func (u usage) since(before usage) usage {
	return usage{u.server - before.server, u.load - before.load, u.busy - before.busy, errors.Join(before.err, u.err)}
}

// tick is the unit of times in /proc: a hundredth of a second on every Linux.
const tick = 10 * time.Millisecond

func (b *bench) usage(p *process) (u usage) {
	var errs [4]error
	u.server, errs[0] = processTime(p.pid())
	u.busy, errs[1] = busyTime(b.cores.server)
	if p.backend != nil {
		u.load, errs[2] = processTime(p.backend.pid())
	}
	var own syscall.Rusage
	errs[3] = syscall.Getrusage(syscall.RUSAGE_SELF, &own)
	u.load += time.Duration(own.Utime.Nano() + own.Stime.Nano())
	u.err = errors.Join(errs[:]...)
	return u
}

// family is the process and its children: nginx serves in one, and its first process
// only watches over it.
func family(pid int) ([]int, error) {
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", pid))
	if err != nil {
		return nil, err
	}
	all := []int{pid}
	for child := range strings.FieldsSeq(string(children)) {
		id, err := strconv.Atoi(child)
		if err != nil {
			return nil, err
		}
		all = append(all, id)
	}
	return all, nil
}

// processTime is utime and stime of a family: fields 14 and 15 of /proc/PID/stat.
func processTime(pid int) (sum time.Duration, err error) {
	all, err := family(pid)
	if err != nil {
		return 0, err
	}
	for _, id := range all {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", id))
		if err != nil {
			return 0, err
		}
		_, rest, _ := strings.Cut(string(stat), ") ") // the name before may hold anything
		fields := strings.Fields(rest)
		if len(fields) < 13 {
			return 0, fmt.Errorf("/proc/%d/stat: %q", id, stat)
		}
		used, err := sumTicks(fields[11:13])
		if err != nil {
			return 0, err
		}
		sum += used
	}
	return sum, nil
}

// busyTime is what /proc/stat has of a core, without idle and iowait.
func busyTime(core int) (time.Duration, error) {
	stat, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(stat)) {
		if f := strings.Fields(line); len(f) > 8 && f[0] == "cpu"+strconv.Itoa(core) {
			return sumTicks(append(f[1:4:4], f[6:9]...))
		}
	}
	return 0, fmt.Errorf("/proc/stat has no cpu%d", core)
}

func sumTicks(fields []string) (sum time.Duration, err error) {
	for _, f := range fields {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, err
		}
		sum += time.Duration(n) * tick
	}
	return sum, nil
}

// held is what a family of processes holds.
type held struct{ anonymousKiB, files int }

func holdings(pid int) (sum held, err error) {
	all, err := family(pid)
	if err != nil {
		return held{}, err
	}
	for _, id := range all {
		rollup, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", id))
		if err != nil {
			return held{}, err
		}
		_, after, _ := strings.Cut(string(rollup), "\nAnonymous:")
		var kib int
		if _, err := fmt.Sscanf(after, "%d kB", &kib); err != nil {
			return held{}, fmt.Errorf("smaps_rollup: %w", err)
		}
		list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", id))
		if err != nil {
			return held{}, err
		}
		sum.anonymousKiB += kib
		sum.files += len(list)
	}
	return sum, nil
}

// A machine is where the figures come from, and what built the servers.
type machine struct {
	Processor  string `json:"processor"`
	Cores      int    `json:"cores"`
	Kernel     string `json:"kernel"`
	Congestion string `json:"congestion_control"`
	Go         string `json:"go"`
	Rust       string `json:"rust,omitempty"`
	Tokio      string `json:"tokio,omitempty"`
	C          string `json:"c,omitempty"`
	Nginx      string `json:"nginx,omitempty"`
	HAProxy    string `json:"haproxy,omitempty"`
	OpenSSL    string `json:"openssl,omitempty"` // which nginx and HAProxy use
	Rustls     string `json:"rustls,omitempty"`
	Commit     string `json:"commit"`
	Load       string `json:"load_before"`
}

func (m machine) String() string {
	parts := []string{m.Processor, fmt.Sprintf("%d cores", m.Cores), "Linux " + m.Kernel, m.Go, "Tokio " + m.Tokio, m.Rust, m.C, m.Nginx, m.HAProxy, m.OpenSSL, "rustls " + m.Rustls}
	known := slices.DeleteFunc(parts, func(part string) bool { return part == "" })
	return fmt.Sprintf("%s; commit %s; load %s", strings.Join(known, ", "), m.Commit, m.Load)
}

func inspect(ctx context.Context) machine {
	m := machine{
		Cores: runtime.NumCPU(), Go: runtime.Version(), Tokio: cmp.Or(crateVersion("tokio", "tokio"), crateVersion("tokiotls", "tokio")),
		Kernel: firstLine("/proc/sys/kernel/osrelease"), Congestion: firstLine("/proc/sys/net/ipv4/tcp_congestion_control"),
		Rust: says(ctx, "rustc", "--version"), C: says(ctx, "cc", "--version"),
		Nginx: saysInstalled(ctx, "nginx"), HAProxy: saysInstalled(ctx, "haproxy"),
		OpenSSL: says(ctx, "openssl", "version"), Rustls: crateVersion("tokiotls", "rustls"),
		Commit: says(ctx, "git", "rev-parse", "--short", "HEAD"), Load: loadAverage(),
	}
	if says(ctx, "git", "status", "--porcelain", "--untracked-files=no") != "" {
		m.Commit += " with changes"
	}
	info, _ := os.ReadFile("/proc/cpuinfo")
	lines := bufio.NewScanner(bytes.NewReader(info))
	for lines.Scan() && m.Processor == "" {
		if name, ok := strings.CutPrefix(lines.Text(), "model name"); ok {
			m.Processor = strings.TrimLeft(name, "\t :")
		}
	}
	return m
}

// says is the first line that a command prints; nothing if it cannot be run.
func says(ctx context.Context, name string, arguments ...string) string {
	out, err := exec.CommandContext(ctx, name, arguments...).CombinedOutput()
	if err != nil {
		return ""
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return line
}

// saysInstalled is what a program that was found, for one suite or another, says of its
// version.
func saysInstalled(ctx context.Context, key string) string {
	return cmp.Or(says(ctx, buildFolder+"/proxy-"+key, "-v"), says(ctx, buildFolder+"/tls-"+key, "-v"))
}

func firstLine(file string) string {
	content, _ := os.ReadFile(file)
	line, _, _ := strings.Cut(string(content), "\n")
	return line
}

func loadAverage() string {
	return strings.Join(strings.Fields(firstLine("/proc/loadavg"))[:3], " ")
}
