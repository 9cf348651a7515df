package levee

import (
	"errors"
	"time"
)

// shedAfter is how long a crowd may wait before a closed door until some of it are turned
// away: a fast refusal beats a hang. It is also how often that is done.
const shedAfter = time.Second

// A crowd is what a door knows of those who wait before it while there is no room.
type crowd struct {
	counted bool      // the system tells how many they are
	look    time.Time // when to look at them next
	large   bool      // they were at least half of what the accept queue holds, at the last look
}

// untilLook returns how long it is until the next look at the crowd. A door that did not
// have to wait for a while begins anew.
func (d *door) untilLook() time.Duration {
	now := time.Now()
	if now.Sub(d.crowd.look) > shedAfter {
		d.crowd.look = now.Add(shedAfter)
		_, d.crowd.large = d.lookAtCrowd()
	}
	return d.crowd.look.Sub(now)
}

// relieve looks at the crowd, and turns away those who have waited longest if it is large
// and was so a second ago. A quarter of what the queue holds may go on waiting.
func (d *door) relieve() {
	d.crowd.look = time.Now().Add(shedAfter)
	wasLarge := d.crowd.large
	var tooMany int
	if tooMany, d.crowd.large = d.lookAtCrowd(); wasLarge && d.crowd.large {
		d.shed(tooMany)
	}
}

func (d *door) lookAtCrowd() (tooMany int, large bool) {
	length, limit := queueOf(d.listener)
	return length - limit/4, 2*length >= limit
}

// noRoom refuses those who were in a large crowd.
var noRoom = &Refusal{Reason: Overloaded, Cause: errors.New("no room for any more connections")}

// shed turns so many away, unless the server stops: then they are to be served after all.
func (d *door) shed(many int) {
	for range many {
		select {
		case <-d.stop:
			return
		default:
		}
		c := d.takeWaiting()
		if c == nil {
			return
		}
		c.refuse(noRoom)
	}
}
