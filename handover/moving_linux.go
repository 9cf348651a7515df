package handover

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/levee-net/levee"
)

// An outgoing batch of connections.
type outgoing struct {
	number  uint64
	server  string
	parcels []parcel
	answer  takenBody
	since   time.Time
}

// offer sends a batch. One that cannot be sent stays here.
func (h *handing) offer(b *outgoing) {
	err := h.sendOffer(b)
	for until := time.Now().Add(sendLimit); errors.Is(err, errTooManyInFlight) && time.Now().Before(until); {
		time.Sleep(beat / 10) // those before it arrive
		err = h.sendOffer(b)
	}
	if err != nil && !isGone(err) {
		h.process.logger().Warn("connections stay, as they could not be offered", "server", b.server, "connections", len(b.parcels), "err", err)
		h.learn(event{unsent, b.number})
	}
}

func (h *handing) sendOffer(b *outgoing) error {
	body := offerBody{Batch: b.number, Server: b.server}
	var records [][]byte
	fds, size := []int{-1}, 0
	for _, p := range b.parcels {
		size += len(p.Data())
		body.Conns = append(body.Conns, offer{len(p.Data()), len(p.Sockets())})
		records = append(records, p.Data())
		fds = append(fds, p.Sockets()...)
	}
	if size > maxMemory {
		return fmt.Errorf("%d bytes of connections are more than can be handed over at once", size)
	}
	fd, err := memory("connections", records)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	fds[0] = fd
	return h.link.send(newFrame(frameOffer, body), fds...)
}

// release lets go of the connections that the new process has taken, and goes on with those that it has not.
func (h *handing) release(b *outgoing) {
	if n := len(b.answer.Refused); n > 0 {
		h.process.logger().Warn("connections stay, as the new process refuses them", "server", b.server, "connections", n, "err", b.answer.Why)
	}
	for i, p := range b.parcels {
		if slices.Contains(b.answer.Refused, i) {
			p.Unpack()
			continue
		}
		p.Moved()
		h.outcome.Moved++
		if has, ok := p.(*levee.Parcel); ok {
			h.moved[has.Conn()] = true
		}
	}
}

func unpack(parcels []parcel) {
	for _, p := range parcels {
		p.Unpack()
	}
}

// pack packs connections, a batch after the other: one of them waits while two are on their way.
func (h *handing) pack(batches chan<- *outgoing) {
	defer close(batches)
	pack := h.plan.pack
	if pack == nil {
		pack = h.plan.packServers
	}
	pack(h.packing, func(server string, parcels []parcel) bool {
		select {
		case batches <- &outgoing{server: server, parcels: parcels}:
			return true
		case <-h.stop:
			unpack(parcels)
			return false
		}
	})
}

// awaitPacker waits until nobody has a packed connection in hand any more.
func (h *handing) awaitPacker() {
	h.enough()
	if h.batches == nil {
		return
	}
	for b := range h.batches {
		unpack(b.parcels)
	}
}
