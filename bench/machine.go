//go:build linux

package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

type cores struct{ server, load int }

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
	files.Cur = files.Max
	// Go raises its own limit by itself, but hands the old one to its children unless it was set like this.
	return c, os.NewSyscallError("setrlimit", syscall.Setrlimit(syscall.RLIMIT_NOFILE, &files))
}

// A usage is how much processor time was used up to a moment.
type usage struct {
	server time.Duration // by the server
	load   time.Duration // by this process
	busy   time.Duration // on the server's core, by anybody
	err    error
}

func (u usage) since(before usage) usage {
	return usage{u.server - before.server, u.load - before.load, u.busy - before.busy, errors.Join(before.err, u.err)}
}

// tick is the unit of times in /proc: a hundredth of a second on every Linux.
const tick = 10 * time.Millisecond

func (b *bench) usage(pid int) (u usage) {
	var errs [3]error
	u.server, errs[0] = processTime(pid)
	u.busy, errs[1] = busyTime(b.cores.server)
	var own syscall.Rusage
	errs[2] = syscall.Getrusage(syscall.RUSAGE_SELF, &own)
	u.load = time.Duration(own.Utime.Nano() + own.Stime.Nano())
	u.err = errors.Join(errs[:]...)
	return u
}

// processTime is utime and stime: fields 14 and 15 of /proc/PID/stat.
func processTime(pid int) (time.Duration, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(stat), ") ") // the name before may hold anything
	fields := strings.Fields(rest)
	if len(fields) < 13 {
		return 0, fmt.Errorf("/proc/%d/stat: %q", pid, stat)
	}
	return sumTicks(fields[11:13])
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

// held is what a process holds.
type held struct{ anonymousKiB, files int }

func holdings(pid int) (h held, err error) {
	rollup, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return h, err
	}
	_, after, _ := strings.Cut(string(rollup), "\nAnonymous:")
	if _, err := fmt.Sscanf(after, "%d kB", &h.anonymousKiB); err != nil {
		return h, fmt.Errorf("smaps_rollup: %w", err)
	}
	list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	h.files = len(list)
	return h, err
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
	Commit     string `json:"commit"`
	Load       string `json:"load_before"`
}

func (m machine) String() string {
	return fmt.Sprintf("%s, %d cores, Linux %s, %s, Tokio %s (%s), %s; commit %s; load %s",
		m.Processor, m.Cores, m.Kernel, m.Go, m.Tokio, m.Rust, m.C, m.Commit, m.Load)
}

func inspect(ctx context.Context) machine {
	m := machine{
		Cores: runtime.NumCPU(), Go: runtime.Version(), Tokio: tokioVersion(),
		Kernel: firstLine("/proc/sys/kernel/osrelease"), Congestion: firstLine("/proc/sys/net/ipv4/tcp_congestion_control"),
		Rust: says(ctx, "rustc", "--version"), C: says(ctx, "cc", "--version"),
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
	out, err := exec.CommandContext(ctx, name, arguments...).Output()
	if err != nil {
		return ""
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return line
}

func firstLine(file string) string {
	content, _ := os.ReadFile(file)
	line, _, _ := strings.Cut(string(content), "\n")
	return line
}

func loadAverage() string {
	return strings.Join(strings.Fields(firstLine("/proc/loadavg"))[:3], " ")
}
