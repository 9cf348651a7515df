package telemetry_test

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/levee-net/levee/leveetest"
	"github.com/levee-net/levee/telemetry"
)

func TestLinesComeOutInOrderAndWhole(t *testing.T) {
	leveetest.CheckLeaks(t)
	var out lines
	w := telemetry.NewWriter(&out, 64<<20) // more than all of them
	const each = 2000
	var writing sync.WaitGroup
	for i := range 8 {
		writing.Go(func() {
			for n := range each {
				fmt.Fprintf(w, "%d %d\n", i, n)
			}
		})
	}
	writing.Wait()
	w.Flush(time.Minute)
	next := make([]int, 8)
	for line := range strings.Lines(out.String()) {
		var i, n int
		if _, err := fmt.Sscanf(line, "%d %d\n", &i, &n); err != nil || n != next[i] {
			t.Fatalf("%q, want number %v", line, next)
		}
		next[i]++
	}
	for i, n := range next {
		if n != each {
			t.Errorf("%d: %d lines", i, n)
		}
	}
	if w.Dropped() != 0 {
		t.Errorf("%d dropped", w.Dropped())
	}
}

// A pipe that nobody reads is what a terminal is that was stopped, or a log shipper that hangs.
func TestAFullPipeHoldsNobodyUpAndWhatIsLostIsCounted(t *testing.T) {
	leveetest.CheckLeaks(t)
	r, p, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	const room = 16 << 10
	w := telemetry.NewWriter(p, room)
	line := []byte(strings.Repeat("x", 99) + "\n")
	total := int64(0)
	write := func(n int64) {
		for range n {
			w.Write(line)
		}
		total += n
	}
	for w.Flush(50 * time.Millisecond) { // until the pipe is full
		write(room / 100)
	}
	began := time.Now()
	write(100_000)
	if took := time.Since(began); took > 10*time.Second || w.Dropped() < 99_000 {
		t.Errorf("with a full pipe 100,000 writes took %v, %d were dropped", took, w.Dropped())
	}
	dropped := w.Dropped()
	read := make(chan int64)
	go func() {
		b, _ := io.ReadAll(r)
		read <- int64(bytes.Count(b, line))
	}()
	w.Flush(10 * time.Second)
	p.Close()
	if n := <-read; n+dropped != total || n < room/100 {
		t.Errorf("%d lines came out, %d were dropped, of %d", n, dropped, total)
	}
}

func TestAFullDiskIsCountedAndNoLineTakesAnotherAlong(t *testing.T) {
	leveetest.CheckLeaks(t)
	disk := &smallDisk{left: 25}
	w := telemetry.NewWriter(disk, 0)
	write := func(text string) {
		t.Helper()
		fmt.Fprintln(w, text)
		if !w.Flush(10 * time.Second) {
			t.Fatal("not flushed")
		}
	}
	write("123456789")
	write("abcdefghi")
	write("the disk is full here")
	write("and here")
	if n := w.Dropped(); n != 2 {
		t.Errorf("%d dropped, want 2", n)
	}
	disk.mu.Lock()
	disk.left = 1000
	disk.mu.Unlock()
	write("room again")
	w.Flush(time.Second)
	if got := disk.text.String(); got != "123456789\nabcdefghi\nthe d\nroom again\n" {
		t.Errorf("%q", got)
	}
}

// A smallDisk takes so many bytes.
type smallDisk struct {
	mu   sync.Mutex
	left int
	text bytes.Buffer
}

func (d *smallDisk) Write(p []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := min(len(p), d.left)
	d.left -= n
	d.text.Write(p[:n])
	if n < len(p) {
		return n, io.ErrShortWrite
	}
	return n, nil
}

func TestADeviceWithoutRoomIsCounted(t *testing.T) {
	leveetest.CheckLeaks(t)
	f, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skip("there is no /dev/full here:", err)
	}
	defer f.Close()
	w := telemetry.NewWriter(f, 0)
	for range 100 {
		w.Write([]byte("a line\n"))
	}
	w.Flush(10 * time.Second)
	if n := w.Dropped(); n != 100 {
		t.Errorf("%d dropped, want 100", n)
	}
}

func TestALogFileThatWasMovedAwayIsOpenedAnew(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("an open file cannot be moved here")
	}
	leveetest.CheckLeaks(t)
	path := filepath.Join(t.TempDir(), "access.log")
	f, err := telemetry.OpenFile(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := telemetry.NewWriter(f, 64<<20)
	defer w.Flush(time.Second)
	var stop atomic.Bool
	var written atomic.Int64
	var writing sync.WaitGroup
	writing.Go(func() {
		for !stop.Load() {
			fmt.Fprintln(w, "a line")
			written.Add(1)
			runtime.Gosched()
		}
	})
	for i := range 20 {
		if err := os.Rename(path, fmt.Sprint(path, ".", i)); err != nil {
			t.Error(err)
		}
		if err := w.Reopen(); err != nil {
			t.Error(err)
		}
	}
	stop.Store(true)
	writing.Wait()
	if !w.Flush(10 * time.Second) {
		t.Error("not flushed")
	}
	count := 0
	files, _ := filepath.Glob(path + "*")
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			if line != "a line\n" {
				t.Errorf("%s: %q", name, line)
			}
			count++
		}
	}
	if len(files) != 21 || int64(count) != written.Load() || w.Dropped() != 0 {
		t.Errorf("%d lines in %d files, %d written, %d dropped", count, len(files), written.Load(), w.Dropped())
	}
	gone := filepath.Dir(path)
	if err := os.RemoveAll(gone); err != nil {
		t.Fatal(err)
	}
	if err := w.Reopen(); err == nil {
		t.Error("a file in a folder that is gone was opened")
	}
	fmt.Fprintln(w, "it goes on")
	if w.Flush(time.Second); w.Dropped() != 0 {
		t.Error("the file before is not in use any more")
	}
}

func TestFlushWaitsForWhatWasTakenBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := make(slowly)
		w := telemetry.NewWriter(slow, 0)
		w.Write([]byte("a\n"))
		go func() {
			time.Sleep(time.Second) // virtual time
			slow <- struct{}{}
		}()
		if w.Flush(999 * time.Millisecond) {
			t.Error("flushed before it was written")
		}
		if !w.Flush(time.Second) {
			t.Error("not flushed")
		}
	})
}

// slowly takes what is written when somebody says so.
type slowly chan struct{}

func (s slowly) Write(p []byte) (int, error) { <-s; return len(p), nil }

func TestAWriterAllocatesNothingForALine(t *testing.T) {
	w := telemetry.NewWriter(io.Discard, 1<<20)
	line := []byte(strings.Repeat("x", 299) + "\n")
	for range 10_000 {
		w.Write(line)
	}
	if n := testing.AllocsPerRun(1000, func() { w.Write(line) }); n >= 1 {
		t.Errorf("%v allocations", n)
	}
}

func TestALineIsWrittenAtOnceAndManyTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out counting
		w := telemetry.NewWriter(&out, 0)
		io.WriteString(w, "first\n")
		synctest.Wait()
		if text := out.String(); text != "first\n" {
			t.Errorf("%q is written", text)
		}
		for range 1000 {
			time.Sleep(100 * time.Microsecond) // virtual time
			io.WriteString(w, "next\n")
		}
		time.Sleep(10 * time.Millisecond) // virtual time
		synctest.Wait()
		if n, text := out.writes.Load(), out.String(); n > 12 || len(text) != len("first\n")+1000*len("next\n") {
			t.Errorf("%d writes of %d bytes", n, len(text))
		}
		out.writes.Store(0)
		long := strings.Repeat("x", 999) + "\n"
		for range 200 { // more than are to be collected
			io.WriteString(w, long)
			synctest.Wait()
		}
		if n := out.writes.Load(); n < 2 {
			t.Errorf("%d writes, with 200 kB in hand", n)
		}
		began := time.Now()
		if !w.Flush(time.Second) || time.Since(began) > 0 {
			t.Errorf("Flush took %v", time.Since(began))
		}
	})
}

// counting counts how often it is written to.
type counting struct {
	lines
	writes atomic.Int64
}

func (c *counting) Write(b []byte) (int, error) {
	c.writes.Add(1)
	return c.lines.Write(b)
}
