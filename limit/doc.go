// Package limit decides who may come in and how much they may take: a [levee.Gate] of
// limits, lists and bans.
//
//	public := &limit.Scope{
//		Name:   "public",
//		Limits: limit.Limits{Connections: 20_000, Handshakes: limit.Rate{PerSecond: 2_000}},
//		Clients: []*limit.Clients{{
//			Limits: limit.Limits{Connections: 256, Rate: limit.Rate{PerSecond: 50, Burst: 100}, Mode: limit.Shadow},
//		}},
//	}
//	gate := &limit.Gate{Scopes: []*limit.Scope{public}}
//	srv := &levee.Server{Handler: h, Gate: gate}
//	…
//	for _, l := range public.Stats().Limits { // public.client.rate: 48210 allowed, 0 refused, 1377 would have been
//
// Its secret is how to keep account of strangers in a memory that they cannot make grow. A
// [Scope] is what counts together: a process, a listener, a route. It limits the sum of its
// connections, and by a [Clients] each client's, of whom it remembers a fixed number: who
// has open connections, or has lately used up some of a rate, is remembered in favour of
// who has not, and forgetting those changes no decision.
//
// A client is an address, and of IPv6 a network: whoever has one address of it has 2^64. So
// a /64 is one client, and the /56 and the /48 around it are held to a multiple of its limits.
// It may also be the identity in a client certificate, or the server name asked for.
//
// Try a limit with Mode [Shadow] first: it counts what it would refuse, and refuses nothing.
//
// A connection is shown to everything that has a say, in this order: when it is accepted, the
// totals of the gate's scopes; once its client is known, the [Lists], the [Bans] and what
// each client may take; then, if a limit is Shared, the other machines; and handshakes and
// identities when they come. The first to refuse it is named by the [levee.Refusal] that it
// ends with. Who is refused by the time its client is known has used up nobody's rate.
//
// Rates are GCRA's (a leaky bucket as a meter, ITU-T I.371): so many per second, and so many
// at once after a pause.
package limit
