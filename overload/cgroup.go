package overload

import (
	"bufio"
	"bytes"
	"io/fs"
	"math"
	"os"
	"path"
	"strconv"
	"strings"
)

// A cgroup is one whose memory is limited, or may be: the process's own, or one that is above it. Its
// files are read anew each time, as an orchestrator may change the limit.
type cgroup struct {
	files fs.FS
	dir   string
	names fileNames
}

// fileNames are what a version of cgroups calls its files.
type fileNames struct {
	limit, usage string
	buffers      string // of TCP, where they are not part of usage
	idle         string // in memory.stat: the file cache that the kernel drops first
}

var (
	version1 = fileNames{"memory.limit_in_bytes", "memory.usage_in_bytes", "memory.kmem.tcp.usage_in_bytes", "total_inactive_file"}
	version2 = fileNames{"memory.max", "memory.current", "", "inactive_file"}
)

// cgroups are those that the process is in.
type cgroups []cgroup

// findCgroups returns none where there are none, as elsewhere than on Linux.
func findCgroups(root string) cgroups { return findCgroupsIn(os.DirFS(root)) }

func findCgroupsIn(files fs.FS) (found cgroups) {
	own, err := fs.ReadFile(files, "proc/self/cgroup")
	if err != nil {
		return nil
	}
	mounts, err := fs.ReadFile(files, "proc/self/mountinfo")
	if err != nil {
		return nil
	}
	for line := range bytes.Lines(own) {
		// hierarchy:controllers:path, of which version 2 has neither of the first two (cgroups(7)).
		parts := strings.SplitN(strings.TrimSpace(string(line)), ":", 3)
		if len(parts) != 3 {
			continue
		}
		controller, names := "", version2
		switch {
		case strings.Contains(","+parts[1]+",", ",memory,"):
			controller, names = "memory", version1
		case parts[1] != "" || parts[0] != "0":
			continue
		}
		mounted, dir := findMount(mounts, controller, parts[2])
		for ; mounted != ""; dir = path.Dir(dir) {
			g := cgroup{files, strings.TrimPrefix(dir, "/"), names}
			if _, err := fs.Stat(files, path.Join(g.dir, names.usage)); err == nil {
				found = append(found, g)
			}
			if dir == mounted || len(dir) <= len(mounted) {
				break
			}
		}
	}
	return found
}

// findMount returns where the hierarchy is mounted, and the directory in it that stands for the cgroup. In a container
// the mount may show nothing but the container's own, whatever the path is called outside.
func findMount(mountinfo []byte, controller, cgroup string) (mounted, dir string) {
	lines := bufio.NewScanner(bytes.NewReader(mountinfo))
	for lines.Scan() {
		// ID parent device root mount-point options … - type source super-options (proc_pid_mountinfo(5))
		before, after, ok := strings.Cut(lines.Text(), " - ")
		front, back := strings.Fields(before), strings.Fields(after)
		if !ok || len(front) < 5 || len(back) < 3 {
			continue
		}
		isV2 := controller == "" && back[0] == "cgroup2"
		isV1 := controller != "" && back[0] == "cgroup" && strings.Contains(","+back[2]+",", ","+controller+",")
		if !isV1 && !isV2 {
			continue
		}
		root, at := front[3], front[4]
		if within, ok := strings.CutPrefix(cgroup, root); ok && (within == "" || within[0] == '/' || root == "/") {
			return at, path.Join(at, within)
		}
		return at, at
	}
	return "", ""
}

// limit returns the least of the limits, 0 if there is none.
func (all cgroups) limit() (least float64) {
	for _, g := range all {
		if _, limit := g.look(); limit > 0 && (least == 0 || limit < least) {
			least = limit
		}
	}
	return least
}

// unlimited is what version 1 says of a cgroup without a limit, or more.
const unlimited = math.MaxInt64 / 2

// look returns the bytes in use, buffers of sockets among them, and how many may be; 0 if any
// number. The kernel counts those buffers as memory in version 2. In version 1 it counts them
// apart, and only if it was told to by a limit of their own.
func (g cgroup) look() (usage, limit float64) {
	limit = g.number(g.names.limit)
	if limit <= 0 || limit >= unlimited {
		return 0, 0 // version 2 says "max"
	}
	usage = g.number(g.names.usage) - g.idle()
	if g.names.buffers != "" {
		usage += g.number(g.names.buffers)
	}
	return usage, limit
}

func (g cgroup) number(file string) float64 {
	text, err := fs.ReadFile(g.files, path.Join(g.dir, file))
	if err != nil {
		return 0
	}
	n, _ := strconv.ParseFloat(string(bytes.TrimSpace(text)), 64)
	return n
}

// idle returns the file cache that the kernel drops before it is short of anything.
func (g cgroup) idle() float64 {
	text, err := fs.ReadFile(g.files, path.Join(g.dir, "memory.stat"))
	if err != nil {
		return 0
	}
	for line := range bytes.Lines(text) {
		if rest, ok := bytes.CutPrefix(line, []byte(g.names.idle+" ")); ok {
			n, _ := strconv.ParseFloat(string(bytes.TrimSpace(rest)), 64)
			return n
		}
	}
	return 0
}
