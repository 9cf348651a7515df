package app

import (
	"context"
	"errors"
	"net"
	"testing"
	"time"

	"github.com/levee-net/levee/internal/config"
)

func TestARedisThatDoesNotAnswerKeepsNobodyLongerThanHeWaits(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	accepted := make(chan net.Conn, 1)
	go func() { // ends with the listener
		for {
			c, err := l.Accept()
			if err != nil {
				close(accepted)
				return
			}
			accepted <- c
		}
	}()
	s, err := newSharedStore(&config.Redis{Address: l.Addr().String()})
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	ended, end := context.WithCancel(context.Background())
	end()
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	for range 20 { // names that a start loads, or orders that a shutdown ends
		_, loaded := s.certificates().Load(ended, "name")
		_, listed := s.certificates().List(ctx, "", true)
		locked := s.certificates().Lock(ended, "name")
		if _, told := s.ticketSecret(ctx); loaded == nil || listed == nil || locked == nil || !errors.Is(told, context.DeadlineExceeded) {
			t.Fatalf("loaded %v, listed %v, locked %v, told %v", loaded, listed, locked, told)
		}
	}
	if took := time.Since(began); took > redisTimeout {
		t.Errorf("they were kept for %s", took)
	}
	(<-accepted).Close()
	s.close()
	l.Close()
	if _, more := <-accepted; more {
		t.Error("it was connected to more than once")
	}
}
