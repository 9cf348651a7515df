package discover

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"

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

const (
	maxFile    = 1 << 20 // bytes: some ten thousand servers
	settleTime = 100 * time.Millisecond
)

// Run tells the servers until ctx ends. It may run several times at once.
func (f *File) Run(ctx context.Context, update func([]upstream.Server)) error {
	if f.Path == "" {
		return errors.New("no path to a file of servers")
	}
	watch, err := watchFolder(f.Path)
	report(f.Problem, err)
	defer watch.close()
	interval := f.Interval
	if interval == 0 {
		interval = 10 * time.Second
	}
	tell := OnChange(update)
	for ctx.Err() == nil {
		unwatched := watch.renew() // before it is read: a change after that is noticed
		servers, err := readServers(f.Path)
		report(f.Problem, cmp.Or(err, unwatched)) // a folder that is gone explains both
		if err == nil {
			tell(servers)
		}
		report(f.Problem, watch.wait(ctx, interval))
	}
	return ctx.Err()
}

// A folderWatch notices that something has happened in a folder. It may be without a
// watcher, of which a user has only so many, and then it notices nothing.
type folderWatch struct {
	folder  string
	watcher *fsnotify.Watcher
}

func watchFolder(path string) (*folderWatch, error) {
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return new(folderWatch), fmt.Errorf("watch %s: %w", filepath.Dir(path), err)
	}
	return &folderWatch{filepath.Dir(path), watcher}, nil
}

// renew watches the folder that now has the name.
func (w *folderWatch) renew() error {
	if w.watcher == nil {
		return nil
	}
	if err := w.watcher.Add(w.folder); err != nil {
		return fmt.Errorf("watch %s: %w", w.folder, err)
	}
	return nil
}

// wait waits until something has happened and settled, interval has passed or ctx ends.
// It returns what is wrong with the watching, after which it may have missed something.
func (w *folderWatch) wait(ctx context.Context, interval time.Duration) (err error) {
	if interval > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, interval)
		defer cancel()
	}
	var (
		events  <-chan fsnotify.Event
		errs    <-chan error
		settled <-chan time.Time
	)
	if w.watcher != nil {
		events, errs = w.watcher.Events, w.watcher.Errors
	}
	for {
		select {
		case <-ctx.Done():
			return err
		case <-settled:
			return err
		case <-events:
		case err = <-errs:
		}
		if settled == nil {
			settled = time.After(settleTime)
		}
	}
}

func (w *folderWatch) close() {
	if w.watcher != nil {
		_ = w.watcher.Close()
	}
}

func readServers(path string) ([]upstream.Server, error) {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular(): // a pipe would be waited for
		return nil, fmt.Errorf("%s: not a file", path)
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, maxFile+1))
	switch {
	case err != nil:
		return nil, err
	case len(text) > maxFile:
		return nil, fmt.Errorf("%s: larger than %d bytes", path, maxFile)
	}
	servers, line, err := parseServers(text)
	if err != nil {
		return nil, fmt.Errorf("%s:%d: %w", path, line, err)
	}
	return servers, nil
}
