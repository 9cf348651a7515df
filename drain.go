package levee

import (
	"context"
	"time"
)

// lastWords is how long connections that were cut get to return from their
// handlers, so that their end is still told, before Shutdown returns regardless.
const lastWords = 100 * time.Millisecond

// Shutdown stops accepting, serves the connections that already wait in the
// accept queue, and asks every connection to leave: those that wait in
// [Conn.Next] do at once, the others when they are done. If they are many it takes
// [Server.DrainSpread] to ask them all, those first that have been silent for the longest time. It returns nil as soon
// as the last has left. When ctx ends before that, the rest are cut, the oldest first, and it
// returns a [*DrainError] with their number.
//
// Joined connections wait for a quiet moment to leave, see [Joiner]. In the last fifth of the
// time until ctx's deadline, and 5 seconds at most, less of one will do, for the oldest
// first: a tenth of the silence; and to one of which its [Upstream] knows that it is at rest, none.
//
// Clients that are in the middle of their arrival have their first request served; see [Conn.Drain]. What is left of the
// 5 seconds that they get for it is over in that last fifth.
//
// It may be called more than once, and from several goroutines: each call waits,
// the first deadline to pass cuts.
func (s *Server) Shutdown(ctx context.Context) error {
	s.init()
	s.stopAccepting(draining)
	s.resumeReads() // who is not read from does not leave
	s.lobby.close()
	e := s.exodus(ctx)
	timer := time.NewTimer(e.goOn())
	defer timer.Stop()
	for {
		select {
		case <-s.gone:
			return s.verdict()
		case <-ctx.Done():
			return s.cutAll(DrainTimeout)
		case <-timer.C:
			timer.Reset(e.goOn())
		}
	}
}

// Close ends every connection now, with reason server_closed, and closes the
// listeners. It returns a [*DrainError] if there was a connection to cut.
func (s *Server) Close() error {
	s.init()
	return s.cutAll(ServerClosed)
}

func (s *Server) cutAll(reason CloseReason) error {
	s.stopAccepting(closed)
	s.lobby.close()
	for _, c := range oldestFirst(s.Conns()) {
		_ = c.cut(reason, nil)
	}
	timer := time.NewTimer(lastWords)
	defer timer.Stop()
	select {
	case <-s.gone:
	case <-timer.C:
		s.abandon()
	}
	return s.verdict()
}

// awaitLoops waits for the event loops to end, unless a handler still has not
// returned.
func (s *Server) awaitLoops() {
	s.mu.Lock()
	deserted := s.desertedLocked()
	s.mu.Unlock()
	if deserted {
		s.closeLoops()
	}
}

// verdict says how the connections left: nil if Shutdown and Close had none to cut.
func (s *Server) verdict() error {
	s.awaitLoops()
	if cut := s.DrainReport().Cut; cut > 0 {
		return &DrainError{Cut: cut}
	}
	return nil
}

// A DrainReport says what has become of the connections that a server had when it began to drain, and of those that
// came from its accept queues after that.
type DrainReport struct {
	Drained int // have left when they were asked to: their reason is drained
	Gone    int // have ended for another reason, such as client_closed
	Cut     int // have been cut, by the deadline or by Close
	Open    int // are still there
}

// DrainReport tells how Shutdown, or Close, gets on, or has got on. It is zero before.
func (s *Server) DrainReport() DrainReport {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state == serving {
		return DrainReport{}
	}
	r := DrainReport{
		Drained: int(s.left.closed[Drained] - s.before.closed[Drained]),
		Cut:     int(s.left.closed[DrainTimeout] + s.left.closed[ServerClosed]),
		Open:    len(s.conns),
	}
	r.Gone = int(s.left.total-s.before.total) - r.Drained - r.Cut
	for _, c := range s.conns { // their handlers have not returned even so
		if reason := c.Reason(); reason == DrainTimeout || reason == ServerClosed {
			r.Cut++
			r.Open--
		}
	}
	return r
}

// stopAccepting moves the server on to the given state. The acceptors notice
// and sweep their queue when it is draining, or leave when it is closed.
func (s *Server) stopAccepting(next state) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state >= next {
		return
	}
	if s.state == serving {
		close(s.stopping)
		s.before = s.left
	}
	s.state = next
	for d := range s.doors {
		d.stopLocked()
		if next == closed {
			_ = d.listener.Close()
		}
	}
	s.closeIfGoneLocked()
}

// closeIfGoneLocked lets the last to leave close the door behind them.
func (s *Server) closeIfGoneLocked() {
	if !s.desertedLocked() {
		return
	}
	go s.closeLoops() // ends with them; the last to leave may be in one
	s.closeGoneLocked()
}

// desertedLocked reports whether nobody is left and nobody can come.
func (s *Server) desertedLocked() bool {
	return s.state != serving && s.acceptors == 0 && len(s.conns) == 0 && len(s.coming) == 0 && s.leaving == 0
}

// abandon stops waiting for handlers that do not return though their connection
// is gone.
func (s *Server) abandon() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closeGoneLocked()
}

func (s *Server) closeGoneLocked() {
	select {
	case <-s.gone:
	default:
		close(s.gone)
	}
}
