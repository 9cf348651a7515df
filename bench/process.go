//go:build linux

package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// A process is a server that runs, and what is behind it.
type process struct {
	server
	running   *exec.Cmd
	log       *os.File // its standard error
	address   string
	scrape    string // the URL of its metrics, if it has any
	backend   *process
	collector string // where its spans go
}

// serve starts the server for a work, with what is behind it, and waits until a
// message has come back.
func (b *bench) serve(ctx context.Context, s *suite, it server, w work) (*process, error) {
	p := &process{server: it, collector: b.collector}
	if w.kind.isBulk() && p.bulkConfig != "" {
		p.config = p.bulkConfig
	}
	if w.backend != "" {
		p.backend = &process{server: s.behind[w.backend]}
		if err := p.backend.start(ctx, b.cores.load); err != nil {
			return nil, fmt.Errorf("%s: %w%s", p.backend.name, err, p.backend.stop())
		}
	}
	err := p.start(ctx, b.cores.server)
	if err == nil {
		err = w.knock(ctx, p.address)
	}
	if err != nil {
		return nil, fmt.Errorf("%w%s", err, p.stop())
	}
	return p, nil
}

// knock opens a connection, with one message there and back.
func (w work) knock(ctx context.Context, address string) error {
	w.conns = 1
	l, err := w.load(address, 0)
	if err != nil {
		return err
	}
	held, err := l.Hold(ctx)
	if err != nil {
		return err
	}
	held.Close()
	return nil
}

// start starts the server on a core. Whatever comes of it, stop is due.
func (p *process) start(ctx context.Context, core int) (err error) {
	if p.log, err = os.CreateTemp("", "levee-bench-*.log"); err != nil {
		return err
	}
	_ = os.Remove(p.log.Name()) // it lives as long as it is open
	if p.inherits {
		return p.startWithSocket(ctx, core)
	}
	if err := p.prepare(ctx, core); err != nil {
		return err
	}
	out, err := p.running.StdoutPipe()
	if err != nil {
		return err
	}
	if err := p.running.Start(); err != nil {
		return err
	}
	return p.hear(out)
}

// hear reads where the server listens.
func (p *process) hear(out io.Reader) error {
	lines := bufio.NewScanner(out)
	for p.address == "" || p.metrics && p.scrape == "" {
		if !lines.Scan() {
			return errors.New("did not say where it listens")
		}
		if where, ok := strings.CutPrefix(lines.Text(), "Listening on "); ok {
			p.address = where
		}
		if where, ok := strings.CutPrefix(lines.Text(), "Metrics on "); ok {
			p.scrape = where
		}
	}
	return nil
}

// startWithSocket starts a server that could not tell which port the kernel chose.
func (p *process) startWithSocket(ctx context.Context, core int) error {
	var config net.ListenConfig
	config.SetMultipathTCP(false) // as in every peer
	l, err := config.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer l.Close()
	socket, err := l.(*net.TCPListener).File()
	if err != nil {
		return err
	}
	defer socket.Close()
	p.address = l.Addr().String()
	if err := p.prepare(ctx, core); err != nil {
		return err
	}
	p.running.ExtraFiles = []*os.File{socket}
	p.running.Env = append(p.running.Env, "NGINX=3;") // as an nginx tells its successor which files are its sockets
	if err := p.running.Start(); err != nil {
		return err
	}
	// Handing it over has made it blocking, for all who share it.
	return os.NewSyscallError("fcntl", syscall.SetNonblock(int(socket.Fd()), true))
}

// prepare writes the configuration and makes the command.
func (p *process) prepare(ctx context.Context, core int) error {
	meaning := map[string]string{"program": p.program, "config": p.program + ".conf", "log": p.program + ".log", "listen": p.address, "collector": p.collector}
	for name, file := range secrets {
		meaning[name] = filepath.Join(filepath.Dir(p.program), file)
	}
	if p.backend != nil {
		meaning["backend"] = p.backend.address
	}
	_ = os.Remove(meaning["log"]) // of the run before, if there is one
	expand := func(text string) string { return os.Expand(text, func(name string) string { return meaning[name] }) }
	if p.config != "" {
		if err := os.WriteFile(meaning["config"], []byte(expand(p.config)), 0o600); err != nil {
			return err
		}
	}
	arguments := []string{"-c", strconv.Itoa(core)}
	for word := range strings.FieldsSeq(cmp.Or(p.command, "$program")) {
		arguments = append(arguments, expand(word))
	}
	p.running = exec.CommandContext(ctx, "taskset", arguments...)
	p.running.Env = append(os.Environ(), "GOMAXPROCS=1")
	p.running.Stderr = p.log
	p.running.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // with whatever it starts
	p.running.Cancel = p.kill
	return nil
}

func (p *process) kill() error { return syscall.Kill(-p.pid(), syscall.SIGKILL) }

func (p *process) pid() int { return p.running.Process.Pid }

// stop ends the server and what is behind it. It returns the end of what the server
// wrote to standard error.
func (p *process) stop() (lastWords string) {
	if p.running != nil && p.running.Process != nil {
		_ = p.kill()
		_ = p.running.Wait()
	}
	if p.backend != nil {
		p.backend.stop()
	}
	if p.log == nil {
		return ""
	}
	defer p.log.Close()
	words := make([]byte, 2<<10)
	end, err := p.log.Seek(0, io.SeekEnd)
	if err != nil {
		return ""
	}
	n, _ := p.log.ReadAt(words, max(0, end-int64(len(words))))
	if n == 0 {
		return ""
	}
	return "\nit wrote:\n" + string(words[:n])
}
