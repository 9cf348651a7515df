package breaker_test

import (
	"errors"
	"fmt"
	"time"

	"github.com/levee-net/levee/upstream/internal/breaker"
)

func Example() {
	b := breaker.New(breaker.Settings{Failures: 2, Open: time.Hour}, func(from, to breaker.State) {
		fmt.Println("from", from, "to", to)
	})
	dial := func() error { return errors.New("dial 10.0.0.7:5432: connection refused") }

	for range 3 {
		if !b.Allow() {
			fmt.Println("left alone")
			continue
		}
		err := dial()
		if err != nil {
			b.Done(breaker.Failure)
			fmt.Println(err)
			continue
		}
		b.Done(breaker.Success)
	}
	// Output:
	// dial 10.0.0.7:5432: connection refused
	// from closed to open
	// dial 10.0.0.7:5432: connection refused
	// left alone
}

func ExampleBudget() {
	budget := breaker.NewBudget(0, 0, 0) // a fifth of the tries of 10 s, or 3
	retries := 0
	for range 50 {
		budget.Try()
		if budget.Retry() { // all of them fail
			retries++
		}
	}
	fmt.Println(retries, "retries")
	// Output: 10 retries
}
