// What the page knows: numbers unpacked where they are first needed, and the sums of an image.
// A "unit" below is a position in run.used; run.used[u] is its number for people.

const DATA = JSON.parse(document.getElementById("data").textContent);

function unpack(text, type) {
  const letters = atob(text), bytes = new Uint8Array(letters.length);
  for (let i = 0; i < letters.length; i++) bytes[i] = letters.charCodeAt(i);
  return new type(bytes.buffer);
}

function unpackSteps(given, length) {
  const values = new Float64Array(length);
  if (!given || !given.max) return values;
  const steps = unpack(given.q, Uint16Array);
  for (let i = 0; i < length; i++) values[i] = (steps[i] * given.max) / 65535;
  return values;
}

class Run {
  constructor(raw, number) {
    Object.assign(this, raw);
    this.number = number;
    this.cells = this.grid[0] * this.grid[1];
    this.row = new Map(this.kept.map((k, row) => [k, row]));
    this.place = new Map(this.used.map((id, u) => [id, u]));
    this.top = this.top.map((packed) => unpack(packed, Float32Array));
    this._rows = new Map();
    this._images = new Map();
    this._sparse = null;
  }

  // Weights of one class for all units.
  weights(k) {
    const row = this.row.get(k);
    if (!this.linear || row === undefined) return null;
    if (!this._rows.has(row)) this._rows.set(row, this._weights(row));
    return this._rows.get(row);
  }

  _weights(row) {
    const n = this.used.length, packed = this.weightTable;
    if (packed.dense) {
      this._dense = this._dense || unpack(packed.dense, Float32Array);
      return this._dense.subarray(row * n, (row + 1) * n);
    }
    this._sparse = this._sparse || {
      start: unpack(packed.start, Uint32Array),
      column: unpack(packed.column, Uint32Array),
      value: unpack(packed.value, Float32Array),
    };
    const { start, column, value } = this._sparse, values = new Float32Array(n);
    for (let i = start[row]; i < start[row + 1]; i++) values[column[i]] = value[i];
    return values;
  }

  image(i) {
    if (!this._images.has(i)) this._images.set(i, this._image(i));
    return this._images.get(i);
  }

  // Numbers are unpacked when they are first asked for: a page may hold a thousand images.
  _image(i) {
    const raw = this.images[i], n = this.used.length;
    const cellType = this.cells <= 255 ? Uint8Array : Uint16Array;
    const parts = {
      counted: () => raw.counted && unpack(raw.counted, Float32Array),
      neg: () => unpackSteps(raw.neg, n),
      pos: () => (raw.pos ? unpackSteps(raw.pos, n)
        : image.neg.map((v, u) => Math.max(0, v + image.counted[u]))),
      pos_cell: () => unpack(raw.pos_cell, cellType),
      neg_cell: () => raw.neg_cell && unpack(raw.neg_cell, cellType),
      logits: () => unpack(raw.logits, Float32Array),
      chances: () => unpack(raw.chances, Float32Array),
      scores: () => unpack(raw.scores, Float64Array),
      mapped: () => new Map(Array.from(unpack(raw.mapped, Uint32Array), (u, at) => [u, at])),
      maps: () => unpack(raw.maps, Int8Array),
    };
    const image = { ...raw, number: i };
    for (const [name, find] of Object.entries(parts)) {
      Object.defineProperty(image, name, {
        configurable: true,
        get() {
          const value = find();
          Object.defineProperty(image, name, { value });
          return value;
        },
      });
    }
    return image;
  }

  // Classes whose sum an image holds, the likeliest first.
  classesOf(image) {
    const known = this.linear ? this.kept : Object.keys(image.table).map(Number);
    return [...known].sort((a, b) => image.logits[this.row.get(b)] - image.logits[this.row.get(a)]);
  }

  // What every unit adds to the score of a class.
  contributions(image, k) {
    const values = new Float64Array(this.used.length), weights = this.weights(k);
    if (weights) {
      for (let u = 0; u < values.length; u++) values[u] = weights[u] * image.counted[u];
    } else if (image.table[k]) {
      const [units, parts] = image.table[k];
      const at = unpack(units, Uint32Array), of = unpack(parts, Float32Array);
      for (let i = 0; i < at.length; i++) values[at[i]] = of[i];
    }
    return values;
  }

  scoreOf(image, k) { return image.scores[this.row.get(k)]; }
  logit(image, k) { return image.logits[this.row.get(k)]; }
  chance(image, k) { return image.chances[this.row.get(k)]; }

  // Logits of all kept classes without some units; only where a unit may be left out.
  logitsWithout(image, off) {
    return this.kept.map((k, row) => {
      const weights = this.weights(k);
      let logit = image.scores[row];
      for (const u of off) logit -= weights[u] * image.counted[u];
      return logit;
    });
  }

  chancesOf(image, logits) {
    if (this.independent) return logits.map((v) => 1 / (1 + Math.exp(-v)));
    const all = image.others === null ? logits : [...logits, image.others];
    const top = Math.max(...all), sum = all.reduce((s, v) => s + Math.exp(v - top), 0);
    return logits.map((v) => Math.exp(v - top) / sum);
  }

  // The side of a unit that decides in an image: its sign, strength and cell.
  side(image, u, forced) {
    const positive = forced ? forced > 0 : image.pos[u] >= image.neg[u];
    const cells = positive ? image.pos_cell : image.neg_cell;
    const cell = cells && cells[u] !== (this.cells <= 255 ? 255 : 65535) ? cells[u] : null;
    return { sign: positive ? 1 : -1, value: (positive ? image.pos : image.neg)[u], cell };
  }

  nameOf(u) { return `${this.unit} ${this.used[u]}`; }
}

// The sum of one class, or of one class against another, unit by unit; it is exact: rest is
// whatever of the score no listed unit, nor the offset, makes.
function account(run, image, k, against, off) {
  const parts = run.contributions(image, k);
  let score = run.scoreOf(image, k), offset = run.offsets[run.row.get(k)];
  if (against !== null) {
    const other = run.contributions(image, against);
    for (let u = 0; u < parts.length; u++) parts[u] -= other[u];
    score -= run.scoreOf(image, against);
    offset -= run.offsets[run.row.get(against)];
  }
  for (const u of off) {
    score -= parts[u];
  }
  const counts = [...parts.keys()].filter((u) => parts[u] !== 0);
  const order = counts.sort((a, b) => Math.abs(parts[b]) - Math.abs(parts[a]));
  return { parts, score, offset, order };
}

const RUNS = DATA.runs.map((raw, number) => {
  const { weights, ...others } = raw;
  return new Run({ ...others, weightTable: weights }, number);
});

const MINUS = "\u2212";
function signed(value, digits = 3) {
  const text = Math.abs(value).toFixed(digits);
  return Number(text) === 0 ? text : (value > 0 ? "+" : MINUS) + text;
}
function plain(value, digits = 3) { return value.toFixed(digits).replace("-", MINUS); }
function percent(value, digits = 1) { return (100 * value).toFixed(digits) + "%"; }
function many(count, word) {
  return `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;
}

// An element. Text is only ever set as text, so that no name can become markup.
function make(tag, attributes = {}, ...children) {
  const svg = ["svg", "image", "rect", "path", "g", "circle", "text", "title"].includes(tag);
  const element = svg && tag !== "title"
    ? document.createElementNS("http://www.w3.org/2000/svg", tag)
    : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "class") element.setAttribute("class", value);
    else if (name === "style") Object.assign(element.style, value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined)
      element.setAttribute(name, value);
  }
  element.append(...children.flat(Infinity).filter((c) => c !== null && c !== undefined && c !== false));
  return element;
}
