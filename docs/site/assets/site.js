// Light or dark, the menu of small screens, copying, and the search. Without it everything can still be read.
(() => {
  "use strict";
  const root = document.documentElement;
  const asked = matchMedia("(prefers-color-scheme: dark)");
  let chosen = null;
  try { chosen = localStorage.getItem("levee-light"); } catch { /* a browser that keeps nothing */ }
  const light = () => {
    root.dataset.light = chosen || (asked.matches ? "dark" : "light");
    // Drawings follow the page's color-scheme; photographs have to be exchanged.
    for (const source of document.querySelectorAll('picture source[media]')) source.media = root.dataset.light === "dark" ? "all" : "not all";
  };
  light();
  asked.addEventListener("change", light);
  addEventListener("beforeprint", () => { root.dataset.light = "light"; });
  addEventListener("afterprint", light);

  const element = (name, attributes, ...children) => {
    const e = Object.assign(document.createElement(name), attributes);
    e.append(...children);
    return e;
  };

  // The search is loaded when somebody begins one. It comes as scripts, because a page that is a file may not fetch.
  let loading;
  const script = (name) => new Promise((resolve, reject) => {
    document.head.append(element("script", { src: root.dataset.root + "assets/" + name, onload: resolve, onerror: reject }));
  });
  const search = () => loading ??= Promise.all([script("minisearch.js"), script("index.js")]).then(() => {
    const engine = new MiniSearch({
      fields: ["h", "p", "t"],
      storeFields: ["p", "h", "a", "t"],
      // Names such as levee_connections_active and idle_timeout are found whole and by their parts.
      tokenize: (text) => text.split(/[^\p{L}\p{N}_]+/u).flatMap((w) => w.includes("_") ? [w, ...w.split("_")] : [w]).filter(Boolean),
      searchOptions: { boost: { h: 4, p: 2 }, prefix: (term) => term.length > 1, fuzzy: (term) => term.length > 4 ? 0.2 : false, combineWith: "AND" },
    });
    engine.addAll(window.leveePassages);
    return engine;
  });

  const excerpt = (text, terms) => {
    const lower = text.toLowerCase();
    terms.sort((a, b) => b.length - a.length); // the whole of a name rather than a part of it
    const from = Math.max(0, (terms.map((t) => lower.indexOf(t)).find((at) => at >= 0) ?? 0) - 50);
    const piece = (from ? "… " : "") + text.slice(from, from + 170) + (text.length > from + 170 ? " …" : "");
    if (!terms.length) return [piece];
    const words = new RegExp("(" + terms.map((t) => t.replace(/[^\p{L}\p{N}_]/gu, "\\$&")).join("|") + ")", "giu");
    return piece.split(words).map((s, i) => i % 2 ? element("mark", {}, s) : s);
  };

  const ready = () => {
    light();
    const input = document.getElementById("query");
    const list = document.getElementById("found");
    const tally = document.getElementById("tally");
    let at = -1;

    const close = () => { list.hidden = true; at = -1; input.setAttribute("aria-expanded", "false"); input.removeAttribute("aria-activedescendant"); };
    const choose = (i) => {
      const all = [...list.querySelectorAll("li[role=option]")];
      if (!all.length) return;
      at = (i + all.length) % all.length;
      all.forEach((li, n) => li.setAttribute("aria-selected", n === at));
      input.setAttribute("aria-activedescendant", all[at].id);
      all[at].scrollIntoView({ block: "nearest" });
    };
    const show = async () => {
      const words = input.value.trim();
      if (!words) { close(); tally.textContent = ""; return; }
      const engine = await search();
      if (words !== input.value.trim()) return;
      const hits = engine.search(words).slice(0, 12);
      list.replaceChildren(...hits.map((hit, i) => element("li", { id: "found-" + i, role: "option", ariaSelected: "false" },
        element("a", { href: root.dataset.root + hit.a, tabIndex: -1 },
          element("b", {}, hit.h), hit.p === hit.h ? "" : element("small", {}, " · " + hit.p),
          element("span", {}, ...excerpt(hit.t, hit.terms))))));
      if (!hits.length) list.append(element("li", { className: "none" }, "Nothing has all of these words."));
      tally.textContent = hits.length ? hits.length + " found" : "Nothing found";
      list.hidden = false;
      input.setAttribute("aria-expanded", "true");
      choose(0);
    };
    input.addEventListener("focus", search);
    input.addEventListener("input", show);
    input.addEventListener("keydown", (e) => {
      if (e.key === "ArrowDown" || e.key === "ArrowUp") { e.preventDefault(); choose(at + (e.key === "ArrowDown" ? 1 : -1)); }
      if (e.key === "Enter") { list.querySelectorAll("li[role=option] a")[at]?.click(); }
      if (e.key === "Escape") { if (list.hidden) input.blur(); close(); }
    });
    document.addEventListener("click", (e) => { if (!e.target.closest(".search") || e.target.closest("#found a")) close(); });
    document.addEventListener("keydown", (e) => {
      const typing = e.target.closest("input, textarea, select, [contenteditable]");
      if ((e.key === "/" && !typing || e.key === "k" && (e.ctrlKey || e.metaKey)) && !e.altKey) { e.preventDefault(); input.focus(); input.select(); }
    });

    document.getElementById("light").addEventListener("click", () => {
      chosen = root.dataset.light === "dark" ? "light" : "dark";
      try { localStorage.setItem("levee-light", chosen); } catch { /* for this page, then */ }
      light();
    });

    const menu = document.getElementById("menu");
    menu.addEventListener("click", () => menu.setAttribute("aria-expanded", document.body.classList.toggle("open")));
    document.querySelector("#chapters [aria-current]")?.scrollIntoView({ block: "nearest" });

    for (const pre of document.querySelectorAll("article pre")) {
      const button = element("button", { type: "button", className: "copy" }, "Copy");
      button.addEventListener("click", async () => {
        // Of a session at a shell, what is typed.
        const typed = pre.dataset.language === "console"
          ? pre.textContent.split("\n").filter((l) => l.startsWith("$ ")).map((l) => l.slice(2)).join("\n") : pre.textContent;
        await navigator.clipboard.writeText(typed);
        button.textContent = "Copied";
        setTimeout(() => { button.textContent = "Copy"; }, 1500);
      });
      const box = element("div", { className: "box" });
      pre.replaceWith(box);
      box.append(pre, button);
    }

    const links = new Map([...document.querySelectorAll("#sections a")].map((a) => [a.hash.slice(1), a]));
    const headings = [...document.querySelectorAll("article h2[id]")];
    const mark = () => {
      const passed = headings.filter((h) => h.getBoundingClientRect().top < 120).pop();
      for (const [id, a] of links) a.classList.toggle("here", id === passed?.id);
    };
    addEventListener("scroll", mark, { passive: true });
    mark();
  };
  document.addEventListener("DOMContentLoaded", ready);
})();
