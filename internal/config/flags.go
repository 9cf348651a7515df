package config

// ParseServer reads an entry of an upstream's servers, as a command line has it.
func ParseServer(s string) (ServerSource, error) {
	address, err := parseServer(s)
	return ServerSource{ServerAddress: address, Weight: 1}, err
}
