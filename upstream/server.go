package upstream

// A Server is one of a pool's servers, as whoever knows of them tells it.
type Server struct {
	// Name is what logs, metrics and the admin API call the server, and what
	// consistent hashing hashes. Two servers of a pool never have the same. Empty means
	// Addresses[0].
	Name string

	// ServerName is what its certificate must be for, unless Pool.TLS has a ServerName.
	// Empty means the host of Name.
	ServerName string

	// Addresses are where it is: "10.0.0.7:5432", "[2001:db8::7]:5432" or
	// "unix:/run/postgresql/.s.PGSQL.5432". If there are several, they lead to the same
	// server and are tried as RFC 8305 says (happy eyeballs). Empty means Name. A host
	// that is no IP address is looked up at each dial.
	Addresses []string

	// Weight is its share beside the others'. Zero means 1.
	Weight int

	// Tier is 0 for the servers that are used first. Those of a higher tier stand by
	// and are used when too few of the lower ones are well.
	Tier int
}
