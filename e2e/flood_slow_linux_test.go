package e2e

import (
	"context"
	"fmt"
	"strconv"
	"testing"
	"time"

	library "github.com/levee-net/levee" // levee is the binary here
	"github.com/levee-net/levee/frame"
)

// A stall is a crowd of clients that get stuck in one phase of a connection, the listener
// that they do it at, and how long they are given for it there.
type stall struct {
	attack   string
	listener int
	limit    time.Duration
	args     []string
}

// Small crowds come at the same time, each to a levee of its own.
func TestACrowdStuckInAnyPhaseIsReapedAndNobodyElseNotices(t *testing.T) {
	crowd := sized(t, "clients that are stuck in each phase", 300, 5000)
	arrival := sized(t, "time to arrive", 3*time.Second, 10*time.Second) // of which a tenth is more than a client may be late by its own clock
	phases := []stall{
		{"hold", 0, arrival, nil},
		{"slow-header", 1, arrival, []string{"--proxy-header"}},
		{"slow-hello", 2, arrival, []string{"--tls", "--insecure-skip-verify"}},
		{"slow-request", 0, 4*time.Second + arrival, nil}, // four until its bytes tell that it is HTTP
	}
	for _, s := range phases[:sized(t, "phases", 3, 4)] {
		t.Run(s.attack, func(t *testing.T) {
			besideOthers(t)
			p := startOnCore(t, "serve", "-c", write(t, "levee.yaml", fmt.Sprintf(`version: 1
admin: {listen: 127.0.0.1:0}
overload: {mode: off}
listeners:
  - name: main
    listen: ["127.0.0.1:0"]
    timeouts: {arrival: %[1]s, sniff: %[1]s, message: %[1]s}
    routes: [{match: {protocol: http}, handler: hello}, {handler: echo}]
  - name: proxied
    listen: ["127.0.0.1:0"]
    proxy_protocol: {from: [127.0.0.0/8]}
    timeouts: {arrival: %[1]s, proxy_header: %[1]s}
    routes: [{handler: echo}]
  - name: secure
    listen: ["127.0.0.1:0"]
    tls: {mode: terminate, development: true}
    timeouts: {arrival: %[1]s}
    routes: [{handler: echo}]
`, arrival)))
			before := p.footprint()
			s.come(t, p.addressOf(s.listener), crowd)
			p.leavesNothing(t, before, 16<<20) // that a server which was just started has not got yet
		})
	}
	for _, alone := range sized(t, "in goroutines", []bool{false}, []bool{false, true}) {
		t.Run(fmt.Sprintf("slow-message, in goroutines: %t", alone), func(t *testing.T) {
			besideOthers(t)
			testStuckInAMessage(t, crowd, arrival, alone)
		})
	}
}

// come has the crowd come, and looks whether all of them are ended in time. A small one is given a second more, and
// judged by a clock that may start late: a machine that has other things to do may take that to let the last of them in, or to
// tell one of its beginning or end.
func (s stall) come(t *testing.T, target string, crowd int) {
	t.Helper()
	duration := sized(t, "duration", s.limit+time.Second, s.limit*6/5)
	least := sized(t, "shortest stay", s.limit*3/4, s.limit*9/10)
	most := sized(t, "longest stay", s.limit+time.Second, s.limit*11/10)
	args := append([]string{"--attack", s.attack, "-c", strconv.Itoa(crowd), "-d", duration.String()}, s.args...)
	a := flood(t, target, args...).Attacks[0]
	if a.Ended.Count < crowd*99/100 || a.Ended.Min.duration() < least || a.Ended.Max.duration() > most {
		t.Errorf("%d of %d were ended, after %v to %v; want all after %v", a.Ended.Count, crowd, a.Ended.Min.duration(), a.Ended.Max.duration(), s.limit)
	}
}

// testStuckInAMessage has a server of its own: there is no protocol of messages in the configuration, that is for those who have one.
func testStuckInAMessage(t *testing.T, crowd int, limit time.Duration, alone bool) {
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	served := make(chan error)
	l := listen(t)
	srv := &library.Server{
		Handler:        frame.Handler(frame.Uint32(nil, 0), func(w *frame.Writer, message []byte) error { return w.Write(message) }),
		MessageTimeout: limit, GoroutinePerConn: alone,
	}
	go func() { served <- srv.Serve(ctx, l) }()
	s := stall{attack: "slow-message", limit: limit, args: []string{"--send", `\x00\x00\x00\x04ping`, "--expect", `\x00\x00\x00\x04ping`}}
	s.come(t, l.Addr().String(), crowd)
	closed := srv.Stats().Closed
	if n := closed[library.MessageTimeout]; n < int64(crowd) {
		t.Errorf("%d of %d connections were ended for their message: %v", n, crowd, closed)
	}
	stop()
	if err := <-served; err != nil {
		t.Error(err)
	}
}
