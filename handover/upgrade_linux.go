package handover

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/levee-net/levee"
)

const (
	tookLimit  = 2 * time.Second  // until the new process says that it accepts; it has to answer pings meanwhile
	batchLimit = 10 * time.Second // until it has taken a batch, likewise
	forever    = 1 << 62

	lateIDs = 1 << 10 // of connections that are accepted here while accepting stops

	exitPatience = 200 * time.Millisecond // between the end of what a process says and its own
	errorLines   = 5                      // of what it wrote, for the error
	errorBytes   = 1000
	passedOn     = 256 << 10 // of that, for the log
)

// A handing is an upgrade that is under way.
type handing struct {
	process *Process
	plan    *Plan
	elder   elder
	link    *link
	copies  []Socket // of the plan's
	stderr  *os.File // what the new process writes until it is ready; a file, as it has to outlive this process

	command *exec.Cmd
	exited  chan struct{} // closed when it has
	exit    error         // then

	batches chan *outgoing // from who packs; closed when all are
	stop    chan struct{}  // closed when no more is to be packed, or heard
	packing context.Context
	enough  context.CancelFunc

	open    map[uint64]*outgoing // on their way
	offered uint64               // batches, so far
	moved   map[*levee.Conn]bool
	timer   *time.Timer // of the step
	greeted bool        // the new process has said something
	deaf    int         // beats since it has
	eof     bool        // it can say no more
	reason  error       // why it is ended
	failed  step        // in which step that came, or its end by itself
	over    bool

	began, ready, moving time.Time
	outcome              Outcome
}

// upgrade hands over, and returns what has come of it.
func (p *Process) upgrade(ctx context.Context, plan *Plan) (_ *Outcome, err error) {
	h := &handing{
		process: p, plan: plan, began: time.Now(),
		open: make(map[uint64]*outgoing), moved: make(map[*levee.Conn]bool), stop: make(chan struct{}), exited: make(chan struct{}),
	}
	h.packing, h.enough = context.WithCancel(ctx)
	defer h.enough()
	defer h.closeFiles()
	h.progress(Starting)
	if err := h.start(); err != nil {
		return nil, fmt.Errorf("start the new process: %w", err)
	}
	h.run(ctx)
	if h.elder.step != parted {
		_ = h.link.conn.Close()
		return nil, h.verdict()
	}
	p.heirLink = h.link
	go p.watchHeir(h) // ends with it
	h.outcome.PID = h.command.Process.Pid
	h.outcome.Stayed = h.stayed()
	h.outcome.Ready = h.ready.Sub(h.began)
	h.outcome.Moving = time.Since(h.moving)
	h.outcome.Total = time.Since(h.began)
	return &h.outcome, nil
}

func (h *handing) progress(step Step) {
	if h.plan.Progress != nil {
		h.plan.Progress(step)
	}
}

// stayed returns how many connections the servers have that have not moved: one that a goroutine serves leaves a moment after it has.
func (h *handing) stayed() (n int) {
	for _, s := range h.plan.Servers {
		for _, c := range s.Conns() {
			if !h.moved[c] {
				n++
			}
		}
	}
	return n
}

// start sends what the new process begins with, and starts it: so it finds everything there whatever becomes of this one.
func (h *handing) start() (err error) {
	if err := h.copySockets(); err != nil {
		return err
	}
	fd, err := unix.MemfdCreate("stderr", unix.MFD_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("memfd_create", err)
	}
	h.stderr = os.NewFile(uintptr(fd), "stderr") //nolint:gosec // descriptors are not negative
	if _, err := unix.FcntlInt(h.stderr.Fd(), unix.F_SETFL, unix.O_APPEND); err != nil {
		return os.NewSyscallError("fcntl", err)
	}
	own, other, err := newLinks()
	if err != nil {
		return err
	}
	defer other.Close()
	h.link = own
	if err := h.sendStart(); err != nil {
		_ = own.conn.Close()
		return err
	}
	if err := h.exec(other); err != nil {
		_ = own.conn.Close()
		return err
	}
	return nil
}

// copySockets makes listeners on the same sockets, which outlive those that there are. They are made now, as they may be needed when
// there are no files to be had.
func (h *handing) copySockets() error {
	for _, s := range h.plan.Sockets {
		f, err := socketOf(s)
		if err != nil {
			return err
		}
		l, err := levee.FileListener(f)
		_ = f.Close()
		if err != nil {
			return err
		}
		h.copies = append(h.copies, Socket{s.Address, l})
	}
	return nil
}

// socketOf returns a copy of a listener's socket.
func socketOf(s Socket) (*os.File, error) {
	has, ok := s.Listener.(interface{ File() (*os.File, error) })
	if !ok {
		return nil, fmt.Errorf("listener on %s has no socket that could be shared", s.Address)
	}
	f, err := has.File()
	if err != nil {
		return nil, fmt.Errorf("listener on %s: %w", s.Address, err)
	}
	return f, nil
}

func (h *handing) closeFiles() {
	for _, s := range h.copies {
		_ = s.Listener.Close()
	}
	if h.stderr != nil {
		_ = h.stderr.Close()
	}
}

// sendStart sends all that the new process begins with.
func (h *handing) sendStart() error {
	if err := h.link.send(newFrame(frameHello, hello{PID: os.Getpid()}), 2); err != nil {
		return fmt.Errorf("send errors' descriptor: %w", err)
	}
	for first := 0; first < len(h.copies); first += maxFiles {
		var body listenersBody
		var fds []int
		for i, s := range h.copies[first:min(first+maxFiles, len(h.copies))] {
			if h.process.owns(s.Listener.Addr()) {
				body.Owned = append(body.Owned, i)
			}
			body.Names = append(body.Names, s.Address)
			fds = append(fds, descriptor(s.Listener))
		}
		if err := h.link.send(newFrame(frameListeners, body), fds...); err != nil {
			return fmt.Errorf("send sockets: %w", err)
		}
	}
	if err := h.sendPlanned(frameState, h.plan.State); err != nil {
		return fmt.Errorf("send state: %w", err)
	}
	return h.link.send(newFrame(frameStart, nil))
}

// descriptor returns the descriptor of a file or a listener, without making it blocking as Fd does: that would be true of every
// copy. It is -1 if there is none, with which nothing can be sent.
func descriptor(of any) (fd int) {
	fd = -1
	if has, ok := of.(syscall.Conn); ok {
		if sock, err := has.SyscallConn(); err == nil {
			_ = sock.Control(func(d uintptr) { fd = int(d) }) //nolint:gosec // descriptors are small
		}
	}
	return fd
}

// sendPlanned sends state that a plan's function returns. Of no function it sends that there is none.
func (h *handing) sendPlanned(kind frameKind, get func() map[string][]byte) error {
	if get == nil {
		return h.link.sendState(newFrame(kind, nil), nil)
	}
	return h.link.sendState(newFrame(kind, nil), get())
}

// sendState sends state in a file in memory.
func (l *link) sendState(f frame, state map[string][]byte) error {
	var body stateBody
	if f.kind != frameBequest { // the process that gets that one accepts already
		body.LastID = levee.LastID() + lateIDs
	}
	var pieces [][]byte
	size := 0
	for _, name := range slices.Sorted(maps.Keys(state)) {
		body.Parts = append(body.Parts, part{name, len(state[name])})
		pieces = append(pieces, state[name])
		size += len(state[name])
	}
	if size > maxMemory {
		return fmt.Errorf("state of %d bytes is more than the %d that can be handed over", size, maxMemory)
	}
	fd, err := memory("state", pieces)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	f.body = newFrame(f.kind, body).body
	return l.send(f, fd)
}

// exec starts the new process with its end of the link.
func (h *handing) exec(other *os.File) error {
	path, args, env, err := h.plan.command()
	if err != nil {
		return err
	}
	h.command = exec.Command(path, args...) //nolint:noctx // it is to outlive everything here
	h.command.Env = slices.DeleteFunc(slices.Clone(env), func(s string) bool {
		return strings.HasPrefix(s, environment+"=")
	})
	h.command.Env = append(h.command.Env, environment+"=3")
	h.command.ExtraFiles = []*os.File{other} // the first is descriptor 3
	h.command.Stdout, h.command.Stderr = os.Stdout, h.stderr
	if err := h.command.Start(); err != nil {
		return err
	}
	go h.await() // ends with the new process
	if h.plan.Started != nil {
		h.plan.Started(h.command.Process.Pid)
	}
	return nil
}

// await notices the new process's end. Then there is an end to what it says, even if a child of its has the link too.
func (h *handing) await() {
	h.exit = h.command.Wait()
	_ = h.link.conn.CloseRead()
	close(h.exited)
}

// run goes through the steps until all is handed over or taken back.
func (h *handing) run(ctx context.Context) {
	frames := make(chan received)
	go h.link.receiveAll(frames, h.stop) // ends when the link is closed
	defer h.awaitPacker()
	defer close(h.stop)
	h.timer = time.NewTimer(orDefault(h.plan.ReadyTimeout, readyTimeout, forever))
	defer h.timer.Stop()
	beats := time.NewTicker(beat)
	defer beats.Stop()
	off := ctx.Done()
	fail("old", "started", h.link)
	for !h.over {
		var next <-chan *outgoing
		if !h.elder.open.full() {
			next = h.batches
		}
		select {
		case r := <-frames:
			h.hear(&r)
		case <-h.silenced():
			h.learn(event{kind: heirGone})
		case <-beats.C:
			h.onBeat(frames)
		case <-h.timer.C:
			step := h.elder.step
			if h.hearRest(frames); h.elder.step == step {
				h.learn(h.late())
			}
		case b, ok := <-next:
			h.learn(h.arrived(b, ok))
		case <-off:
			off = nil
			if h.elder.step == moves { // as the packer knows, who has this context too
				continue
			}
			h.learn(h.because(calledOff, context.Cause(ctx)))
		}
	}
}

// silenced returns a channel that is closed when the new process has ended, once all that it had said is read.
func (h *handing) silenced() <-chan struct{} {
	if !h.eof {
		return nil
	}
	return h.exited
}

// onBeat has the new process know that this one is well, and looks whether that is.
func (h *handing) onBeat(frames <-chan received) {
	if h.greeted && h.elder.step != ends {
		_ = h.link.send(newFrame(framePing, nil)) // if it cannot be sent, it will not be answered
	}
	switch h.elder.step {
	case settles, awaitsTook, watches, moves:
	default:
		return
	}
	h.deaf++
	if h.deaf <= deafAfter && !h.isBatchLate() {
		return
	}
	switch h.hearRest(frames); {
	case h.elder.step == ends:
	case h.deaf > deafAfter:
		h.learn(h.because(silence, fmt.Errorf("it has not answered for %v", deafAfter*beat)))
	case h.isBatchLate():
		h.learn(h.late())
	}
}

func (h *handing) isBatchLate() bool {
	for _, b := range h.open {
		if time.Since(b.since) > batchLimit {
			return true
		}
	}
	return false
}

// hear learns of a frame.
func (h *handing) hear(r *received) {
	h.deaf = 0
	h.learn(h.understand(r))
	r.drop()
}

// hearRest learns of what the new process has said so far: if it seems to be late, it may be this one that is.
func (h *handing) hearRest(frames <-chan received) {
	for range 1000 { // who says so much is not well either
		select {
		case r := <-frames:
			h.hear(&r)
		case <-time.After(beat / 10):
			return
		}
	}
}

// errSilenced is of a new process that has closed the link. If it has not been killed even so, it was about to end.
var errSilenced = errors.New("it speaks to this one no more")

// because makes an event that may be why the new process is ended.
func (h *handing) because(kind eventKind, reason error) event {
	if h.reason == nil {
		h.reason = reason
	}
	return event{kind: kind}
}

// late is the event of a step that has taken its time.
func (h *handing) late() event {
	switch h.elder.step {
	case awaitsReady:
		return h.because(timeUp, fmt.Errorf("it was not ready within %v", orDefault(h.plan.ReadyTimeout, readyTimeout, forever)))
	case awaitsTook:
		return h.because(timeUp, fmt.Errorf("it did not accept within %v", tookLimit))
	case moves:
		return h.because(timeUp, fmt.Errorf("it has not taken connections within %v", batchLimit))
	}
	return event{kind: timeUp}
}

// understand makes an event of a frame.
func (h *handing) understand(r *received) event {
	h.greeted = true
	if r.err == io.EOF {
		h.eof = true
		select {
		case <-h.exited:
			return event{kind: heard} // and that is the next
		case <-time.After(exitPatience):
			return h.because(linkEnded, errSilenced)
		}
	}
	if r.err != nil {
		return h.because(gotGarbage, r.err)
	}
	switch r.kind {
	case frameHello, framePong:
	case frameReady:
		return event{kind: gotReady}
	case frameTook:
		return event{kind: gotTook}
	case frameTaken:
		var answer takenBody
		if err := r.read(&answer); err != nil {
			return h.because(gotGarbage, err)
		}
		b := h.open[answer.Batch]
		if b == nil {
			return h.because(gotGarbage, fmt.Errorf("%w: an answer to what was not offered", errFrame))
		}
		b.answer = answer
		return event{gotTaken, answer.Batch}
	case frameFailed:
		var body failedBody
		if err := r.read(&body); err != nil {
			return h.because(gotGarbage, err)
		}
		return h.because(gotFailed, errors.New(body.Reason))
	default:
		if !r.optional {
			return h.because(gotGarbage, fmt.Errorf("%w: kind %d", errFrame, r.kind))
		}
	}
	return event{kind: heard}
}

// arrived is the event of a batch that is packed, or of there being no more.
func (h *handing) arrived(b *outgoing, ok bool) event {
	if !ok {
		h.batches = nil
		return event{kind: packedAll}
	}
	h.offered++
	b.number, b.since = h.offered, time.Now()
	h.open[b.number] = b
	return event{packed, b.number}
}

// learn does what an event asks for.
func (h *handing) learn(ev event) {
	before := h.elder.step
	deeds := h.elder.on(ev)
	if h.elder.step != before {
		h.enter(before)
	}
	for _, d := range deeds {
		fail("old", d.kind.String(), h.link)
		h.do(d)
		fail("old", d.kind.String()+"+", h.link)
	}
}

// enter begins a step.
func (h *handing) enter(before step) {
	switch h.elder.step {
	case settles:
		h.ready, h.deaf = time.Now(), 0
		h.passOnErrors()
		h.timer.Reset(orDefault(h.plan.Settle, settle, 0))
		h.progress(Settling)
	case awaitsTook:
		h.timer.Reset(tookLimit)
	case watches:
		h.timer.Reset(time.Until(h.ready.Add(orDefault(h.plan.Probation, probation, 0))))
		h.progress(Probation)
	case moves:
		h.timer.Stop()
		h.progress(Moving)
	case ends:
		h.timer.Stop()
		h.failed = before
		h.progress(Ending)
	case alone:
		if before != ends {
			h.failed = before
		}
	}
}

func (h *handing) do(d deed) {
	switch d.kind {
	case stopAccepting:
		for _, s := range h.plan.Sockets {
			if l, ok := s.Listener.(*net.UnixListener); ok {
				l.SetUnlinkOnClose(false) // its file is the new process's
			}
		}
		call(h.plan.StopAccepting)
	case acceptAgain:
		if h.plan.AcceptAgain != nil {
			h.plan.AcceptAgain(h.copies)
			h.copies = nil // they are the plan's now
		}
	case sendTake:
		if err := h.sendPlanned(frameTake, h.plan.FreshState); err != nil {
			h.learn(h.because(linkEnded, fmt.Errorf("tell it to accept: %w", err)))
		}
	case startMoving:
		h.moving = time.Now()
		h.batches = make(chan *outgoing)
		go h.pack(h.batches) // ends with the connections, or when stop is closed
	case sendOffer:
		h.offer(h.open[d.batch])
	case release:
		h.release(h.open[d.batch])
		delete(h.open, d.batch)
	case keep:
		unpack(h.open[d.batch].parcels)
		delete(h.open, d.batch)
	case sendDone:
		_ = h.link.send(newFrame(frameDone, nil)) // if not, it notices that the link is closed
	case kill:
		_ = h.command.Process.Kill() // it may have ended by itself
	case succeed, giveUp:
		h.over = true
	}
}

func call(f func()) {
	if f != nil {
		f()
	}
}

// passOnErrors writes what the new process has written to where this one's errors go.
func (h *handing) passOnErrors() {
	_, _ = io.Copy(os.Stderr, io.NewSectionReader(h.stderr, 0, passedOn))
}

// verdict says why all goes on here.
func (h *handing) verdict() error {
	said := ""
	if h.failed == awaitsReady {
		h.passOnErrors()
		if said = lastLines(h.stderr); said != "" {
			said = ": " + said
		}
	}
	status, _ := h.command.ProcessState.Sys().(syscall.WaitStatus)
	byItself := h.reason == nil || h.reason == errSilenced && status.Signal() != syscall.SIGKILL
	if !byItself {
		return fmt.Errorf("new process was ended %s: %w%s", stepWords[h.failed], h.reason, said)
	}
	return fmt.Errorf("new process ended %s: %v%s", stepWords[h.failed], h.command.ProcessState, said)
}

// lastLines returns the last lines of a file, as one.
func lastLines(f *os.File) string {
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return ""
	}
	tail := make([]byte, min(size, errorBytes))
	n, _ := f.ReadAt(tail, size-int64(len(tail)))
	lines := strings.FieldsFunc(strings.ToValidUTF8(string(tail[:n]), ""), func(r rune) bool { return r == '\n' || r == '\r' })
	return strings.Join(lines[max(0, len(lines)-errorLines):], "; ")
}
