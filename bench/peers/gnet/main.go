// Command gnet is an echo on gnet's event loops, with no deadline, limit or count.
package main

import (
	"fmt"
	"net"
	"os"

	"github.com/panjf2000/gnet/v2"
)

func main() {
	// One loop, as all have one core. With a listener of its own (SO_REUSEPORT) it
	// accepts by itself, and is not told by another.
	err := gnet.Run(&echo{}, "tcp4://127.0.0.1:0", gnet.WithNumEventLoop(1), gnet.WithReusePort(true))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

type echo struct {
	gnet.BuiltinEventEngine
}

// OnBoot says where the kernel has put the listener, which gnet does not.
func (*echo) OnBoot(engine gnet.Engine) gnet.Action {
	address, err := where(engine)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return gnet.Shutdown
	}
	fmt.Printf("Listening on %s\n", address)
	return gnet.None
}

func where(engine gnet.Engine) (net.Addr, error) {
	fd, err := engine.Dup()
	if err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(fd), "listener")
	defer file.Close()
	listener, err := net.FileListener(file)
	if err != nil {
		return nil, err
	}
	defer listener.Close()
	return listener.Addr(), nil
}

// OnTraffic hands what has come to the writer without a copy.
func (*echo) OnTraffic(c gnet.Conn) gnet.Action {
	bytes, err := c.Next(-1)
	if err != nil {
		return gnet.Close
	}
	if _, err := c.Write(bytes); err != nil {
		return gnet.Close
	}
	return gnet.None
}
