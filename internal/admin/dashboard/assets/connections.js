// The table of open connections: a page of it at a time, sorted and chosen by the API, so that any number may be open.

import { ask, poll } from "./api.js";
import { $, cells, el, fill, show, write } from "./elements.js";
import { Meter } from "./rates.js";
import { bytes, count, since, spent } from "./words.js";

const size = 50; // of a page
const steady = 1000; // milliseconds between two looks
const columns = ["", "drop-2", "drop-1", "drop-3", "drop-2", "n", "n", "n drop-3", "n drop-3", "n drop-1", "n drop-2", ""];

export class Table {
  #meter = new Meter();
  #sort = "-out";
  #after = [""]; // the cursors of the pages up to this one
  #next = "";
  #held = false;
  #look;
  #asked = null; // the connection that the dialog is about

  constructor() {
    this.#look = poll(() => (this.#held ? null : this.#where()), steady, (page, now) => this.#show(page, now), (problem) => this.#fail(problem));
    for (const button of document.querySelectorAll("#connections-table [data-sort]")) {
      button.addEventListener("click", () => this.#sortBy(button.dataset.sort));
    }
    for (const id of ["by-listener", "by-upstream", "by-phase"]) $(id).addEventListener("change", () => this.#restart());
    let typing = 0;
    $("by-client").addEventListener("input", () => {
      clearTimeout(typing);
      typing = setTimeout(() => this.#restart(), 250);
    });
    $("hold-connections").addEventListener("click", () => this.#hold());
    $("page-on").addEventListener("click", () => this.#turn(this.#next));
    $("page-back").addEventListener("click", () => this.#turn());
    $("ask-no").addEventListener("click", () => $("ask-close").close());
    $("ask-yes").addEventListener("click", () => this.#close());
    $("ask-close").addEventListener("close", () => this.#return());
    this.#markSort();
  }

  // offer has the selects name what there is.
  offer(select, names) {
    const box = $(select);
    const known = [...box.options].slice(1).map((o) => o.value);
    for (const name of names) if (!known.includes(name)) box.append(el("option", { value: name }, name));
    for (const option of [...box.options].slice(1)) if (!names.includes(option.value) && !option.selected) option.remove();
  }

  #where() {
    const query = new URLSearchParams({ sort: this.#sort, limit: size });
    for (const [name, id] of [["client", "by-client"], ["listener", "by-listener"], ["upstream", "by-upstream"], ["phase", "by-phase"]]) {
      const value = $(id).value.trim();
      if (value) query.set(name, value);
    }
    const after = this.#after.at(-1);
    if (after) query.set("after", after);
    return `api/v1/connections?${query}`;
  }

  #show(page, now) {
    const rows = page.connections ?? [];
    if (rows.length === 0 && this.#after.length > 1) { // those behind this page's cursor have gone
      this.#turn();
      return;
    }
    fill($("connections-table").tBodies[0], rows, (c) => c.id, (c) => this.#row(c), (row, c) => this.#update(row, c, now));
    this.#meter.keep(now);
    this.#next = page.next ?? "";
    $("by-client").setAttribute("aria-invalid", "false");
    write($("connections-note"), page.matching === page.total ? `${count(page.total)} open` : `${count(page.matching)} of ${count(page.total)} open`);
    show($("connections-empty"), rows.length === 0);
    write($("connections-empty"), page.total > 0 ? "Of those who are connected, none is like this." : "Nobody is connected.");
    const first = (this.#after.length - 1) * size;
    write($("page-where"), rows.length ? `${count(first + 1)} to ${count(first + rows.length)}` : "");
    $("page-back").disabled = this.#after.length === 1;
    $("page-on").disabled = !this.#next;
  }

  #fail(problem) {
    if (problem.status !== 400) return; // the page says in one place that levee cannot be reached
    write($("connections-note"), problem.message);
    $("by-client").setAttribute("aria-invalid", "true");
    this.#after = [""];
  }

  #row(c) {
    const row = cells(columns);
    const pair = (cell) => {
      const top = el("span");
      const sub = el("span", { class: "sub cut" });
      cell.append(top, sub);
      return [top, sub];
    };
    [row.client, row.number] = pair(row.cells[0]);
    row.phase = el("span", { class: "phase" });
    row.cells[2].append(row.phase);
    [row.tls, row.sni] = pair(row.cells[3]);
    [row.upstream, row.server] = pair(row.cells[4]);
    const close = el("button", { type: "button", aria: { label: `Close connection ${c.id} of ${c.client}` } }, "Close");
    close.addEventListener("click", () => this.#ask(c, close));
    row.cells[11].append(close);
    return row;
  }

  #update(row, c, now) {
    write(row.client, c.client);
    write(row.number, c.peer && c.peer !== c.client ? `#${c.id}, by way of ${c.peer}` : `#${c.id}`);
    write(row.cells[1], c.listener);
    write(row.phase, c.phase);
    row.phase.dataset.phase = c.phase;
    row.phase.title = `served by ${c.engine === "loop" ? "an event loop" : `a ${c.engine}`}, generation ${c.generation}`;
    write(row.tls, c.tls ? [c.tls, c.alpn].filter(Boolean).join(" · ") : "–");
    write(row.sni, [c.sni, c.identity].filter(Boolean).join(" · "));
    row.sni.title = row.sni.textContent;
    write(row.upstream, c.upstream || c.route || "–");
    write(row.server, c.server || (c.upstream ? c.route : "") || "");
    const flow = (cell, way, bytesSoFar) => {
      const rate = this.#meter.rate(`${c.id} ${way}`, bytesSoFar, now);
      write(cell, bytes(rate));
      cell.classList.toggle("zero", !(rate > 0));
    };
    flow(row.cells[5], "in", c.in);
    flow(row.cells[6], "out", c.out);
    write(row.cells[7], bytes(c.in));
    write(row.cells[8], bytes(c.out));
    write(row.cells[9], spent(since(c.accepted)));
    write(row.cells[10], c.idle < 0 ? "–" : spent(c.idle));
  }

  #sortBy(key) {
    const most = `-${key}`; // largest first, but addresses in their order
    this.#sort = key === "client" ? (this.#sort === key ? most : key) : this.#sort === most ? key : most;
    this.#markSort();
    this.#restart();
  }

  #markSort() {
    for (const button of document.querySelectorAll("#connections-table [data-sort]")) {
      const head = button.parentElement;
      // The oldest were accepted first: the column says age.
      const falls = this.#sort.startsWith("-") !== (button.dataset.sort === "accepted");
      if (this.#sort.replace("-", "") === button.dataset.sort) head.setAttribute("aria-sort", falls ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    }
  }

  #restart() {
    this.#after = [""];
    if (this.#held) this.#hold();
    this.#look();
  }

  // turn goes to the page behind a cursor, or without one to the page before.
  #turn(cursor) {
    if (cursor) this.#after.push(cursor);
    else if (this.#after.length > 1) this.#after.pop();
    if (this.#held) this.#hold();
    this.#look();
  }

  #hold() {
    this.#held = !this.#held;
    $("hold-connections").setAttribute("aria-pressed", this.#held);
    write($("hold-connections"), this.#held ? "Held" : "Hold");
    if (!this.#held) this.#look();
  }

  #ask(connection, button) {
    this.#asked = { connection, button };
    const c = connection;
    const where = c.server || c.route;
    write($("ask-what"), `Number ${c.id}, of ${c.client} on ${c.listener}${where ? `, to ${where}` : ""}. It is reset: what is on its way is lost.`);
    write($("ask-problem"), "");
    $("ask-yes").disabled = false;
    $("ask-close").showModal();
    $("ask-no").focus();
  }

  async #close() {
    const { connection } = this.#asked;
    $("ask-yes").disabled = true;
    try {
      await ask(`api/v1/connections/${connection.id}`, { method: "DELETE" });
      $("ask-close").close();
      this.#look();
    } catch (problem) {
      if (problem.status === 404) {
        write($("ask-problem"), "It has ended by itself.");
        return;
      }
      write($("ask-problem"), `It is still open: ${problem.message}`);
      $("ask-yes").disabled = false;
    }
  }

  // return has the focus where it was, or near it if the row is gone.
  #return() {
    if ($("ask-close").open) return; // it was asked about another meanwhile
    const button = this.#asked?.button;
    if (button?.isConnected) button.focus();
    else $("connections-scroll").focus();
  }
}
