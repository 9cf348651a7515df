package load

import (
	"fmt"
	"html"
	"io"
	"math"
	"strings"
	"time"
)

// WritePlot writes the result as a web page that stands alone: latency by
// percentile, and throughput and latency over time.
func (r *Result) WritePlot(w io.Writer, title string) error {
	charts := []chart{r.distribution(), r.throughput(), r.latencies()}
	page := new(strings.Builder)
	fmt.Fprintf(page, pageHead, html.EscapeString(title), html.EscapeString(title))
	fmt.Fprintf(page, "<p>%.0f messages/s over %.1f s · p50 %s · p99 %s · p99.9 %s · max %s</p>\n",
		r.Rate(), r.Elapsed.Seconds(), short(r.Percentile(50)), short(r.Percentile(99)), short(r.Percentile(99.9)), short(r.Max()))
	for _, c := range charts {
		c.write(page)
	}
	page.WriteString("</body></html>\n")
	_, err := io.WriteString(w, page.String())
	return err
}

// The colours are readable on white and on black, and by those who do not tell red from green.
const pageHead = `<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>%s</title><style>
:root { color-scheme: light dark }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 760px; margin: 2em auto; padding: 0 1em }
svg { width: 100%%; height: auto; font-size: 12px }
svg text { fill: currentColor }
svg .grid { stroke: currentColor; opacity: .15 }
svg polyline { fill: none; stroke-width: 2 }
</style></head><body>
<h1>%s</h1>
`

var colours = []string{"#0b84d8", "#e07b00", "#a35bd0"}

// A chart has its axes in units of its own: the ticks say where in it a value is.
type chart struct {
	title  string
	x, y   []tick // in ascending order; the first and the last are the edges
	series []series
}

type tick struct {
	at    float64
	label string
}

type series struct {
	name   string
	points [][2]float64
}

func (r *Result) distribution() chart {
	c := chart{title: "Latency by percentile"}
	for _, p := range []float64{0, 50, 90, 99, 99.9, 99.99, 99.999} {
		c.x = append(c.x, tick{nines(p), fmt.Sprintf("%g %%", p)})
	}
	line := series{name: "latency"}
	for x := 0.0; x <= 5; x += 0.05 {
		line.points = append(line.points, [2]float64{x, logOf(r.Percentile(100 - 100*math.Pow(10, -x)))})
	}
	c.series = []series{line}
	c.y = decades(c.series)
	return c
}

func (r *Result) throughput() chart {
	c := chart{title: "Messages per second", x: r.times()}
	line, top := series{name: "messages/s"}, 1.0
	for _, i := range r.Seconds {
		line.points = append(line.points, [2]float64{i.At.Seconds(), i.Rate()})
		top = max(top, i.Rate())
	}
	c.series = []series{line}
	for i := range 5 {
		c.y = append(c.y, tick{top * float64(i) / 4, fmt.Sprintf("%.3g", top*float64(i)/4)})
	}
	return c
}

func (r *Result) latencies() chart {
	c := chart{title: "Latency over time", x: r.times(), series: []series{{name: "p50"}, {name: "p99"}, {name: "max"}}}
	for _, i := range r.Seconds {
		for n, d := range []time.Duration{i.P50, i.P99, i.Max} {
			c.series[n].points = append(c.series[n].points, [2]float64{i.At.Seconds(), logOf(d)})
		}
	}
	c.y = decades(c.series)
	return c
}

func (r *Result) times() []tick {
	var ticks []tick
	for i := range 6 {
		at := r.Elapsed.Seconds() * float64(i) / 5
		ticks = append(ticks, tick{at, fmt.Sprintf("%.3g s", at)})
	}
	return ticks
}

func nines(percentile float64) float64 { return -math.Log10(1 - percentile/100) }

func logOf(d time.Duration) float64 { return math.Log10(float64(max(d, time.Microsecond))) }

// decades returns a tick for each power of ten around the points.
func decades(all []series) []tick {
	low, high := math.Inf(1), math.Inf(-1)
	for _, s := range all {
		for _, p := range s.points {
			low, high = min(low, math.Floor(p[1])), max(high, math.Ceil(p[1]))
		}
	}
	if low > high { // no points
		low, high = 3, 4
	}
	var ticks []tick
	for d := low; d <= max(high, low+1); d++ {
		ticks = append(ticks, tick{d, time.Duration(math.Pow(10, d)).String()})
	}
	return ticks
}

const (
	chartWidth, chartHeight = 720.0, 260.0
	left, right             = 70.0, 20.0
	above, below            = 40.0, 30.0
)

func (c *chart) write(w *strings.Builder) {
	place := func(ticks []tick, v, from, to float64) float64 {
		low, high := ticks[0].at, ticks[len(ticks)-1].at
		return from + (to-from)*(min(max(v, low), high)-low)/(high-low)
	}
	x := func(v float64) float64 { return place(c.x, v, left, chartWidth-right) }
	y := func(v float64) float64 { return place(c.y, v, chartHeight-below, above) }
	fmt.Fprintf(w, "<svg viewBox=\"0 0 %.0f %.0f\" role=\"img\" aria-label=\"%s\">\n<text x=\"%.0f\" y=\"18\" font-weight=\"bold\">%s</text>\n",
		chartWidth, chartHeight, c.title, left, c.title)
	for _, t := range c.x {
		fmt.Fprintf(w, "<line class=\"grid\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\"/><text x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">%s</text>\n",
			x(t.at), x(t.at), above, chartHeight-below, x(t.at), chartHeight-below+16, t.label)
	}
	for _, t := range c.y {
		fmt.Fprintf(w, "<line class=\"grid\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\"/><text x=\"%.1f\" y=\"%.1f\" text-anchor=\"end\">%s</text>\n",
			left, chartWidth-right, y(t.at), y(t.at), left-8, y(t.at)+4, t.label)
	}
	for i, s := range c.series {
		fmt.Fprintf(w, "<text x=\"%.0f\" y=\"34\" style=\"fill:%s\">%s</text>\n<polyline stroke=\"%s\" points=\"", left+float64(i)*100, colours[i], s.name, colours[i])
		for _, p := range s.points {
			fmt.Fprintf(w, "%.1f,%.1f ", x(p[0]), y(p[1]))
		}
		w.WriteString("\"/>\n")
	}
	w.WriteString("</svg>\n")
}

// short is a latency to three digits.
func short(d time.Duration) time.Duration {
	for unit := time.Duration(1); ; unit *= 10 {
		if d < 1000*unit {
			return d.Round(unit)
		}
	}
}
