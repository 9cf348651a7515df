package app

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"runtime"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/levee-net/levee"
	"github.com/levee-net/levee/handover"
	"github.com/levee-net/levee/internal/admin"
	"github.com/levee-net/levee/internal/config"
	"github.com/levee-net/levee/internal/handlers"
	"github.com/levee-net/levee/leveetest"
	"github.com/levee-net/levee/telemetry"
)

// A listener that came with the third configuration has only seen those since.
func TestAConnectionIsOfTheConfigurationThatLetItIn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &listener{server: &levee.Server{Handler: handlers.Echo}, born: 3}
		door := leveetest.Listen()
		go func() { _ = l.server.Serve(context.Background(), door) }() // ends with Close
		defer l.server.Close()
		for want := 3; want < 6; want++ {
			c, err := door.Dial(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			for _, open := range l.server.Conns() {
				if got := l.generationOf(open); got != want {
					t.Errorf("it is of generation %d, want %d", got, want)
				}
			}
			c.Close()
			synctest.Wait()
			if _, err := l.server.Reconfigure(&levee.Server{Handler: handlers.Discard}); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// A reload may wait for a name server, or for Redis, for seconds.
func TestNobodyWhoLooksOnWaitsForAReload(t *testing.T) {
	door := leveetest.Listen()
	f := &front{
		env: Env{process: new(handover.Process)},
		log: slog.New(slog.DiscardHandler), told: new(telling), ended: make(chan struct{}), admin: new(admin.Server), used: prometheus.NewRegistry(), connections: telemetry.NewMetrics(prometheus.NewRegistry()),
		listeners: []*listener{{name: "main", server: &levee.Server{Handler: handlers.Echo}, sockets: []*socket{{Listener: door}}}},
	}
	f.state.begin()
	f.reloads, f.upgrades = &reloads{front: f}, upgrades{front: f}
	f.now.Store(&generation{front: f, number: 1, cfg: new(config.Config)})
	f.admin.SetReady(true)

	f.reloading.Lock() // one is under way
	seen, drained := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(seen)
		if all := f.toldListeners().Listeners; len(all) != 1 || len(all[0].Addresses) != 1 || all[0].Addresses[0] != door.Addr().String() {
			t.Errorf("%+v", all)
		}
		if s := f.status(); !s.Ready || s.Drain != nil {
			t.Errorf("%+v", s)
		}
		go func() {
			defer close(drained)
			_ = f.drain()
		}()
		for f.status().Ready || f.status().Drain == nil {
			runtime.Gosched()
		}
	}()
	select {
	case <-seen:
	case <-time.After(10 * time.Second):
		t.Error("they wait")
	}
	f.reloading.Unlock()
	<-drained
}

func TestASecondSignalActsAtOnceAlsoDuringAReload(t *testing.T) {
	door, signals := leveetest.Listen(), make(chan os.Signal, 2)
	server := &levee.Server{Handler: handlers.Echo}
	f := &front{
		env: Env{Signals: signals, process: new(handover.Process)}, log: slog.New(slog.DiscardHandler), told: new(telling), ended: make(chan struct{}),
		listeners: []*listener{{name: "main", server: server, sockets: []*socket{{Listener: door}}}},
	}
	f.state.begin()
	f.reloads = &reloads{front: f}
	f.now.Store(&generation{front: f, number: 1, cfg: &config.Config{Drain: config.Drain{Timeout: time.Hour}}})
	served := make(chan struct{})
	go func() { // ends with the drain
		defer close(served)
		_ = server.Serve(context.Background(), door)
	}()
	c, err := door.Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, "here"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 4)); err != nil {
		t.Fatal(err)
	}

	f.reloading.Lock() // one is under way
	reloaded := make(chan struct{})
	f.running.Go(func() { <-reloaded })
	drained := make(chan error, 1)
	go func() {
		err := f.drain()
		f.awaitRunning()
		drained <- err
	}()
	for f.state.told() == nil {
		runtime.Gosched()
	}
	select {
	case err := <-drained:
		t.Fatalf("it has not waited for the reload: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	began := time.Now()
	signals <- syscall.SIGTERM
	select {
	case err := <-drained:
		if end, ok := errors.AsType[*exitError](err); !ok || end.code != exitCut {
			t.Errorf("%v", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("it waits for the reload")
	}
	if took := time.Since(began); took > time.Second {
		t.Errorf("it took %v", took)
	}
	<-served

	late := &listener{name: "late", server: &levee.Server{Handler: handlers.Echo}} // that the reload adds
	f.connections = telemetry.NewMetrics(prometheus.NewRegistry())
	f.add(late)
	if err := late.server.Serve(context.Background(), leveetest.Listen()); !errors.Is(err, levee.ErrServerClosed) {
		t.Errorf("a listener that comes late is served: %v", err)
	}
	f.reloading.Unlock()
	close(reloaded)
	<-f.ended
}
