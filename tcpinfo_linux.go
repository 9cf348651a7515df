package levee

import (
	"time"

	"golang.org/x/sys/unix"
)

func askTCP(fd int) (TCPInfo, error) {
	info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	switch {
	case err == unix.EOPNOTSUPP || err == unix.ENOPROTOOPT:
		return TCPInfo{}, errNoTCP
	case err != nil:
		return TCPInfo{}, err
	}
	us := func(n uint32) time.Duration { return time.Duration(n) * time.Microsecond }
	least := us(info.Min_rtt)
	if info.Min_rtt == unmeasured {
		least = 0
	}
	return TCPInfo{
		RTT: us(info.Rtt), RTTVariance: us(info.Rttvar), MinRTT: least,
		Retransmits: info.Total_retrans, Unacked: info.Unacked,
	}, nil
}

// unmeasured is what the kernel says for no round trip yet.
const unmeasured = 1<<32 - 1
