package handover

import (
	"net"
	"os"
	"slices"
	"strings"
)

// A socketFile is the file of a Unix socket that this process is to remove, or the one that replaces it: whoever is the last.
type socketFile struct {
	path string
	made os.FileInfo // when it was listened on
}

// own notes that the socket's file is this process's to remove. One in no file system has none.
func (p *Process) own(at net.Addr) {
	path := at.String()
	if at.Network() != "unix" || strings.HasPrefix(path, "@") {
		return
	}
	made, err := os.Lstat(path)
	if err != nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.files = append(p.files, socketFile{path, made})
}

// isThere reports whether it is the same file still: another may have been made in its place, by somebody else who listens there now.
func (f *socketFile) isThere() bool {
	now, err := os.Lstat(f.path)
	return err == nil && os.SameFile(f.made, now) && f.made.ModTime().Equal(now.ModTime())
}

// owns reports whether the file of what is listened on there is this process's to remove.
func (p *Process) owns(at net.Addr) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.ContainsFunc(p.files, func(f socketFile) bool { return f.path == at.String() && f.isThere() })
}

// removeSocketFiles removes those that the process still has. A listener that it has made and closed has done so itself.
func (p *Process) removeSocketFiles() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, f := range p.files {
		if f.isThere() {
			_ = os.Remove(f.path)
		}
	}
	p.files = nil
}
