// Package kubernetes tells a pool where the pods of a Kubernetes service are, and again
// when that changes.
//
//	where := &kubernetes.Service{Namespace: "shop", Name: "db", Port: "postgresql"}
//	err := where.Run(ctx, func(servers []upstream.Server) {
//		if err := pool.Update(servers); err != nil {
//			log.Print(err)
//		}
//	})
//
// It is a module of its own: the Kubernetes client is larger than all of levee.
package kubernetes

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"sync"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	discoveryclient "k8s.io/client-go/kubernetes/typed/discovery/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"

	"github.com/levee-net/levee/upstream"
	"github.com/levee-net/levee/upstream/discover"
)

// Service is a source of the servers behind a service: the endpoints in its
// EndpointSlices (discovery.k8s.io/v1) that are ready and not terminating. One that is
// about to end is left out while it still serves, so that its connections drain.
//
// A server is named like its pod, and has all of the pod's addresses, IPv4 and IPv6. An
// endpoint without a pod is named like its address. In TLS the certificates are
// for those names, unless the pool's configuration has a ServerName.
//
// Without endpoints, or without a service, there are no servers, and that is told. While
// the API server does not answer, the servers are kept, and it is asked again after a
// back-off of at most 30 seconds. They are also kept while there are endpoints of which
// none has the port any more: it has been renamed, and nobody has told levee.
//
// The role that it runs as needs to get, list and watch endpointslices of
// discovery.k8s.io in the namespace.
type Service struct {
	Namespace string // empty means default
	Name      string
	Port      string // its name; empty means the one that has no name, or that is the only one

	Config  *rest.Config // of the API server's client; nil means that of a pod in the cluster
	Problem func(error)  // if set, is told what goes wrong, by the goroutine that called Run
}

// Run tells the servers until ctx ends, and returns ctx's error; or at once if there can
// be no client. It may run several times at once.
func (s *Service) Run(ctx context.Context, update func([]upstream.Server)) error {
	slicesOf, err := s.informer()
	if err != nil {
		return err
	}
	changed, problems := make(chan struct{}, 1), make(chan error, 1)
	change := func() {
		select {
		case changed <- struct{}{}:
		default: // the change before has yet to be looked at, and this one will be with it
		}
	}
	_, err = slicesOf.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(any) { change() },
		UpdateFunc: func(any, any) { change() },
		DeleteFunc: func(any) { change() },
	})
	if err != nil {
		return err
	}
	err = slicesOf.SetWatchErrorHandlerWithContext(func(_ context.Context, _ *cache.Reflector, err error) {
		select {
		case problems <- err:
		default: // one of them is enough
		}
	})
	if err != nil {
		return err
	}

	var running sync.WaitGroup
	quietly := klog.NewContext(ctx, logr.Discard()) // what matters is told to Problem
	running.Go(func() { slicesOf.RunWithContext(quietly) })
	defer running.Wait() // it ends with ctx
	tell, told := discover.OnChange(update), false
	look := func() {
		servers, portMissing := s.servers(slicesOf.GetStore().List())
		if len(servers) > 0 || !portMissing || !told {
			tell(servers)
			told = true
		}
	}
	known := slicesOf.HasSyncedChecker().Done()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-problems:
			s.problem(err)
		case <-known: // also when there is none
			known = nil
			look()
		case <-changed:
			if known == nil {
				look()
			}
		}
	}
}

func (s *Service) informer() (cache.SharedIndexInformer, error) {
	config := s.Config
	if config == nil {
		inCluster, err := rest.InClusterConfig()
		if err != nil {
			return nil, err
		}
		config = inCluster
	}
	client, err := discoveryclient.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	mine := labels.Set{discoveryv1.LabelServiceName: s.Name}.String()
	list := cache.NewFilteredListWatchFromClient(client.RESTClient(), "endpointslices", s.namespace(),
		func(options *metav1.ListOptions) { options.LabelSelector = mine })
	return cache.NewSharedIndexInformer(list, &discoveryv1.EndpointSlice{}, 0, cache.Indexers{}), nil
}

func (s *Service) namespace() string { return cmp.Or(s.Namespace, corev1.NamespaceDefault) }

func (s *Service) problem(err error) {
	if s.Problem != nil {
		s.Problem(fmt.Errorf("service %s/%s: %w", s.namespace(), s.Name, err))
	}
}

// servers merges the slices: a pod may be in several, for each family of addresses and
// for a moment when slices are rearranged. It reports whether there are endpoints that
// would be servers if they had the port.
func (s *Service) servers(endpointSlices []any) (servers []upstream.Server, portMissing bool) {
	found := make(map[string]upstream.Server)
	for _, one := range endpointSlices {
		slice, ok := one.(*discoveryv1.EndpointSlice)
		if !ok || slice.AddressType == discoveryv1.AddressTypeFQDN || len(slice.Endpoints) == 0 {
			continue
		}
		port, ok := s.port(slice.Ports)
		if !ok {
			s.problem(fmt.Errorf("%s has no port %q", slice.Name, s.Port))
			portMissing = portMissing || slices.ContainsFunc(slice.Endpoints, usable)
			continue
		}
		for _, endpoint := range slice.Endpoints {
			if !usable(endpoint) {
				continue
			}
			// The API defines no meaning for further addresses, and kube-proxy does not look at them.
			address := net.JoinHostPort(endpoint.Addresses[0], strconv.Itoa(port))
			name := address
			if pod := endpoint.TargetRef; pod != nil && pod.Kind == "Pod" {
				name = pod.Name
			}
			server := found[name]
			if !slices.Contains(server.Addresses, address) {
				server.Addresses = append(server.Addresses, address)
				slices.Sort(server.Addresses)
			}
			server.Name = name
			found[name] = server
		}
	}
	return slices.SortedFunc(maps.Values(found), func(a, b upstream.Server) int { return cmp.Compare(a.Name, b.Name) }), portMissing
}

// usable reports whether new connections belong there. What is not known is as good as
// true for ready, and as false for terminating. A service that publishes endpoints that
// are not ready calls them all ready, terminating ones too.
func usable(e discoveryv1.Endpoint) bool {
	c := e.Conditions
	return len(e.Addresses) > 0 && (c.Ready == nil || *c.Ready) && (c.Terminating == nil || !*c.Terminating)
}

func (s *Service) port(ports []discoveryv1.EndpointPort) (number int, ok bool) {
	for _, p := range ports {
		named := p.Name != nil && *p.Name == s.Port || p.Name == nil && s.Port == ""
		only := s.Port == "" && len(ports) == 1
		if p.Port != nil && (named || only) {
			return int(*p.Port), true
		}
	}
	return 0, false
}
