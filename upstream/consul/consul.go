// Package consul tells a pool where the instances of a Consul service are, and again
// when that changes.
//
//	where := &consul.Service{Name: "db", Tag: "replica"}
//	err := where.Run(ctx, func(servers []upstream.Server) {
//		if err := pool.Update(servers); err != nil {
//			log.Print(err)
//		}
//	})
//
// It is a module of its own, for the size of Consul's client.
package consul

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/levee-net/levee/upstream"
	"github.com/levee-net/levee/upstream/discover"
)

// Service is a source of the instances of a service all of whose checks pass. It asks
// Consul's health endpoint by blocking queries, which a change answers at once, but at
// most four times a second.
//
// A server is named like its address, "10.0.0.7:5432", which is the service's, or the
// node's if it has none. Its weight is Consul's for instances that pass. In TLS the
// certificates are for the address, unless the pool's configuration has a ServerName.
//
// Without instances, or without a service, there are no servers, and that is told. While
// Consul does not answer, the servers are kept, and it is asked again after a back-off of
// at most 30 seconds.
type Service struct {
	Name string
	Tag  string // if set, only instances that have it

	// Config is that of Consul's client: address, token, datacenter, TLS. Nil means
	// what the environment says (CONSUL_HTTP_ADDR and so on), or else
	// 127.0.0.1:8500. It is not changed.
	Config *api.Config

	Problem func(error) // if set, is told what goes wrong
}

const (
	longest  = time.Minute            // that a query waits for a change
	grace    = 10 * time.Second       // for the answer after that, besides the sixteenth that Consul adds
	interval = 250 * time.Millisecond // between queries: an index can rise without end (a flapping check)
)

// Run tells the servers until ctx ends, and returns ctx's error; or at once if there can
// be no client. It may run several times at once.
func (s *Service) Run(ctx context.Context, update func([]upstream.Server)) error {
	client, err := s.client()
	if err != nil {
		return err
	}
	index := uint64(0)
	poll := discover.Poll{Problem: s.Problem, Ask: func(ctx context.Context) ([]upstream.Server, time.Duration, error) {
		servers, next, err := s.ask(ctx, client, index)
		index = next
		if err != nil {
			return nil, 0, err
		}
		return servers, interval, nil
	}}
	return poll.Run(ctx, update)
}

func (s *Service) client() (*api.Client, error) {
	fresh := api.DefaultNonPooledConfig() // an idle connection would outlive Run
	if s.Config == nil {
		return api.NewClient(fresh)
	}
	config := *s.Config // NewClient writes into it
	if config.Transport == nil && config.HttpClient == nil {
		config.Transport = fresh.Transport
	}
	return api.NewClient(&config)
}

// ask waits for something newer than index, and returns the index to ask with next. That
// is 0, which waits for nothing, if Consul's has gone back: its servers have been
// restored, and would not reach the old one for long.
func (s *Service) ask(ctx context.Context, client *api.Client, index uint64) ([]upstream.Server, uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, longest+longest/16+grace)
	defer cancel()
	options := (&api.QueryOptions{WaitIndex: index, WaitTime: longest}).WithContext(ctx)
	entries, meta, err := client.Health().Service(s.Name, s.Tag, true, options)
	if err != nil {
		return nil, 0, fmt.Errorf("service %s: %w", s.Name, err)
	}
	next := meta.LastIndex
	if next < index {
		next = 0
	}
	return serversOf(entries), next, nil
}

// serversOf returns each address once.
func serversOf(entries []*api.ServiceEntry) (servers []upstream.Server) {
	for _, e := range entries {
		if e.Service == nil || e.Service.Port == 0 {
			continue // nowhere to connect to
		}
		host := e.Service.Address
		if host == "" && e.Node != nil {
			host = e.Node.Address
		}
		name := net.JoinHostPort(host, strconv.Itoa(e.Service.Port))
		servers = append(servers, upstream.Server{Name: name, Addresses: []string{name}, Weight: max(1, e.Service.Weights.Passing)})
	}
	slices.SortFunc(servers, func(a, b upstream.Server) int { return strings.Compare(a.Name, b.Name) })
	return slices.CompactFunc(servers, func(a, b upstream.Server) bool { return a.Name == b.Name })
}
