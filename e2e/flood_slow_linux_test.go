package e2e

import (
	"fmt"
	"strconv"
	"testing"
	"time"
)

// A stall is a crowd of clients that get stuck in one phase of a connection, the listener
// that they do it at, and how long they are given for it there.
type stall struct {
	attack   string
	listener int
	limit    time.Duration
	args     []string
}

// The crowds of a small flood come all at once, or most of its time would be spent on waiting.
func TestACrowdStuckInAnyPhaseIsReapedAndNobodyElseNotices(t *testing.T) {
	crowd := sized(t, "clients that are stuck in each phase", 300, 5000)
	arrival := sized(t, "time to arrive", 3*time.Second, 10*time.Second)
	p := startOnCore(t, "serve", "-c", write(t, "levee.yaml", fmt.Sprintf(`version: 1
admin: {listen: 127.0.0.1:0}
listeners:
  - name: main
    listen: ["127.0.0.1:0"]
    timeouts: {arrival: %[1]s, sniff: %[1]s}
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
	t.Run("phases", func(t *testing.T) {
		for _, s := range []stall{
			{"hold", 0, arrival, nil},
			{"slow-header", 1, arrival, []string{"--proxy-header"}},
			{"slow-hello", 2, arrival, []string{"--tls", "--insecure-skip-verify"}},
			{"slow-request", 0, 10 * time.Second, nil}, // what net/http gives a client for its headers
		} {
			t.Run(s.attack, func(t *testing.T) {
				if crowd < 5000 {
					t.Parallel()
					s.come(t, p, crowd)
					return
				}
				before := p.footprint()
				s.come(t, p, crowd)
				p.leavesNothing(t, before)
			})
		}
	})
	p.leavesNothing(t, before)
}

// come has the crowd come, and looks whether all of them are ended in time.
func (s stall) come(t *testing.T, p *process, crowd int) {
	args := append([]string{"--attack", s.attack, "-c", strconv.Itoa(crowd), "-d", (s.limit * 6 / 5).String()}, s.args...)
	a := flood(t, p.addressOf(s.listener), args...).Attacks[0]
	if a.Ended.Count < crowd*99/100 || a.Ended.Min.duration() < s.limit*9/10 || a.Ended.Max.duration() > s.limit*11/10 {
		t.Errorf("%d of %d were ended, after %v to %v; want all after %v", a.Ended.Count, crowd, a.Ended.Min.duration(), a.Ended.Max.duration(), s.limit)
	}
}
