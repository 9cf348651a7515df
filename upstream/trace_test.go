package upstream

import (
	"sync"
	"sync/atomic"
	"testing"
)

// Who finds that there is no more news has stopped telling in the same moment, or what is
// posted then would wait for the next event.
func TestNewsIsToldWheneverItIsPosted(t *testing.T) {
	var b bulletin
	b.begin()
	if b.next() != nil {
		t.Fatal("there is news")
	}
	told := false
	b.post(func() { told = true })
	b.tell()
	if !told {
		t.Error("it was not told")
	}
}

func TestNewsOfManyIsToldOnceAndByOneAtATime(t *testing.T) {
	var (
		b       bulletin
		telling atomic.Int32
		told    int
		all     sync.WaitGroup
	)
	for range 8 {
		all.Go(func() {
			for range 1000 {
				b.post(func() {
					if telling.Add(1) != 1 {
						t.Error("two tell at once")
					}
					told++
					telling.Add(-1)
				})
				b.tell()
			}
		})
	}
	all.Wait()
	if told != 8000 {
		t.Errorf("%d of 8000 were told", told)
	}
}

func TestAHookThatPanicsDoesNotSilenceTheOthers(t *testing.T) {
	var b bulletin
	told := false
	b.post(func() { panic("a hook") })
	b.post(func() { told = true })
	func() {
		defer func() { _ = recover() }()
		b.tell()
	}()
	b.tell()
	if !told {
		t.Error("it was not told")
	}
}
