// The only door to the document. Strangers write some of what is shown, so nothing here takes markup: text is text.

export const $ = (id) => document.getElementById(id);

// el makes an element. Its properties are the element's own, except for class, data and aria.
export function el(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined) continue;
    if (name === "class") made.className = value;
    else if (name === "data") Object.assign(made.dataset, value);
    else if (name === "aria") for (const key in value) made.setAttribute(`aria-${key}`, value[key]);
    else made[name] = value;
  }
  made.append(...children);
  return made;
}

// write changes an element's text if it is another one: what is the same costs no layout.
export function write(element, text) {
  text = String(text);
  if (element.textContent !== text) element.textContent = text;
}

export function style(element, name) {
  if (element.className !== name) element.className = name;
}

export function show(element, visible) {
  if (element.hidden === visible) element.hidden = !visible;
}

// fill has a table's body hold a row for each of the items, in their order. A row stays with its item, so that what has
// the focus keeps it, and only what changed is written.
export function fill(body, items, key, make, update) {
  body.rowsByKey ??= new Map();
  const before = body.rowsByKey;
  const now = new Map();
  const focused = body.contains(document.activeElement) ? document.activeElement : null;
  let at = body.firstElementChild;
  for (const item of items) {
    const id = key(item);
    const row = before.get(id) ?? make(item);
    before.delete(id);
    now.set(id, row);
    update(row, item);
    if (row === at) at = at.nextElementSibling;
    else body.insertBefore(row, at);
  }
  for (const row of before.values()) row.remove();
  body.rowsByKey = now;
  if (focused && focused !== document.activeElement && focused.isConnected) focused.focus({ preventScroll: true });
}

// cells makes a row of empty cells, the first of which is its head.
export function cells(classes, rowClass) {
  return el("tr", { class: rowClass }, ...classes.map((name, i) =>
    i === 0 ? el("th", { scope: "row", class: name }) : el("td", { class: name })));
}

// bar is a track with a part of it filled, at most all.
export function bar(part = "") {
  const inner = el("i", { class: part });
  const track = el("div", { class: "bar" }, inner);
  track.inner = inner;
  return track;
}

export function extend(inner, from, to) {
  const left = `${(Math.max(0, Math.min(1, from)) * 100).toFixed(2)}%`;
  const width = `${(Math.max(0, Math.min(1, to) - from) * 100).toFixed(2)}%`;
  if (inner.style.left !== left) inner.style.left = left;
  if (inner.style.width !== width) inner.style.width = width;
}
