package probe_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/levee-net/levee/upstream/probe"
)

// A server whose greeting says whether it takes mail.
func Example() {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer l.Close()
	go func() { // until l is closed
		for _, greeting := range []string{"220 mail.example.com ESMTP\r\n", "421 too busy\r\n"} {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, greeting)
			c.Close()
		}
	}()

	takesMail := probe.SendExpect(nil, []byte("220 "))
	for range 2 {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		var d net.Dialer
		c, err := d.DialContext(ctx, "tcp", l.Addr().String())
		if err == nil {
			err = takesMail(ctx, c)
			c.Close()
		}
		cancel()
		fmt.Println(err)
	}
	// Output:
	// <nil>
	// closed by the server: "220 " is not in the answer "421 too busy\r\n": EOF
}
