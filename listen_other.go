//go:build !linux

package levee

import "net"

const listenerOptionsInherited = false

func setListenerOptions(int) error { return nil }

func kernelQueue(net.Listener) (length, limit int) { return 0, 0 }
