package levee

import (
	"net/netip"
	"sync"
	"testing"
	"time"
)

func TestNobodyIsTakenForAFloodWhenManyCountAtOnce(t *testing.T) {
	var s sources
	s.init(lookEvery)
	for range 5000 {
		for i := range s.rows {
			for j := range s.rows[i].counts {
				s.rows[i].counts[j].Store(1)
			}
		}
		var all sync.WaitGroup
		for range 4 { // an acceptor may lose its processor for so long that another begins
			all.Go(func() { s.halve(1) })
		}
		all.Wait()
		for i := range s.rows {
			for j := range s.rows[i].counts {
				if n := s.rows[i].counts[j].Load(); n > 1 {
					t.Fatalf("%d newcomers are counted where one was", n)
				}
			}
		}
	}
}

func TestWhatWasLongAgoIsForgotten(t *testing.T) {
	var s sources
	s.init(lookEvery)
	flood := netip.MustParseAddr("192.0.2.1")
	for range 10000 {
		s.crowding(flood, 0)
	}
	const later = time.Hour // in which nobody had to be turned away, so nobody was counted
	if got := s.crowding(flood, later); got != 1 {
		t.Errorf("it is %.2f times as crowded as is usual, for the first who comes", got)
	}
	if got := s.crowding(netip.MustParseAddr("192.0.2.2"), later); got != 1 {
		t.Errorf("it is %.2f times as crowded as is usual, for the second", got)
	}
}

func TestWhoHasFilledTheQueueIsRememberedWhileOthersAreTurnedAway(t *testing.T) {
	var s sources
	s.init(50 * lookEvery)
	now := time.Duration(0)
	for range 5000 { // in a second
		now += time.Second / 5000
		s.crowding(netip.MustParseAddr("192.0.2.1"), now)
	}
	for range 5 * 10 { // for ten seconds, in which those who came are served
		now += time.Second / 5
		if got := s.crowding(netip.MustParseAddr("192.0.2.2"), now); got != 0 {
			t.Fatalf("it is %.2f times as crowded as is usual where few come from, %v after the crowd", got, now-time.Second)
		}
	}
}
