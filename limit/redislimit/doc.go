// Package redislimit keeps limits and bans in Redis, so that machines keep them together.
//
//	client, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{"10.0.0.5:6379"}, DisableCache: true})
//	if err != nil {
//		return err
//	}
//	defer client.Close()
//	shared := &redislimit.Limits{Client: client}
//	go shared.Run(ctx)
//
// Its secret is that nobody waits for Redis. All connections that come while one question is
// on its way are asked about in the next one, so a machine has a single script running there
// whatever its load; and who has not got an answer after 50 milliseconds, or comes while Redis
// is known to ail, is left to the machine's own limits at once.
//
// # What is exact
//
// While Redis answers, all machines together let in no more than a limit says: [Limits.Claim]
// is decided by one script in Redis, for all of a connection's claims or for none. Rates are
// kept by GCRA on the clock of Redis, so those of the machines may differ. Open connections
// are counted by machine and by key, and a machine tells Redis how many it has, not that there
// is one more: an answer that was lost is put right by the next thing it says of that key.
//
// # What is approximate, and by how much
//
//   - While Redis does not answer, every machine decides alone: n machines may let in n times
//     the limit. It is tried again every second. What was let in meanwhile, and told to
//     [Limits.Hold], counts from then on.
//   - A Redis that has lost its memory (a restart without persistence, FLUSHALL) is noticed with
//     the next connection, or a third of a lease later. All machines then tell it their open
//     connections anew, 256 keys in a round trip. Until that is done somebody may come in too
//     many. Rates start anew: up to a burst more.
//   - One that has lost only the last moments, as by a failover to a replica that was behind,
//     is put right by the next connection of a key, or within 20 minutes.
//   - The connections of a machine that has died count until its lease runs out: 15 seconds at
//     most. Those of one that has ended properly count no longer than it takes to say so.
//   - A connection that is closed is told of right away, but nobody waits for that: what has
//     become free is free elsewhere one or two round trips later.
//   - A claim that Redis granted too late, after the machine has decided alone, has spent its
//     share of a rate. One that was asked twice, for the connection broke, may have spent two.
//   - Whom a rate has refused is refused on the same machine, without asking, until the time
//     that Redis gave. A limit that is raised meanwhile is heeded after that: 1/rate seconds.
//
// # What it costs
//
// One round trip per connection, which it shares with all that wait at that time, and which is
// up to two when one has just left; so Redis should be no more than some 20 milliseconds away.
// An idle machine sends one command in 5 seconds, and one in a second with [Bans]. A machine
// that holds many connections for long tells of their keys anew every 20 minutes.
//
// In Redis 7 a client costs about 140 bytes for its rate, until its burst is whole again, and
// about 140 bytes for its open connections, with 20 for every further machine that has some, as
// long as there are any; what a dead machine has left goes with the next claim, or an hour after
// the last. Names of more than 64 bytes are
// hashed. Every key expires.
//
// # Which Redis
//
// Redis 6 or later: alone, with Sentinel, or a cluster. All keys begin with the prefix in
// braces, so they are in one slot: in a cluster one node keeps them all. Others that spread
// the load are other prefixes, for limits that have nothing to do with each other. The client
// may be shared with others. With maxmemory, let the policy be noeviction, for what is evicted is
// forgotten: without memory the machines decide alone, which is said, instead of letting too many in
// without a word.
//
// Who can write to that Redis decides who may come in. Have it ask for a password, and talk
// to it over TLS where the network is not yours.
package redislimit
