package handover

// TellLeft tells the process that has replaced this one how many connections have yet to leave here; see
// [Process.Left]. It does nothing if there is none.
func (p *Process) TellLeft(connections int) {
	if p.heirLink != nil {
		f := newFrame(frameLeft, leftBody{connections})
		f.optional = true
		_ = p.heirLink.send(f) // who does not hear it has ended
	}
}

// Bequeath leaves state to the process that has replaced this one, which finds it by [Process.Bequest] when this one has ended. It
// is for what has been counted since the other accepts. It does nothing if there is none.
func (p *Process) Bequeath(state map[string][]byte) error {
	if p.heirLink == nil {
		return nil
	}
	return p.heirLink.sendState(frame{kind: frameBequest, optional: true}, state)
}

// watchHeir tells if the process that has replaced this one fails while this one drains.
func (p *Process) watchHeir(h *handing) {
	<-h.exited
	if h.exit != nil {
		p.heirFailed <- h.exit
	}
}

// HeirFailed returns a channel that gets how the process has ended that has replaced this one, if that was not in good order. Nobody
// serves then, and whoever would start another process may wait for the end of this one.
func (p *Process) HeirFailed() <-chan error { return p.heirFailed }

func (p *Process) isReplaced() bool { return p.heirLink != nil }

func (p *Process) closeHeirLink() {
	if p.heirLink != nil {
		_ = p.heirLink.conn.Close()
	}
}

// Free returns a channel that is closed when the predecessor does not watch this process any more: it has handed over all that it
// could, or is dead. Until then it would go on in this one's place if that ended; so who cannot serve had better end at once,
// and who is to end, later. If there is no predecessor it is closed.
func (p *Process) Free() <-chan struct{} {
	if p.link == nil {
		free := make(chan struct{})
		close(free)
		return free
	}
	return p.free
}

// PredecessorPID returns the predecessor's process number, or 0 if there is none.
func (p *Process) PredecessorPID() int { return p.predecessor }

// Left returns how many connections the predecessor has yet to drain, as it has told last.
func (p *Process) Left() int { return int(p.left.Load()) }

// Bequest returns what the predecessor has left under the name at its end, or nil. It may be called when Done has been closed.
func (p *Process) Bequest(name string) []byte { return p.bequest[name] }
