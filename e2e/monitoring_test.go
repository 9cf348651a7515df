package e2e

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"math"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// deployed reads a file that ships.
func deployed(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("../deploy", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// A grafana dashboard, as far as it matters here.
type grafana struct {
	Panels []struct {
		ID      int
		Type    string
		Title   string
		GridPos struct{ X, Y, W, H int }
		Targets []struct{ Expr string }
	}
	Templating struct {
		List []struct {
			Name, Definition string
			Query            json.RawMessage
		}
	}
	Annotations struct {
		List []struct{ Expr string }
	}
}

func dashboard(t *testing.T) (g grafana) {
	t.Helper()
	if err := json.Unmarshal([]byte(deployed(t, "grafana/levee.json")), &g); err != nil {
		t.Fatal(err)
	}
	if len(g.Panels) == 0 {
		t.Fatal("no panel")
	}
	return g
}

// expressions are all that the dashboard asks Prometheus.
func (g *grafana) expressions() (all []string) {
	for _, p := range g.Panels {
		for _, target := range p.Targets {
			all = append(all, target.Expr)
		}
	}
	for _, v := range g.Templating.List {
		all = append(all, v.Definition, string(v.Query))
	}
	for _, a := range g.Annotations.List {
		all = append(all, a.Expr)
	}
	return all
}

func TestGrafanaDashboardHasAPlaceForEachPanel(t *testing.T) {
	g := dashboard(t)
	ids := make(map[int]string)
	taken := make(map[[2]int]string)
	for _, p := range g.Panels {
		if other, ok := ids[p.ID]; ok || p.ID <= 0 || p.Title == "" {
			t.Errorf("panel %q has id %d, as has %q", p.Title, p.ID, other)
		}
		ids[p.ID] = p.Title
		at := p.GridPos
		if at.W <= 0 || at.H <= 0 || at.X < 0 || at.Y < 0 || at.X+at.W > 24 {
			t.Errorf("panel %q is outside of the grid: %+v", p.Title, at)
		}
		for x := at.X; x < at.X+at.W; x++ {
			for y := at.Y; y < at.Y+at.H; y++ {
				if other, ok := taken[[2]int{x, y}]; ok {
					t.Fatalf("panel %q lies over %q", p.Title, other)
				}
				taken[[2]int{x, y}] = p.Title
			}
		}
		if p.Type != "row" && len(p.Targets) == 0 {
			t.Errorf("panel %q shows nothing", p.Title)
		}
	}
	var variables []string
	for _, v := range g.Templating.List {
		variables = append(variables, v.Name)
	}
	if want := []string{"datasource", "instance", "listener"}; !slices.Equal(variables, want) {
		t.Errorf("its variables are %q, want %q", variables, want)
	}
}

// monitored is a levee of which every kind of metric can be seen that alerts and dashboard are about.
func monitored(t *testing.T, server string) *process {
	t.Helper()
	_, cert, key := examined(t)
	return start(t, "serve", "-c", write(t, "levee.yaml", fmt.Sprintf(`version: 1
admin: {listen: 127.0.0.1:0}
telemetry: {traces: {otlp: "http://127.0.0.1:1", ratio: 0}}
limits: {deny: [192.0.2.0/24]}
listeners:
  - {name: main, listen: ["127.0.0.1:0"], routes: [{upstream: db}]}
  - {name: secure, listen: ["127.0.0.1:0"], tls: {certificates: [{cert: %q, key: %q}]}, routes: [{upstream: db}]}
upstreams:
  - {name: db, servers: [%q], health: {probe: connect, interval: 200ms, fast_interval: 100ms, timeout: 1s, fall: 2, rise: 1}}
`, cert, key, server)))
}

func TestAlertsAndDashboardNameOnlyWhatLeveeHas(t *testing.T) {
	t.Parallel()
	p := monitored(t, serve(t, listen(t), echo))
	p.address()
	metrics := p.metrics()
	has := make(map[string]bool)
	for _, family := range regexp.MustCompile(`(?m)^# TYPE (\w+) (\w+)$`).FindAllStringSubmatch(metrics, -1) {
		has[family[1]] = true
		if family[2] == "histogram" {
			has[family[1]+"_bucket"], has[family[1]+"_sum"], has[family[1]+"_count"] = true, true, true
		}
	}
	g := dashboard(t)
	alerts := deployed(t, "prometheus/alerts.yaml")
	commands, err := client(t, "", levee, "help")
	if err != nil {
		t.Fatal(err)
	}
	names, values := 0, 0
	for _, text := range append(g.expressions(), alerts) {
		for _, name := range regexp.MustCompile(`\b(?:levee|process|go)_[a-z0-9_]+`).FindAllString(text, -1) {
			names++
			if !has[name] {
				t.Errorf("there is no metric %s", name)
			}
		}
		for _, matcher := range regexp.MustCompile(`[{ ]\w+="\w+"`).FindAllString(text, -1) {
			values++
			if !strings.Contains(metrics, matcher[1:]) {
				t.Errorf("no metric has %s", matcher[1:])
			}
		}
	}
	for _, command := range regexp.MustCompile("`levee (\\w+)").FindAllStringSubmatch(alerts, -1) {
		if !regexp.MustCompile(`(?m)^ {3}` + command[1] + `\b`).MatchString(commands) {
			t.Errorf("there is no command levee %s", command[1])
		}
	}
	if names < 60 || values < 8 {
		t.Errorf("only %d names and %d values were found", names, values)
	}
	if out, err := client(t, metrics, "promtool", "check", "metrics"); out != "" || err != nil {
		t.Errorf("promtool: %v: %s", err, out)
	}
}

// Each alert says what to do, and has a test that it fires and one that it does not.
func TestAlertsAreSoundAndTested(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"check", "rules", "alerts.yaml"}, {"check", "config", "prometheus.yaml"}, {"test", "rules", "alerts_test.yaml"}} {
		need(t, "promtool")
		cmd := exec.Command("promtool", args...)
		cmd.Dir = "../deploy/prometheus"
		if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "SUCCESS") {
			t.Errorf("%s: %v: %s", cmd, err, out)
		}
	}
	tests := deployed(t, "prometheus/alerts_test.yaml")
	rules := strings.Split(deployed(t, "prometheus/alerts.yaml"), "- alert: ")[1:]
	for _, rule := range rules {
		name, _, _ := strings.Cut(rule, "\n")
		for _, part := range []string{`\n        for: \d+[mh]\n`, `\n        labels: \{severity: (critical|warning)\}\n`, `\n          summary: "`, `\n          description: >-\n`} {
			if !regexp.MustCompile(part).MatchString(rule) {
				t.Errorf("%s has no%q", name, part)
			}
		}
		if !strings.Contains(tests, "alertname: "+name+"\n        exp_alerts:") || !strings.Contains(tests, "alertname: "+name+"}") {
			t.Errorf("it is not tested that %s fires, and that it does not", name)
		}
	}
	if len(rules) < 15 {
		t.Errorf("only %d rules were found", len(rules))
	}
}

// A watcher is a running Prometheus.
type watcher struct {
	*process
	url string
}

// observe has a Prometheus watch the admin address of a levee by the files that ship, but more often, and wait less until an
// upstream that is down is an alert. What else is to be replaced in its configuration comes in pairs.
func observe(t *testing.T, admin, feature string, changes ...string) *watcher {
	t.Helper()
	need(t, "prometheus")
	dir := t.TempDir()
	replace := func(name string, oldnew ...string) {
		text := deployed(t, "prometheus/"+name)
		for i := 0; i < len(oldnew); i += 2 {
			if !strings.Contains(text, oldnew[i]) {
				t.Fatalf("%s does not have %q", name, oldnew[i])
			}
			text = strings.ReplaceAll(text, oldnew[i], oldnew[i+1])
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const down = "expr: max by (job, instance, upstream) (levee_upstream_healthy) == 0\n        for: "
	replace("alerts.yaml", down+"1m", down+"500ms")
	replace("prometheus.yaml", append(changes, "127.0.0.1:9180", admin,
		"scrape_interval: 15s", "scrape_interval: 250ms", "evaluation_interval: 15s", "evaluation_interval: 250ms")...)
	address := "127.0.0.1:" + freePorts(t, 1)[0]
	w := &watcher{url: "http://" + address}
	w.process = launch(t, exec.Command("prometheus", "--config.file="+filepath.Join(dir, "prometheus.yaml"),
		"--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address="+address, "--log.level=warn", "--enable-feature="+feature))
	eventually(t, "Prometheus is ready", func() bool {
		c, err := net.Dial("tcp", address)
		if err != nil {
			return false
		}
		c.Close()
		status, _ := get(t, w.url+"/-/ready")
		return status == http.StatusOK
	})
	return w
}

// ask asks the API, and decodes its answer's data.
func (w *watcher) ask(path string, data any) {
	w.t.Helper()
	status, body := get(w.t, w.url+path)
	answer := struct{ Data any }{data}
	if err := json.Unmarshal([]byte(body), &answer); err != nil || status != http.StatusOK {
		w.t.Errorf("%s: %d %s", path, status, body)
	}
}

// evaluate returns the values of an expression.
func (w *watcher) evaluate(expr string) (values []float64) {
	w.t.Helper()
	var data struct{ Result []struct{ Value [2]any } }
	w.ask("/api/v1/query?query="+url.QueryEscape(expr), &data)
	for _, r := range data.Result {
		text, _ := r.Value[1].(string)
		v, err := strconv.ParseFloat(text, 64)
		if err != nil {
			w.t.Errorf("%s: %v", expr, r.Value)
		}
		values = append(values, v)
	}
	return values
}

// is reports whether an expression has one value, which is about so much.
func (w *watcher) is(expr string, want, within float64) bool {
	w.t.Helper()
	got := w.evaluate(expr)
	return len(got) == 1 && math.Abs(got[0]-want) <= within
}

// alerts are those that are firing, or about to.
func (w *watcher) alerts() map[string]string {
	w.t.Helper()
	var data struct {
		Alerts []struct {
			State  string
			Labels map[string]string
		}
	}
	w.ask("/api/v1/alerts", &data)
	states := make(map[string]string)
	for _, a := range data.Alerts {
		states[a.Labels["alertname"]] = a.State
	}
	// How busy this machine is says nothing about levee.
	delete(states, "LeveeLoopLag")
	delete(states, "LeveeOverloaded")
	return states
}

// askWhatTheDashboardAsks looks whether each panel would show something.
func (w *watcher) askWhatTheDashboardAsks(g grafana) {
	w.t.Helper()
	fill := strings.NewReplacer("$__rate_interval", "10s", "$instance", ".*", "$listener", ".*")
	for _, p := range g.Panels {
		shown := 0
		for _, target := range p.Targets {
			shown += len(w.evaluate(fill.Replace(target.Expr)))
		}
		if shown == 0 && p.Type != "row" {
			w.t.Errorf("panel %q shows nothing", p.Title)
		}
	}
}

// useBoth has a connection served by each of the listeners of what is monitored.
func (p *process) useBoth() {
	p.t.Helper()
	plain := dial(p.t, p.addressOf(0))
	secure := tls.Client(dial(p.t, p.addressOf(1)), &tls.Config{InsecureSkipVerify: true}) //nolint:gosec // whose certificate it is does not matter
	for _, c := range []net.Conn{plain, secure} {
		if err := echoesOn(c); err != nil {
			p.t.Fatal(err)
		}
		c.Close()
	}
}

// A real Prometheus, with the files that ship, watches a levee through a load, the fall of its only server, and that one's return.
func TestPrometheusWatchesALevee(t *testing.T) {
	t.Parallel()
	l := listen(t)
	server := serve(t, l, echo)
	p := monitored(t, server)
	w := observe(t, strings.TrimPrefix(p.admin(""), "http://"), "")
	eventually(t, "levee is up and its server healthy", func() bool {
		return w.is("up", 1, 0) && w.is("levee_ready", 1, 0) && w.is("levee_upstream_healthy", 1, 0)
	})

	const each = 100
	pace := time.NewTicker(10 * time.Millisecond) // a load has a duration
	defer pace.Stop()
	for range each {
		p.useBoth()
		<-pace.C
	}
	// It began after the first scrape and ended long ago by the next but one, so that all of it is within the minute.
	for _, listener := range []string{"main", "secure"} {
		rate := fmt.Sprintf(`rate(levee_connections_accepted_total{listener=%q}[1m]) * 60`, listener)
		eventually(t, "the rate of accepted is what was made", func() bool { return w.is(rate, each, each/10) })
	}
	eventually(t, "phases are in the histograms", func() bool {
		return w.is(`levee_phase_duration_seconds_count{phase="handshake"}`, each, 0) && w.is(`levee_connection_duration_seconds_count`, 2*each, 0)
	})
	w.askWhatTheDashboardAsks(dashboard(t))
	if states := w.alerts(); len(states) > 0 {
		t.Errorf("all is well, and there are alerts: %v", states)
	}
	if out, err := client(t, p.metrics(), "promtool", "check", "metrics"); out != "" || err != nil {
		t.Errorf("promtool: %v: %s", err, out)
	}

	l.Close()
	eventually(t, "the server's fall is an alert, and no other", func() bool {
		states := w.alerts()
		return states["LeveeUpstreamDown"] == "firing" && len(states) == 1
	})
	back, err := net.Listen("tcp", server)
	if err != nil {
		t.Fatal(err)
	}
	serve(t, back, echo)
	eventually(t, "the alert is over once it is back", func() bool { return len(w.alerts()) == 0 })
	if c := dial(t, p.addressOf(0)); echoesOn(c) != nil {
		t.Error("the server that is back serves nobody")
	}
}

// A Prometheus that takes native histograms takes no classic ones beside them.
func TestDashboardReadsNativeHistogramsToo(t *testing.T) {
	t.Parallel()
	p := monitored(t, serve(t, listen(t), echo))
	w := observe(t, strings.TrimPrefix(p.admin(""), "http://"), "native-histograms")
	eventually(t, "Prometheus takes them", func() bool { return w.is("histogram_count(levee_handshake_duration_seconds)", 0, 0) })
	for range 10 {
		p.useBoth()
	}
	eventually(t, "they have what happened", func() bool { return w.is("histogram_count(levee_connection_duration_seconds)", 20, 0) })
	if classic := w.evaluate("levee_handshake_duration_seconds_bucket"); len(classic) > 0 {
		t.Errorf("there are %d classic buckets as well", len(classic))
	}
	w.askWhatTheDashboardAsks(dashboard(t))
}

// What stands in the scrape configuration as comments is what a levee takes whose admin address other machines reach.
func TestPrometheusComesInByTokenAndTLS(t *testing.T) {
	t.Parallel()
	ca, cert, key := examined(t)
	token := write(t, "admin-token", strings.Repeat("secret", 5)+"\n")
	p := start(t, "serve", "-c", write(t, "levee.yaml", fmt.Sprintf(`version: 1
admin: {listen: 127.0.0.1:0, token_file: %q, tls: {cert: %q, key: %q}}
listeners: [{name: main, listen: ["127.0.0.1:0"], routes: [{handler: echo}]}]
`, token, cert, key)))
	_, port, _ := net.SplitHostPort(p.find(&p.stdout, `^Metrics on https://(\S+)/metrics\n`))
	w := observe(t, "localhost:"+port, "",
		"    # scheme: https\n    # tls_config:\n    #   ca_file: admin-ca.pem\n", "    scheme: https\n    tls_config:\n      ca_file: "+ca+"\n",
		"    # authorization:\n    #   type: Bearer\n    #   credentials_file: admin-token", "    authorization:\n      type: Bearer\n      credentials_file: "+token)
	eventually(t, "Prometheus is let in", func() bool { return w.is("up", 1, 0) && w.is("levee_ready", 1, 0) })
}

// metrics is the text of /metrics.
func (p *process) metrics() string {
	p.t.Helper()
	_, body := get(p.t, p.admin("/metrics"))
	return body
}
