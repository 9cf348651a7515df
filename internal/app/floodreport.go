package app

import (
	"github.com/levee-net/levee/internal/attack"
)

// A floodReport is what came of a flood as JSON; times are in microseconds unless
// their name says something else.
type floodReport struct {
	Target      string         `json:"target"`
	Protocol    string         `json:"protocol"`
	TLS         bool           `json:"tls"`
	Connections int            `json:"connections"`
	Rate        float64        `json:"rate"`
	Seconds     float64        `json:"seconds"` // of an attack
	Remarks     []string       `json:"remarks,omitempty"`
	Idle        healthReport   `json:"idle"`
	Attacks     []resultReport `json:"attacks"`
	Held        bool           `json:"held"`
	Interrupted bool           `json:"interrupted"`
}

type healthReport struct {
	OK          float64       `json:"ok"` // share
	All         numbersReport `json:"all"`
	RoundTrips  numbersReport `json:"round_trips"`
	Connections numbersReport `json:"connections"`
	Lag         numbersReport `json:"lag"`
}

type numbersReport struct {
	Tried  int64   `json:"tried"`
	Failed int64   `json:"failed"`
	P50    float64 `json:"p50_us"`
	P99    float64 `json:"p99_us"`
	Max    float64 `json:"max_us"`
	Error  string  `json:"first_error,omitempty"`
}

type resultReport struct {
	Attack     string        `json:"attack"`
	Skipped    string        `json:"skipped,omitempty"`
	Seconds    float64       `json:"seconds,omitempty"`
	Attempts   int64         `json:"attempts"`
	Failed     int64         `json:"failed"`
	Refused    int64         `json:"refused"`
	Left       int64         `json:"left"`
	Ended      *endedReport  `json:"ended,omitempty"`
	Held       int64         `json:"held"`
	During     *healthReport `json:"during,omitempty"`
	After      *healthReport `json:"after,omitempty"`
	Server     *spentReport  `json:"server,omitempty"`
	CutShort   bool          `json:"cut_short,omitempty"`
	Complaints []string      `json:"complaints,omitempty"`
}

type endedReport struct {
	Count  int64   `json:"count"`
	Min    float64 `json:"min_us"`
	Median float64 `json:"median_us"`
	Max    float64 `json:"max_us"`
}

type spentReport struct {
	CPUSeconds  float64  `json:"cpu_seconds"`
	MemoryBytes int64    `json:"memory_bytes"`
	Recovered   *float64 `json:"recovered_seconds,omitempty"`
}

func newFloodReport(target string, f attack.Flood, r *attack.Report) floodReport {
	report := floodReport{
		Target: target, Protocol: r.Protocol, TLS: f.TLS != nil, Connections: r.Connections, Rate: f.Rate, Seconds: f.Duration.Seconds(),
		Remarks: r.Remarks, Idle: *newHealthReport(r.Idle), Attacks: []resultReport{}, Held: !r.Suffered() && !r.Interrupted, Interrupted: r.Interrupted,
	}
	for _, result := range r.Results {
		report.Attacks = append(report.Attacks, newResultReport(result))
	}
	return report
}

func newResultReport(r attack.Result) resultReport {
	report := resultReport{Attack: r.Attack, Skipped: r.Skipped}
	if r.Skipped != "" {
		return report
	}
	t := r.Tally
	report.Seconds, report.CutShort, report.Complaints = r.Elapsed.Seconds(), r.CutShort, r.Complaints
	report.Attempts, report.Failed, report.Refused, report.Left, report.Held = t.Attempts, t.Failed, t.Refused, t.Left, t.Held
	report.During, report.After = newHealthReport(r.During), newHealthReport(r.After)
	if t.Ended > 0 {
		report.Ended = &endedReport{t.Ended, microseconds(t.EndedMin), microseconds(t.EndedMedian), microseconds(t.EndedMax)}
	}
	if r.Spent.Known {
		report.Server = &spentReport{CPUSeconds: r.Spent.CPU.Seconds(), MemoryBytes: r.Spent.Memory}
		if r.Recovered >= 0 {
			seconds := r.Recovered.Seconds()
			report.Server.Recovered = &seconds
		}
	}
	return report
}

func newHealthReport(h attack.Health) *healthReport {
	return &healthReport{h.OK(), newNumbersReport(h.All), newNumbersReport(h.RoundTrips), newNumbersReport(h.Connections), newNumbersReport(h.Lag)}
}

func newNumbersReport(n attack.Numbers) numbersReport {
	return numbersReport{n.Tried, n.Failed, microseconds(n.P50), microseconds(n.P99), microseconds(n.Max), n.FirstError}
}

// An attackReport is a line of --list as JSON.
type attackReport struct {
	Name  string   `json:"name"`
	Phase string   `json:"phase"`
	Does  string   `json:"does"`
	Needs []string `json:"needs,omitempty"`
}

func attackReports() (list []attackReport) {
	for _, a := range attack.All() {
		list = append(list, attackReport{a.Name, a.Phase.String(), a.Does, a.Needs()})
	}
	return list
}
