// Package watch looks at files again when they may have changed.
//
// It watches their folders rather than the files: whoever changes a file as one should
// writes another and renames it, editors too, and Kubernetes swaps a link beside it.
package watch

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/fsnotify/fsnotify"
)

const (
	settleTime      = 100 * time.Millisecond // several files change together
	defaultInterval = 10 * time.Second
)

// Run calls look, and again 100 ms after something has happened in a folder of one of
// the files, until ctx ends; it returns ctx's error. It also calls look every interval in
// any case: some file systems do not tell, and a file may be a link out of its folder.
// Zero means 10 seconds, negative never.
//
// Problem, if it is not nil, is told what look returns, and what is wrong with the
// watching, each time; it and look are called one after the other, by Run.
func Run(ctx context.Context, files []string, interval time.Duration, problem func(error), look func() error) error {
	report := func(err error) {
		if err != nil && problem != nil {
			problem(err)
		}
	}
	w, err := watchFolders(files)
	report(err)
	defer w.close()
	for ctx.Err() == nil {
		unwatched := w.renew()            // before looking: a change after that is noticed
		report(cmp.Or(look(), unwatched)) // a folder that is gone explains both
		report(w.wait(ctx, cmp.Or(interval, defaultInterval)))
	}
	return ctx.Err()
}

// folders notices that something has happened in a folder. It may be without a watcher,
// of which a user has only so many, and then it notices nothing.
type folders struct {
	names   []string
	watcher *fsnotify.Watcher
}

func watchFolders(files []string) (*folders, error) {
	w := new(folders)
	for _, file := range files {
		w.names = append(w.names, filepath.Dir(file))
	}
	slices.Sort(w.names)
	w.names = slices.Compact(w.names)
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return w, fmt.Errorf("watch %s: %w", w.names, err)
	}
	w.watcher = watcher
	return w, nil
}

// renew watches the folders that now have the names.
func (w *folders) renew() error {
	if w.watcher == nil {
		return nil
	}
	var errs []error
	for _, name := range w.names {
		if err := w.watcher.Add(name); err != nil {
			errs = append(errs, fmt.Errorf("watch %s: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

// wait waits until something has happened and settled, interval has passed or ctx ends.
// It returns what is wrong with the watching, after which it may have missed something.
func (w *folders) wait(ctx context.Context, interval time.Duration) (err error) {
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

func (w *folders) close() {
	if w.watcher != nil {
		_ = w.watcher.Close()
	}
}

// ReadFile returns a regular file's content, which is not larger than max bytes. What is
// no file is not waited for, as a pipe would be.
func ReadFile(path string, max int64) ([]byte, error) {
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: not a file", path)
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	content, err := io.ReadAll(io.LimitReader(file, max+1))
	switch {
	case err != nil:
		return nil, err
	case int64(len(content)) > max:
		return nil, fmt.Errorf("%s: larger than %d bytes", path, max)
	}
	return content, nil
}
