// Three charts over one stretch of time. uPlot draws them on a canvas.

import { $, write } from "./elements.js";
import { bytes, clock, count, rate, tick } from "./words.js";

const span = 600; // seconds that are kept
const least = 60; // seconds that are shown at first

const style = getComputedStyle(document.documentElement);
const colour = (name) => style.getPropertyValue(`--${name}`).trim();
const font = '11px -apple-system, "Segoe UI", Inter, Roboto, "Noto Sans", system-ui, sans-serif';

export class Charts {
  #times = [];
  #charts;
  #began = Date.now() / 1000;

  constructor() {
    this.#charts = [
      chart("open", [["active", "in", "in-fill"], ["arriving", "out"]], count),
      chart("new", [["accept-rate", "in", "in-fill"], ["refuse-rate", "bad"]], rate),
      chart("flow", [["in-rate", "in", "in-fill"], ["out-rate", "out", "out-fill"]], (n) => `${bytes(n)}/s`),
    ];
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
      for (const c of this.#charts) c.plot.redraw(false);
    });
  }

  // add puts a point at the end: two values for each of the charts, null where there is none.
  add(values) {
    const now = Date.now() / 1000;
    this.#times.push(now);
    for (const [i, c] of this.#charts.entries()) {
      for (const [j, series] of c.data.entries()) series.push(number(values[i][j]));
    }
    while (this.#times[0] < now - span) {
      this.#times.shift();
      for (const c of this.#charts) for (const series of c.data) series.shift();
    }
    this.#draw(now);
  }

  // gap ends the lines: for a time nobody told anything.
  gap() {
    if (this.#times.length) this.add([[null, null], [null, null], [null, null]]);
  }

  #draw(now) {
    const from = now - Math.min(span, Math.max(least, now - this.#began));
    for (const c of this.#charts) {
      c.plot.setData([this.#times, ...c.data], false);
      c.plot.setScale("x", { min: from, max: now });
      c.tell();
    }
  }
}

const number = (n) => (Number.isFinite(n) ? n : null);

function chart(name, series, words) {
  const box = $(`chart-${name}`);
  const when = $(`when-${name}`);
  const data = series.map(() => []);
  const plot = new uPlot({
    width: box.clientWidth || 300,
    height: box.clientHeight || 128,
    padding: [8, 22, 0, 0],
    legend: { show: false },
    cursor: { y: false, drag: { x: false, y: false }, sync: { key: "levee" }, points: { size: 7 } },
    scales: { x: { time: true }, y: { range: (_, __, most) => [0, ceiling(most)] } },
    axes: [
      { stroke: () => colour("soft"), font, size: 22, gap: 2, space: 70, grid: { show: false }, ticks: { show: false },
        values: (_, times) => times.map((t) => (t === null ? "" : clock(t * 1000))) },
      { stroke: () => colour("soft"), font, size: 42, gap: 4, space: 32, ticks: { show: false },
        grid: { stroke: () => colour("line"), width: 1 },
        values: (_, ticks) => ticks.map(tick) },
    ],
    series: [{}, ...series.map(([, line, area]) => ({
      stroke: () => colour(line), fill: area ? () => colour(area) : undefined, width: 1.5, points: { show: false }, spanGaps: false,
    }))],
    hooks: { setCursor: [() => tell()] },
  }, [[], ...data], box);
  new ResizeObserver(() => {
    if (box.clientWidth) plot.setSize({ width: box.clientWidth, height: box.clientHeight });
  }).observe(box);

  // tell writes the figures above the chart: those under the pointer, or the latest.
  function tell() {
    const pointed = plot?.cursor?.idx;
    const at = pointed ?? data[0].length - 1;
    const latest = pointed === null || pointed === undefined;
    write(when, latest ? "" : `at ${clock(plot.data[0][at] * 1000)}`);
    for (const [i, [figure]] of series.entries()) write($(figure), words(data[i][at] ?? NaN));
    if (latest) {
      const now = series.map(([figure], i) => `${words(data[i][at] ?? NaN)} ${$(figure).nextElementSibling.textContent}`);
      const most = series.map((_, i) => words(data[i].reduce((a, b) => Math.max(a, b ?? 0), 0)));
      box.setAttribute("aria-label", `Over the last minutes: now ${now.join(", ")}; at most ${most.join(" and ")}`);
    }
  }
  return { plot, data, tell };
}

// ceiling is where the scale ends: a round number with room above the line.
function ceiling(most) {
  if (!(most > 0)) return 4;
  const ten = 10 ** Math.floor(Math.log10(most * 1.08));
  for (const step of [1, 1.5, 2, 3, 4, 5, 6, 8, 10]) if (most * 1.08 <= step * ten) return Math.max(4, step * ten);
  return most;
}
