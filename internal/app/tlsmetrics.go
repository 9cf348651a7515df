package app

import (
	"path/filepath"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/levee-net/levee/certs"
)

// tlsMetrics are the metrics about what stands in files: certificates, client policies and tickets.
type tlsMetrics struct {
	reloads  *prometheus.CounterVec
	problems *prometheus.CounterVec
	expiries *expiries
}

func newTLSMetrics(f *front) *tlsMetrics {
	m := &tlsMetrics{
		reloads: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "levee_reloads_total",
			Help: "The configuration, or certificates, client policies, tickets, or lists of addresses read again, because they had changed or at an operator's word, by result: ok, or failed, when what was in force before is kept.",
		}, []string{"result"}),
		problems: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "levee_certificate_problems_total",
			Help: "What was found wrong with files of certificates, client policies and tickets, each problem once until it has been right again.",
		}, []string{"listener"}),
		expiries: &expiries{f},
	}
	for _, result := range []string{resultOK, resultFailed} {
		m.reloads.WithLabelValues(result)
	}
	f.registry.MustRegister(m.reloads, m.problems, m.expiries)
	return m
}

const (
	resultOK     = "ok"
	resultFailed = "failed"
)

func (m *tlsMetrics) reloaded(ok bool) {
	result := resultFailed
	if ok {
		result = resultOK
	}
	m.reloads.WithLabelValues(result).Inc()
}

// expiries tells at each scrape when the certificates in force expire.
type expiries struct{ front *front }

type listenerExpiries struct {
	listener string
	inForce  func() []expiry
}

// An expiry is when a certificate expires.
type expiry struct {
	name string
	at   time.Time
}

var expiryDesc = prometheus.NewDesc("levee_certificate_expiry_timestamp_seconds",
	"When a certificate in force expires, in Unix time. The name is the first that it is for; of several with the same, the one that expires first.",
	[]string{"listener", "name"}, nil)

// Describe implements prometheus.Collector.
func (e *expiries) Describe(ch chan<- *prometheus.Desc) { ch <- expiryDesc }

// Collect implements prometheus.Collector.
func (e *expiries) Collect(ch chan<- prometheus.Metric) {
	type label struct{ listener, name string }
	first := make(map[label]time.Time)
	for _, of := range e.front.now.Load().expiries {
		for _, expiry := range of.inForce() {
			l := label{of.listener, expiry.name}
			if t, ok := first[l]; !ok || expiry.at.Before(t) {
				first[l] = expiry.at
			}
		}
	}
	for l, t := range first {
		ch <- prometheus.MustNewConstMetric(expiryDesc, prometheus.GaugeValue, float64(t.Unix()), l.listener, l.name)
	}
}

func expiriesOf(files *certs.Files) (all []expiry) {
	for _, info := range files.Certificates() {
		all = append(all, expiry{nameOf(info), info.NotAfter})
	}
	return all
}

func nameOf(info certs.Info) string {
	if len(info.Names) > 0 {
		return info.Names[0]
	}
	return filepath.Base(info.Pair.Cert)
}
