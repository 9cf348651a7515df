package balance

import "sync"

// turns is smooth weighted round robin: at each pick every server earns its weight, and
// the richest one pays for all. What a server has is what it is owed, so it is kept in
// proportion to the price: when a server of weight 1000 leaves two of weight 1 to
// themselves, neither is to get hundreds in a row for what it was owed then.
type turns struct {
	mu    sync.Mutex
	owed  []float64 // sums to 0
	earns []float64 // at the present pick, 0 for those that are not usable
	price float64   // of the pick before: all that was earned
}

func newTurns(n int) *turns {
	return &turns{owed: make([]float64, n), earns: make([]float64, n), price: 1}
}

func (t *turns) next(peers []Peer, usable func(i int) bool) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	price := 0.0
	for i, p := range peers {
		t.earns[i] = 0
		if usable(i) {
			t.earns[i] = weightOf(p)
			price += t.earns[i]
		}
	}
	if price == 0 {
		return -1
	}
	richest, scale := -1, price/t.price
	for i, earned := range t.earns {
		t.owed[i] = t.owed[i]*scale + earned
		if earned > 0 && (richest < 0 || t.owed[i] > t.owed[richest]) {
			richest = i
		}
	}
	t.owed[richest] -= price
	t.price = price
	return richest
}
