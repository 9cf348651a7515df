// Package discover tells a pool where its servers are, and again when that has
// changed.
//
//	where := &discover.DNS{Name: "db.example.com", Port: 5432}
//	err := where.Run(ctx, func(servers []upstream.Server) {
//		if err := pool.Update(servers); err != nil {
//			log.Print(err)
//		}
//	})
//
// There are sources that ask DNS ([DNS], [SRV]), watch a file ([File]) or know
// from the beginning ([Static]); [Poll] makes one of a function. Kubernetes and Consul
// have modules of their own, upstream/kubernetes and upstream/consul, for the size of
// their clients.
//
// The secret is when to ask again, and what not to believe. An answer that fails, or a
// file with a mistake in it, is no reason to lose the servers that are known: they are
// kept until there is a good answer, however long that takes. What is wrong is told to
// the source's Problem, each time, so whoever logs it limits the rate.
//
// # What all sources have in common
//
// Run calls update once the servers are known and then whenever they are others than
// before, in whatever order; not again for the same ones. It returns when ctx ends,
// with ctx's error, and has left nothing behind then. It returns earlier only if its
// settings can never work. The calls of update and Problem come one after the other,
// from the goroutine that called Run: if an answer has both servers and a mistake, update
// first. What update is given is update's to keep. The
// fields of a source must not be changed once it runs; one that may run several times
// at once says so.
package discover
