//go:build !linux

package levee

import (
	"context"
	"crypto/tls"
	"net"
	"runtime"
	"time"
)

// Elsewhere than on Linux there are no event loops: every connection has its
// goroutine.

func loopFiles() int { return 0 }

func pipeFiles() int { return 0 }

type loopSet struct{}

type loopLimits struct{}

func (*limits) onLoops() loopLimits { return loopLimits{} }

type breath struct{}

func (*breath) take() { runtime.Gosched() }

func (*Server) closeLoops()                            {}
func (*Server) hurryLoops()                            {}
func (*Server) lagOfLoops() time.Duration              { return 0 }
func (*Server) quietOnLoops(time.Duration) []quietConn { return nil }
func (*Server) movedOnLoops() []movedConn              { return nil }

func (*stream) moveToLoop(Handler) bool { return false }
func (*stream) canLoop() bool           { return false }

func (*Conn) beginsOnLoop() bool                  { return false }
func (*Conn) runBare() (moved bool, _ error)      { return false, net.ErrClosed }
func (*Conn) joinTo(Joiner) (moved bool, _ error) { return false, net.ErrClosed }
func (*Conn) leaveBare(error)                     {}
func (c *Conn) ownContext() context.Context       { return c.stream.Load().context() }

func (*stream) joinOnLoop(Upstream) bool { return false }

type looped struct{}

func (looped) traffic() (read, written int64)   { return 0, 0 }
func (looped) secure() (*tls.Conn, *tls.Config) { return nil, nil }
func (looped) isUnheard() bool                  { return false }
func (looped) isHeard()                         {}
func (looped) askToLeave()                      {}
func (looped) hasten()                          {}
func (looped) held() int                        { return 0 }
func (looped) pause()                           {}
func (looped) resume()                          {}
func (looped) kill()                            {}
func (looped) close()                           {}
func (looped) discard()                         {}
func (looped) keepTo(_, _ Pacer)                {}
func (looped) reset()                           {}
func (looped) descriptor() int                  { return -1 }
func (looped) control(func(fd uintptr)) error   { return net.ErrClosed }
func (*Conn) enterLoopLocked()                  {}

func (*door) takeWaiting() *Conn { return nil }

type bareListener struct{}

func (*bareListener) accept() (*Conn, error)                         { return nil, net.ErrClosed }
func (*Server) takeBare(context.Context, net.Listener) *bareListener { return nil }

func ownListener(l *net.TCPListener) net.Listener { return l }
