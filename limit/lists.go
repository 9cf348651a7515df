package limit

import (
	"cmp"
	"context"
	"crypto/sha256"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gaissmai/bart"

	"github.com/levee-net/levee/internal/watch"
)

// Lists say who may come in at all, by address. They take a million prefixes.
//
// Who is on the deny list is refused, also if on the allow list. If there is an
// allow list, be it an empty file, who is not on it is refused. Connections without an IP
// address (a Unix socket's) are let in.
//
// A file has a prefix or an address on each line; blank lines and what follows a # are
// nothing. It is all or nothing: with a mistake in any file, Load says where, as in
//
//	deny.txt:17: "10.0.0.0/33": prefix length out of range
//
// and what was in force stays. Until Load has gone right once, everybody is refused.
//
// The fields must not be changed after Load. Methods may be called from several goroutines.
type Lists struct {
	Name                  string // in Stats; "" means "lists"
	Allow, Deny           []netip.Prefix
	AllowFiles, DenyFiles []string
	Mode                  Mode

	// Interval is how often Watch reads the files when nothing seems to happen in
	// their folders. Zero means 10 seconds, negative never.
	Interval time.Duration

	// Problem, if it is set, is told what keeps Watch from loading the files; the same once.
	Problem func(error)

	// Changed, if it is set, is called by Watch after other prefixes have come into force:
	// connections that are there may have to go (see [Gate.Denies]).
	Changed func()

	inForce atomic.Pointer[lists]
	counts  struct{ allowed, refused, wouldRefuse atomic.Int64 }

	inherited inherited // what in counts another process has decided

	mu   sync.Mutex // held while reading
	told string     // the last problem
	err  error      // of the last Load
}

// lists are what has been read.
type lists struct {
	allow, deny *bart.Lite // allow is nil if everybody is
	sums        [][sha256.Size]byte
	loaded      time.Time
}

const maxFile = 128 << 20 // bytes: a million IPv6 prefixes are 43 MB at most

// Load reads the files and puts what they hold in force.
func (l *Lists) Load() error {
	_, err := l.load()
	return err
}

// Watch reads the files again whenever they may have changed, until ctx ends; it returns
// ctx's error. Load need not have been called, but says at once what is wrong.
func (l *Lists) Watch(ctx context.Context) error {
	files := slices.Concat(l.AllowFiles, l.DenyFiles)
	return watch.Run(ctx, files, l.Interval, l.tell, func() error {
		changed, err := l.load()
		if err == nil {
			l.told = ""
		}
		if changed && l.Changed != nil {
			l.Changed()
		}
		return err
	})
}

// tell is called by Watch alone.
func (l *Lists) tell(err error) {
	if text := err.Error(); text != l.told && l.Problem != nil {
		l.told = text
		l.Problem(err)
	}
}

func (l *Lists) load() (changed bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	read, err := l.read(l.inForce.Load())
	l.err = err
	if err != nil || read == nil {
		return false, err
	}
	read.loaded = time.Now()
	l.inForce.Store(read)
	return true, nil
}

// read returns nil if the files say what they said before.
func (l *Lists) read(before *lists) (*lists, error) {
	files := slices.Concat(l.AllowFiles, l.DenyFiles)
	contents := make([]string, len(files))
	read := new(lists)
	for i, file := range files {
		content, err := watch.ReadFile(file, maxFile)
		if err != nil {
			return nil, err
		}
		contents[i] = string(content)
		read.sums = append(read.sums, sha256.Sum256(content))
	}
	if before != nil && slices.Equal(read.sums, before.sums) {
		return nil, nil
	}
	n := len(l.AllowFiles)
	var err error
	if len(l.Allow)+n > 0 {
		if read.allow, err = newList("allow", l.Allow, l.AllowFiles, contents[:n]); err != nil {
			return nil, err
		}
	}
	read.deny, err = newList("deny", l.Deny, l.DenyFiles, contents[n:])
	return read, err
}

func newList(name string, prefixes []netip.Prefix, files, contents []string) (*bart.Lite, error) {
	list := new(bart.Lite)
	for _, given := range prefixes {
		p, err := canonical(given, "")
		if err != nil {
			return nil, fmt.Errorf("%s list: %q: %w", name, given, err)
		}
		list.Insert(p)
	}
	for i, file := range files {
		if err := insertAll(list, file, contents[i]); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// insertAll inserts what a file holds.
func insertAll(list *bart.Lite, file, content string) error {
	number := 0
	for line := range strings.Lines(content) {
		number++
		line, _, _ = strings.Cut(line, "#")
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		p, err := parsePrefix(line)
		if err != nil {
			return fmt.Errorf("%s:%d: %.80q: %w", file, number, line, err)
		}
		list.Insert(p)
	}
	return nil
}

// Denies returns why addr may not come in, or nil, whatever the mode.
func (l *Lists) Denies(addr netip.Addr) error {
	if !addr.IsValid() {
		return nil
	}
	addr = lookedUp(addr)
	switch in := l.inForce.Load(); {
	case in == nil:
		return ErrNotLoaded
	case in.deny.Contains(addr):
		return ErrDenied
	case in.allow != nil && !in.allow.Contains(addr):
		return ErrNotAllowed
	}
	return nil
}

// decide is Denies for a connection that wants to come in.
func (l *Lists) decide(addr netip.Addr) error {
	if l.Mode == Off {
		return nil
	}
	err := l.Denies(addr)
	switch {
	case err == nil:
		l.counts.allowed.Add(1)
	case l.Mode == Shadow:
		l.counts.wouldRefuse.Add(1)
		return nil
	default:
		l.counts.refused.Add(1)
	}
	return err
}

// Stats returns the lists' counts.
func (l *Lists) Stats() ListStats {
	stats := ListStats{Decisions: Decisions{
		Limit:       cmp.Or(l.Name, "lists"),
		Allowed:     l.counts.allowed.Load(),
		Refused:     l.counts.refused.Load(),
		WouldRefuse: l.counts.wouldRefuse.Load(),
	}}
	if in := l.inForce.Load(); in != nil {
		stats.Deny, stats.Loaded = in.deny.Size(), in.loaded
		if in.allow != nil {
			stats.Allow = in.allow.Size()
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	stats.Err = l.err
	return stats
}
