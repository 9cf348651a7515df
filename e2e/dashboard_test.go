package e2e

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"image/png"
	"io"
	"net"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

// lookedAt is a levee with a proxy, one of whose three servers is dead, and its dashboard.
func lookedAt(t *testing.T) (p *process, d *page) {
	t.Helper()
	dead := listen(t)
	dead.Close()
	p = start(t, "serve", "-c", ways(t,
		way{name: "main", upstream: servers(serve(t, listen(t), echo), serve(t, listen(t), echo), dead.Addr().String()) + ", health: {probe: connect}"},
		way{name: "secure", listener: ", tls: {development: true}", upstream: servers(serve(t, listen(t), echo))},
	))
	return p, browse(t, p.admin("/"))
}

// number reads a count as the page writes it.
func number(text string) float64 {
	n, err := strconv.ParseFloat(strings.NewReplacer(",", "", " bytes", "").Replace(text), 64)
	if err != nil {
		return -1
	}
	return n
}

// sum adds up a metric over all its labels.
func (s scrape) sum(name string, labels ...string) (all float64) {
	for key, value := range s {
		if !strings.HasPrefix(key, name+"{") {
			continue
		}
		has := true
		for _, l := range labels {
			has = has && strings.Contains(key, l)
		}
		if has {
			all += value
		}
	}
	return all
}

// disagreement is where the page says something else than the metrics.
func disagreement(d *page, p *process) error {
	s := p.scrape()
	shown := evaluate[map[string]string](d, `Object.fromEntries([
		...["active", "arriving", "accepted"].map((id) => [id, document.getElementById(id).textContent]),
		...["bytes-in", "bytes-out"].map((id) => [id, document.getElementById(id).title]),
		...[...document.querySelectorAll("#ends tbody tr")].map((row) => ["ended " + row.cells[0].textContent, row.cells[3].textContent]),
		...[...document.querySelectorAll("#listeners tbody tr")].map((row) => ["open " + row.cells[0].firstChild.textContent, row.cells[2].firstChild.textContent]),
		...[...document.querySelectorAll("#upstreams .member")].map((row) => ["server " + row.cells[0].firstChild.textContent,
			[row.cells[1].textContent, row.cells[2].textContent, row.cells[5].textContent].join(" ")]),
	])`)
	want := map[string]float64{
		"active":      s.sum("levee_connections_active"),
		"arriving":    s.sum("levee_connections_arriving"),
		"accepted":    s.sum("levee_connections_accepted_total"),
		"bytes-in":    s.sum("levee_bytes_total", `direction="in"`),
		"bytes-out":   s.sum("levee_bytes_total", `direction="out"`),
		"open main":   s.sum("levee_connections_active", `listener="main"`),
		"open secure": s.sum("levee_connections_active", `listener="secure"`),
	}
	for key, value := range s {
		if _, reason, ok := strings.Cut(key, `reason="`); ok && value > 0 && strings.HasPrefix(key, "levee_connections_") {
			want["ended "+strings.TrimSuffix(reason, `"}`)] += value
		}
	}
	for what, n := range want {
		if number(shown[what]) != n {
			return fmt.Errorf("%s is %q on the page, and %v in the metrics", what, shown[what], n)
		}
	}
	states := map[float64]string{0: "closed", 1: "half open", 2: "open"}
	for key, healthy := range s {
		labels, ok := strings.CutPrefix(key, `levee_upstream_healthy{server="`)
		if !ok {
			continue
		}
		server, _, _ := strings.Cut(labels, `"`)
		health := map[float64]string{0: "not healthy", 1: "healthy"}[healthy]
		breaker := states[s.sum("levee_breaker_state", `server="`+server+`"`)]
		if got := shown["server "+server]; !strings.HasPrefix(got, health+" "+breaker+" ") {
			return fmt.Errorf("server %s is %q on the page, and %s, %s in the metrics", server, got, health, breaker)
		}
	}
	return nil
}

func agrees(d *page, p *process) {
	d.t.Helper()
	var err error
	defer func() {
		if d.t.Failed() {
			d.t.Error(err)
		}
	}()
	eventually(d.t, "page and metrics agree", func() bool {
		err = disagreement(d, p)
		return err == nil
	})
}

func TestDashboardSaysWhatTheMetricsSay(t *testing.T) {
	t.Parallel()
	p, d := lookedAt(t)
	agrees(d, p)
	var stay []net.Conn
	for i := range 30 {
		c := dial(t, p.addressOf(0))
		if err := echoesOn(c); err != nil {
			t.Fatal(err)
		}
		if i%3 == 0 {
			c.Close()
		} else {
			stay = append(stay, c)
		}
	}
	garbage := dial(t, p.addressOf(1))
	send(t, garbage, "this is no TLS\n")
	_, _ = io.Copy(io.Discard, garbage)
	agrees(d, p)
	if n := number(d.text("#active")); n != 20 {
		t.Errorf("%v connections are open on the page, want 20", n)
	}
	for _, c := range stay[:5] {
		send(t, c, strings.Repeat("x", 10_000))
		if _, err := io.ReadFull(c, make([]byte, 10_000)); err != nil {
			t.Fatal(err)
		}
		_ = c.(*net.TCPConn).SetLinger(0)
		c.Close()
	}
	agrees(d, p)
	if got := d.text("#ends tbody"); !strings.Contains(got, "client_reset") || !strings.Contains(got, "tls_failed") {
		t.Errorf("the reasons are %q", got)
	}
}

// What somebody without a mouse can do: find a connection by its client, reach its button, be asked, and close it.
func TestDashboardClosesAConnectionByTheKeyboardAlone(t *testing.T) {
	t.Parallel()
	p, d := lookedAt(t)
	other, victim := dial(t, p.addressOf(0)), dial(t, p.addressOf(0))
	for _, c := range []net.Conn{other, victim} {
		if err := echoesOn(c); err != nil {
			t.Fatal(err)
		}
	}
	button := fmt.Sprintf(`button[aria-label$="of %s"]`, victim.LocalAddr())
	eventually(t, "both are in the table", func() bool {
		return d.text(button) == "Close" && evaluate[int](d, `document.querySelectorAll("#connections-table tbody tr").length`) == 2
	})
	d.tabTo(button)
	d.press(kb.Enter)
	if !evaluate[bool](d, `document.getElementById("ask-close").open`) || !strings.Contains(d.text("#ask-what"), victim.LocalAddr().String()) {
		t.Fatalf("it is not asked about: %q", d.text("#ask-what"))
	}

	d.press(kb.Escape) // thought better of
	if evaluate[bool](d, `document.getElementById("ask-close").open`) {
		t.Error("the dialog is still there")
	}
	if err := echoesOn(victim); err != nil {
		t.Errorf("it was closed without a yes: %v", err)
	}
	if !evaluate[bool](d, `document.activeElement.matches(`+strconv.Quote(button)+`)`) {
		t.Error("the focus is not where it was")
	}

	d.press(kb.Enter)
	d.tabTo("#ask-yes")
	d.press(kb.Enter)
	if _, err := victim.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("it is not closed: %v; the dialog says %q", err, d.text("#ask-problem"))
	}
	eventually(t, "it is not in the table", func() bool { return d.text(button) == "" })
	if err := echoesOn(other); err != nil {
		t.Errorf("the other connection: %v", err)
	}
	eventually(t, "it has been killed", func() bool { return p.scrape().closed("killed") == 1 })
	agrees(d, p)
}

func TestDashboardTellsTheStoryOfAConnectionThatEndedBadly(t *testing.T) {
	t.Parallel()
	p, d := lookedAt(t)
	well, err := tls.Dial("tcp", p.addressOf(1), &tls.Config{InsecureSkipVerify: true}) //nolint:gosec // whose certificate it is does not matter
	if err != nil {
		t.Fatal(err)
	}
	defer well.Close()
	if err := echoesOn(well); err != nil {
		t.Fatal(err)
	}
	garbage := dial(t, p.addressOf(1))
	send(t, garbage, "this is no TLS\n")
	_, _ = io.Copy(io.Discard, garbage)
	const found = `[...document.querySelectorAll("#events details")].find((e) => e.textContent.includes(%q))`
	this := fmt.Sprintf(found, garbage.LocalAddr())
	eventually(t, "it is in the flight recorder", func() bool { return evaluate[bool](d, this+` !== undefined`) })
	d.tabTo("#events summary")
	d.press(kb.Enter)
	var facts []string
	eventually(t, "its story is told", func() bool {
		facts = evaluate[[]string](d, `[...(`+this+`?.querySelectorAll(".story dd, .fall .word") ?? [])].map((e) => e.textContent)`)
		return len(facts) > 0
	})
	for _, want := range []string{garbage.LocalAddr().String(), "tls_failed", "handshake"} {
		if !slices.Contains(facts, want) {
			t.Errorf("its story does not say %q: %q", want, facts)
		}
	}
	d.do(chromedp.SendKeys(chromedp.CSS("#by-word"), "no such word"))
	eventually(t, "events are chosen by words", func() bool { return d.text("#events") == "" && d.text("#events-empty") == "No event is like this." })
	eventually(t, "how long handshakes took is shown", func() bool {
		return regexp.MustCompile(`handshake[\d.]+ [mµ]s`).MatchString(d.text("#phases tbody"))
	})
}

func TestDashboardCanBeReadByEverybody(t *testing.T) {
	t.Parallel()
	p, d := lookedAt(t)
	for range 3 {
		if err := echoesOn(dial(t, p.addressOf(0))); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "they are in the table", func() bool {
		return evaluate[int](d, `document.querySelectorAll("#connections-table tbody tr").length`) == 3
	})
	t.Run("names", func(t *testing.T) {
		all := d.controls()
		seen := map[string]int{}
		for _, c := range all {
			seen[c.role]++
			if c.name == "" {
				t.Errorf("a %s has no name", c.role)
			}
		}
		for _, role := range []string{"button", "link", "searchbox", "combobox", "region", "table", "image"} {
			if seen[role] == 0 {
				t.Errorf("no %s was found among %v", role, seen)
			}
		}
	})
	t.Run("sizes and schemes", func(t *testing.T) {
		eventually(t, "the charts have a line", func() bool {
			return evaluate[int](d, `performance.getEntriesByType("resource").filter((r) => r.name.endsWith("/status")).length`) > 4
		})
		for _, size := range [][2]int64{{1440, 900}, {1024, 768}, {390, 844}} {
			d.do(chromedp.EmulateViewport(size[0], size[1]))
			brightness := map[string]uint32{}
			for _, scheme := range []string{"light", "dark"} {
				d.scheme(scheme)
				picture := d.picture(t, fmt.Sprintf("dashboard-%dx%d-%s", size[0], size[1], scheme))
				decoded, err := png.Decode(bytes.NewReader(picture))
				if err != nil {
					t.Fatal(err)
				}
				if got := decoded.Bounds().Size(); int64(got.X) != size[0] || int64(got.Y) != size[1] {
					t.Errorf("the picture is %v", got)
				}
				_, brightness[scheme], _, _ = decoded.At(2, int(size[1])/2).RGBA() // beside all panels
			}
			if brightness["light"] < 0xd000 || brightness["dark"] > 0x3000 {
				t.Errorf("the ground is as bright as %x where it is to be light and %x where dark", brightness["light"], brightness["dark"])
			}
			if wide := evaluate[int64](d, `document.documentElement.scrollWidth`); wide > size[0] {
				t.Errorf("on a screen of %d the page is %d wide", size[0], wide)
			}
			out := evaluate[[]string](d, `[...document.querySelectorAll(".panel > table")].filter((e) =>
				e.getBoundingClientRect().right > e.parentElement.getBoundingClientRect().right).map((e) => e.id)`)
			if len(out) > 0 {
				t.Errorf("on a screen of %d what stands out of its panel is %q", size[0], out)
			}
		}
	})
}

func TestDashboardSaysThatLeveeIsGoneAndGoesOnWhenItIsBack(t *testing.T) {
	t.Parallel()
	ports := freePorts(t, 2)
	args := []string{"--listen", "127.0.0.1:" + ports[0], "--admin", "127.0.0.1:" + ports[1]}
	first := start(t, args...)
	if err := echoes(first.address()); err != nil {
		t.Fatal(err)
	}
	d := browse(t, first.admin("/"))
	eventually(t, "it serves", func() bool { return d.text("#state") == "serving" && d.text("#accepted") == "1" })
	first.signal(syscall.SIGKILL)
	first.wait()
	eventually(t, "the page says that there is no answer", func() bool {
		return d.text("#state") == "no answer" && strings.HasPrefix(d.text("#notice-lost"), "levee does not answer.")
	})
	second := start(t, args...)
	second.address()
	eventually(t, "it serves again", func() bool {
		return d.text("#state") == "serving" && d.text("#notice-lost") == "" && d.text("#accepted") == "0"
	})
}

func TestDashboardShowsHowFarADrainIs(t *testing.T) {
	t.Parallel()
	p, d := lookedAt(t)
	stays, goes := dial(t, p.addressOf(0)), dial(t, p.addressOf(0))
	for _, c := range []net.Conn{stays, goes} {
		if err := echoesOn(c); err != nil {
			t.Fatal(err)
		}
	}
	var talking sync.WaitGroup
	stop := make(chan struct{})
	for _, c := range []net.Conn{stays, goes} { // whoever is silent leaves after a few seconds
		talking.Go(func() {
			every := time.NewTicker(200 * time.Millisecond)
			defer every.Stop()
			for {
				select {
				case <-every.C:
					if echoesOn(c) != nil {
						return
					}
				case <-stop:
					return
				}
			}
		})
	}
	defer talking.Wait()
	defer close(stop)
	eventually(t, "both are there", func() bool { return d.text("#active") == "2" })
	p.signal(syscall.SIGTERM)
	eventually(t, "both are left", func() bool {
		return d.text("#state") == "draining" && strings.Contains(d.text("#notice-drain"), "2 of 2 connections are left")
	})
	goes.Close()
	eventually(t, "one is left", func() bool { return strings.Contains(d.text("#notice-drain"), "1 of 2 connections are left") })
	if got := evaluate[float64](d, `document.querySelector("#notice-drain progress").value`); got != 1 {
		t.Errorf("the progress is %v, want 1 of 2", got)
	}
}

// The server's name is what a stranger wrote.
func TestDashboardTakesNothingOfAStrangersForMarkup(t *testing.T) {
	t.Parallel()
	p, d := lookedAt(t)
	const name = `<img src=x onerror=document.title='owned'>`
	c, err := tls.Dial("tcp", p.addressOf(1), &tls.Config{ServerName: name, InsecureSkipVerify: true}) //nolint:gosec // whose certificate it is does not matter
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	eventually(t, "it is in the table", func() bool {
		return evaluate[int](d, `document.querySelectorAll("#connections-table tbody tr").length`) == 1
	})
	eventually(t, "the name is shown as it is", func() bool { return strings.Contains(d.text("#connections-table tbody"), name) })
	if n := evaluate[int](d, `document.querySelectorAll("main img").length`); n != 0 || strings.Contains(evaluate[string](d, `document.title`), "owned") {
		t.Errorf("it became %d pictures", n)
	}
}

func TestDashboardStaysSmallAndSmoothWithThousandsOfConnections(t *testing.T) {
	const many = 5000
	p := start(t, "serve", "-c", config(t, "overload: {mode: off}", `limits: {max_connections: 6000}`))
	for range many {
		c, err := net.Dial("tcp", p.address())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	d := browse(t, p.admin("/"))
	eventually(t, "all are counted", func() bool { return d.text("#active") == "5,000" })
	rows := func() int { return evaluate[int](d, `document.querySelectorAll("tr, li").length`) }
	eventually(t, "the table is full", func() bool { return strings.HasPrefix(d.text("#page-where"), "1 to ") })
	first := d.text("#connections-table tbody th")
	for range 3 {
		where := d.text("#page-where")
		d.do(chromedp.Evaluate[chromedp.Void](`document.getElementById("page-on").click()`))
		eventually(t, "the next page is there", func() bool { return d.text("#page-where") != where })
		if n := rows(); n > 200 {
			t.Errorf("the page has %d rows", n)
		}
	}
	if d.text("#connections-table tbody th") == first {
		t.Error("all pages begin with the same connection")
	}

	// How smooth it is depends on the machine, which draws without a graphics card here and has other things to do.
	type frames struct {
		Count   int     `json:"count"`
		Seconds float64 `json:"seconds"`
		Median  float64 `json:"median"`
		P95     float64 `json:"p95"`
	}
	f := evaluate[frames](d, `new Promise((resolve) => {
		const box = document.getElementById("connections-scroll");
		const times = [];
		let way = 24;
		const step = (now) => {
			times.push(now);
			box.scrollTop += way;
			if (box.scrollTop <= 0 || box.scrollTop + box.clientHeight >= box.scrollHeight - 1) way = -way;
			if (now - times[0] < 4000) return requestAnimationFrame(step);
			const spans = times.slice(1).map((t, i) => t - times[i]).sort((a, b) => a - b);
			resolve({count: spans.length, seconds: (now - times[0]) / 1000, median: spans[spans.length >> 1], p95: spans[Math.floor(spans.length * 0.95)]});
		};
		requestAnimationFrame(step);
	})`)
	t.Logf("%.1f frames a second while scrolling; half of them within %.1f ms, 95 of 100 within %.1f ms", float64(f.Count)/f.Seconds, f.Median, f.P95)
	if f.Count < 20 {
		t.Errorf("only %d frames in %.1f seconds", f.Count, f.Seconds)
	}
}
