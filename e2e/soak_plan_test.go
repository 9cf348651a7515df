package e2e

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"reflect"
	"testing"
	"time"
)

// soakOptions are what TestSoak is told: go test -run '^TestSoak$' . -args --duration 30m --seed 7.
type soakOptions struct {
	duration time.Duration
	seed     uint64 // 0 is one of its own, which is printed
	out      string // the folder for what came of it; none keeps nothing
}

// soaking is what the command line says.
var soaking soakOptions

func (o *soakOptions) flags(set *flag.FlagSet) {
	set.DurationVar(&o.duration, "duration", 20*time.Second, "how long the soak lasts")
	set.Uint64Var(&o.seed, "seed", 0, "repeats the soak that has printed it; 0 is another one each time")
	set.StringVar(&o.out, "out", "", "the folder for the soak's result, as JSON and as text; none keeps nothing")
}

// An ordeal is a kind of thing that happens in a soak.
type ordeal string

const (
	reloads  ordeal = "reload"  // SIGHUP, with another configuration
	upgrades ordeal = "upgrade" // levee upgrade
	kills    ordeal = "kill"    // an upstream is killed, and restarted
	resets   ordeal = "reset"   // an upstream resets all its connections
	freezes  ordeal = "freeze"  // an upstream stands still for a while
	slows    ordeal = "slow"    // clients that read slowly
	rudes    ordeal = "rude"    // clients that leave in the middle: by a reset, half-closed, without a word
	floods   ordeal = "flood"   // levee flood, from an address of its own
)

// rounds are what happens once in every round, in any order. An upgrade is in every other one; and in none of the second half of
// a long soak, so that one process lives long enough for its memory to be looked at.
var rounds = []ordeal{reloads, kills, slows, reloads, resets, rudes, freezes, floods, reloads}

// An event is an ordeal, and when it begins at the earliest, from the start of the soak.
type event struct {
	At   time.Duration
	Kind ordeal
	Dice uint64 // what it throws for all that it chooses
}

// plan is what happens in a soak. It says the same for the same seed and time.
func plan(seed uint64, duration time.Duration) (events []event) {
	r := rand.New(rand.NewPCG(seed, 0))
	pause := min(max(duration/16, 500*time.Millisecond), 5*time.Second) // between two events, on average
	at := pause / 2
	for n := 0; ; n++ {
		round := append([]ordeal(nil), rounds...)
		if n%2 == 0 && (at < duration/2 || duration < 2*longEnough) {
			round = append(round, upgrades)
		}
		r.Shuffle(len(round), func(i, j int) { round[i], round[j] = round[j], round[i] })
		for _, kind := range round {
			if at >= duration-pause { // the last one is to be over by the end
				return events
			}
			events = append(events, event{at, kind, r.Uint64()})
			at += pause/2 + time.Duration(r.Int64N(int64(pause)))
		}
	}
}

func TestAPlanIsTheSameForTheSameSeedAndHasAllOrdeals(t *testing.T) {
	one := plan(7, 20*time.Second)
	if !reflect.DeepEqual(one, plan(7, 20*time.Second)) {
		t.Error("the same seed has two plans")
	}
	if reflect.DeepEqual(one, plan(8, 20*time.Second)) {
		t.Error("two seeds have the same plan")
	}
	for seed := range uint64(100) {
		count := make(map[ordeal]int)
		for _, e := range plan(seed, 20*time.Second) {
			count[e.Kind]++
		}
		if len(count) != 8 {
			t.Fatalf("seed %d: %v", seed, count)
		}
	}
	count := make(map[ordeal]int)
	for _, e := range plan(7, 30*time.Minute) {
		count[e.Kind]++
	}
	t.Log("in half an hour: ", fmt.Sprint(count))
	if count[upgrades] < 8 || count[reloads] < 90 {
		t.Errorf("in half an hour: %v", count)
	}
}
