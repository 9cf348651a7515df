package levee_test

import (
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/levee-net/levee"
)

// comeFrom connects from an address of this machine again and again, and returns how many of
// so many times it was served.
func comeFrom(t *testing.T, s *scene, source string, times int, pause time.Duration) (served int) {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(source)}, Timeout: longest}
	for range times {
		<-time.After(pause) // so that it is no flood
		c, err := d.Dial("tcp", s.listener.Addr().String())
		if err != nil {
			continue // reset before the handshake was over on this side
		}
		if exchangeOn(c) == nil {
			served++
		}
		_ = c.(*net.TCPConn).SetLinger(0)
		c.Close()
	}
	return served
}

// mostly holds a test of shares to them in one of three tries: a machine that stands still for a while shifts them.
func mostly(t *testing.T, try func() error) {
	t.Helper()
	for tries := 3; ; tries-- {
		err := try()
		if err == nil {
			return
		}
		if t.Log(err); tries == 1 {
			t.FailNow()
		}
	}
}

func TestWhoFloodsIsTurnedAwayRatherThanOthers(t *testing.T) {
	mostly(t, func() error { return othersAreServedBesideAFlood(t) })
}

func othersAreServedBesideAFlood(t *testing.T) error {
	s := engines[0].serve(t, &levee.Server{Handler: &lines{}})
	s.TurnAway(0.6)
	const flood, visits = 4000, 50
	of := make(chan int)
	go func() { of <- comeFrom(t, s, "127.0.0.1", flood, 0) }() // ends after so many
	<-time.After(300 * time.Millisecond)                        // until it shows who floods
	others := comeFrom(t, s, "127.0.0.2", visits, 5*time.Millisecond)
	served := <-of
	t.Logf("%d of %d were served who flooded, and %d of %d others", served, flood, others, visits)
	if share := float64(served) / flood; share < 0.3 || share > 0.55 {
		return fmt.Errorf("%.2f of those who flooded were served, want 0.4", share)
	}
	if others < visits-1 {
		return fmt.Errorf("of %d others %d were served", visits, others)
	}
	return nil
}

func TestWhereEachIsAnotherTheShareIsThatOfAll(t *testing.T) {
	mostly(t, func() error {
		s := engines[0].serve(t, &levee.Server{Handler: &lines{}})
		s.TurnAway(0.6)
		const all = 4000
		served := 0
		for i := range all {
			served += comeFrom(t, s, net.IPv4(127, 2, byte(i>>8), byte(i)).String(), 1, 0)
		}
		if share := float64(served) / all; share < 0.3 || share > 0.5 {
			return fmt.Errorf("%.2f were served, want 0.4", share)
		}
		return nil
	})
}
