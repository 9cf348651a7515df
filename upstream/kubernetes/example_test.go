package kubernetes_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"

	"k8s.io/client-go/rest"

	"github.com/levee-net/levee/upstream"
	"github.com/levee-net/levee/upstream/kubernetes"
)

// Within a cluster there is no need for a Config.
func Example() {
	server := httptest.NewServer(http.HandlerFunc(tinyAPI))
	defer server.Close()

	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	where := &kubernetes.Service{Namespace: "shop", Name: "db", Config: &rest.Config{Host: server.URL}}
	err := where.Run(ctx, func(servers []upstream.Server) { // a pool's Update, mostly
		for _, s := range servers {
			fmt.Println(s.Name, s.Addresses)
		}
		cancel()
	})
	fmt.Println(err)
	// Output:
	// db-0 [10.1.0.1:5432]
	// context canceled
}

// tinyAPI is an API server with one service, to which nothing ever happens.
func tinyAPI(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	switch query := r.URL.Query(); {
	case query.Get("sendInitialEvents") != "":
		w.WriteHeader(http.StatusUnprocessableEntity)
		fmt.Fprint(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Invalid","code":422}`)
	case query.Get("watch") != "":
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	default:
		fmt.Fprint(w, `{"kind":"EndpointSliceList","apiVersion":"discovery.k8s.io/v1","metadata":{"resourceVersion":"7"},
			"items":[{"metadata":{"name":"db-x7"},"addressType":"IPv4","ports":[{"name":"","port":5432}],
			"endpoints":[{"addresses":["10.1.0.1"],"conditions":{"ready":true},"targetRef":{"kind":"Pod","name":"db-0"}}]}]}`)
	}
}
