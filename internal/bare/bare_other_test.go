//go:build !linux

package bare_test

import (
	"net/netip"
	"testing"
)

func blackHole(t *testing.T) netip.AddrPort {
	t.Skip("a full queue does not swallow a SYN everywhere")
	return netip.AddrPort{}
}
