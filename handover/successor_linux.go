package handover

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/levee-net/levee"
)

const (
	// environment names the variable that holds the number of the descriptor by which a predecessor talks to the process.
	environment = "LEVEE_HANDOVER"

	beginLimit = 10 * time.Second // for what the predecessor sends before it starts the process

	idsToSpare = 1 << 20 // for connections that the predecessor has had since it said what its last was, if it says no more

	beat      = 100 * time.Millisecond // how often the old process says something, and either looks whether the other has
	deafAfter = 7                      // beats without a word. They are counted, so that who was stopped itself does not blame the other
)

// succession is what links a process to its predecessor.
type succession struct {
	link  *link                     // nil if there is none
	ready chan map[string]adoptFunc // what can be served, by the servers' names
	turn  chan struct{}             // closed when the process is to accept
	over  chan struct{}             // closed when the predecessor has ended
	free  chan struct{}             // closed when the predecessor does not watch any more

	heirLink    *link             // to the process that has replaced this one; nil if none has
	heirFailed  chan error        // has room for one
	left        atomic.Int64      // connections that the predecessor has yet to drain
	predecessor int               // its number
	bequest     map[string][]byte // what it has left; written before over is closed
	examining   atomic.Bool       // a look at the program has not come back yet

	// The rest is of the goroutine that follows the predecessor.
	heir    heir
	servers map[string]adoptFunc
	fresh   map[string][]byte // state that came when it was to accept
	exam    *exam             // whether the program is well; nil if nobody asks, or will again
	lastID  uint64            // that a connection of the predecessor's may have
	batch   *incoming         // that is being taken
	trouble string            // why it cannot go on
	parted  bool
	mute    bool // the predecessor can say no more
	stderr  int  // where this process's errors are to go from now on, or -1
}

// begin takes what the process was given.
func (p *Process) begin() error {
	p.heirFailed = make(chan error, 1)
	value, given := os.LookupEnv(environment)
	_ = os.Unsetenv(environment)
	if !given {
		p.beginFromSystemd()
		return nil
	}
	fd, err := strconv.Atoi(value)
	if err != nil || fd < 3 {
		return fmt.Errorf("%s=%s is no descriptor", environment, value)
	}
	unix.CloseOnExec(fd)
	f := os.NewFile(uintptr(fd), environment)
	defer f.Close()
	p.link, err = newLink(f)
	if err != nil {
		return fmt.Errorf("%s=%d: %w", environment, fd, err)
	}
	p.origin, p.stderr = Predecessor, -1
	fail("new", "begin", p.link)
	if err := p.receiveStart(); err != nil {
		_ = p.link.send(newFrame(frameFailed, failedBody{err.Error()}))
		return err
	}
	_ = p.link.send(newFrame(frameHello, hello{PID: os.Getpid()})) // who does not get it has ended, which shows soon
	p.exam = new(exam)
	p.ready, p.turn, p.over, p.free = make(chan map[string]adoptFunc), make(chan struct{}), make(chan struct{}), make(chan struct{})
	go p.follow() // ends when the predecessor has, or has nothing more to say, and the process accepts
	return nil
}

// receiveStart takes what the predecessor has sent before it started the process. If it is dead already that may be
// a part, with which the process is on its own.
func (p *Process) receiveStart() error {
	_ = p.link.conn.SetReadDeadline(time.Now().Add(beginLimit))
	defer func() { _ = p.link.conn.SetReadDeadline(time.Time{}) }()
	message, rights := newBuffers()
	for {
		r := p.link.receive(message, rights)
		if r.err == io.EOF {
			return nil
		}
		done, err := p.takeStart(&r)
		r.drop()
		if done || err != nil {
			return err
		}
	}
}

// takeStart takes one frame of that, and reports whether it was the last. Of the frame's files those that are taken are its no more.
func (p *Process) takeStart(r *received) (done bool, err error) {
	if r.err != nil {
		return false, r.err
	}
	switch r.kind {
	case frameHello:
		var h hello
		if err := r.read(&h); err != nil {
			return false, err
		}
		p.predecessor = h.PID
		if len(r.fds) == 1 {
			p.stderr, r.fds = r.fds[0], nil
		}
	case frameListeners:
		var l listenersBody
		if err := r.read(&l); err != nil {
			return false, err
		}
		if len(l.Names) != len(r.fds) {
			return false, fmt.Errorf("%w: %d sockets with %d names", errFrame, len(r.fds), len(l.Names))
		}
		for i, name := range l.Names {
			p.inherit(name, os.NewFile(uintptr(r.fds[i]), name), slices.Contains(l.Owned, i)) //nolint:gosec // descriptors are not negative
		}
		r.fds = nil
	case frameState:
		p.state, p.lastID, err = r.state()
		p.lastID += idsToSpare
	case frameStart:
		return true, nil
	default:
		if !r.optional {
			return false, fmt.Errorf("%w: kind %d at the beginning", errFrame, r.kind)
		}
	}
	return false, err
}

// state reads a state's frame.
func (r *received) state() (state map[string][]byte, lastID uint64, err error) {
	var body stateBody
	if err := r.read(&body); err != nil {
		return nil, 0, err
	}
	if len(r.fds) != 1 {
		return nil, 0, fmt.Errorf("%w: state in %d files", errFrame, len(r.fds))
	}
	content, err := readMemory(r.fds[0])
	if err != nil {
		return nil, 0, err
	}
	if err := body.check(int64(len(content))); err != nil {
		return nil, 0, err
	}
	state = make(map[string][]byte, len(body.Parts))
	for _, part := range body.Parts {
		state[part.Name], content = content[:part.Size:part.Size], content[part.Size:]
	}
	return state, body.LastID, nil
}

// awaitTurn says that the process could accept, and waits until it is to.
func (p *Process) awaitTurn(ctx context.Context, adopts map[string]adoptFunc) error {
	if p.link == nil {
		return nil
	}
	select {
	case p.ready <- adopts:
	case <-p.turn:
		return errors.New("ready for the second time")
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case <-p.turn:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Done returns a channel that is closed when the predecessor has ended, or at once if there is none.
func (p *Process) Done() <-chan struct{} {
	if p.link == nil {
		done := make(chan struct{})
		close(done)
		return done
	}
	return p.over
}

func (p *Process) alone() bool {
	select {
	case <-p.Done():
		return true
	default:
		return false
	}
}

// follow does what the predecessor says, until it has nothing more to say. Connections are made here too, so that who waits for one
// that does not come back hears nothing from this process.
func (p *Process) follow() {
	defer close(p.over)
	frames, stop := make(chan received), make(chan struct{})
	go p.link.receiveAll(frames, stop) // ends when the link is closed
	defer func() {
		close(stop)
		_ = p.link.conn.Close()
	}()
	beats := time.NewTicker(beat)
	defer beats.Stop()
	for deaf := 0; !p.parted || !p.heir.serving; {
		select {
		case p.servers = <-p.ready:
			deaf = 0
			p.learn(event{kind: built})
		case r := <-frames:
			deaf = 0
			p.learn(p.understand(&r))
			r.drop()
		case <-beats.C:
			if deaf++; deaf > deafAfter {
				deaf = 0
				p.learn(event{kind: silence})
			}
		}
	}
	p.forgetServers()
	if !p.mute {
		p.hearOut(frames)
	}
}

// forgetServers lets go of those that the process began with: others may take their place long before the predecessor has drained.
func (p *Process) forgetServers() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.servers, p.exam = nil, nil
}

// hearOut listens to a predecessor that drains, until it has ended.
func (p *Process) hearOut(frames <-chan received) {
	for ended := false; !ended; {
		r := <-frames
		ended = r.err == io.EOF
		switch {
		case r.err != nil:
		case r.kind == frameLeft:
			var body leftBody
			if r.read(&body) == nil {
				p.left.Store(int64(max(0, body.Conns)))
			}
		case r.kind == frameBequest:
			if state, _, err := r.state(); err == nil {
				p.bequest = state
			}
		}
		r.drop()
	}
	p.left.Store(0)
}

// understand makes an event of a frame, and answers a ping.
func (p *Process) understand(r *received) event {
	switch {
	case r.err == io.EOF:
		p.mute = true
		return event{kind: linkEnded}
	case r.err != nil && (r.err != errFilesLost || r.kind != frameOffer):
		return p.puzzled(r.err)
	}
	switch r.kind {
	case framePing:
		if !p.heir.condemned {
			p.answerPing()
		}
	case frameTake:
		state, lastID, err := r.state()
		if err != nil {
			return p.puzzled(err)
		}
		p.fresh, p.lastID = state, lastID
		return event{kind: gotTake}
	case frameOffer:
		batch, err := r.offer()
		if err != nil {
			return p.puzzled(err)
		}
		p.batch = batch
		return event{gotOffer, batch.Batch}
	case frameDone:
		return event{kind: gotDone}
	default:
		if !r.optional {
			return p.puzzled(fmt.Errorf("%w: kind %d", errFrame, r.kind))
		}
	}
	return event{kind: heard}
}

func (p *Process) puzzled(err error) event {
	p.trouble = err.Error()
	return event{kind: gotGarbage}
}

// learn does what an event asks for.
func (p *Process) learn(ev event) {
	deeds := p.heir.on(ev)
	if ev.kind == linkEnded && len(deeds) > 0 {
		p.logger().Warn("the predecessor has died before it had handed over everything", "serving", p.heir.serving)
		p.notify(fmt.Sprintf("MAINPID=%d", os.Getpid()), "READY=1")
	}
	for _, d := range deeds {
		fail("new", d.kind.String(), p.link)
		p.do(d)
		fail("new", d.kind.String()+"+", p.link)
	}
}

func (p *Process) do(d deed) {
	switch d.kind {
	case sendReady:
		p.takeBackStderr()
		_ = p.link.send(newFrame(frameReady, nil)) // who does not get it has ended, here and below
	case take:
		p.mu.Lock()
		if len(p.fresh) > 0 {
			p.state = p.fresh
		}
		p.mu.Unlock()
		levee.SkipIDs(p.lastID)
		call(p.Turn)
		close(p.turn)
	case sendTook:
		_ = p.link.send(newFrame(frameTook, nil))
	case adopt:
		p.adopt(p.batch)
	case sendTaken:
		p.batch.sent = p.link.send(newFrame(frameTaken, p.batch.answer))
	case begin:
		p.goOn(p.batch)
	case discard:
		p.batch.drop()
	case sendFailed:
		p.logger().Error("the predecessor is not to be understood; it is asked to end this process", "err", p.trouble)
		_ = p.link.send(newFrame(frameFailed, failedBody{p.trouble}))
	case partWays:
		close(p.free)
		p.takeBackStderr()
		p.parted = true
	}
}

// takeBackStderr has this process's errors go where its predecessor's do, and no more to what that keeps for when this one does not
// get ready.
func (p *Process) takeBackStderr() {
	if p.stderr >= 0 {
		_ = unix.Dup3(p.stderr, 2, 0)
		_ = unix.Close(p.stderr)
		p.stderr = -1
	}
}

// incoming is a batch of connections that was offered.
type incoming struct {
	offerBody
	data   []byte
	fds    []int // sockets
	made   []adopted
	answer takenBody
	sent   error // of the answer
}

// offer reads an offer's frame, whose files are the batch's then. Of one whose files were lost there is only the number.
func (r *received) offer() (*incoming, error) {
	b := new(incoming)
	if err := r.read(&b.offerBody); err != nil {
		return nil, err
	}
	b.answer.Batch = b.Batch
	if r.err == errFilesLost {
		return b, nil
	}
	if len(r.fds) == 0 {
		return nil, fmt.Errorf("%w: an offer without a file", errFrame)
	}
	var err error
	if b.data, err = readMemory(r.fds[0]); err != nil {
		return nil, err
	}
	if err := b.check(len(r.fds), int64(len(b.data))); err != nil {
		return nil, err
	}
	b.fds = r.fds[1:]
	r.fds = r.fds[:1]
	return b, nil
}

// adopt makes the batch's connections, of which none begins yet.
func (p *Process) adopt(b *incoming) {
	adopt, known := p.servers[b.Server]
	lost := b.fds == nil && len(b.Conns) > 0
	last := time.Now()
	for i, c := range b.Conns {
		if lost {
			b.refuse(i, errFilesLost)
			continue
		}
		data, sockets := b.data[:c.Size:c.Size], b.fds[:c.Sockets:c.Sockets]
		b.data, b.fds = b.data[c.Size:], b.fds[c.Sockets:]
		if !known {
			closeFiles(sockets)
			b.refuse(i, fmt.Errorf("there is no server %q", b.Server))
			continue
		}
		made, err := adopt(data, sockets)
		if err != nil {
			b.refuse(i, err)
			continue
		}
		b.made = append(b.made, made)
		if now := time.Now(); now.Sub(last) > beat { // slow, and not stuck
			last = now
			_ = p.link.send(newFrame(framePong, nil))
		}
	}
}

func (b *incoming) refuse(i int, err error) {
	b.answer.Refused = append(b.answer.Refused, i)
	if b.answer.Why == "" {
		b.answer.Why = err.Error()
	}
}

// goOn has the batch's connections go on here, if they are this process's: the predecessor was told, or is dead.
func (p *Process) goOn(b *incoming) {
	if b.sent != nil && !isGone(b.sent) {
		b.drop()
		p.learn(p.puzzled(fmt.Errorf("answer an offer: %w", b.sent)))
		return
	}
	for _, made := range b.made {
		made.Begin()
	}
	p.adoptions.Add(int64(len(b.made)))
}

// drop forgets the batch, which stays the predecessor's.
func (b *incoming) drop() {
	closeFiles(b.fds)
	for _, made := range b.made {
		made.Drop()
	}
}
