// Numbers as people read them. Sizes are decimal: kB is 1000 bytes.

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

export const none = "–";

export function count(n) {
  return Number.isFinite(n) ? whole.format(n) : none;
}

// rate is a count a second: two digits that matter below ten.
export function rate(n) {
  if (!Number.isFinite(n)) return none;
  if (n === 0) return "0";
  if (n < 0.01) return "<0.01";
  if (n < 1) return n.toFixed(2);
  if (n < 10) return n.toFixed(1);
  return n < 100_000 ? whole.format(n) : scaled(n, ["", "k", "M", "G"]);
}

export function bytes(n) {
  return Number.isFinite(n) ? scaled(n, ["B", "kB", "MB", "GB", "TB", "PB"]) : none;
}

// tick is a number at an axis, which is a round one.
export function tick(n) {
  return scaled(n, ["", "k", "M", "G", "T"]).replace(/\.0+(?= |$)/, "").replace(/(\.\d)0(?= |$)/, "$1").replace(" ", "");
}

function scaled(n, units) {
  let i = 0;
  while (n >= 999.5 && i < units.length - 1) {
    n /= 1000;
    i++;
  }
  const digits = i === 0 || n >= 99.95 ? 0 : n >= 9.995 ? 1 : 2;
  return `${n.toFixed(digits)} ${units[i]}`.trim();
}

// took is a span in seconds, from microseconds to days.
export function took(s) {
  if (!Number.isFinite(s) || s < 0) return none;
  if (s === 0) return "0";
  if (s < 1e-3) return `${Math.max(1, Math.round(s * 1e6))} µs`;
  if (s < 9.995e-3) return `${(s * 1e3).toFixed(2)} ms`;
  if (s < 0.0995) return `${(s * 1e3).toFixed(1)} ms`;
  if (s < 0.9995) return `${(s * 1e3).toFixed(0)} ms`;
  if (s < 9.995) return `${s.toFixed(2)} s`;
  return spent(s);
}

// spent is a span for which seconds are enough.
export function spent(s) {
  if (!Number.isFinite(s) || s < 0) return none;
  s = Math.floor(s);
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

export function since(time, now = Date.now()) {
  return Math.max(0, (now - Date.parse(time)) / 1000);
}

export function percent(share) {
  const p = share * 100;
  return `${p > 0 && p < 1 ? "<1" : Math.round(p)} %`;
}

const clockFormat = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });

export function clock(time) {
  return clockFormat.format(time);
}

export function sum(counts) {
  let n = 0;
  for (const key in counts) n += counts[key];
  return n;
}
