//go:build !linux

package app

import "net/netip"

// portOwner is not known here.
func portOwner(netip.AddrPort) string { return "" }
