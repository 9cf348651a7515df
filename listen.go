package levee

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"
	"syscall"
	"time"
)

// Keep-alive finds peers that are gone without a word: after 15 seconds of
// silence, nine probes 15 seconds apart, net's own figures.
const keepAlive = 15 * time.Second

// Listen listens on a TCP address ("host:port", ":port") or a Unix socket
// ("unix:/path"), the way the server likes it: keep-alive and no-delay are set on
// the listener, from which the kernel hands them on, instead of on every
// connection; the queue is as long as the system allows (somaxconn on Linux);
// Multipath TCP is off, as no handler has asked for its costs. A Unix socket's file
// that a killed process has left behind is replaced.
func Listen(ctx context.Context, address string) (net.Listener, error) {
	var config net.ListenConfig
	network, where := "tcp", address
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		network, where = "unix", path
		if err := removeStale(ctx, path); err != nil {
			return nil, fmt.Errorf("listen on %s: %w", address, err)
		}
	} else {
		config.SetMultipathTCP(false)
		if listenerOptionsInherited {
			config.KeepAlive = -1 // as inherited, see setListenerOptions
			config.Control = func(_, _ string, sock syscall.RawConn) error {
				var err error
				if e := sock.Control(func(fd uintptr) { err = setListenerOptions(int(fd)) }); e != nil {
					return e
				}
				return err
			}
		}
	}
	l, err := config.Listen(ctx, network, where)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", address, unwrapListen(err))
	}
	if tcp, ok := l.(*net.TCPListener); ok {
		l = ownListener(tcp)
	}
	return l, nil
}

// FileListener returns a listener on a socket that is there already, such as one that another
// process has left, or another listener's (see [net.TCPListener.File]); it is as if [Listen] had
// made it. It has a descriptor of its own: the caller closes f.
func FileListener(f *os.File) (net.Listener, error) {
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("listen on inherited %s: %w", f.Name(), unwrapListen(err))
	}
	if tcp, ok := l.(*net.TCPListener); ok {
		l = ownListener(tcp)
	}
	return l, nil
}

// unwrapListen takes off net's own "listen tcp 127.0.0.1:80:", which would
// repeat what Listen says.
func unwrapListen(err error) error {
	if op, ok := err.(*net.OpError); ok { //nolint:errorlint // only the outermost repeats
		return op.Err
	}
	return err
}

// removeStale removes the file of a Unix socket that nobody listens on: what is
// left of a process that was killed, and in the way of the next. A socket in use,
// and any other file, stays and makes the listen fail. Of two processes that start
// at the same instant one may remove the other's; a lock that rules it out could
// itself be left behind.
func removeStale(ctx context.Context, path string) error {
	info, err := os.Lstat(path)
	if err != nil {
		return nil //nolint:nilerr // nothing is in the way, or listening will say what is
	}
	if info.Mode().Type() != fs.ModeSocket {
		return errNotASocket
	}
	dialer := net.Dialer{Timeout: time.Second}
	c, err := dialer.DialContext(ctx, "unix", path)
	if err == nil {
		return c.Close() // it lives: listening will say so
	}
	if errors.Is(err, syscall.ECONNREFUSED) {
		return os.Remove(path)
	}
	return nil
}

var errNotASocket = fmt.Errorf("there is a file that is no socket: %w", syscall.EADDRINUSE)
