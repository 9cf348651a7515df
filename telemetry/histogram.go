package telemetry

import (
	"math"
	"math/bits"
	"slices"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// A histogram is of durations, and classic and native at once: a scraper takes what it knows. Its cells
// lie between the bounds of both kinds, so that to observe one takes no lock, no memory, and a fraction
// of the time that client_golang's takes, which every connection would pay some times over.
type histogram struct {
	desc    *prometheus.Desc
	classic []time.Duration
	born    atomic.Int64 // in nanoseconds since 1970

	upTo  []time.Duration // the upper bounds of the cells, the last one endless
	first [64]int         // the first cell that has durations of so many bits
	cells []atomic.Uint64
	sum   atomic.Int64 // microseconds: nanoseconds would not last for long

	exemplars []atomic.Pointer[dto.Exemplar] // the last of each classic bucket

	inherited savedHistogram // what in it another process has observed; guarded by Metrics.mu
}

// The native buckets: eight for each doubling, from a microsecond to half a year. What is shorter
// is zero, and what is longer is in the last.
const (
	nativeSchema  = 3
	nativeLowest  = -20 << nativeSchema // its upper bound is 2^-20 s
	nativeHighest = 24 << nativeSchema
)

// nativeBound is a native bucket's upper bound.
func nativeBound(i int) time.Duration {
	return time.Duration(math.Exp2(float64(i)/(1<<nativeSchema)) * float64(time.Second))
}

func newHistogram(name, help string, labels prometheus.Labels, classic ...time.Duration) *histogram {
	h := &histogram{desc: prometheus.NewDesc(name, help, nil, labels), classic: classic}
	h.born.Store(time.Now().UnixNano())
	h.upTo = append(slices.Clone(classic), math.MaxInt64)
	for i := nativeLowest; i < nativeHighest; i++ {
		h.upTo = append(h.upTo, nativeBound(i))
	}
	slices.Sort(h.upTo)
	h.upTo = slices.Compact(h.upTo)
	for n := range h.first {
		h.first[n], _ = slices.BinarySearch(h.upTo, 1<<n>>1)
	}
	h.cells = make([]atomic.Uint64, len(h.upTo))
	h.exemplars = make([]atomic.Pointer[dto.Exemplar], len(classic)+1)
	return h
}

func (h *histogram) observe(d time.Duration) {
	d = max(d, 0)
	h.cells[h.cellOf(d)].Add(1)
	h.sum.Add(int64(d+time.Microsecond/2) / int64(time.Microsecond))
}

// cellOf returns the cell of a duration that is not negative.
func (h *histogram) cellOf(d time.Duration) int {
	i := h.first[bits.Len64(uint64(d))]
	for h.upTo[i] < d {
		i++
	}
	return i
}

// observeTrace is observe for one that a trace tells more of.
func (h *histogram) observeTrace(d time.Duration, id string) {
	h.observe(d)
	i, _ := slices.BinarySearch(h.classic, d)
	h.exemplars[i].Store(&dto.Exemplar{
		Label:     []*dto.LabelPair{{Name: new("trace_id"), Value: &id}},
		Value:     new(d.Seconds()),
		Timestamp: timestamppb.Now(),
	})
}

// Describe implements prometheus.Collector.
func (h *histogram) Describe(ch chan<- *prometheus.Desc) { ch <- h.desc }

// Collect implements prometheus.Collector.
func (h *histogram) Collect(ch chan<- prometheus.Metric) {
	var count, zero uint64
	native := make(map[int]int64)
	buckets := make([]*dto.Bucket, 0, len(h.classic)+1)
	at := nativeLowest // the native bucket that the cell is in
	for i, upTo := range h.upTo {
		for at < nativeHighest && nativeBound(at) < upTo {
			at++
		}
		n := h.cells[i].Load()
		if count += n; at == nativeLowest {
			zero += n
		} else if n > 0 {
			native[at] += int64(n) //nolint:gosec // not so many
		}
		if b := len(buckets); b < len(h.classic) && upTo == h.classic[b] {
			buckets = append(buckets, &dto.Bucket{CumulativeCount: new(count), UpperBound: new(upTo.Seconds()), Exemplar: h.exemplars[b].Load()})
		}
	}
	if last := h.exemplars[len(h.classic)].Load(); last != nil { // else it goes without saying
		buckets = append(buckets, &dto.Bucket{CumulativeCount: &count, UpperBound: new(math.Inf(1)), Exemplar: last})
	}
	sum := float64(h.sum.Load()) / float64(time.Second/time.Microsecond)
	ch <- classicToo{
		prometheus.MustNewConstNativeHistogram(h.desc, count, sum, native, nil, zero, nativeSchema, nativeBound(nativeLowest).Seconds(), time.Unix(0, h.born.Load())),
		buckets,
	}
}

// classicToo is a native histogram with classic buckets.
type classicToo struct {
	prometheus.Metric
	buckets []*dto.Bucket
}

// Write implements prometheus.Metric.
func (m classicToo) Write(to *dto.Metric) error {
	err := m.Metric.Write(to)
	if err == nil {
		to.Histogram.Bucket = m.buckets
	}
	return err
}
