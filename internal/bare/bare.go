// Package bare accepts TCP connections, and makes them, without Go's netpoller and without
// net's state around the socket: what goes to an event loop needs neither, and they are a
// third of what a connection costs.
//
// What Dial returns is a net.Conn like any other, and becomes one of net's own the first
// time that it is used as one. Whoever takes the socket by Detach before that spares both.
package bare

import "time"

// Probing of a connection that nothing comes over, which tells the dead from the silent.
const (
	keepAliveIdle  = 15 * time.Second
	keepAliveCount = 9
)
