package consul_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"

	"github.com/hashicorp/consul/api"

	"github.com/levee-net/levee/upstream"
	"github.com/levee-net/levee/upstream/consul"
)

// With an agent on the same machine there is no need for a Config.
func Example() {
	agent := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-Consul-Index", "7")
		fmt.Fprint(w, `[{"Node":{"Address":"10.0.0.7"},"Service":{"Port":5432,"Weights":{"Passing":3}}}]`)
	}))
	defer agent.Close()

	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	where := &consul.Service{Name: "db", Config: &api.Config{Address: agent.URL}}
	err := where.Run(ctx, func(servers []upstream.Server) { // a pool's Update, mostly
		for _, s := range servers {
			fmt.Println(s.Name, "weight", s.Weight)
		}
		cancel()
	})
	fmt.Println(err)
	// Output:
	// 10.0.0.7:5432 weight 3
	// context canceled
}
