package handover

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// A world is all that there is of an upgrade: both sides by the rules of rules.go, what each has yet to do, what
// is on the way between them, and who has which batch of connections. The tests below go through every world that can come to be
// of the first one, in whichever order things happen, if either process may be killed, stopped, stopped and continued, or speak
// garbage, at any moment and both of them, and if either takes the other for dead that is only slow.
type world struct {
	old     elder
	new     heir
	oldLife life
	newLife life
	oldDo   queue // deeds
	newDo   queue
	toNew   queue // messages
	toOld   queue

	oldAccepts, newAccepts   bool
	oldOver, newParted       bool // it has closed its end of the link
	isBuilt, toldEnd         bool
	packing, noMore          bool
	oldStopped, newStopped   bool // once, which is enough
	oldGarbage, newGarbage   bool
	calledOff, newLeftUnsent bool

	packed  uint8 // batches so far
	batches [modelBatches]struct {
		old                                     custody
		new                                     custody
		offered, taken, unsent, adrift, refused bool // adrift: it was the old process's alone when that died
	}
}

const modelBatches = 2

type life uint8

const (
	running life = iota
	stopped
	dead
)

type custody uint8

const (
	nothing  custody = iota
	serving_         // its bytes are read
	held             // it is packed, or has been made and not begun
)

// A queue is a short list of deeds or messages, each with a batch. It is a value, so that worlds can be compared.
type queue struct {
	n     uint8
	items [8]item
}

type item struct{ kind, batch uint8 }

func (q *queue) push(kind, batch uint8) {
	if int(q.n) == len(q.items) {
		panic("the model's queue is too short")
	}
	q.items[q.n] = item{kind, batch}
	q.n++
}

func (q *queue) pop() item {
	first := q.items[0]
	copy(q.items[:], q.items[1:])
	q.n--
	q.items[q.n] = item{}
	return first
}

func (q *queue) empty() bool { return q.n == 0 }

// A model is a way for the world to go: by the rules, or by some that a test has broken.
type model struct {
	elder func(*elder, event) []deed
	heir  func(*heir, event) []deed

	seen  map[world]int32
	from  []origin
	queue []world
}

// An origin is the world that one came of, and by what.
type origin struct {
	before int32
	by     string
}

func byTheRules() *model {
	return &model{
		elder: func(e *elder, ev event) []deed { return e.on(ev) },
		heir:  func(h *heir, ev event) []deed { return h.on(ev) },
	}
}

// explore goes through all worlds, and returns what was wrong with one of them, with how it came to be.
func (m *model) explore() (worlds int, wrong string) {
	first := world{oldAccepts: true}
	for b := range first.batches {
		first.batches[b].old = serving_
	}
	m.seen = map[world]int32{first: 0}
	m.from = []origin{{-1, ""}}
	m.queue = []world{first}
	for n := 0; n < len(m.queue); n++ {
		w := m.queue[n]
		progress := false
		next := func(by string, w2 world, problem string) {
			if w2 == w && problem == "" {
				return
			}
			progress = progress || !isFate(by)
			if _, known := m.seen[w2]; !known {
				m.seen[w2] = int32(len(m.queue))
				m.from = append(m.from, origin{int32(n), by})
				m.queue = append(m.queue, w2)
			}
			if problem != "" && wrong == "" {
				wrong = problem + m.story(int32(n)) + "\n  " + by
			}
		}
		m.steps(w, next)
		if !progress && wrong == "" {
			if problem := settled(w); problem != "" {
				wrong = problem + m.story(int32(n))
			}
		}
		if wrong != "" {
			return len(m.queue), wrong
		}
		m.queue[n] = world{} // its key in seen is enough
	}
	return len(m.queue), ""
}

// isFate reports whether something may never happen: a world in which only such can is one that has settled.
func isFate(by string) bool { return strings.HasPrefix(by, "fate: ") }

func (m *model) story(n int32) string {
	var lines []string
	for ; n > 0; n = m.from[n].before {
		lines = append(lines, "\n  "+m.from[n].by)
	}
	slices.Reverse(lines)
	return strings.Join(lines, "")
}

// steps passes on all that can happen next.
func (m *model) steps(w world, next func(by string, w2 world, problem string)) {
	if w.oldLife == running && !w.oldOver {
		m.oldSteps(w, next)
	}
	if w.newLife == running && !w.newParted {
		m.newSteps(w, next)
	}
	fates(w, next)
}

// fates are what may happen to a process at any moment.
func fates(w world, next func(string, world, string)) {
	if w.oldLife != dead && !w.oldOver {
		w2 := w
		w2.killOld()
		next("fate: old is killed", w2, "")
	}
	if w.newLife != dead && !w.newParted {
		w2 := w
		w2.killNew()
		next("fate: new is killed", w2, "")
	}
	if w.oldLife == running && !w.oldStopped {
		w2 := w
		w2.oldLife, w2.oldStopped = stopped, true
		next("fate: old is stopped", w2, "")
	}
	if w.newLife == running && !w.newStopped {
		w2 := w
		w2.newLife, w2.newStopped = stopped, true
		next("fate: new is stopped", w2, "")
	}
	if w.oldLife == stopped {
		w2 := w
		w2.oldLife = running
		next("fate: old is continued", w2, "")
	}
	if w.newLife == stopped {
		w2 := w
		w2.newLife = running
		next("fate: new is continued", w2, "")
	}
	if w.oldLife == running && !w.oldGarbage && !w.oldOver {
		w2 := w
		w2.oldGarbage = true
		w2.say(&w2.toNew, gotGarbage, 0)
		next("fate: old speaks garbage", w2, "")
	}
	if w.newLife == running && !w.newGarbage && !w.newParted {
		w2 := w
		w2.newGarbage = true
		w2.say(&w2.toOld, gotGarbage, 0)
		next("fate: new speaks garbage", w2, "")
	}
}

func (w *world) killOld() {
	for i := range w.batches {
		b := &w.batches[i]
		b.adrift = b.old != nothing && !b.offered
		b.old = nothing
	}
	w.oldLife, w.oldAccepts, w.oldDo, w.toOld = dead, false, queue{}, queue{}
	w.old = elder{}
	w.packing, w.noMore, w.packed = false, false, 0
}

func (w *world) killNew() {
	w.newLife, w.newAccepts, w.newDo, w.toNew = dead, false, queue{}, queue{}
	w.new = heir{}
}

// say puts a message on its way, if there is somebody to hear it.
func (w *world) say(to *queue, kind eventKind, batch uint8) {
	deaf := w.newLife == dead || w.newParted
	if to == &w.toOld {
		deaf = w.oldLife == dead || w.oldOver
	}
	if !deaf {
		to.push(uint8(kind), batch)
	}
}

// oldSteps is what the old process can do: the next of its deeds, or if there is none to learn of something.
func (m *model) oldSteps(w world, next func(string, world, string)) {
	if !w.oldDo.empty() {
		w2 := w
		it := w2.oldDo.pop()
		problem := w2.oldDoes(deedKind(it.kind), it.batch)
		next(fmt.Sprintf("old: %v %d", deedKind(it.kind), it.batch), w2, problem)
		if deedKind(it.kind) == sendOffer {
			w2 := w
			w2.oldDo.pop()
			w2.batches[it.batch-1].unsent = true
			m.oldLearns(w2, unsent, it.batch, "old: cannot send offer", next)
		}
		return
	}
	switch {
	case !w.toOld.empty():
		w2 := w
		it := w2.toOld.pop()
		m.oldLearns(w2, eventKind(it.kind), it.batch, "old hears", next)
	case w.newLife == dead:
		m.oldLearns(w, heirGone, 0, "old: new is dead", next)
	case w.old.step >= settles && w.old.step <= moves:
		m.oldLearns(w, silence, 0, "old: new is silent", next)
	}
	if w.old.step != moves || !w.old.open.empty() {
		if w.old.step != ends {
			m.oldLearns(w, timeUp, 0, "old: time is up", next)
		}
	}
	if !w.calledOff && w.old.step != ends {
		w2 := w
		w2.calledOff = true
		m.oldLearns(w2, calledOff, 0, "fate: old: called off", next)
	}
	if w.packing && !w.noMore && !w.old.open.full() {
		if w.packed < modelBatches {
			w2 := w
			w2.packed++
			w2.batches[w2.packed-1].old = held
			m.oldLearns(w2, packed, w2.packed, "old: packed", next)
		}
		w2 := w
		w2.noMore = true
		m.oldLearns(w2, packedAll, 0, "old: packed all", next)
	}
}

func (m *model) oldLearns(w world, kind eventKind, batch uint8, by string, next func(string, world, string)) {
	for _, d := range m.elder(&w.old, event{kind, uint64(batch)}) {
		w.oldDo.push(uint8(d.kind), uint8(d.batch))
	}
	next(fmt.Sprintf("%s %d %d", by, kind, batch), w, "")
}

// oldDoes does a deed of the old process's, and says what is wrong with it.
func (w *world) oldDoes(kind deedKind, batch uint8) string {
	switch kind {
	case stopAccepting:
		w.oldAccepts = false
	case acceptAgain:
		w.oldAccepts = true
	case sendTake:
		w.say(&w.toNew, gotTake, 0)
	case startMoving:
		w.packing = true
	case sendOffer:
		w.batches[batch-1].offered = true
		w.say(&w.toNew, gotOffer, batch)
	case release:
		b := &w.batches[batch-1]
		b.old = nothing
		if !b.taken {
			return "a batch is let go of that nobody has taken"
		}
	case keep:
		b := &w.batches[batch-1]
		b.old = serving_
		if b.new == serving_ { // whether it still lives or not: it may have read
			return "a batch is gone on with that the new process has gone on with"
		}
	case sendDone:
		w.say(&w.toNew, gotDone, 0)
	case kill:
		w.killNew()
	case succeed, giveUp:
		w.oldOver = true
	}
	return ""
}

// newSteps is what the new process can do.
func (m *model) newSteps(w world, next func(string, world, string)) {
	if !w.newDo.empty() {
		w2 := w
		it := w2.newDo.pop()
		problem := w2.newDoes(deedKind(it.kind), it.batch)
		next(fmt.Sprintf("new: %v %d", deedKind(it.kind), it.batch), w2, problem)
		if deedKind(it.kind) == sendTaken && w.oldLife != dead {
			w2 := w // the socket stays full: it may not begin, and says that it is in trouble
			w2.newDo = queue{}
			w2.batches[it.batch-1].new = nothing
			w2.newLeftUnsent = true
			m.newLearns(w2, gotGarbage, 0, "fate: new: cannot send taken", next)
		}
		return
	}
	if !w.isBuilt {
		w2 := w
		w2.isBuilt = true
		m.newLearns(w2, built, 0, "new: is built", next)
	}
	switch {
	case !w.toNew.empty():
		w2 := w
		it := w2.toNew.pop()
		m.newLearns(w2, eventKind(it.kind), it.batch, "new hears", next)
	case w.oldLife == dead || w.oldOver:
		if !w.toldEnd {
			w2 := w
			w2.toldEnd = true
			m.newLearns(w2, linkEnded, 0, "new: the link has ended", next)
		}
	case w.isBuilt:
		m.newLearns(w, silence, 0, "new: old is silent", next)
	}
}

func (m *model) newLearns(w world, kind eventKind, batch uint8, by string, next func(string, world, string)) {
	for _, d := range m.heir(&w.new, event{kind, uint64(batch)}) {
		w.newDo.push(uint8(d.kind), uint8(d.batch))
	}
	next(fmt.Sprintf("%s %d %d", by, kind, batch), w, "")
}

// newDoes does a deed of the new process's, and says what is wrong with it.
func (w *world) newDoes(kind deedKind, batch uint8) string {
	switch kind {
	case sendReady:
		w.say(&w.toOld, gotReady, 0)
	case take:
		w.newAccepts = true
	case sendTook:
		w.say(&w.toOld, gotTook, 0)
	case adopt:
		w.batches[batch-1].new = held
	case sendTaken:
		w.batches[batch-1].taken = true
		w.say(&w.toOld, gotTaken, batch)
	case begin:
		b := &w.batches[batch-1]
		b.new = serving_
		if b.old == serving_ {
			return "a batch is begun with that the old process goes on with"
		}
	case discard:
		w.batches[batch-1].refused = true
	case sendFailed:
		w.say(&w.toOld, gotFailed, 0)
	case partWays:
		w.newParted = w.newAccepts // with nobody to follow it still waits for its turn
		if !w.newAccepts {
			w.toldEnd = true
		}
	}
	if w.toldEnd && w.newAccepts && w.newDo.empty() {
		w.newParted = true
	}
	return ""
}

// settled says what is wrong with a world in which nothing is left to do.
func settled(w world) string {
	oldUp, newUp := w.oldLife == running, w.newLife == running
	switch {
	case oldUp && !w.oldOver:
		return "the old process waits for ever"
	case newUp && !w.newParted && (w.oldLife == dead || w.oldOver):
		return "the new process waits for ever"
	}
	parted := w.oldOver && w.old.step == parted
	switch {
	case parted && !newUp: // what becomes of it later is its own affair
	case !oldUp && !newUp:
	case oldUp && !parted && (!w.oldAccepts || w.newLife == running):
		return "the old process is on its own and does not accept, or is not"
	case newUp && !w.newAccepts:
		return "nobody accepts"
	case newUp && w.newAccepts && oldUp && w.oldAccepts:
		return "both accept"
	}
	for i, b := range w.batches {
		oldHas, newHas := b.old == serving_ && oldUp, b.new == serving_ && newUp
		switch {
		case oldHas && newHas:
			return fmt.Sprintf("batch %d has two owners", i+1)
		case oldHas || newHas:
		case oldUp && newUp, oldUp && !b.taken:
			return fmt.Sprintf("batch %d has no owner", i+1)
		case newUp && w.oldLife == dead && !b.adrift && !b.refused && !w.newLeftUnsent:
			return fmt.Sprintf("batch %d was offered, and has died with the old process", i+1)
		}
	}
	return ""
}

func TestWhateverHappensExactlyOneServes(t *testing.T) {
	worlds, wrong := byTheRules().explore()
	t.Logf("%d worlds", worlds)
	if wrong != "" {
		t.Error(wrong)
	}
	if worlds < 10_000 {
		t.Error("so few that the model cannot be right")
	}
}

func TestModelObjectsToBrokenRules(t *testing.T) {
	for name, broken := range map[string]struct {
		elder func(*elder, event) []deed
		heir  func(*heir, event) []deed
	}{
		"new begins before it has said that it has taken": {heir: func(h *heir, ev event) []deed {
			return swapped(h.on(ev), sendTaken, begin)
		}},
		"old goes on with a batch before the new process is dead": {elder: func(e *elder, ev event) []deed {
			deeds := e.on(ev)
			if e.step == ends && ev.kind == silence {
				for b := e.open.first(); b != 0; b = e.open.first() {
					e.open.drop(b)
					deeds = append([]deed{{keep, b}}, deeds...)
				}
			}
			return deeds
		}},
		"old goes on with what was taken, as it does not read the rest": {elder: func(e *elder, ev event) []deed {
			if e.step == ends && ev.kind == gotTaken {
				return nil
			}
			return e.on(ev)
		}},
		"old does not accept again when the new process has died": {elder: func(e *elder, ev event) []deed {
			return without(e.on(ev), acceptAgain)
		}},
		"new waits for TAKE whatever happens": {heir: func(h *heir, ev event) []deed {
			if ev.kind == silence {
				return nil
			}
			return h.on(ev)
		}},
		"new ends when the old one has": {heir: func(h *heir, ev event) []deed {
			if ev.kind == linkEnded {
				h.free = true
				return []deed{{kind: partWays}}
			}
			return h.on(ev)
		}},
		"old lets go of a batch when it has sent it": {elder: func(e *elder, ev event) []deed {
			deeds := e.on(ev)
			if len(deeds) > 0 && deeds[0].kind == sendOffer {
				deeds = append(deeds, deed{release, deeds[0].batch})
			}
			return deeds
		}},
		"old keeps accepting when the new process has taken over by itself": {elder: func(e *elder, ev event) []deed {
			if ev.kind == gotTook && e.step == settles {
				e.step = watches
				return nil
			}
			return e.on(ev)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			m := byTheRules()
			if broken.elder != nil {
				m.elder = broken.elder
			}
			if broken.heir != nil {
				m.heir = broken.heir
			}
			if worlds, wrong := m.explore(); wrong == "" {
				t.Errorf("no objection in %d worlds", worlds)
			} else {
				t.Log(wrong)
			}
		})
	}
}

// swapped returns the deeds with two of their kinds in each other's place.
func swapped(deeds []deed, a, b deedKind) []deed {
	for i := range deeds {
		switch deeds[i].kind {
		case a:
			deeds[i].kind = b
		case b:
			deeds[i].kind = a
		}
	}
	return deeds
}

func without(deeds []deed, kind deedKind) (rest []deed) {
	for _, d := range deeds {
		if d.kind != kind {
			rest = append(rest, d)
		}
	}
	return rest
}
