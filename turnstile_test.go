package levee

import (
	"net/netip"
	"testing"
	"testing/synctest"
	"time"
)

// nth is one of many addresses.
func nth(n int) netip.Addr { return netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)}) }

func TestEverNewAddressesAreStrangersAndDriveNobodyOut(t *testing.T) {
	friend, start := netip.MustParseAddr("192.0.2.1"), time.Now()
	f := newFamiliar()
	f.note(friend, start)
	if f.with(friend, start.Add(familiarAfter/2)) {
		t.Error("one visit is taken for an acquaintance")
	}
	strangers := 0
	for n := range 100_000 { // in 100 s
		now := start.Add(time.Duration(n) * time.Millisecond)
		if n%10_000 == 0 {
			f.note(friend, now)
		}
		f.note(nth(n), now)
		if f.with(nth(n), now.Add(time.Millisecond)) {
			strangers++
		}
		if n > 2000 && !f.with(friend, now) {
			t.Fatalf("the friend is forgotten after %d strangers", n)
		}
	}
	if strangers > 0 {
		t.Errorf("%d strangers pass for somebody known", strangers)
	}
}

func TestWhoHasNotComeForLongLosesHisPlaceAtATurnstileToAnother(t *testing.T) {
	f, start := newFamiliar(), time.Now()
	for n := range 100_000 { // so that each place is taken
		f.note(nth(n), start)
	}
	friend := netip.MustParseAddr("192.0.2.1")
	if f.note(friend, start.Add(time.Second)); f.with(friend, start.Add(3*time.Second)) {
		t.Fatal("it has driven another out at once")
	}
	f.note(friend, start.Add(2*forgottenIn))
	if !f.with(friend, start.Add(2*forgottenIn+familiarAfter)) {
		t.Error("it finds no place")
	}
}

// A known source that floods is served as any flood is: others do not wait behind it.
func TestAKnownSourceThatFloodsIsNoRegular(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s turnstile
		s.resize(1)
		flooder := netip.MustParseAddr("192.0.2.1")
		s.remember(flooder)
		<-time.After(2 * familiarAfter)
		const most = 100
		entered := make(chan netip.Addr, most)
		come := func(source netip.Addr) {
			go func() { // ends when it has been let in
				s.enter(source, time.Time{})
				entered <- source
			}()
			synctest.Wait()
		}
		come(flooder)
		<-entered
		for n := range 40 {
			come(flooder)
			if n%4 == 0 {
				come(nth(n))
			}
		}
		others := 0
		for range 20 {
			s.leave()
			if <-entered != flooder {
				others++
			}
		}
		if others < 10 {
			t.Errorf("of the first 20 only %d of 10 others were served", others)
		}
		for waiting, _ := s.load(); waiting > 0; waiting, _ = s.load() {
			s.leave()
			<-entered
		}
	})
}
