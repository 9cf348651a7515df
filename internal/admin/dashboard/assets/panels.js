// What there is to see at one look, panel by panel. Each function shows one answer of the API.

import { $, bar, cells, el, extend, fill, show, style, write } from "./elements.js";
import { Meter, Past } from "./rates.js";
import { bytes, clock, count, percent, rate, since, spent, sum, took } from "./words.js";

const most = 7; // reasons in the page: the rest is in the metrics

// Ends shows why connections ended: those turned away at the door too, whose reasons are other words.
export class Ends {
  #past = new Past();

  show(totals, now) {
    const all = {};
    for (const counts of [totals.closed, totals.refused]) {
      for (const [reason, n] of Object.entries(counts ?? {})) all[reason] = (all[reason] ?? 0) + n;
    }
    this.#past.tell(all, now);
    const lately = this.#past.lately(all);
    const rows = Object.entries(all).filter(([, n]) => n > 0).map(([reason, n]) => ({ reason, n, lately: lately[reason] }));
    rows.sort((a, b) => b.lately - a.lately || b.n - a.n || (a.reason < b.reason ? -1 : 1));
    const longest = Math.max(1, rows[0]?.lately ?? 0);
    fill($("ends").tBodies[0], rows.slice(0, most), (r) => r.reason, () => {
      const row = cells(["word", "wide", "n", "n"]);
      row.bar = bar();
      row.cells[1].append(row.bar);
      return row;
    }, (row, r) => {
      write(row.cells[0], r.reason);
      style(row.bar.inner, tone(r.reason));
      extend(row.bar.inner, 0, r.lately / longest);
      quantity(row.cells[2], r.lately);
      quantity(row.cells[3], r.n);
    });
    show($("ends"), rows.length > 0);
    show($("ends-empty"), rows.length === 0);
    const more = rows.length > most ? `${rows.length - most} more reasons; ` : "";
    write($("ends-note"), rows.length ? `${more}lately: ${spent(this.#past.since(now))}` : "");
  }

  clear() {
    this.#past.clear();
  }
}

// usual are the ends that are no more than coming and going; a test has it that levee says so, too.
const usual = /^(client_aborted|client_closed|client_reset|handler_closed|upstream_closed|idle_timeout|lifetime_expired|drained|server_closed)$/;

// tone is how bad an end is: blue is usual, grey the client's or its network's doing, amber levee's decision, red a fault.
function tone(reason) {
  if (usual.test(reason)) return "";
  if (/^(handler_|upstream_)/.test(reason)) return "red";
  if (/^(network_|tls_|proxy_|no_route|half_)/.test(reason)) return "aside";
  return "amber";
}

function quantity(cell, n, say = count) {
  write(cell, say(n));
  cell.classList.toggle("zero", !(n > 0));
}

const phases = ["proxy_header", "sniff", "handshake", "route", "dial", "first_byte"]; // not those that last as somebody pleases
const bucket = /^levee_phase_duration_seconds_bucket\{phase="(\w+)",le="([^"]+)"\} (\S+)$/gm;

// Phases shows how long the parts of a connection's life take, out of the histogram that the metrics have.
export class Phases {
  #past = new Past();

  show(metrics, now) {
    const all = {};
    for (const [, phase, le, n] of metrics.matchAll(bucket)) all[`${phase} ${le}`] = Number(n);
    this.#past.tell(all, now);
    let counts = this.#past.lately(all);
    const lately = phases.some((phase) => counts[`${phase} +Inf`] > 0);
    if (!lately) counts = all;
    const rows = phases.map((name) => ({ name, buckets: bucketsOf(name, counts) })).filter((r) => r.buckets.at(-1)?.n > 0);
    for (const r of rows) for (const q of [50, 95, 99]) r[`p${q}`] = quantile(r.buckets, q / 100);
    showPhases(rows);
    write($("phases-note"), rows.length ? (lately ? `the last ${spent(this.#past.since(now))}` : "since the start") : "");
  }

  clear() {
    this.#past.clear();
  }
}

function bucketsOf(phase, counts) {
  return Object.entries(counts).filter(([name]) => name.startsWith(`${phase} `))
    .map(([name, n]) => ({ le: name.endsWith("+Inf") ? Infinity : Number(name.split(" ")[1]), n }))
    .sort((a, b) => a.le - b.le);
}

// quantile finds the bucket that has it, and takes the times in there to be spread evenly, as Prometheus does.
function quantile(buckets, q) {
  const rank = q * buckets.at(-1).n;
  const i = buckets.findIndex((b) => b.n >= rank);
  const [from, before] = i > 0 ? [buckets[i - 1].le, buckets[i - 1].n] : [0, 0];
  const { le, n } = buckets[i];
  return le === Infinity ? from : from + ((le - from) * (rank - before)) / Math.max(1, n - before);
}

function showPhases(rows) {
  fill($("phases").tBodies[0], rows, (r) => r.name, () => {
    const row = cells(["word", "n", "n", "n", "wide"]);
    row.bar = bar();
    row.middle = el("i", { class: "dot" });
    row.bar.append(row.middle);
    row.cells[4].append(row.bar);
    return row;
  }, (row, r) => {
    write(row.cells[0], r.name);
    for (const [i, q] of [r.p50, r.p95, r.p99].entries()) write(row.cells[i + 1], took(q));
    extend(row.bar.inner, scale(r.p50), scale(r.p99));
    extend(row.middle, scale(r.p50), 0);
    row.middle.style.width = "";
    row.bar.title = `${r.name}: half took up to ${took(r.p50)}, 99 of 100 up to ${took(r.p99)}. The track goes from 10 µs to 10 s, each sixth of it ten times the one before.`;
  });
  show($("phases"), rows.length > 0);
  show($("phases-empty"), rows.length === 0);
}

// scale is where on a track a time is: 10 µs at its beginning, 10 s at its end, by orders of magnitude.
function scale(seconds) {
  return Math.max(0, Math.min(1, (Math.log10(Math.max(seconds, 1e-5)) + 5) / 6));
}

// showOverload shows what levee is short of.
export function showOverload(overload) {
  const pressure = overload.pressure || "none";
  const mode = overload.mode === "off" ? " Overload protection is off." : overload.mode === "shadow" ? " Overload is only watched." : "";
  const calm = pressure === "none" && !(overload.turned_away > 0);
  const span = overload.since ? ` for ${spent(since(overload.since))}` : "";
  write($("pressure"), calm ? "calm" : pressure === "none" ? "turning away" : `pressure: ${pressure}`);
  style($("pressure"), `tag ${overload.turned_away > 0 ? "bad" : calm ? "good" : "warn"}`);
  write($("overload-line"), overload.turned_away > 0
    ? `${percent(overload.turned_away)} of newcomers are turned away${overload.cause ? `, for want of ${words(overload.cause)}` : ""}${span}.${mode}`
    : `${!calm && overload.cause ? `Short of ${words(overload.cause)}${span}. ` : ""}Nobody is turned away.${mode}`);
  return Object.entries(overload.load ?? {}).map(([name, load]) => ({ name, load, words: percent(load) }));
}

const words = (name) => name.replaceAll("_", " ");

// showLoad shows how full things are: what overload looks at, and what the process has.
export function showLoad(inputs, process) {
  const rows = [...inputs];
  const has = (name) => rows.some((r) => r.name === name);
  if (process) {
    if (!has("memory") && process.memory_max > 0) rows.push({ name: "memory", load: process.memory / process.memory_max });
    if (!has("files") && process.files_max > 0) rows.push({ name: "files", load: process.files / process.files_max });
    for (const r of rows) {
      if (r.name === "memory") r.words = process.memory_max > 0 ? `${bytes(process.memory)} of ${bytes(process.memory_max)}` : bytes(process.memory);
      if (r.name === "files") r.words = `${count(process.files)} of ${count(process.files_max)}`;
    }
  }
  rows.sort((a, b) => (a.name < b.name ? -1 : 1));
  fill($("load").tBodies[0], rows, (r) => r.name, () => {
    const row = cells(["", "wide", "n"]);
    row.bar = bar();
    row.bar.setAttribute("role", "meter");
    row.bar.setAttribute("aria-valuemin", "0");
    row.bar.setAttribute("aria-valuemax", "100");
    row.cells[1].append(row.bar);
    return row;
  }, (row, r) => {
    write(row.cells[0], words(r.name));
    style(row.bar.inner, r.load >= 1 ? "red" : r.load >= 0.8 ? "amber" : "");
    extend(row.bar.inner, 0, r.load);
    row.bar.setAttribute("aria-label", r.name);
    row.bar.setAttribute("aria-valuenow", Math.round(Math.min(1, r.load) * 100));
    write(row.cells[2], r.words ?? percent(r.load));
  });
}

// showProcess is the line at the foot of the page.
export function showProcess(status, cpu) {
  const p = status.process;
  write($("process"), [
    `process ${status.pid}`, status.go, `${Number.isFinite(cpu) ? cpu.toFixed(2) : "–"} processors busy`, `${bytes(p.memory)} of memory`,
    `${count(p.goroutines)} goroutines`, `event loops late by ${took(p.loop_lag)} at most`,
  ].join(" · "));
}

export class Listeners {
  #meter = new Meter();

  show(listeners, now) {
    fill($("listeners").tBodies[0], listeners, (l) => `${l.listener}/${l.generation}`, () => {
      const row = cells(["", "", "n", "n", "n", "n", "n"]);
      row.name = el("span");
      row.at = el("span", { class: "sub" });
      row.cells[0].append(row.name, row.at);
      row.open = el("span");
      row.of = el("span", { class: "sub" });
      row.cells[2].append(row.open, row.of);
      return row;
    }, (row, l) => {
      const id = `${l.listener}/${l.generation}`;
      const draining = l.state && l.state !== "serving";
      write(row.name, draining ? `${l.listener} (${l.state}, generation ${l.generation})` : l.listener);
      write(row.at, (l.addresses ?? []).join(", "));
      write(row.cells[1], l.tls || "off");
      quantity(row.open, l.active);
      write(row.of, l.max > 0 ? `of ${count(l.max)}` : "");
      quantity(row.cells[3], this.#meter.rate(`${id} new`, l.accepted, now), rate);
      quantity(row.cells[4], this.#meter.rate(`${id} in`, l.in, now), bytes);
      quantity(row.cells[5], this.#meter.rate(`${id} out`, l.out, now), bytes);
      write(row.cells[6], l.queue_limit > 0 ? `${count(l.queue_length)} of ${count(l.queue_limit)}` : count(l.queue_length));
      row.cells[6].classList.toggle("red", l.queue_limit > 0 && l.queue_length > l.queue_limit / 2);
    });
    this.#meter.keep(now);
  }
}

export class Upstreams {
  #meter = new Meter();

  show(upstreams, now) {
    const rows = upstreams.flatMap((u) => [{ id: u.upstream, upstream: u }, ...(u.servers ?? []).map((s) => ({ id: `${u.upstream}/${s.server}`, server: s }))]);
    fill($("upstreams").tBodies[0], rows, (r) => r.id, (r) => (r.upstream ? group() : server()), (row, r) => {
      if (r.upstream) this.#showGroup(row, r.upstream);
      else this.#showServer(row, r.id, r.server, now);
    });
    this.#meter.keep(now);
    show($("upstreams-panel"), upstreams.length > 0);
    const servers = rows.filter((r) => r.server).map((r) => r.server);
    const down = servers.filter((s) => !usable(s)).length;
    write($("upstreams-note"), servers.length === 0 ? "" : down ? `${down} of ${servers.length} servers ${down === 1 ? "is" : "are"} not used` : "all servers are used");
    $("upstreams-note").classList.toggle("amber", down > 0);
  }

  #showGroup(row, u) {
    write(row.name, u.upstream);
    write(row.note, [
      words(u.balance ?? ""),
      `${count(u.queue)} waiting`,
      `${count(u.retries)} dialled again`,
      u.budget_exhausted > 0 ? `${count(u.budget_exhausted)} times too often for the budget` : "",
      u.refused > 0 ? `${count(u.refused)} refused` : "",
    ].filter(Boolean).join(" · "));
  }

  #showServer(row, id, s, now) {
    write(row.name, s.server);
    write(row.more, s.problem || [s.tier > 0 ? `tier ${s.tier}` : "", s.weight !== 1 && s.weight > 0 ? `weight ${+s.weight.toFixed(2)}` : ""].filter(Boolean).join(" · "));
    row.more.title = s.problem ? `${s.problem}${s.checked ? ` (checked at ${clock(Date.parse(s.checked))})` : ""}` : "";
    const [state, kind] = s.left ? ["left", ""] : s.drained ? ["drained", "warn"] : s.healthy ? ["healthy", "good"] : ["not healthy", "bad"];
    write(row.health, state);
    style(row.health, `tag ${kind}`);
    write(row.breaker, words(s.breaker || "none"));
    style(row.breaker, `tag ${s.breaker === "open" ? "bad" : /^half.open$/.test(s.breaker) ? "warn" : "good"}`);
    quantity(row.cells[3], s.active);
    quantity(row.cells[4], this.#meter.rate(`${id} dials`, s.dials, now), rate);
    const failures = sum(s.failures ?? {});
    quantity(row.cells[5], failures);
    row.cells[5].title = Object.entries(s.failures ?? {}).filter(([, n]) => n > 0).map(([why, n]) => `${why}: ${count(n)}`).join("\n");
    row.cells[5].classList.toggle("red", failures > 0);
    write(row.cells[6], s.latency > 0 ? took(s.latency) : "–");
    quantity(row.cells[7], this.#meter.rate(`${id} sent`, s.sent, now), bytes);
    quantity(row.cells[8], this.#meter.rate(`${id} received`, s.received, now), bytes);
  }
}

const usable = (s) => s.healthy && !s.drained && s.breaker !== "open";

function group() {
  const name = el("span");
  const note = el("span", { class: "note" });
  const row = el("tr", { class: "group" }, el("th", { scope: "rowgroup", colSpan: 9 }, name, note));
  return Object.assign(row, { name, note });
}

function server() {
  const row = cells(["", "", "", "n", "n", "n", "n", "n", "n"], "member");
  row.name = el("span");
  row.more = el("span", { class: "sub cut" });
  row.cells[0].append(row.name, row.more);
  row.health = el("span");
  row.cells[1].append(row.health);
  row.breaker = el("span");
  row.cells[2].append(row.breaker);
  return row;
}

export function showLimits(limits) {
  const rows = limits.limits ?? [];
  const lists = (limits.lists ?? []).filter((l) => l.allow > 0 || l.deny > 0);
  const all = [
    ...rows.map((l) => ({ id: `limit ${l.limit}`, name: l.limit, setting: l.setting, mode: l.mode, allowed: l.allowed, refused: l.refused, would: l.would_refuse })),
    ...lists.map((l) => ({ id: `list ${l.list}`, name: `list ${l.list}`, setting: l.problem || `${count(l.allow)} allowed, ${count(l.deny)} denied`, mode: "", refused: l.refused })),
  ];
  fill($("limits").tBodies[0], all, (r) => r.id, () => {
    const row = cells(["", "soft", "", "n", "n", "n"]);
    row.mode = el("span", { class: "tag" });
    row.cells[2].append(row.mode);
    return row;
  }, (row, r) => {
    write(row.cells[0], r.name);
    write(row.cells[1], r.setting ?? "");
    write(row.mode, r.mode);
    style(row.mode, `tag ${r.mode === "shadow" ? "warn" : ""}`);
    show(row.mode, Boolean(r.mode));
    for (const [i, n] of [r.allowed, r.refused, r.would].entries()) {
      quantity(row.cells[i + 3], n ?? NaN);
      row.cells[i + 3].classList.toggle(i === 1 ? "red" : "amber", i > 0 && n > 0);
    }
  });
  show($("limits"), all.length > 0);
  show($("limits-empty"), all.length === 0);
  const failing = (limits.shared ?? []).find((s) => s.problem);
  write($("limits-note"), failing ? `not shared just now: ${failing.problem}` : "");
  $("limits-note").classList.toggle("amber", Boolean(failing));
}

export function showBans(bans) {
  const rows = (bans.bans ?? []).slice(0, 8);
  fill($("bans").tBodies[0], rows, (b) => `${b.prefix} ${b.shadow ?? ""}`, () => cells(["", "cut", "n"]), (row, b) => {
    write(row.cells[0], b.prefix);
    write(row.cells[1], b.shadow ? `would be: ${b.why}` : b.why);
    row.cells[1].title = b.why;
    write(row.cells[2], spent(Math.max(0, (Date.parse(b.until) - Date.now()) / 1000)));
  });
  write($("bans-note"), bans.active > rows.length ? `${count(bans.active)} in force` : "");
  show($("bans"), rows.length > 0);
  show($("bans-empty"), rows.length === 0);
}
