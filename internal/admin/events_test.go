package admin_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/levee-net/levee/internal/admin"
	"github.com/levee-net/levee/leveetest"
)

// A watcher reads events.
type watcher struct {
	t      *testing.T
	answer *http.Response
	lines  *bufio.Reader
}

func watch(t *testing.T, l *leveetest.Listener, query string, header map[string]string) *watcher {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), "GET", "http://localhost/api/v1/events"+query, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range header {
		r.Header.Set(name, value)
	}
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       l.DialContext,
	}}
	answer, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { answer.Body.Close() })
	return &watcher{t, answer, bufio.NewReader(answer.Body)}
}

// next returns the next message without what separates it from others.
func (w *watcher) next() string {
	w.t.Helper()
	var text strings.Builder
	for {
		line, err := w.lines.ReadString('\n')
		if err != nil {
			w.t.Fatalf("%q, and then %v", text.String()+line, err)
		}
		if line == "\n" {
			return text.String()
		}
		text.WriteString(line)
	}
}

// expect reads an event.
func (w *watcher) expect(id uint64, text string) {
	w.t.Helper()
	message := w.next()
	rest, ok := strings.CutPrefix(message, fmt.Sprintf("id: %d\ndata: ", id))
	var e admin.Event
	if err := json.Unmarshal([]byte(rest), &e); !ok || err != nil || e.ID != id || e.Text != text {
		w.t.Fatalf("%q (%v), want the event %d, %s", message, err, id, text)
	}
}

func (w *watcher) expectStart() {
	w.t.Helper()
	if got := w.next(); got != "retry: 2000\n" || w.answer.Header.Get("Content-Type") != "text/event-stream" {
		w.t.Fatalf("%q %v", got, w.answer.Header)
	}
}

// inBubble serves a feed in virtual time.
func inBubble(t *testing.T, keep int, test func(t *testing.T, l *leveetest.Listener, feed *admin.Feed)) {
	synctest.Test(t, func(t *testing.T) {
		l, feed := leveetest.Listen(), &admin.Feed{Keep: keep}
		serveOn(t, l, admin.API{Events: feed})
		test(t, l, feed)
	})
}

func TestEventsComeAsTheyHappen(t *testing.T) {
	inBubble(t, 0, func(t *testing.T, l *leveetest.Listener, feed *admin.Feed) {
		feed.Publish(admin.Event{Kind: "reload", Text: "before anybody looked"})
		w := watch(t, l, "", nil)
		w.expectStart()
		synctest.Wait()
		for i := range 200 {
			feed.Publish(admin.Event{Kind: "closed", Text: fmt.Sprint("no. ", i), Conn: 7, Reason: "idle_timeout"})
		}
		for i := range 200 {
			w.expect(uint64(i)+2, fmt.Sprint("no. ", i))
		}
	})
}

func TestWhoComesBackGetsWhatItHasMissed(t *testing.T) {
	inBubble(t, 4, func(t *testing.T, l *leveetest.Listener, feed *admin.Feed) {
		for i := range 6 {
			feed.Publish(admin.Event{Text: fmt.Sprint(i + 1)})
		}
		for _, test := range []struct {
			query, had string
			lost       int
			first      uint64
		}{
			{"?after=4", "", 0, 5},
			{"?after=2", "", 0, 3},
			{"?after=1", "", 1, 3},
			{"?after=0", "", 2, 3},
			{"", "4", 0, 5},
			{"?after=0", "5", 0, 6},   // a browser's first query is its query for ever
			{"", "123456789", 2, 3},   // of the process before this one
			{"?after=6000", "", 2, 3}, // the same
		} {
			header := map[string]string{}
			if test.had != "" {
				header["Last-Event-ID"] = test.had
			}
			w := watch(t, l, test.query, header)
			w.expectStart()
			if test.lost > 0 {
				if got, want := w.next(), fmt.Sprintf("event: lost\ndata: {\"lost\": %d}\n", test.lost); got != want {
					t.Errorf("%+v: %q, want %q", test, got, want)
				}
			}
			for id := test.first; id <= 6; id++ {
				w.expect(id, fmt.Sprint(id))
			}
			w.answer.Body.Close()
		}
	})
}

// An hour is longer than any limit that the server has on reading a request and writing an answer.
func TestEventsComeForAsLongAsSomebodyReads(t *testing.T) {
	inBubble(t, 0, func(t *testing.T, l *leveetest.Listener, feed *admin.Feed) {
		w := watch(t, l, "", nil)
		w.expectStart()
		began := time.Now()
		for time.Since(began) < time.Hour {
			if got := w.next(); got != ":\n" {
				t.Fatalf("%q after %v", got, time.Since(began))
			}
		}
		if n := time.Since(began); n != time.Hour {
			t.Errorf("a heartbeat came at %v", n)
		}
		feed.Publish(admin.Event{Text: "at last"})
		w.expect(1, "at last")
	})
}

func TestASlowReaderIsToldWhatItHasLostAndKeepsNobodyWaiting(t *testing.T) {
	inBubble(t, 100, func(t *testing.T, l *leveetest.Listener, feed *admin.Feed) {
		slow, quick := watch(t, l, "", nil), watch(t, l, "", nil)
		slow.expectStart()
		quick.expectStart()
		filler := strings.Repeat("x", 10_000)
		for i := range 1000 {
			feed.Publish(admin.Event{Text: filler})
			quick.expect(uint64(i)+1, filler)
		}
		got, lost := 0, 0
		for got+lost < 1000 {
			message := slow.next()
			var n struct{ Lost int }
			if rest, ok := strings.CutPrefix(message, "event: lost\ndata: "); ok {
				if err := json.Unmarshal([]byte(rest), &n); err != nil {
					t.Fatal(err)
				}
				lost += n.Lost
			} else {
				got++
			}
		}
		if got < 100 || lost < 100 || got+lost != 1000 {
			t.Errorf("got %d and lost %d of 1000", got, lost)
		}
	})
}

func TestWhoDoesNotReadIsLetGo(t *testing.T) {
	inBubble(t, 0, func(t *testing.T, l *leveetest.Listener, feed *admin.Feed) {
		w := watch(t, l, "", nil)
		w.expectStart()
		filler := strings.Repeat("x", 10_000)
		for range 1000 {
			feed.Publish(admin.Event{Text: filler})
		}
		time.Sleep(11 * time.Second) // virtual time
		n, err := io.Copy(io.Discard, w.lines)
		if err == nil || n == 0 || n > 9_000_000 {
			t.Errorf("read %d bytes, and then %v", n, err)
		}
	})
}

func TestReadersOfEventsAreFewAndLeaveRoomForOthers(t *testing.T) {
	inBubble(t, 0, func(t *testing.T, l *leveetest.Listener, _ *admin.Feed) {
		var readers []*watcher
		for range 16 {
			w := watch(t, l, "", nil)
			w.expectStart()
			readers = append(readers, w)
		}
		if w := watch(t, l, "", nil); w.answer.StatusCode != 503 {
			t.Errorf("the 17th: %d", w.answer.StatusCode)
		}
		readers[3].answer.Body.Close()
		synctest.Wait()
		w := watch(t, l, "", nil)
		w.expectStart()
	})
}

func TestReadersOfEventsDoNotKeepTheServerFromItsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := leveetest.Listen()
		s := &admin.Server{Metrics: prometheus.NewRegistry(), Log: slog.New(slog.DiscardHandler), API: admin.API{Events: new(admin.Feed)}}
		served := make(chan error, 1)
		go func() { served <- s.Serve(l) }()
		w := watch(t, l, "", nil)
		w.expectStart()
		began := time.Now()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if took := time.Since(began); took > 600*time.Millisecond {
			t.Errorf("took %v", took)
		}
		if text, err := io.ReadAll(w.lines); err != nil || len(text) != 0 {
			t.Errorf("%q, %v", text, err)
		}
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
}

func TestAFeedIsForSeveralGoroutines(t *testing.T) {
	feed := &admin.Feed{Keep: 50}
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for range 1000 {
				feed.Publish(admin.Event{Kind: "closed"})
			}
		})
		all.Go(func() {
			last := uint64(0)
			for seen := uint64(0); seen < 4000; {
				events, lost, more := feed.After(last, 7)
				seen += lost
				for _, e := range events {
					if e.ID != seen+1 {
						t.Errorf("event %d comes after %d", e.ID, seen)
						return
					}
					seen, last = e.ID, e.ID
				}
				if more != nil {
					<-more
				}
			}
		})
	}
	all.Wait()
	if recent, _, _ := feed.After(0, 50); len(recent) != 50 || recent[0].ID != 3951 || recent[49].ID != 4000 || recent[0].Time.IsZero() {
		t.Errorf("%d are remembered, %v to %v", len(recent), recent[0], recent[len(recent)-1])
	}
}

// What takes longer than a request may take to be read is not taken for one whose asker has left.
func TestLongAnswersAreWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := leveetest.Listen()
		serveOn(t, l, admin.API{Reload: func(ctx context.Context) (admin.Generation, error) {
			select {
			case <-time.After(time.Minute):
			case <-ctx.Done():
			}
			return admin.Generation{}, ctx.Err()
		}})
		for _, body := range []string{"", "{}"} {
			c, err := l.Dial(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			fmt.Fprintf(c, "POST /api/v1/reload HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
			if answer, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil || answer.StatusCode != 200 {
				t.Errorf("%q: %v, %v", body, answer, err)
			}
		}
	})
}
