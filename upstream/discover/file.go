package discover

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/levee-net/levee/internal/watch"
	"github.com/levee-net/levee/upstream"
)

// File is a source of the servers that a file lists, and watches it. There is a line
// for each server:
//
//	# the primary, and somebody to stand by
//	10.0.0.7:5432         weight=3  name=db1.example.com
//	[2001:db8::8]:5432    tier=1
//	unix:/run/postgresql/.s.PGSQL.5432  tier=2
//
// A # begins a comment, at the beginning of a line or after a space. A file that begins
// with [ is JSON instead: a list of addresses, or of objects with the members name,
// addresses, weight and tier, which mean what they do in upstream.Server:
//
//	["10.0.0.7:5432", {"name": "db2", "addresses": ["10.0.0.8:5432"], "tier": 1}]
//
// Weights go from 1 to 65535 and tiers from 0 to 255; no two servers have the same
// name, and the file is not larger than 1 MiB. If there is a mistake in it, which the
// error names as path:line, the servers are those that it had before. So it is if the
// file is gone or has no servers; what says that there are none is the list [].
//
// To change the file, write another one and rename it, or a reader may meet half of it.
// It is read 100 ms after something has happened in its folder, which is how editors
// and Kubernetes' mounted ConfigMaps are noticed too, and every Interval in any case.
type File struct {
	Path string

	// Interval is how often the file is looked at when nothing seems to happen: some
	// file systems do not tell, and the file may be a link out of its folder. Zero
	// means 10 seconds, negative never.
	Interval time.Duration

	Problem func(error) // if set, is told what goes wrong
}

const maxFile = 1 << 20 // bytes: some ten thousand servers

// Run tells the servers until ctx ends. It may run several times at once.
func (f *File) Run(ctx context.Context, update func([]upstream.Server)) error {
	if f.Path == "" {
		return errors.New("no path to a file of servers")
	}
	tell := OnChange(update)
	return watch.Run(ctx, []string{f.Path}, f.Interval, f.Problem, func() error {
		servers, err := readServers(f.Path)
		if err == nil {
			tell(servers)
		}
		return err
	})
}

func readServers(path string) ([]upstream.Server, error) {
	text, err := watch.ReadFile(path, maxFile)
	if err != nil {
		return nil, err
	}
	servers, line, err := parseServers(text)
	if err != nil {
		return nil, fmt.Errorf("%s:%d: %w", path, line, err)
	}
	return servers, nil
}
