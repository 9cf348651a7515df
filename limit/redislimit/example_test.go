package redislimit_test

import (
	"context"
	"fmt"

	"github.com/redis/rueidis"

	"github.com/levee-net/levee/limit"
	"github.com/levee-net/levee/limit/redislimit"
)

// Redis is away here, so the machine decides alone.
func Example() {
	shared := &redislimit.Limits{
		Reach: func(context.Context) (rueidis.Client, error) {
			return rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{"127.0.0.1:1"}, DisableCache: true})
		},
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- shared.Run(ctx) }() // until stop

	claims := []limit.Claim{{Limit: "per client", Key: "192.0.2.7/32", Most: 256, Rate: 50, Burst: 100}}
	switch refused, err := shared.Claim(ctx, claims); {
	case err != nil:
		// Ask the machine's own limits; if they let it in:
		shared.Hold(claims)
		defer shared.Release(claims)
		fmt.Println("decided alone")
	case refused >= 0:
		fmt.Println("refused by", claims[refused].Limit)
	default:
		defer shared.Release(claims)
		fmt.Println("let in")
	}

	stop()
	<-ended
	// Output: decided alone
}
