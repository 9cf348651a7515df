package balance_test

import (
	"fmt"
	"time"

	"github.com/levee-net/levee/upstream/internal/balance"
)

// A server as its pool knows it.
type server struct {
	name    string
	weight  float64
	active  int64
	latency balance.Latency
	up      bool
}

func (s *server) Name() string           { return s.name }
func (s *server) Weight() float64        { return s.weight }
func (s *server) Active() int64          { return s.active }
func (s *server) Latency() time.Duration { return s.latency.Value() }

func Example() {
	pool := []*server{
		{name: "10.0.0.7:5432", weight: 2, up: true},
		{name: "10.0.0.8:5432", weight: 1, up: true},
		{name: "10.0.0.9:5432", weight: 1},
	}
	var peers []balance.Peer
	for _, s := range pool {
		peers = append(peers, s)
	}
	picker := balance.New(balance.RoundRobin, peers)

	for range 6 {
		i := picker.Pick(0, func(i int) bool { return pool[i].up })
		fmt.Println(pool[i].name)
	}
	// Output:
	// 10.0.0.7:5432
	// 10.0.0.8:5432
	// 10.0.0.7:5432
	// 10.0.0.7:5432
	// 10.0.0.8:5432
	// 10.0.0.7:5432
}
