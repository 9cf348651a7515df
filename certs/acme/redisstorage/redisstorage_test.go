package redisstorage_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/levee-net/levee/certs/acme"
	"github.com/levee-net/levee/certs/acme/redisstorage"
)

// A client of rueidis that has lost its server looks for it once more, a little later.
func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/redis/rueidis.(*call).DelayDo.func1"))
}

const patience = 15 * time.Second

// server starts a Redis server and returns its socket.
func server(t *testing.T) string {
	t.Helper()
	program, err := exec.LookPath("redis-server")
	if err != nil {
		t.Skip("skipped: redis-server is not installed")
	}
	dir, err := os.MkdirTemp("", "redis") // t.TempDir's names can be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "s")
	cmd := exec.Command(program, "--port", "0", "--unixsocket", socket, "--save", "", "--appendonly", "no", "--dir", dir)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Log(out.String())
		}
	})
	eventually(t, "Redis answers", func() bool {
		client, err := rueidis.NewClient(options(socket))
		if err == nil {
			client.Close()
		}
		return err == nil
	})
	return socket
}

func options(socket string) rueidis.ClientOption {
	return rueidis.ClientOption{
		InitAddress: []string{socket}, DisableCache: true, ForceSingleClient: true,
		DialCtxFn: func(ctx context.Context, socket string, d *net.Dialer, _ *tls.Config) (net.Conn, error) {
			return d.DialContext(ctx, "unix", socket)
		},
	}
}

// connect returns a client until the test ends.
func connect(t *testing.T, socket string) rueidis.Client {
	t.Helper()
	client, err := rueidis.NewClient(options(socket))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return client
}

// machine returns a storage with a connection of its own.
func machine(t *testing.T, socket string, lease time.Duration) *redisstorage.Storage {
	t.Helper()
	return &redisstorage.Storage{Client: connect(t, socket), Lease: lease}
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	look := time.NewTicker(5 * time.Millisecond)
	defer look.Stop()
	for late := time.Now().Add(patience); !is(); <-look.C {
		if time.Now().After(late) {
			t.Fatalf("it never comes true that %s", what)
		}
	}
}

// A model is what a storage should be.
type model map[string]string

func (m model) below(folder string) (files []string) {
	for file := range m {
		if folder == "" || strings.HasPrefix(file, folder+"/") {
			files = append(files, file)
		}
	}
	return files
}

func (m model) list(folder string, recursive bool) []string {
	found := make(map[string]bool)
	for _, file := range m.below(folder) {
		rest := strings.Split(strings.TrimPrefix(strings.TrimPrefix(file, folder), "/"), "/")
		for i := range rest {
			if recursive || i == 0 {
				found[path.Join(folder, path.Join(rest[:i+1]...))] = true
			}
		}
	}
	var keys []string
	for key := range found {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}

// The names are such that some are others' beginnings, and / is not the least of bytes.
func TestStorageIsFoldersAndFiles(t *testing.T) {
	socket := server(t)
	client := connect(t, socket)
	name := rapid.SampledFrom([]string{"a", "a-", "a0", "ab", "b.crt", "\u00e4"})
	key := rapid.Custom(func(t *rapid.T) string {
		return path.Join(rapid.SliceOfN(name, 1, 4).Draw(t, "key")...)
	})
	runs := 0
	rapid.Check(t, func(rt *rapid.T) {
		runs++
		s := &redisstorage.Storage{Client: client, Prefix: "run " + strconv.Itoa(runs)}
		m := make(model)
		ctx := context.Background()
		rt.Repeat(map[string]func(*rapid.T){
			"store": func(t *rapid.T) {
				k, v := key.Draw(t, "key"), rapid.SliceOf(rapid.Byte()).Draw(t, "value")
				if err := s.Store(ctx, k, v); err != nil {
					t.Fatal(err)
				}
				m[k] = string(v)
			},
			"delete": func(t *rapid.T) {
				k := key.Draw(t, "key")
				if err := s.Delete(ctx, k); err != nil {
					t.Fatal(err)
				}
				for _, file := range append(m.below(k), k) {
					delete(m, file)
				}
			},
			"load": func(t *rapid.T) {
				k := key.Draw(t, "key")
				got, err := s.Load(ctx, k)
				want, known := m[k]
				if known && (err != nil || string(got) != want) || !known && !errors.Is(err, fs.ErrNotExist) {
					t.Fatalf("%s is %q, %v, want %q", k, got, err, want)
				}
			},
			"stat": func(t *rapid.T) {
				k := key.Draw(t, "key")
				info, err := s.Stat(ctx, k)
				value, file := m[k]
				known := file || len(m.below(k)) > 0
				switch {
				case s.Exists(ctx, k) != known || (err == nil) != known || err != nil && !errors.Is(err, fs.ErrNotExist):
					t.Fatalf("%s: %v", k, err)
				case known && (info.Key != k || info.IsTerminal != file || info.Size != int64(len(value))):
					t.Fatalf("%s is %+v", k, info)
				case file && (time.Since(info.Modified) > time.Minute || time.Until(info.Modified) > time.Minute):
					t.Fatalf("%s was stored at %s", k, info.Modified)
				}
			},
			"list": func(t *rapid.T) {
				folder := rapid.OneOf(rapid.Just(""), key).Draw(t, "folder")
				for _, recursive := range []bool{false, true} {
					got, err := s.List(ctx, folder, recursive)
					want := m.list(folder, recursive)
					if !slices.Equal(got, want) || len(want) == 0 && !errors.Is(err, fs.ErrNotExist) || len(want) > 0 && err != nil {
						t.Fatalf("%q has %q, %v, want %q", folder, got, err, want)
					}
				}
			},
		})
	})
}

// Each adds to a number that is read and written apart, which only the lock keeps right.
func TestALockIsHeldByOneAtATime(t *testing.T) {
	socket := server(t)
	ctx := t.Context()
	var workers sync.WaitGroup
	machines := []*redisstorage.Storage{machine(t, socket, 0), machine(t, socket, 0)}
	add := func(s *redisstorage.Storage) error {
		if err := s.Lock(ctx, "number"); err != nil {
			return err
		}
		text, err := s.Load(ctx, "number")
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		n, _ := strconv.Atoi(string(text)) // 0 at first
		if err := s.Store(ctx, "number", []byte(strconv.Itoa(n+1))); err != nil {
			return err
		}
		return s.Unlock(ctx, "number")
	}
	for i := range 8 {
		workers.Go(func() {
			for range 3 {
				if err := add(machines[i%2]); err != nil {
					t.Error(err)
				}
			}
		})
	}
	workers.Wait()
	if text, err := machines[0].Load(ctx, "number"); string(text) != "24" || err != nil {
		t.Errorf("24 have come to %s, %v", text, err)
	}
}

// slow is a client of which a command waits on its way.
type slow struct {
	rueidis.Client
	next atomic.Pointer[way]
}

type way struct{ asked, send chan struct{} }

// hold has the next command wait until send is closed. asked is closed when it comes.
func (c *slow) hold() *way {
	w := &way{make(chan struct{}), make(chan struct{})}
	c.next.Store(w)
	return w
}

func (c *slow) Do(ctx context.Context, command rueidis.Completed) rueidis.RedisResult {
	if w := c.next.Swap(nil); w != nil {
		close(w.asked)
		<-w.send
	}
	return c.Client.Do(ctx, command)
}

func TestALockThatIsGivenBackStopsNoOtherWrite(t *testing.T) {
	client := &slow{Client: connect(t, server(t))}
	s := &redisstorage.Storage{Client: client}
	for _, name := range []string{"x", "y"} {
		if err := s.Lock(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	way := client.hold()
	stored := make(chan error, 1)
	go func() { stored <- s.Store(context.Background(), "key", []byte("value")) }() // until it is sent
	<-way.asked
	if err := s.Unlock(t.Context(), "x"); err != nil {
		t.Error(err)
	}
	close(way.send)
	if err := <-stored; err != nil {
		t.Errorf("with y held: %v", err)
	}
	if err := s.Unlock(t.Context(), "y"); err != nil {
		t.Error(err)
	}
}

// If two could, the one's Unlock might make the storage forget that the other has the lock
// by now, which would then be renewed for ever.
func TestOneGoroutineOfAMachineAsksForALockAtATime(t *testing.T) {
	client := &slow{Client: connect(t, server(t))}
	s := &redisstorage.Storage{Client: client}
	way := client.hold()
	first := make(chan error, 1)
	go func() { first <- s.Lock(context.Background(), "x") }() // until it has the lock
	<-way.asked
	second := make(chan bool, 1)
	go func() {
		taken, _ := s.TryLock(context.Background(), "x")
		second <- taken
	}()
	select {
	case taken := <-second:
		if taken {
			t.Error("a second one has asked meanwhile, and has it")
		}
	case <-time.After(patience):
		t.Error("a second one has asked meanwhile, and waits")
	}
	close(way.send)
	if err := <-first; err != nil {
		t.Fatal(err)
	}
	if err := s.Unlock(t.Context(), "x"); err != nil {
		t.Error(err)
	}
}

const short = 300 * time.Millisecond // a lease

func TestALockIsKeptWhileItsHolderLives(t *testing.T) {
	socket := server(t)
	a, b := machine(t, socket, short), machine(t, socket, short)
	if err := a.Lock(t.Context(), "x"); err != nil {
		t.Fatal(err)
	}
	// Four renewals are more than a lease.
	for left, renewals := leftNow(t, a, "x"), 0; renewals < 4; {
		now := leftNow(t, a, "x")
		if now > left {
			renewals++
		}
		left = now
		if taken, err := b.TryLock(t.Context(), "x"); taken || err != nil {
			t.Fatalf("another has it: %v, %v", taken, err)
		}
	}
	if err := a.Unlock(t.Context(), "x"); err != nil {
		t.Fatal(err)
	}
	if taken, err := b.TryLock(t.Context(), "x"); !taken || err != nil {
		t.Errorf("afterwards nobody can have it: %v", err)
	}
	if err := b.Unlock(t.Context(), "x"); err != nil {
		t.Error(err)
	}
}

// leftNow returns how many milliseconds a lock has to live.
func leftNow(t *testing.T, s *redisstorage.Storage, name string) int64 {
	t.Helper()
	n, err := s.Client.Do(t.Context(), s.Client.B().Pttl().Key("{levee:acme}:lock:"+name).Build()).AsInt64()
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// lose takes a lock away as time would from a holder that is suspended.
func lose(t *testing.T, s *redisstorage.Storage, name string) {
	t.Helper()
	if err := s.Client.Do(t.Context(), s.Client.B().Del().Key("{levee:acme}:lock:"+name).Build()).Error(); err != nil {
		t.Fatal(err)
	}
}

func TestADeadHolderIsWaitedForNoLongerThanItsLease(t *testing.T) {
	socket := server(t)
	client, err := rueidis.NewClient(options(socket))
	if err != nil {
		t.Fatal(err)
	}
	dead, heir := &redisstorage.Storage{Client: client, Lease: short}, machine(t, socket, short)
	if err := dead.Lock(t.Context(), "x"); err != nil {
		t.Fatal(err)
	}
	client.Close() // nothing it does arrives any more
	began := time.Now()
	if err := heir.Lock(t.Context(), "x"); err != nil {
		t.Fatal(err)
	}
	if waited := time.Since(began); waited > patience/2 {
		t.Errorf("it took %s", waited)
	}
	if err := heir.Unlock(t.Context(), "x"); err != nil {
		t.Error(err)
	}
	if err := dead.Unlock(t.Context(), "x"); err == nil {
		t.Error("a lock was released without a connection")
	}
}

func TestAHolderThatWasAwayForTooLongWritesNothing(t *testing.T) {
	socket := server(t)
	away, heir := machine(t, socket, 0), machine(t, socket, 0)
	ctx := t.Context()
	if err := away.Store(ctx, "key", []byte("old")); err != nil {
		t.Fatal(err)
	}
	if err := away.Lock(ctx, "x"); err != nil {
		t.Fatal(err)
	}
	lose(t, away, "x")
	if err := heir.Lock(ctx, "x"); err != nil {
		t.Fatal(err)
	}
	if err := heir.Store(ctx, "key", []byte("new")); err != nil {
		t.Fatal(err)
	}
	for what, err := range map[string]error{
		"Store":          away.Store(ctx, "key", []byte("late")),
		"Delete":         away.Delete(ctx, "key"),
		"RenewLockLease": away.RenewLockLease(ctx, "x", time.Minute),
	} {
		if !errors.Is(err, redisstorage.ErrLockLost) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if got, err := away.Load(ctx, "key"); string(got) != "new" || err != nil {
		t.Errorf("there is %q, %v", got, err)
	}
	if taken, err := away.TryLock(ctx, "x"); taken || err != nil {
		t.Errorf("before it has unlocked it has it again: %v, %v", taken, err)
	}

	// Its Unlock does not take the heir's lock away, and it may write again.
	if err := away.Unlock(ctx, "x"); err != nil {
		t.Error(err)
	}
	if taken, err := away.TryLock(ctx, "x"); taken || err != nil {
		t.Errorf("it has the heir's lock: %v, %v", taken, err)
	}
	if err := away.Store(ctx, "other", nil); err != nil {
		t.Error(err)
	}
	if err := heir.Store(ctx, "key", []byte("newer")); err != nil {
		t.Error(err)
	}
	if err := heir.Unlock(ctx, "x"); err != nil {
		t.Error(err)
	}
}

func TestALeaseThatRanOutIsTakenUpAgainIfNobodyHasHadIt(t *testing.T) {
	s := machine(t, server(t), short)
	ctx := t.Context()
	if err := s.Lock(ctx, "x"); err != nil {
		t.Fatal(err)
	}
	lose(t, s, "x")
	eventually(t, "it has the lock again", func() bool { return leftNow(t, s, "x") > 0 })
	if err := s.Store(ctx, "key", nil); err != nil {
		t.Error(err)
	}
	if err := s.Unlock(ctx, "x"); err != nil {
		t.Error(err)
	}
}

func TestALeaseCanBeMadeLonger(t *testing.T) {
	s := machine(t, server(t), short)
	ctx := t.Context()
	if err := s.Lock(ctx, "x"); err != nil {
		t.Fatal(err)
	}
	if err := s.RenewLockLease(ctx, "x", time.Minute); err != nil {
		t.Fatal(err)
	}
	if n := leftNow(t, s, "x"); n < 30_000 {
		t.Errorf("%d ms are left", n)
	}
	if err := s.Unlock(ctx, "x"); err != nil {
		t.Error(err)
	}
	for what, err := range map[string]error{"unlock": s.Unlock(ctx, "x"), "renew": s.RenewLockLease(ctx, "x", time.Minute)} {
		if err == nil || !strings.Contains(err.Error(), "not held") {
			t.Errorf("%s of a lock that is not held: %v", what, err)
		}
	}
}

func TestWaitingForALockEndsWithTheContext(t *testing.T) {
	socket := server(t)
	a, b := machine(t, socket, 0), machine(t, socket, 0)
	if err := a.Lock(t.Context(), "x"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := b.Lock(ctx, "x"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Lock returned %v", err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := a.Unlock(ended, "x"); err != nil {
		t.Errorf("a lock is not released with a context that has ended: %v", err)
	}
}

func TestARedisThatIsAwayIsAnErrorAndNotAMissingKey(t *testing.T) {
	socket := server(t)
	s := machine(t, socket, 0)
	ctx := t.Context()
	s.Client.Do(ctx, s.Client.B().Shutdown().Nosave().Build())
	ctx, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
	defer cancel()
	_, loading := s.Load(ctx, "key")
	_, stating := s.Stat(ctx, "key")
	_, listing := s.List(ctx, "", true)
	for what, err := range map[string]error{"load": loading, "stat": stating, "list": listing, "store": s.Store(ctx, "key", nil), "lock": s.Lock(ctx, "x")} {
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if s.Exists(ctx, "key") {
		t.Error("the key exists")
	}
}

func Example() {
	client, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{"127.0.0.1:1"}, DisableCache: true})
	if err != nil {
		fmt.Println("no Redis there")
		return
	}
	defer client.Close()
	source := &acme.Source{
		Domains: []string{"db.example.com"},
		Agreed:  true,
		Storage: &redisstorage.Storage{Client: client},
	}
	fmt.Println(source.Load())
	// Output: no Redis there
}
