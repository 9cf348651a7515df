// The dashboard. It asks the admin API each second, and keeps ten minutes of what it was told, in this page alone.

import { listen, poll } from "./api.js";
import { Charts } from "./charts.js";
import { Table } from "./connections.js";
import { $, el, style, write } from "./elements.js";
import { Ends, Listeners, Phases, showBans, showLimits, showLoad, showOverload, showProcess, Upstreams } from "./panels.js";
import { Meter } from "./rates.js";
import { Recorder } from "./recorder.js";
import { bytes, clock, count, since, spent, sum } from "./words.js";

const second = 1000;

const charts = new Charts();
const ends = new Ends();
const phases = new Phases();
const listeners = new Listeners();
const upstreams = new Upstreams();
const table = new Table();
const recorder = new Recorder();
const totals = new Meter();

let status = null; // the latest
let lostAt = 0; // when levee was last reached, while it is not
let lostWhy = ""; // if it answers, but not what was asked
let inputs = []; // of overload
let drainedFrom = 0; // how many connections there were when the end began, as far as this page knows

poll("api/v1/status", second, (told, now) => {
  if (status && (status.pid !== told.pid || status.started !== told.started)) begin(told);
  lostAt = 0;
  status = told;
  showStatus(now);
}, (problem) => {
  lostAt ||= Date.now();
  lostWhy = problem.status ? ` It says: ${problem.message}` : "";
  charts.gap();
  totals.clear();
  showState();
});

poll("api/v1/listeners", second, (told, now) => {
  listeners.show(told.listeners ?? [], now);
  table.offer("by-listener", (told.listeners ?? []).map((l) => l.listener));
});
poll("api/v1/upstreams", second, (told, now) => {
  upstreams.show(told.upstreams ?? [], now);
  table.offer("by-upstream", (told.upstreams ?? []).map((u) => u.upstream));
}, () => upstreams.show([], 0));
poll("api/v1/overload", second, (told) => {
  inputs = showOverload(told);
});
poll("api/v1/limits", 2 * second, showLimits);
poll("api/v1/bans", 5 * second, showBans);
poll("metrics", 5 * second, (text, now) => phases.show(text, now), undefined, "text");
listen("api/v1/events?after=0", (text) => recorder.tell(text), (n) => recorder.miss(n));

// begin forgets what was told of another process: this one counts from zero.
function begin(told) {
  if (told.version !== status.version) notice("version", "warn", "levee is another one now.", "Load this page again, so that it fits.");
  totals.clear();
  ends.clear();
  phases.clear();
  drainedFrom = 0;
}

function showStatus(now) {
  const { totals: t, process, generation } = status;
  const accepted = totals.rate("accepted", t.accepted, now);
  const refused = totals.rate("refused", sum(t.refused ?? {}), now);
  const flowIn = totals.rate("in", t.in, now);
  const flowOut = totals.rate("out", t.out, now);
  charts.add([[t.active, t.arriving], [accepted, refused], [flowIn, flowOut]]);
  write($("accepted"), count(t.accepted));
  for (const [id, n] of [["bytes-in", t.in], ["bytes-out", t.out]]) {
    write($(id), bytes(n));
    $(id).title = `${count(n)} bytes`;
  }
  ends.show(t, now);
  recorder.look();
  showLoad(inputs, process);
  showProcess(status, totals.rate("cpu", process.cpu, now));

  write($("version"), status.version.replace(/^levee (\S+).*/, "$1"));
  $("version").title = status.version;
  write($("generation"), generation.number);
  $("generation").title = [`in force since ${new Date(generation.since).toLocaleString()}`, generation.file].filter(Boolean).join("\n");
  write($("uptime"), spent(since(status.started)));
  document.title = `levee: ${count(t.active)} open`;
  showState();
}

// showState says what is not as it should be, in the head and below it.
function showState() {
  const drain = status?.drain;
  const [word, kind] = lostAt ? ["no answer", "bad"]
    : drain || status.state === "draining" ? ["draining", "warn"]
    : status.ready ? [status.state, "good"] : ["not ready", "warn"];
  write($("state"), word);
  style($("state"), `pill ${kind}`);
  document.body.classList.toggle("lost", lostAt > 0);

  if (lostAt) notice("lost", "bad", "levee does not answer.", `Nothing was heard since ${clock(lostAt)}. The page goes on when it is back.${lostWhy}`);
  else dismiss("lost");

  if (drain) {
    drainedFrom = Math.max(drainedFrom, drain.left);
    const left = Math.max(0, (Date.parse(drain.until) - Date.now()) / second);
    const box = notice("drain", "warn", "levee is draining.",
      `${count(drain.left)} of ${count(drainedFrom)} connections are left; who is still there in ${spent(left)} is cut.`);
    box.progress ??= box.appendChild(el("progress", { ariaLabel: "Connections that have left" }));
    box.progress.max = drainedFrom || 1;
    box.progress.value = drainedFrom ? drainedFrom - drain.left : 1;
  } else dismiss("drain");

  const g = status?.generation;
  if (g?.problem) {
    notice("reload", "bad", "The last reload was not taken.",
      `At ${clock(Date.parse(g.failed))}: ${g.problem}. Generation ${g.number}, of ${clock(Date.parse(g.since))}, is in force.`);
  } else dismiss("reload");
}

// notice shows a line below the head, or changes the one that has that name.
function notice(name, kind, title, text) {
  let box = $(`notice-${name}`);
  if (!box) {
    box = el("p", { id: `notice-${name}`, class: `notice ${kind}` }, el("strong", {}), el("span", {}));
    $("notices").append(box);
  }
  write(box.children[0], title);
  write(box.children[1], text);
  return box;
}

function dismiss(name) {
  $(`notice-${name}`)?.remove();
}
