package overload

import (
	"log/slog"
	"math"
	"os"
	"runtime/debug"
	"runtime/metrics"
)

// memoryShare is the part of the cgroup's limit that Go's runtime is told of. The rest is for what
// it does not count: the kernel's share, and what a burst takes before the collector is through.
const memoryShare = 0.9

// SetMemoryLimit tells Go's runtime of the cgroup's memory limit: 90 % of it, unless GOMEMLIMIT is
// set or there is no such limit. It reports whether it has, and tells the log.
func SetMemoryLimit(log *slog.Logger) bool {
	if given, ok := os.LookupEnv("GOMEMLIMIT"); ok {
		log.Info("memory limit", "GOMEMLIMIT", given)
		return false
	}
	limit := findCgroups("/").limit()
	if limit == 0 {
		return false
	}
	share := int64(memoryShare * limit)
	debug.SetMemoryLimit(share)
	log.Info("memory limit", "bytes", share, "cgroup_limit", int64(limit))
	return true
}

// memory tells how much of the memory is in use that cannot be had back.
type memory struct {
	groups cgroups
	adjust bool
	sample []metrics.Sample
}

func newMemory(adjust bool) memory {
	return memory{groups: findCgroups("/"), adjust: adjust, sample: []metrics.Sample{
		{Name: "/memory/classes/total:bytes"},
		{Name: "/memory/classes/heap/released:bytes"},
		{Name: "/memory/classes/heap/free:bytes"},
		{Name: "/memory/classes/heap/objects:bytes"},
		{Name: "/gc/heap/live:bytes"},
	}}
}

// look returns the load: of the runtime's limit, or of a cgroup's, if that is higher. Garbage
// does not count, as it makes room when there is need: with the usual GOGC half of the heap is garbage, and
// a server at ease would seem to be short of memory.
func (m *memory) look() float64 {
	metrics.Read(m.sample)
	n := func(i int) float64 { return float64(m.sample[i].Value.Uint64()) }
	held := n(0) - n(1)
	spare := n(2) + max(0, n(3)-n(4))
	load, left := 0.0, math.Inf(1)
	for _, g := range m.groups {
		usage, most := g.look()
		if most == 0 {
			continue
		}
		load = max(load, (usage-spare)/most)
		left = min(left, memoryShare*most-max(0, usage-held))
	}
	limit := float64(debug.SetMemoryLimit(-1))
	switch {
	case m.adjust && !math.IsInf(left, 1):
		follow(limit, left)
	case !m.adjust && limit < math.MaxInt64:
		load = max(load, (held-spare)/limit)
	}
	return load
}

// worthIt is the part of the limit that has to change for the runtime to be told: that stops the
// world for a moment.
const worthIt = 0.05

// follow sets the runtime's limit to what the others leave it of the tightest cgroup's.
func follow(limit, left float64) {
	left = max(left, leastLimit)
	if math.Abs(left-limit) >= worthIt*limit {
		debug.SetMemoryLimit(int64(left))
	}
}

// leastLimit is what the runtime may have in any case: with less the collector would do
// nothing but collect.
const leastLimit = 32 << 20
