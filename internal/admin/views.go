package admin

import "time"

// Status is how it goes with a levee, at one look.
type Status struct {
	Version string    `json:"version"`
	Go      string    `json:"go"`
	PID     int       `json:"pid"`
	Started time.Time `json:"started"` // this process
	Since   time.Time `json:"since"`   // the first of the processes that have taken each other's place by upgrades
	State   string    `json:"state"`   // serving, draining
	Ready   bool      `json:"ready"`

	Generation Generation `json:"generation"`
	Totals     Totals     `json:"totals"`
	Process    Process    `json:"process"`
	Drain      *Drain     `json:"drain,omitempty"` // while it drains

	Upgrade     *Upgrade     `json:"upgrade,omitempty"`     // the last that was asked of this process
	Predecessor *Predecessor `json:"predecessor,omitempty"` // the process whose place this one has taken
}

// Generation is a configuration that has been in force.
type Generation struct {
	Number int       `json:"number"` // from 1
	Since  time.Time `json:"since"`
	File   string    `json:"file,omitempty"`

	// Problem is why the last reload was not taken, at Failed; the configuration before it is in force.
	Problem string    `json:"problem,omitempty"`
	Failed  time.Time `json:"failed,omitzero"`
	Reloads int64     `json:"reloads"` // taken, or not needed
	Failing int64     `json:"failing"` // not taken
}

// Totals are counts over all listeners.
type Totals struct {
	Active   int64            `json:"active"`
	Arriving int              `json:"arriving"`
	Accepted int64            `json:"accepted"`
	Closed   map[string]int64 `json:"closed"`  // by reason
	Refused  map[string]int64 `json:"refused"` // by reason
	In       int64            `json:"in"`      // bytes on the wire
	Out      int64            `json:"out"`
	Panics   int64            `json:"panics"`
}

// Process is what the process uses of its machine.
type Process struct {
	Goroutines int     `json:"goroutines"`
	Memory     int64   `json:"memory"` // bytes that Go holds
	MemoryMax  int64   `json:"memory_max,omitempty"`
	Files      int     `json:"files"`
	FilesMax   int     `json:"files_max"`
	CPU        float64 `json:"cpu"`      // seconds of processor time since the start
	LoopLag    float64 `json:"loop_lag"` // seconds that an event loop was late at most of late
}

// Drain is how far the end has come.
type Drain struct {
	Since time.Time `json:"since"`
	Until time.Time `json:"until"` // when those who have not left are cut
	Left  int64     `json:"left"`  // connections

	Drained int64 `json:"drained"` // have left when they were asked to
	Gone    int64 `json:"gone"`    // have ended by themselves
	Cut     int64 `json:"cut"`
}

// Upgrade is how far a new process has come on its way to take the place of this one.
type Upgrade struct {
	State   string    `json:"state"` // starting, settling, probation, moving, ending, done, failed
	Began   time.Time `json:"began"`
	Ended   time.Time `json:"ended,omitzero"`
	PID     int       `json:"pid,omitempty"`     // of the new process
	Moved   int64     `json:"moved"`             // connections that go on there
	Left    int64     `json:"left"`              // those that finish here
	Problem string    `json:"problem,omitempty"` // why it failed: this process goes on
}

// Predecessor is a process that has left its place to this one.
type Predecessor struct {
	PID     int       `json:"pid"`
	Since   time.Time `json:"since"`   // it has left its place
	Adopted int64     `json:"adopted"` // connections that have moved here
	Gone    bool      `json:"gone"`    // it has ended
	Left    int64     `json:"left"`    // connections that finish there
}

// Listener is a listener with its counts.
type Listener struct {
	Name        string           `json:"listener"`
	Addresses   []string         `json:"addresses"`
	TLS         string           `json:"tls"`
	State       string           `json:"state"` // serving, draining
	Generation  int              `json:"generation"`
	Active      int64            `json:"active"`
	Max         int              `json:"max"` // negative if there is no cap
	Arriving    int              `json:"arriving"`
	Accepted    int64            `json:"accepted"`
	Closed      map[string]int64 `json:"closed"`
	Refused     map[string]int64 `json:"refused"`
	In          int64            `json:"in"`
	Out         int64            `json:"out"`
	Panics      int64            `json:"panics"`
	QueueLength int              `json:"queue_length"`
	QueueLimit  int              `json:"queue_limit"`
}

// Listeners are all listeners, in the configuration's order.
type Listeners struct {
	Listeners []Listener `json:"listeners"`
}

// Connection is an open connection.
type Connection struct {
	ID         uint64    `json:"id"`
	Listener   string    `json:"listener"`
	Generation int       `json:"generation"` // of the configuration that let it in
	Client     string    `json:"client"`
	Peer       string    `json:"peer,omitempty"` // where it comes from, if that is not the client
	Local      string    `json:"local"`
	Accepted   time.Time `json:"accepted"`
	Phase      string    `json:"phase"`         // arriving, serving, draining
	Engine     string    `json:"engine"`        // loop, goroutine
	TLS        string    `json:"tls,omitempty"` // such as "TLS 1.3"
	SNI        string    `json:"sni,omitempty"`
	ALPN       string    `json:"alpn,omitempty"`
	Identity   string    `json:"identity,omitempty"` // of the client's certificate
	Route      string    `json:"route,omitempty"`
	Upstream   string    `json:"upstream,omitempty"`
	Server     string    `json:"server,omitempty"`
	In         int64     `json:"in"` // bytes on the wire
	Out        int64     `json:"out"`
	Idle       float64   `json:"idle"`  // seconds since a byte moved; negative if unknown
	Waits      int64     `json:"waits"` // bytes that are held for it
}

// Connections is a page of the open connections.
type Connections struct {
	Total       int          `json:"total"`    // open
	Matching    int          `json:"matching"` // of these, what was asked for
	Connections []Connection `json:"connections"`
	Next        string       `json:"next,omitempty"` // the cursor of the next page
}

// Query says which connections are asked for. The zero value is all of them.
type Query struct {
	Listener, Route, Upstream, Server, Phase string
	Client                                   string // a prefix or an address
	Sort                                     string // id, accepted, in, out, idle, client; with a "-" before it the other way round
	Limit                                    int
	After                                    string // a cursor
}

// Ended is what came of asking for connections to be ended.
type Ended struct {
	Ended int `json:"ended"`
}

// Config is the configuration in force, without its secrets.
type Config struct {
	Generation Generation `json:"generation"`
	YAML       string     `json:"yaml"`
}

// Upstreams are all upstreams, in the configuration's order.
type Upstreams struct {
	Upstreams []Upstream `json:"upstreams"`
}

// Upstream is an upstream with its servers.
type Upstream struct {
	Name      string           `json:"upstream"`
	Balance   string           `json:"balance"`
	Queue     int64            `json:"queue"`
	Retries   int64            `json:"retries"`
	Exhausted int64            `json:"budget_exhausted"`
	Refused   int64            `json:"refused"`
	Servers   []UpstreamServer `json:"servers"`
}

// UpstreamServer is a server of an upstream.
type UpstreamServer struct {
	Name     string           `json:"server"`
	Tier     int              `json:"tier"`
	Weight   float64          `json:"weight"`
	Healthy  bool             `json:"healthy"`
	Problem  string           `json:"problem,omitempty"` // of the last check
	Checked  time.Time        `json:"checked,omitzero"`
	Drained  bool             `json:"drained,omitempty"`
	Left     bool             `json:"left,omitempty"` // no longer among the configured or discovered
	Breaker  string           `json:"breaker"`        // closed, half-open, open
	Active   int64            `json:"active"`
	Latency  float64          `json:"latency"` // seconds
	Dials    int64            `json:"dials"`
	Failures map[string]int64 `json:"failures"`
	Sent     int64            `json:"sent"`
	Received int64            `json:"received"`
}

// Event is something that happened, for the dashboard, the flight recorder and GET /api/v1/events.
type Event struct {
	ID     uint64    `json:"id"`
	Time   time.Time `json:"time"`
	Kind   string    `json:"kind"` // closed, refused, reload, ban, breaker, health, overload, drain, upgrade, panic, accept
	Text   string    `json:"text"` // one line
	Conn   uint64    `json:"conn,omitempty"`
	Reason string    `json:"reason,omitempty"`
	// Story is the life of the connection that Conn is.
	Story *Story `json:"story,omitempty"`
}

// Story is what is remembered of a connection that has ended.
type Story struct {
	Connection
	Reason   string  `json:"reason"`
	Error    string  `json:"error,omitempty"`
	Duration float64 `json:"duration"` // seconds
	Phases   []Phase `json:"phases"`
	RTT      float64 `json:"rtt,omitempty"` // seconds, smoothed, as the kernel had it at the end
	Retrans  int64   `json:"retrans,omitempty"`
	Trace    string  `json:"trace,omitempty"` // the trace's id
}

// Phase is a part of a connection's life.
type Phase struct {
	Name string  `json:"phase"` // proxy_header, sniff, handshake, route, dial, first_byte, flow, drain
	At   float64 `json:"at"`    // seconds since accept
	Took float64 `json:"took"`  // seconds
}
