// Rates out of counts: what there is more of than at the answer before.

// A Meter remembers one count by name, and when it was told it.
export class Meter {
  #counts = new Map();

  // rate is how much a count grew each second since it was last told; NaN at first, and when levee began anew.
  rate(name, count, now) {
    const before = this.#counts.get(name);
    if (before && now - before.now < 0.25) return before.rate; // two answers so close together tell nothing
    const grew = before ? count - before.count : NaN;
    const rate = grew >= 0 ? grew / (now - before.now) : NaN;
    this.#counts.set(name, { count, now, rate });
    return rate;
  }

  // keep forgets all counts but those told at this time.
  keep(now) {
    for (const [name, told] of this.#counts) if (now - told.now > 10) this.#counts.delete(name);
  }

  clear() {
    this.#counts.clear();
  }
}

const span = 600; // seconds of history
const grain = 5; // seconds between two things remembered

// A Past is counts by name, as they were over the last ten minutes.
export class Past {
  #told = []; // {now, counts}, the oldest first

  tell(counts, now) {
    const last = this.#told.at(-1);
    if (!last || now - last.now >= grain) this.#told.push({ now, counts });
    while (this.#told.length > 1 && now - this.#told[1].now > span) this.#told.shift();
  }

  // lately is how much of each there was since the oldest that is remembered.
  lately(counts) {
    const first = this.#told[0]?.counts ?? {};
    return Object.fromEntries(Object.entries(counts).map(([name, n]) => [name, Math.max(0, n - (first[name] ?? 0))]));
  }

  since(now) {
    return this.#told.length ? now - this.#told[0].now : 0;
  }

  clear() {
    this.#told = [];
  }
}
