package telemetry

import (
	"cmp"
	"errors"
	"io"
	"io/fs"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// A Writer takes lines of log and writes them in a goroutine of its own: a terminal that was
// stopped, a full pipe or a disk without room hold nobody up. What does not fit into its buffer
// meanwhile, or cannot be written, is dropped and counted. A line is written at once, but where one comes
// after the other they are written together, up to a hundred times a second. Its methods may be called from several
// goroutines. It need not be closed, but flushed before the process ends.
type Writer struct {
	to   io.Writer
	room int

	mu      sync.Mutex
	waiting []byte        // lines
	spare   []byte        // to collect them in while others are written
	busy    bool          // writeAll is at work
	idle    chan struct{} // closed when it is not; nil if nobody waits for that
	hurry   chan struct{} // holds one if writeAll is to collect no longer

	dropped atomic.Int64 // lines
	torn    bool         // the last line was written in part; writeAll's
}

// NewWriter returns a Writer to a file, or to anything else, that holds room bytes of lines that
// wait to be written; 0 is 256 KiB.
func NewWriter(to io.Writer, room int) *Writer {
	return &Writer{to: to, room: cmp.Or(max(0, room), 256<<10), hurry: make(chan struct{}, 1)}
}

// Write takes a line, or drops it. It never waits, and always succeeds.
func (w *Writer) Write(line []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.waiting)+len(line) > w.room {
		w.dropped.Add(1)
		return len(line), nil
	}
	w.waiting = append(w.waiting, line...)
	if !w.busy {
		w.busy = true
		go w.writeAll() // ends when nothing waits; where a write never returns, with the process
	}
	if len(w.waiting) > min(w.room/2, mostCollected) {
		w.hurryUp()
	}
	return len(line), nil
}

func (w *Writer) hurryUp() {
	select {
	case w.hurry <- struct{}{}:
	default:
	}
}

// Dropped returns how many lines have been dropped so far.
func (w *Writer) Dropped() int64 { return w.dropped.Load() }

// Flush waits until everything that was taken so far has been written, or dropped, but not longer than d,
// and reports whether it has been.
func (w *Writer) Flush(d time.Duration) bool {
	w.mu.Lock()
	if !w.busy {
		w.mu.Unlock()
		return true
	}
	if w.idle == nil {
		w.idle = make(chan struct{})
	}
	idle := w.idle
	w.hurryUp()
	w.mu.Unlock()
	tooLong := time.NewTimer(d)
	defer tooLong.Stop()
	select {
	case <-idle:
		return true
	case <-tooLong.C:
		return false
	}
}

// Reopen is that of what the Writer writes to, if it has such a method: a [File].
func (w *Writer) Reopen() error {
	if f, ok := w.to.(interface{ Reopen() error }); ok {
		return f.Reopen()
	}
	return nil
}

const (
	collectTime   = 10 * time.Millisecond // each write is a system call, and mostly wakes somebody up
	mostCollected = 64 << 10              // bytes, and no longer than until there are so many
)

func (w *Writer) writeAll() {
	collecting := time.NewTimer(collectTime)
	defer collecting.Stop()
	for lines := w.next(); len(lines) > 0; lines = w.next() {
		w.write(lines)
		w.mu.Lock()
		w.spare = lines[:0]
		awaited := w.idle != nil
		w.mu.Unlock()
		if awaited {
			continue
		}
		collecting.Reset(collectTime)
		select {
		case <-collecting.C:
		case <-w.hurry:
		}
	}
}

// next returns what waits. If nothing does, there is nobody at work any more.
func (w *Writer) next() (lines []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.waiting) > 0 {
		lines, w.waiting, w.spare = w.waiting, w.spare[:0], nil
		return lines
	}
	w.busy = false
	if w.idle != nil {
		close(w.idle)
		w.idle = nil
	}
	return nil
}

// write writes lines, and counts those that cannot be. A line that was torn gets an end, once
// there is room again, so that it takes no other along.
func (w *Writer) write(lines []byte) {
	if w.torn {
		if _, err := w.to.Write([]byte("\n")); err != nil {
			w.dropped.Add(countLines(lines))
			return
		}
		w.torn = false
	}
	n, err := w.to.Write(lines)
	if err == nil && n == len(lines) {
		return
	}
	w.torn = n > 0 && lines[n-1] != '\n'
	w.dropped.Add(countLines(lines[n:]))
}

func countLines(b []byte) (n int64) {
	for _, c := range b {
		if c == '\n' {
			n++
		}
	}
	return n
}

// A File is a log file that can be opened anew, after somebody has moved it away.
type File struct {
	path string
	file atomic.Pointer[os.File]
}

// OpenFile opens a file to append to it, and makes it if there is none: for its owner to write
// and its group to read.
func OpenFile(path string) (*File, error) {
	f := &File{path: path}
	return f, f.Reopen()
}

// Reopen opens the file of that name anew. After an error the one before stays in use. It does
// not wait for a write that is under way.
func (f *File) Reopen() error {
	file, err := os.OpenFile(f.path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o640) //nolint:gosec // the operator's own file, for a group that reads logs
	if err != nil {
		return err
	}
	if old := f.file.Swap(file); old != nil {
		_ = old.Close() // a write that meets it goes to the new one
	}
	return nil
}

// Write appends to the file.
func (f *File) Write(b []byte) (done int, err error) {
	for {
		file := f.file.Load()
		n, err := file.Write(b[done:])
		done += n
		if errors.Is(err, fs.ErrClosed) && f.file.Load() != file {
			continue
		}
		return done, err
	}
}

// Close closes the file.
func (f *File) Close() error { return f.file.Load().Close() }
