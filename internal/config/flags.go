package config

import "net/netip"

// ParseServer reads an entry of an upstream's servers, as a command line has it.
func ParseServer(s string) (ServerSource, error) {
	address, err := parseServer(s)
	return ServerSource{ServerAddress: address, Weight: 1}, err
}

// ParsePrefix reads a prefix, or an address as the prefix that holds it alone, as a command line or a request has it.
func ParsePrefix(s string) (netip.Prefix, error) { return parsePrefix(s) }
