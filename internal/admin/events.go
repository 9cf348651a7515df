package admin

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

const (
	mostStreams = 16               // of mostConns: each has its connection for as long as it lasts
	streamBatch = 64               // events that are written at once
	streamWrite = 10 * time.Second // for a reader to take some
	heartbeat   = 15 * time.Second // less than what proxies have patience for, often a minute
	streamRetry = 2 * time.Second  // before a browser comes back
)

// Events are what has happened, by numbers from 1, for whoever reads them in whatever time it takes: nobody has a buffer of its
// own, and who is too slow is told how many it has missed. Their methods may be called by several goroutines.
type Events interface {
	// Last returns the number of the last event, 0 if there has been none.
	Last() uint64

	// After returns up to most events that came after the one with that number, the oldest first, and how many of those in between
	// are not remembered any more. If there are none yet, more is closed when there are. A number that there has not been is
	// that of another process's: all events are after it.
	After(id uint64, most int) (events []Event, lost uint64, more <-chan struct{})
}

// streams are those of all readers of events.
type streams struct {
	open atomic.Int64
	once sync.Once
	end  chan struct{}
}

// closing returns a channel that is closed when streams are to end.
func (all *streams) closing() chan struct{} {
	all.once.Do(func() { all.end = make(chan struct{}) })
	return all.end
}

// serve answers with server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html): those after
// the last that the reader has had, if it says so, and those that come. It ends with the server, at the latest.
func (all *streams) serve(w http.ResponseWriter, r *http.Request, feed Events) {
	after, ok := lastHad(w, r, feed)
	if !ok {
		return
	}
	if all.open.Add(1) > mostStreams {
		all.open.Add(-1)
		reject(w, http.StatusServiceUnavailable, fmt.Sprintf("%d are reading events already", mostStreams))
		return
	}
	defer all.open.Add(-1)
	w.Header().Set("Content-Type", "text/event-stream")
	s := stream{to: w, control: http.NewResponseController(w)}
	fmt.Fprintf(&s.text, "retry: %d\n\n", streamRetry.Milliseconds())
	beat := time.NewTicker(heartbeat)
	defer beat.Stop()
	for s.write() == nil {
		events, lost, more := feed.After(after, streamBatch)
		if lost > 0 {
			fmt.Fprintf(&s.text, "event: lost\ndata: {\"lost\": %d}\n\n", lost)
		}
		for i := range events {
			after = events[i].ID
			s.add(&events[i])
		}
		if more == nil {
			continue
		}
		select {
		case <-more:
		case <-beat.C:
			s.text.WriteString(":\n\n")
		case <-r.Context().Done():
			return
		case <-all.closing():
			return
		}
	}
}

// lastHad returns the number of the last event that the reader has had, or that there has been if it does not say.
func lastHad(w http.ResponseWriter, r *http.Request, feed Events) (id uint64, ok bool) {
	v, ok := asked(w, r, "after")
	if !ok {
		return 0, false
	}
	text, given := v["after"]
	if had := r.Header.Get("Last-Event-ID"); had != "" { // of a browser that comes back, with the query it came with first
		text, given = had, true
	}
	if !given {
		return feed.Last(), true
	}
	id, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		reject(w, http.StatusBadRequest, fmt.Sprintf("%q is not the number of an event", text))
		return 0, false
	}
	return id, true
}

// A stream is what a reader of events is sent.
type stream struct {
	to      http.ResponseWriter
	control *http.ResponseController
	text    bytes.Buffer
}

func (s *stream) add(e *Event) {
	data, err := json.Marshal(e)
	if err != nil { // an endless number among its own
		data, _ = json.Marshal(Event{ID: e.ID, Time: e.Time, Kind: e.Kind, Text: e.Text})
	}
	fmt.Fprintf(&s.text, "id: %d\ndata: %s\n\n", e.ID, data)
}

// write sends what has been added.
func (s *stream) write() error {
	if err := s.control.SetWriteDeadline(time.Now().Add(streamWrite)); err != nil {
		return err
	}
	if _, err := s.text.WriteTo(s.to); err != nil {
		return err
	}
	return s.control.Flush()
}
