// Package upstream knows where a connection can be had: which server, whether it is
// well, and when to try again.
//
//	pool := &upstream.Pool{Name: "postgres", Balance: upstream.LeastConnections}
//	if err := pool.Update([]upstream.Server{{Name: "10.0.0.7:5432"}, {Name: "10.0.0.8:5432"}}); err != nil {
//		return err
//	}
//	go pool.Run(ctx) // active health checks, until ctx ends
//
//	server, err := pool.Dial(ctx, upstream.Request{})
//	if err != nil {
//		return err // upstream postgres: no server available: 10.0.0.7:5432: connection refused; 10.0.0.8:5432: breaker open
//	}
//	defer server.Close()
//
// Its secret is how to live with servers that come, go and flake. A server takes
// part unless one of four things speaks against it:
//
//   - its active health checks, which [Pool.Run] makes; too many bad verdicts at once
//     are not believed (PanicThreshold);
//   - its circuit breaker, which hears of every connection that was tried; it is
//     always believed;
//   - an operator, by [Pool.Drain];
//   - its cap, MaxConnections, for which [Pool.Dial] waits in a queue.
//
// A try that fails is followed by another on another server, as long as the retry
// budget lasts: a pool that is ill as a whole is not dialled to death. Everything a
// Dial does (waiting in the queue, tries, pauses between them) ends by TotalTimeout.
//
// # What counts as a failure
//
// A breaker counts connections, and what becomes of one shows only after a while: a
// server behind another proxy, or one that is overloaded, accepts and closes at once.
// So the breaker hears of a connection when it is known:
//
//   - not connected, or the TLS handshake failed: a failure;
//   - closed or reset by the server within EarlyClose and before it had sent a byte: a
//     failure; but nothing if the client had sent something, which the server may have
//     refused, and something says that the server is well (see below);
//   - a byte came from the server, or EarlyClose has passed: a success;
//   - the client gave up, ended its stream or went first: nothing.
//
// So nobody can have a server that is well left alone by sending it garbage. What says
// that it is well is another connection to it that is a success, no longer after its birth
// than twice EarlyClose; or a health check that passed no longer ago than twice Interval,
// if checks have a Probe: to connect proves little. A connection on which nothing was sent
// is no client's doing, and counts in any case.
//
// That EarlyClose has passed costs no timer. The connections of a server stand in the
// order of their birth, and those whose time is over are decided by the next Dial, by
// Stats, or within a second by Run. Nobody could have seen the difference before.
// Whoever moves the bytes himself may call [Conn.FirstByte] to have it decided sooner,
// which matters only while a breaker is half-open.
//
// What is this machine's own trouble (no file descriptor, no local port) is told to no
// breaker.
package upstream
