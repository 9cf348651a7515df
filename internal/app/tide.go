package app

import (
	"context"
	"runtime"
	"runtime/debug"
	"time"
)

// A crowd is so many connections that what they leave behind is worth tidying up.
const crowd = 1000

// tidyUp gives memory back to the system once a crowd has gone. Go would do that in the course of
// minutes, and others may need it now.
func (f *front) tidyUp(ctx context.Context) {
	look := time.NewTicker(time.Second)
	defer look.Stop()
	var t tide
	for {
		select {
		case <-ctx.Done():
			return
		case <-look.C:
		}
		open := 0
		for _, l := range f.every() {
			open += l.server.Load().Active
		}
		if t.isOut(open) {
			runtime.GC() // what lies in pools goes by the second
			debug.FreeOSMemory()
		}
	}
}

// A tide is how many connections there have been at most, and at the last look.
type tide struct{ most, last int }

// isOut reports, once, that three quarters of a crowd have gone and no more are going: what those
// hold would outlive the tidying up.
func (t *tide) isOut(open int) bool {
	going := open < t.last
	t.most, t.last = max(t.most, open), open
	if t.most < crowd || open > t.most/4 || going {
		return false
	}
	t.most = open
	return true
}
