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
func (b *bench) plot(s *suite) []byte {
	var shown []panel
	for _, p := range s.panels {
		if len(b.samples[p.work]) > 0 {
			shown = append(shown, p)
		}
	}
	high := headHeight + len(s.servers)*rowHeight + gap
	height := (len(shown)+1)/2*high + 3*gap
	out := new(bytes.Buffer)
	fmt.Fprintf(out, svgHead, 2*panelWidth+3*gap, height, 2*panelWidth+3*gap)
	for i, p := range shown {
		b.draw(out, s, p, gap+i%2*(panelWidth+gap), gap+i/2*high)
	}
	for i, line := range []string{
		fmt.Sprintf("%s, Linux %s: %s", b.machine.Processor, b.machine.Kernel, s.caption),
		fmt.Sprintf("%s, Tokio %s, %s; commit %s, %s", b.machine.Go, b.machine.Tokio, b.machine.Rust, b.machine.Commit, b.began.Format(time.DateOnly)),
	} {
		fmt.Fprintf(out, "<text class=\"small\" x=\"%d\" y=\"%d\">%s</text>\n", gap, height-2*gap+i*16, html.EscapeString(line))
	}
	out.WriteString("</svg>\n")
	return out.Bytes()
}

func (b *bench) draw(out *bytes.Buffer, s *suite, p panel, x, y int) {
	fmt.Fprintf(out, "<text class=\"title\" x=\"%d\" y=\"%d\">%s</text>\n", x, y+14, p.title)
	top := 0.0
	for _, it := range s.servers {
		v, _ := b.figure(p.work, it.key, p.show)
		top = max(top, v)
	}
	for i, it := range s.servers {
		v, ok := b.figure(p.work, it.key, p.show)
		if !ok || top <= 0 {
			continue
		}
		class := "bar"
		if it.key == "levee" {
			class = "levee"
		}
		row, long := y+headHeight+i*rowHeight, max(v/top*barWidth, 1)
		fmt.Fprintf(out, "<text x=\"%d\" y=\"%d\" text-anchor=\"end\">%s</text>", x+nameWidth, row+10, it.name)
		fmt.Fprintf(out, "<rect class=\"%s\" x=\"%d\" y=\"%d\" width=\"%.1f\" height=\"13\" rx=\"2\"/>", class, x+nameWidth+8, row-1, long)
		fmt.Fprintf(out, "<text x=\"%.1f\" y=\"%d\">%.3g%s</text>\n", float64(x+nameWidth+14)+long, row+10, v*p.scale, p.unit)
	}
}
