package overload

import (
	"runtime/debug"
	"strings"
	"testing"
)

func TestTheMemoryLimitFollowsTheTightestOfNestedCgroups(t *testing.T) {
	defer debug.SetMemoryLimit(debug.SetMemoryLimit(-1))
	m := newMemory(true)
	m.groups = findCgroupsIn(files(
		"proc/self/cgroup", "0::/pod/c\n", "proc/self/mountinfo", strings.ReplaceAll(mountV2, "ROOT", "/"),
		"sys/fs/cgroup/pod/memory.max", "8000000000\n", "sys/fs/cgroup/pod/memory.current", "0\n",
		"sys/fs/cgroup/pod/c/memory.max", "1000000000\n", "sys/fs/cgroup/pod/c/memory.current", "0\n",
	))
	m.look()
	if got := debug.SetMemoryLimit(-1); got != 900e6 {
		t.Errorf("the limit is %d MB, want 900", got/1e6)
	}
}
