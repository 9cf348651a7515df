//go:build !linux

package levee

func askTCP(int) (TCPInfo, error) { return TCPInfo{}, errNoTCP }
