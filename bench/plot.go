//go:build linux

package main

import (
	"bytes"
	"fmt"
	"html"
	"time"
)

// A panel is one figure of all servers, as bars to the right.
type panel struct {
	title string
	work  string
	show  metric
	unit  string
	scale float64
}

var panels = []panel{
	{"messages/s, 64 connections (more is better)", "echo64", rate, "k", 1e-3},
	{"messages/s, 1000 connections (more is better)", "echo1000", rate, "k", 1e-3},
	{"messages/s, 64 connections, 16 deep (more is better)", "pipeline", rate, "M", 1e-6},
	{"16 KiB messages/s, 64 connections (more is better)", "echo16k", rate, "k", 1e-3},
	{"p99 latency, 1000 connections (less is better)", "echo1000", p99, " ms", 1e-3},
	{"CPU per message, 8000 connections (less is better)", "echo8000", cpu, " µs", 1},
	{"CPU per new connection (less is better)", "churn", cpu, " µs", 1},
	{"memory per idle connection (less is better)", "idle", memory, " KiB", 1},
}

// In pixels.
const (
	panelWidth = 400
	nameWidth  = 125
	barWidth   = 195 // leaves room for the figure behind it
	rowHeight  = 20
	headHeight = 28
	gap        = 18
)

// The style follows the reader's preference: in a README the picture stands on
// either ground.
const svgHead = `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" role="img" aria-label="levee beside its peers">
<style>
text { font: 13px system-ui, sans-serif; fill: #1f2328 }
.title { font-weight: 600 }
.small { font-size: 11px; fill: #656d76 }
.bar { fill: #9aa4af }
.levee { fill: #0b84d8 }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3 } .small { fill: #8d96a0 } .bar { fill: #6e7681 } .levee { fill: #4aa8f0 } }
</style>
`

// plot draws the panels, two in a row.
func (b *bench) plot() []byte {
	var shown []panel
	for _, p := range panels {
		if len(b.samples[p.work]) > 0 {
			shown = append(shown, p)
		}
	}
	high := headHeight + len(b.servers)*rowHeight + gap
	height := (len(shown)+1)/2*high + 3*gap
	out := new(bytes.Buffer)
	fmt.Fprintf(out, svgHead, 2*panelWidth+3*gap, height, 2*panelWidth+3*gap)
	for i, p := range shown {
		b.draw(out, p, gap+i%2*(panelWidth+gap), gap+i/2*high)
	}
	for i, line := range []string{
		fmt.Sprintf("%s, Linux %s: one core for the server, one for the load", b.machine.Processor, b.machine.Kernel),
		fmt.Sprintf("%s, Tokio %s, %s; commit %s, %s", b.machine.Go, b.machine.Tokio, b.machine.Rust, b.machine.Commit, b.began.Format(time.DateOnly)),
	} {
		fmt.Fprintf(out, "<text class=\"small\" x=\"%d\" y=\"%d\">%s</text>\n", gap, height-2*gap+i*16, html.EscapeString(line))
	}
	out.WriteString("</svg>\n")
	return out.Bytes()
}

func (b *bench) draw(out *bytes.Buffer, p panel, x, y int) {
	fmt.Fprintf(out, "<text class=\"title\" x=\"%d\" y=\"%d\">%s</text>\n", x, y+14, p.title)
	top := 0.0
	for _, s := range b.servers {
		v, _ := b.figure(p.work, s.key, p.show)
		top = max(top, v)
	}
	for i, s := range b.servers {
		v, ok := b.figure(p.work, s.key, p.show)
		if !ok || top <= 0 {
			continue
		}
		class := "bar"
		if s.key == "levee" {
			class = "levee"
		}
		row, long := y+headHeight+i*rowHeight, max(v/top*barWidth, 1)
		fmt.Fprintf(out, "<text x=\"%d\" y=\"%d\" text-anchor=\"end\">%s</text>", x+nameWidth, row+10, s.name)
		fmt.Fprintf(out, "<rect class=\"%s\" x=\"%d\" y=\"%d\" width=\"%.1f\" height=\"13\" rx=\"2\"/>", class, x+nameWidth+8, row-1, long)
		fmt.Fprintf(out, "<text x=\"%.1f\" y=\"%d\">%.3g%s</text>\n", float64(x+nameWidth+14)+long, row+10, v*p.scale, p.unit)
	}
}
