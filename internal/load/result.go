package load

import (
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// A Result is what a run has measured.
type Result struct {
	Messages   int64         // answered while measuring
	Unanswered int64         // at a Rate: due while measuring, but not answered by its end
	Refused    int64         // of Messages: answered with an HTTP status of 400 or above
	Elapsed    time.Duration // for which was measured
	Seconds    []Interval    // one after the other
	latency    *hdrhistogram.Histogram
}

// An Interval is what a second of a run has measured; the last one may be shorter.
type Interval struct {
	At       time.Duration // its end, from the start of measuring
	Length   time.Duration
	Messages int64
	P50      time.Duration
	P99      time.Duration
	Max      time.Duration
}

// Rate returns messages per second.
func (i Interval) Rate() float64 { return float64(i.Messages) / i.Length.Seconds() }

// Rate returns messages per second.
func (r *Result) Rate() float64 { return float64(r.Messages) / r.Elapsed.Seconds() }

// Percentile returns the latency that p percent of the messages did not exceed,
// to three digits. At a Rate a message that was never answered counts with the
// age that it had at the end, which is less than the truth.
func (r *Result) Percentile(p float64) time.Duration {
	return time.Duration(r.latency.ValueAtPercentile(p))
}

// Max returns the longest latency.
func (r *Result) Max() time.Duration { return time.Duration(r.latency.Max()) }

// Mean returns the mean latency.
func (r *Result) Mean() time.Duration { return time.Duration(r.latency.Mean()) }

// The histograms tell latencies apart from 1 µs to 10 minutes, to three digits, in 250 KB.
const (
	shortest = int64(time.Microsecond)
	longest  = int64(10 * time.Minute)
)

func newHistogram() *hdrhistogram.Histogram { return hdrhistogram.New(shortest, longest, 3) }

// A recorder makes a Result of latencies. Each is recorded once, in the histogram
// of its second, which then goes into that of the run.
type recorder struct {
	result   *Result
	progress func(Interval)
	began    time.Duration // of measuring, on the engine's clock
	second   *hdrhistogram.Histogram
	since    time.Duration // the second's start
	answered int64         // in the second
}

func newRecorder(progress func(Interval)) *recorder {
	return &recorder{result: &Result{latency: newHistogram()}, progress: progress, second: newHistogram()}
}

func (r *recorder) begin(at time.Duration) { r.began, r.since = at, at }

func (r *recorder) record(latency time.Duration, state replyState) {
	r.answered++
	if state == refused {
		r.result.Refused++
	}
	r.recordLatency(latency)
}

// unanswered records a message that was due but is not answered.
func (r *recorder) unanswered(age time.Duration) {
	r.result.Unanswered++
	r.recordLatency(age)
}

func (r *recorder) recordLatency(d time.Duration) {
	_ = r.second.RecordValue(min(max(int64(d), 0), longest)) // within its range nothing can fail
}

// tick closes the second if it is over.
func (r *recorder) tick(now time.Duration) {
	if now-r.since >= time.Second {
		r.close(now)
	}
}

func (r *recorder) close(now time.Duration) {
	i := Interval{
		At: now - r.began, Length: now - r.since, Messages: r.answered,
		P50: time.Duration(r.second.ValueAtPercentile(50)),
		P99: time.Duration(r.second.ValueAtPercentile(99)),
		Max: time.Duration(r.second.Max()),
	}
	r.result.Seconds = append(r.result.Seconds, i)
	r.result.Messages += r.answered
	r.result.latency.Merge(r.second)
	r.second.Reset()
	r.since, r.answered = now, 0
	if r.progress != nil {
		r.progress(i)
	}
}

func (r *recorder) end(now time.Duration) *Result {
	if now > r.since {
		r.close(now)
	}
	r.result.Elapsed = now - r.began
	return r.result
}
