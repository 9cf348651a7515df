package archtest

import "strings"

// A room is a folder of this repository together with the folders below it, except those that are rooms of their own.
type room struct {
	dir  string // slash-separated, from the repository's root; "." is the root package
	role *role
}

// rooms is every room there is. Some may not be built yet.
var rooms = []room{
	{".", &heart},

	{"certs", &leaf},
	{"certs/acme", &leaf},
	{"certs/acme/redisstorage", &leaf},
	{"frame", &neighbour},
	{"handover", &neighbour},
	{"httpserve", &neighbour},
	{"leveetest", &bench},
	{"overload", &neighbour},
	{"limit", &neighbour},
	{"limit/redislimit", &leaf},
	{"proxy", &neighbour},
	{"route", &neighbour},
	{"telemetry", &neighbour},
	{"telemetry/spans", &neighbour},
	{"upstream", &neighbour},
	{"upstream/consul", &annexe},
	{"upstream/kubernetes", &annexe},

	{"internal/admin", &neighbour},
	{"internal/app", &hub},
	{"internal/archtest", &leaf},
	{"internal/attack", &leaf},
	{"internal/bare", &footing},
	{"internal/config", &leaf},
	{"internal/handlers", &neighbour},
	{"internal/inbox", &footing},
	{"internal/load", &leaf},
	{"internal/reactor", &footing},
	{"internal/saved", &agreement},
	{"internal/servername", &agreement},
	{"internal/top", &screen},
	{"internal/watch", &agreement},

	{"bench", &scale},
	{"cmd/levee", &door},
	{"deploy/kubernetes/check", &examiner},
	{"docs/site", &visitor},
	{"e2e", &visitor},
	{"examples", &visitor},
	{"examples/web", &visitor},
	{"tools", &visitor},
}

// A role is a room's place in the house: which other rooms its code may import, and why no more than these.
type role struct {
	mayImport func(room) bool
	why       string
}

// Tests may import what their room may, and leveetest. The root's external tests may import every public room, because
// the README's programs are examples among them.
var (
	heart = role{
		mayImport: func(to room) bool { return to.role == &footing },
		why: "every room stands on the root, so what the root imports can never import the root, " +
			"and every user of the library links it",
	}
	footing = role{
		mayImport: func(room) bool { return false },
		why:       "the root stands on it, so it cannot stand on anything of ours",
	}
	agreement = role{
		mayImport: func(room) bool { return false },
		why:       "rooms that know nothing of each other agree by it, or lean on it, so it can know none of them",
	}
	leaf = role{
		mayImport: func(to room) bool { return to.role == &agreement },
		why:       "a leaf serves everybody because it knows nobody; let the caller pass in what it needs",
	}
	neighbour = role{
		mayImport: func(to room) bool { return to.role == &heart || to.role == &footing || to.role == &agreement },
		why: "a room that knows only the root, and what the root stands on, can be read, tested and replaced alone; " +
			"take a plain type (*tls.Config, net.Listener, a dial function) and join the two in internal/app",
	}
	annexe = role{
		mayImport: func(to room) bool { return to.dir == "upstream" },
		why:       "it finds servers for a pool by way of a client that only its users link, and is a module of its own for that",
	}
	screen = role{
		mayImport: func(to room) bool { return to.dir == "internal/admin" },
		why:       "it shows what the admin server answers, and the words for that stand there, once; who asks passes in how",
	}
	bench = role{
		mayImport: func(to room) bool { return to.role == &heart || to.dir == "internal/attack" },
		why: "every room's tests lean on leveetest, so whatever it imports cannot use it in its internal tests, " +
			"and whoever tests with it links that; the attacks are what Abuse is made of",
	}
	hub = role{
		mayImport: func(to room) bool {
			return to.role == &heart || to.role == &leaf || to.role == &neighbour || to.role == &agreement ||
				to.role == &screen
		},
		why: "internal/app joins the rooms; what stands outside of them is its caller, or for tests",
	}
	door = role{
		mayImport: func(to room) bool { return to.role == &hub },
		why:       "a command reads a command line and calls internal/app, where a test can call the same",
	}
	scale = role{
		mayImport: func(to room) bool { return to.isPublic() || to.dir == "internal/load" },
		why:       "what is measured is what a stranger could use; only the load comes from within",
	}
	examiner = role{
		mayImport: func(to room) bool { return to.role == &hub || to.dir == "internal/config" },
		why:       "what is deployed is read as levee reads it",
	}
	visitor = role{
		mayImport: room.isPublic,
		why:       "it does what a stranger could do, and a stranger can import public rooms only",
	}
)

// isPublic reports whether programs outside of this repository may build on the room.
func (r room) isPublic() bool {
	return (r.role == &heart || r.role == &leaf || r.role == &neighbour) && !strings.HasPrefix(r.dir, "internal/")
}

// A dependency is something from outside the standard library that only some rooms may import, their tests included:
// go.mod and a reviewer have to carry it either way.
type dependency struct {
	path  string // a module's path, or what several begin with
	rooms []string
	why   string
}

var heavyDependencies = []dependency{
	{
		path:  "github.com/prometheus",
		rooms: []string{"telemetry", "internal/admin", "internal/app", "cmd/levee", "examples", "e2e"},
		why:   "a room reports through *levee.Trace; telemetry makes metrics of it",
	},
	{
		path:  "go.opentelemetry.io",
		rooms: []string{"telemetry/spans", "e2e"},
		why:   "a room reports through *levee.Trace; telemetry/spans makes spans of it",
	},
	{
		path:  "google.golang.org/grpc",
		rooms: []string{"telemetry/spans", "e2e", "examples/web"},
		why:   "only the exporter of spans needs it, and it brings a second HTTP/2 and protobuf along",
	},
	{
		path:  "github.com/redis",
		rooms: []string{"certs/acme/redisstorage", "limit/redislimit", "internal/app", "cmd/levee", "e2e"},
		why:   "most servers run alone; sharing between machines is a package that its users ask for",
	},
	{
		path:  "github.com/caddyserver",
		rooms: []string{"certs/acme", "certs/acme/redisstorage", "internal/app"},
		why:   "it brings an ACME client, a DNS client and a logger along, which only those need who have certificates issued",
	},
	{
		path:  "github.com/mholt",
		rooms: []string{"certs/acme"},
		why:   "it is certmagic's ACME client",
	},
	{
		path:  "github.com/go-chi",
		rooms: []string{"examples/web"},
		why:   "an example shows that a router of another library is served; levee has no need of one",
	},
	{
		path:  "go.uber.org/zap",
		rooms: []string{"certs/acme"},
		why:   "it is certmagic's logger; ours is log/slog",
	},
	{
		path:  "charm.land",
		rooms: []string{"internal/top"},
		why:   "only a terminal needs it; whoever else writes to one writes lines",
	},
	{
		path:  "github.com/charmbracelet",
		rooms: []string{"internal/top"},
		why:   "it comes with charm.land, and measures what a terminal shows",
	},
	{
		path:  "github.com/hashicorp",
		rooms: []string{"upstream/consul"},
		why:   "its client brings a dozen modules along; discovery through it is a module of its own",
	},
	{
		path:  "k8s.io",
		rooms: []string{"upstream/kubernetes", "deploy/kubernetes/check"},
		why:   "its client is larger than everything else together; discovery through it is a module of its own",
	},
	{
		path:  "sigs.k8s.io",
		rooms: []string{"upstream/kubernetes", "deploy/kubernetes/check"},
		why:   "it comes with the Kubernetes client; discovery through it is a module of its own",
	},
	{
		path:  "helm.sh",
		rooms: []string{"deploy/kubernetes/check"},
		why:   "it renders the chart in a test, and brings Kubernetes along",
	},
	{
		path:  "github.com/grafana",
		rooms: []string{"e2e"},
		why:   "its schema is what the dashboard is checked against",
	},
	{
		path:  "github.com/chromedp",
		rooms: []string{"e2e"},
		why:   "it drives a browser, which only looks at the dashboard from outside",
	},
}

// rootMayLink is what the root package itself may import from outside the standard library, tests apart.
var rootMayLink = []string{
	"github.com/pires/go-proxyproto", // the PROXY header has to be read before a connection has a handler
	"golang.org/x/sys",               // socket options and system calls that syscall has frozen without
}
