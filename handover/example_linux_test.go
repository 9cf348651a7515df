package handover_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/handover"
)

// A server that SIGUSR2 replaces by what is in its binary's place then. Here a client comes by, and then it is told to leave.
func Example() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	upgrade := make(chan os.Signal, 1)
	signal.Notify(upgrade, syscall.SIGUSR2)

	process, err := handover.Begin()
	if err != nil {
		log.Print(err)
		return
	}
	srv := &levee.Server{Name: "greeter", Handler: levee.HandlerFunc(greet)}
	address := "unix:" + filepath.Join(os.TempDir(), fmt.Sprintf("greeter-%d", os.Getpid()))
	go comeBy(address, stop)
	err = process.ListenAndServe(ctx, upgrade, srv, address)
	fmt.Println("left:", err)
	// Output:
	// hello
	// left: <nil>
}

func greet(_ context.Context, c *levee.Conn) error {
	_, err := fmt.Fprintln(c, "hello")
	return err
}

// comeBy prints what the server says to a client.
func comeBy(address string, after func()) {
	defer after()
	path := strings.TrimPrefix(address, "unix:")
	c, err := net.Dial("unix", path)
	for err != nil {
		<-time.After(time.Millisecond) // it does not listen yet
		c, err = net.Dial("unix", path)
	}
	defer c.Close()
	line, _ := bufio.NewReader(c).ReadString('\n')
	fmt.Print(line)
}

// A program with more to it says what goes along. If the new version does not come up, this one serves on.
func ExampleProcess_Upgrade() {
	ctx := context.Background()
	process, err := handover.Begin()
	if err != nil {
		log.Fatal(err)
	}
	const address = "127.0.0.1:0"
	listener, err := process.Listen(ctx, address)
	if err != nil {
		log.Fatal(err)
	}
	served := decode(process.State("served"))
	srv := &levee.Server{Name: "greeter", Handler: levee.HandlerFunc(greet)}
	if err := process.Ready(ctx, srv); err != nil { // waits for the predecessor, if there is one
		log.Fatal(err)
	}
	go srv.Serve(ctx, listener)

	// Later, when it is to be replaced:
	outcome, err := process.Upgrade(ctx, &handover.Plan{
		Path:       "/srv/next/greeter",
		Sockets:    []handover.Socket{{Address: address, Listener: listener}},
		Servers:    []*levee.Server{srv},
		FreshState: func() map[string][]byte { return map[string][]byte{"served": encode(served + srv.Stats().Accepted)} },
		StopAccepting: func() {
			srv.HandOver(listener)
		},
		AcceptAgain: func(sockets []handover.Socket) {
			listener = sockets[0].Listener
			go srv.Serve(ctx, listener)
		},
	})
	if errors.Is(err, fs.ErrNotExist) {
		fmt.Println(err)
	}
	if outcome != nil {
		fmt.Println("process", outcome.PID, "serves;", outcome.Stayed, "connections are left to drain here")
	}
	_ = srv.Shutdown(ctx)
	// Output:
	// start the new process: fork/exec /srv/next/greeter: no such file or directory
}

func encode(n int64) []byte { return fmt.Append(nil, n) }

func decode(b []byte) (n int64) {
	_, _ = fmt.Sscan(string(b), &n) // nothing is zero
	return n
}
