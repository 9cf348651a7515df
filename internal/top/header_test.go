package top

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/levee-net/levee/internal/admin"
)

func TestTheHeaderSaysForHowLongLeveeIsUpAndThisProcess(t *testing.T) {
	now := time.Now()
	for since, want := range map[time.Time]string{
		now.Add(-time.Hour):   "up 1h, this process 1m",
		now.Add(-time.Minute): "up 1m",
		{}:                    "up 1m", // of a levee that does not say
	} {
		var out bytes.Buffer
		WriteStatus(&out, &admin.Status{State: "serving", Ready: true, Started: now.Add(-time.Minute), Since: since}, &admin.Overload{}, now)
		line, _, _ := strings.Cut(out.String(), "\n")
		if !strings.Contains(line, want) || strings.Contains(line, "this process") != strings.Contains(want, "this process") {
			t.Errorf("got %q, want %q in it", line, want)
		}
	}
}
