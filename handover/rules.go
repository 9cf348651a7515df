package handover

// The rules by which exactly one process serves stand in this file, apart from sockets, clocks and processes: what
// happens to either side is an event, and what the side does about it a list of deeds, to be done in order. A test goes
// through everything that can happen (see rules_model_test.go), so whatever decides about who serves belongs here.
//
// They come to this:
//
//   - Until it has said that it is ready the new process counts for nothing. When it ends, however it does, nothing has happened.
//   - While the two talk, the old process may take everything back, and it does so by ending the new one. So trouble of any kind has
//     one remedy, and the new process never decides that it is not to serve. It decides that it is to, if the old
//     one is dead or has said nothing for too long: for both to accept is harmless, for neither is not.
//   - The old process closes its end only when all has been handed over, or when the new one is dead.
//   - A batch of connections is the new process's from the moment at which it has sent TAKEN. It reads from none of it before that,
//     and the old process goes on with a batch only if the new one is dead and has not sent it.

// An event is something that has happened to a side.
type event struct {
	kind  eventKind
	batch uint64
}

type eventKind uint8

const (
	gotReady eventKind = iota + 1
	gotTook
	gotTaken  // a batch's
	gotFailed // the other side cannot go on
	gotTake
	gotOffer // of a batch
	gotDone
	gotGarbage // what nobody who is well would say now

	heard     // the other side said something else
	silence   // it has not said anything for too long
	linkEnded // it can say no more: it is dead, or has nothing more to say
	timeUp    // the step has taken as long as it may, or as it is to
	calledOff // the old process is not to be replaced after all
	heirGone  // the new process is dead, and all that it had said has been read
	packed    // a batch is ready to be offered
	packedAll // there is no other
	unsent    // a batch's offer could not be sent
	built     // the new process could accept
)

// A deed is something that a side does.
type deed struct {
	kind  deedKind
	batch uint64
}

type deedKind uint8

const (
	stopAccepting deedKind = iota + 1
	acceptAgain
	sendTake
	startMoving // pack connections from now on
	sendOffer   // of a batch
	release     // let go of a batch: it is the new process's
	keep        // go on with a batch here
	sendDone
	kill    // end the new process
	succeed // this is over: all that could be has been handed over
	giveUp  // this is over: all goes on here

	sendReady
	take // accept
	sendTook
	adopt     // make connections of a batch, which begin later
	sendTaken // of a batch
	begin     // go on with a batch
	discard   // forget a batch that has come
	sendFailed
	partWays // the old process has nothing more to say
)

// An elder is the old process's side.
type elder struct {
	step      step
	open      batches // offered, and not answered
	stopped   bool    // accepting
	allPacked bool
}

type step uint8

const (
	awaitsReady step = iota // it has been started
	settles                 // the new process is ready, and watched
	awaitsTook              // it was told to accept
	watches                 // it accepts, and all can still be taken back
	moves                   // connections go
	ends                    // the new process is being ended
	alone                   // it is dead, and all goes on here
	parted                  // it has everything
)

var stepWords = [...]string{
	awaitsReady: "before it was ready", settles: "while it settled", awaitsTook: "when it was to accept",
	watches: "in its probation", moves: "while connections moved", ends: "while it was ended", alone: "", parted: "",
}

// on says what an event has the old process do.
func (e *elder) on(ev event) (deeds []deed) {
	switch {
	case ev.kind == packed && e.step != moves:
		return []deed{{keep, ev.batch}} // it was packed for nothing
	case e.step == parted || e.step == alone:
		return nil
	case ev.kind == heirGone:
		return e.stayAlone()
	case ev.kind == gotTaken && e.open.drop(ev.batch):
		deeds = append(deeds, deed{release, ev.batch}) // also while the new process is being ended: it may have read from them
	case ev.kind == unsent && e.open.drop(ev.batch):
		deeds = append(deeds, deed{keep, ev.batch})
	case e.step == ends:
		return nil
	default:
		deeds = e.proceed(ev)
	}
	if e.step == moves && e.allPacked && e.open.empty() {
		e.step = parted
		deeds = append(deeds, deed{kind: sendDone}, deed{kind: succeed})
	}
	return deeds
}

// proceed goes on to the next step, or ends the new process.
func (e *elder) proceed(ev event) []deed {
	switch ev.kind {
	case heard:
		return nil
	case gotReady:
		if e.step == awaitsReady {
			e.step = settles
			return nil
		}
	case timeUp:
		switch e.step {
		case settles:
			e.step, e.stopped = awaitsTook, true
			return []deed{{kind: stopAccepting}, {kind: sendTake}}
		case watches:
			e.step = moves
			return []deed{{kind: startMoving}}
		}
	case gotTook:
		switch e.step {
		case awaitsTook:
			e.step = watches
			return nil
		case settles: // it heard nothing from here for too long
			e.step, e.stopped = watches, true
			return []deed{{kind: stopAccepting}}
		}
	case packed:
		e.open.add(ev.batch)
		return []deed{{sendOffer, ev.batch}}
	case packedAll:
		e.allPacked = true
		return nil
	case calledOff:
		if e.step == moves { // the new process serves, and those who are here still leave by the usual rules
			return nil
		}
	}
	return e.end()
}

// end ends the new process, and does not wait for that to accept again.
func (e *elder) end() []deed {
	e.step = ends
	deeds := []deed{{kind: kill}}
	if e.stopped {
		e.stopped = false
		deeds = append(deeds, deed{kind: acceptAgain})
	}
	return deeds
}

// stayAlone takes everything back from a new process that is dead.
func (e *elder) stayAlone() (deeds []deed) {
	e.step = alone
	if e.stopped {
		e.stopped = false
		deeds = append(deeds, deed{kind: acceptAgain})
	}
	for !e.open.empty() {
		b := e.open.first()
		e.open.drop(b)
		deeds = append(deeds, deed{keep, b})
	}
	return append(deeds, deed{kind: giveUp})
}

// An heir is the new process's side.
type heir struct {
	built     bool // it could accept
	serving   bool // it accepts
	condemned bool // it has heard what it could not go on from, and waits for its end
	free      bool // there is nobody at the other end
}

// on says what an event has the new process do.
func (h *heir) on(ev event) []deed {
	switch ev.kind {
	case built:
		h.built = true
		if !h.free && !h.condemned {
			return []deed{{kind: sendReady}}
		}
		if h.free {
			return h.take()
		}
	case linkEnded:
		h.free = true
		return append(h.take(), deed{kind: partWays})
	case silence:
		deeds := h.take()
		if len(deeds) > 0 && !h.condemned {
			deeds = append(deeds, deed{kind: sendTook})
		}
		return deeds
	case gotTake:
		switch {
		case h.condemned, h.serving: // it heard nothing for too long, and did not wait for this
		case h.built:
			return append(h.take(), deed{kind: sendTook})
		default:
			return h.condemn()
		}
	case gotOffer:
		switch {
		case h.condemned:
			return []deed{{discard, ev.batch}}
		case h.serving:
			return []deed{{adopt, ev.batch}, {sendTaken, ev.batch}, {begin, ev.batch}}
		default:
			return append(h.condemn(), deed{discard, ev.batch})
		}
	case gotDone:
		if h.serving && !h.condemned {
			h.free = true
			return []deed{{kind: partWays}}
		}
		return h.condemn()
	case gotGarbage:
		return h.condemn()
	}
	return nil
}

// take has it accept if it can and does not.
func (h *heir) take() []deed {
	if !h.built || h.serving {
		return nil
	}
	h.serving = true
	return []deed{{kind: take}}
}

// condemn tells the old process to end this one.
func (h *heir) condemn() []deed {
	if h.condemned || h.free {
		return nil
	}
	h.condemned = true
	return []deed{{kind: sendFailed}}
}

// batches are those that are on their way: a few, by their numbers, of which 0 is none.
type batches [maxOpen]uint64

// maxOpen is how many batches may be on their way: while one is unpacked the next is packed.
const maxOpen = 2

func (b *batches) add(n uint64) {
	for i, open := range b {
		if open == 0 {
			b[i] = n
			return
		}
	}
	panic("handover: more batches on their way than may be")
}

func (b *batches) drop(n uint64) bool {
	for i, open := range b {
		if open == n && n != 0 {
			b[i] = 0
			return true
		}
	}
	return false
}

func (b *batches) first() uint64 {
	for _, open := range b {
		if open != 0 {
			return open
		}
	}
	return 0
}

func (b *batches) empty() bool { return b.first() == 0 }
func (b *batches) full() bool  { return b[0] != 0 && b[1] != 0 }

// String returns the deed's word, by which tests name it.
func (k deedKind) String() string { return deedWords[k] }

var deedWords = [...]string{
	stopAccepting: "stop", acceptAgain: "accept", sendTake: "take", startMoving: "move", sendOffer: "offer", release: "release",
	keep: "keep", sendDone: "done", kill: "kill", succeed: "succeed", giveUp: "give_up",

	sendReady: "ready", take: "turn", sendTook: "took", adopt: "adopt", sendTaken: "taken", begin: "go_on", discard: "discard",
	sendFailed: "failed", partWays: "part",
}
