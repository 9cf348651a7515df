// Package reactor runs connections as data: a few event loops, and for each
// connection a socket, counters, a deadline and whatever bytes wait. An idle
// connection has no goroutine and no buffer.
//
// Its secret is "inline until slow". A loop calls a connection's owner inline, for
// the price of a function call. If a call takes longer than a small budget, the
// loop is taken away from it: another goroutine carries the loop on, and the slow
// call ends as a goroutine of its own and gives its connection back. So the loop
// is as fast as an event loop, and its connections are as isolated as goroutines.
//
// A loop owns its connections: nobody else touches them. Others put messages into
// its queue. It waits for sockets first for a moment in the kernel, with its
// processor in hand, if nobody else has just wanted that; and then by parking its
// goroutine in Go's own netpoller, in which its epoll instance is registered. So a
// loop that has been idle for a moment occupies neither a thread nor a processor.
//
// Connections can be paused, inspected and packed alive, with all that is under way on
// them, and go on in another process: what stands on levee's connections as data stands on that.
package reactor
