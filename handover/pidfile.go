package handover

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// checkPIDFile finds out whether the PID file can be written, and leaves it as it is.
func (p *Process) checkPIDFile() error {
	if p.PIDFile == "" {
		return nil
	}
	if at, err := os.Stat(p.PIDFile); err == nil && at.IsDir() {
		return fmt.Errorf("write the PID file: %s is a directory", p.PIDFile)
	}
	f, err := p.createPIDFile()
	if err != nil {
		return fmt.Errorf("write the PID file: %w", err)
	}
	_ = f.Close()
	_ = os.Remove(f.Name())
	return nil
}

// createPIDFile creates a file that is to be renamed to it.
func (p *Process) createPIDFile() (*os.File, error) {
	return os.CreateTemp(filepath.Dir(p.PIDFile), "."+filepath.Base(p.PIDFile)+"-*")
}

// writePIDFile writes the PID file anew and renames it to its place: who reads it finds all of a number.
func (p *Process) writePIDFile() error {
	if p.PIDFile == "" {
		return nil
	}
	f, err := p.createPIDFile()
	if err != nil {
		return fmt.Errorf("write the PID file: %w", err)
	}
	defer os.Remove(f.Name()) // when it has not been renamed
	_, err = fmt.Fprintln(f, os.Getpid())
	for _, next := range []func() error{
		func() error { return f.Chmod(0o644) },
		f.Close,
		func() error { return os.Rename(f.Name(), p.PIDFile) },
	} {
		if e := next(); err == nil {
			err = e
		}
	}
	if err != nil {
		return fmt.Errorf("write the PID file: %w", err)
	}
	return nil
}

// Leave removes the PID file, unless it holds another process's number by now, and the files of the Unix sockets that nobody
// has taken over, unless somebody else listens there by now. It has the process that has replaced this one
// know that there is nothing more to come. A process calls it last.
func (p *Process) Leave() {
	if !p.isReplaced() {
		p.removeSocketFiles()
	}
	p.closeHeirLink()
	if p.PIDFile == "" {
		return
	}
	content, err := os.ReadFile(p.PIDFile)
	if err == nil && strings.TrimSpace(string(content)) == strconv.Itoa(os.Getpid()) {
		_ = os.Remove(p.PIDFile)
	}
}
