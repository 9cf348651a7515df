// The flight recorder: what happened, and the stories of connections that ended badly.

import { $, bar, el, extend, fill, show, write } from "./elements.js";
import { bytes, count, took } from "./words.js";

const kept = 500; // events
const listed = 60; // of them in the page at once

const tones = { refused: "warn", ban: "warn", breaker: "warn", health: "warn", overload: "warn", drain: "warn", accept: "bad", panic: "bad" };

export class Recorder {
  #told = []; // as levee wrote them, not yet read: there may be thousands between two looks
  #events = []; // the oldest first
  #last = 0; // id
  #run = 0; // which process of those that this page has seen
  #lost = 0; // events that came faster than they could be told
  #held = null; // the events as they were when somebody said hold

  constructor() {
    $("by-word").addEventListener("input", () => this.#list());
    $("by-kind").addEventListener("change", () => this.#list());
    $("hold-recorder").addEventListener("click", () => this.#hold());
  }

  miss(n) {
    this.#lost += n;
  }

  tell(text) {
    this.#told.push(text);
    if (this.#told.length > 2 * kept) this.#lost += this.#told.splice(0, this.#told.length - kept).length;
  }

  // look takes in what was told since.
  look() {
    const fresh = this.#told.splice(0).map((text) => JSON.parse(text));
    if (fresh.length) {
      for (const event of fresh) {
        if (event.id <= this.#last) this.#run++; // a process that counts from 1 again; what the one before told stays
        this.#last = event.id;
        event.key = `${this.#run}/${event.id}`;
      }
      this.#events = [...this.#events, ...fresh].slice(-kept);
      this.#offer();
      this.#list();
    }
  }

  #offer() {
    const box = $("by-kind");
    const known = [...box.options].map((o) => o.value);
    for (const kind of new Set(this.#events.map((e) => e.kind))) if (!known.includes(kind)) box.append(el("option", { value: kind }, kind));
  }

  #hold() {
    this.#held = this.#held ? null : this.#events;
    $("hold-recorder").setAttribute("aria-pressed", this.#held !== null);
    write($("hold-recorder"), this.#held ? "Held" : "Hold");
    this.#list();
  }

  #list() {
    const words = $("by-word").value.trim().toLowerCase();
    const kind = $("by-kind").value;
    const all = this.#held ?? this.#events;
    const matching = all.filter((e) => (!kind || e.kind === kind) && (!words || JSON.stringify(e).toLowerCase().includes(words)));
    fill($("events"), matching.slice(-listed).reverse(), (e) => e.key, item, () => {});
    const some = matching.length > listed ? `the latest ${listed} of ` : "";
    write($("recorder-note"), all.length ? `${some}${count(matching.length)} events${this.#lost ? `; ${count(this.#lost)} more came too fast to be kept` : ""}` : "");
    show($("events-empty"), matching.length === 0);
    write($("events-empty"), all.length ? "No event is like this." : "Nothing has happened yet.");
  }
}

const time = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit", fractionalSecondDigits: 3 });

function item(event) {
  const when = new Date(event.time);
  const line = [
    el("time", { dateTime: event.time, title: when.toLocaleString() }, time.format(when)),
    el("span", { class: `tag ${event.kind === "health" && event.text.endsWith(" is up") ? "good" : tones[event.kind] ?? ""}` }, event.kind),
    el("span", { class: "text" }, event.text),
    el("span", { class: "word" }, event.reason ?? ""),
  ];
  if (!event.story) return el("li", {}, el("div", { class: "plainly" }, ...line));
  const details = el("details", {}, el("summary", {}, ...line));
  details.addEventListener("toggle", () => { // a story is written when it is wanted
    if (details.open && details.childElementCount === 1) details.append(tell(event.story));
  });
  return el("li", {}, details);
}

function tell(s) {
  const facts = [
    ["connection", `#${s.id} on ${s.listener}, generation ${s.generation}`],
    ["client", s.peer && s.peer !== s.client ? `${s.client}, by way of ${s.peer}` : s.client],
    ["TLS", [s.tls, s.sni, s.alpn, s.identity].filter(Boolean).join(" · ")],
    ["went to", [s.route, s.upstream, s.server].filter(Boolean).join(" → ")],
    ["lasted", took(s.duration)],
    ["in, out", `${bytes(s.in)}, ${bytes(s.out)}`],
    ["ended", s.reason],
    ["because", s.error],
    ["round trip", s.rtt > 0 ? took(s.rtt) : ""],
    ["sent again", s.retrans > 0 ? `${count(s.retrans)} segments` : ""],
    ["trace", s.trace],
  ].filter(([, value]) => value);
  const list = el("dl", {}, ...facts.flatMap(([name, value]) => [
    el("dt", {}, name), el("dd", { class: name === "ended" || name === "trace" ? "word" : undefined }, value),
  ]));
  return el("div", { class: "story" }, list, fallOf(s));
}

// fallOf draws the phases below each other, each from when it began. What comes before the flow is what the eye wants to
// compare; the flow may last for days, and goes on to the edge.
function fallOf(s) {
  const phases = s.phases ?? [];
  const flows = (p) => p.phase === "flow" || p.phase === "drain";
  const end = Math.max(...phases.filter((p) => !flows(p)).map((p) => p.at + p.took), 0) * 1.15 || s.duration || 1;
  const fall = el("div", { class: "fall", role: "group", ariaLabel: "Phases" });
  for (const p of phases) {
    const track = bar(flows(p) ? "aside" : "");
    extend(track.inner, Math.min(p.at / end, 0.99), flows(p) ? 1 : (p.at + p.took) / end);
    fall.append(el("span", { class: "word" }, p.phase), track, el("span", { class: "n" }, took(p.took)));
  }
  return fall;
}
