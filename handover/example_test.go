package handover_test

import (
	"context"
	"log"
	"os"
	"os/signal"
	"syscall"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/frame"
	"github.com/levee-net/levee/handover"
)

// A server of lines that SIGUSR2 replaces by what is now in its binary's place.
func Example() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	upgrade := make(chan os.Signal, 1)
	signal.Notify(upgrade, syscall.Signal(0xc)) // syscall.SIGUSR2, where there is one

	process, err := handover.Begin()
	if err != nil {
		log.Fatal(err)
	}
	process.PIDFile = "/run/lines.pid"
	srv := &levee.Server{
		Name:    "lines",
		Handler: frame.Handler(frame.Lines(64<<10), func(w *frame.Writer, line []byte) error { return w.Write(line) }),
	}
	if err := process.ListenAndServe(ctx, upgrade, srv, "127.0.0.1:7000"); err != nil {
		log.Fatal(err)
	}
}

// A program with more to it: what it knows goes along.
func ExampleProcess_Upgrade() {
	ctx := context.Background()
	process, err := handover.Begin()
	if err != nil {
		log.Fatal(err)
	}
	const address = "127.0.0.1:7000"
	listener, err := process.Listen(ctx, address)
	if err != nil {
		log.Fatal(err)
	}
	srv := &levee.Server{Name: "lines", Handler: levee.HandlerFunc(func(context.Context, *levee.Conn) error { return nil })}
	if err := process.Ready(ctx, srv); err != nil { // waits for the predecessor, if there is one
		log.Fatal(err)
	}
	restore(process.State("counters"))
	go srv.Serve(ctx, listener)

	// Later, when it is to be replaced:
	outcome, err := process.Upgrade(ctx, &handover.Plan{
		Sockets:       []handover.Socket{{Address: address, Listener: listener}},
		Servers:       []*levee.Server{srv},
		FreshState:    func() map[string][]byte { return map[string][]byte{"counters": save()} },
		StopAccepting: func() { srv.HandOver(listener) },
		AcceptAgain: func(sockets []handover.Socket) {
			listener = sockets[0].Listener
			go srv.Serve(ctx, listener)
		},
	})
	if err != nil {
		log.Print(err) // this process serves on
		return
	}
	log.Printf("process %d serves, with %d connections from here; %d are left", outcome.PID, outcome.Moved, outcome.Stayed)
	_ = srv.Shutdown(ctx)
}

func save() []byte   { return nil }
func restore([]byte) {}
