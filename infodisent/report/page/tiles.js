// Pictures: patches enlarged, heat maps, and the window that enlarges any of them.

const COLOURS = {
  supports: [[0, 114, 178], [186, 234, 255]], opposes: [[213, 94, 0], [255, 232, 158]],
};

const IMAGES = [...document.querySelectorAll("#list .pick img")];

// The picture of an image as the network of a run sees it.
function pictureOf(run, i) {
  const own = run.images[i].uri;
  const uri = own || IMAGES[i].getAttribute("src");
  return { uri, size: run.images[i].size, name: run.images[i].name };
}

function cellBox(cell, grid, [width, height]) {
  const row = Math.floor(cell / grid[1]), column = cell % grid[1];
  const x = Math.round((column * width) / grid[1]), y = Math.round((row * height) / grid[0]);
  return {
    x, y,
    width: Math.max(1, Math.round(((column + 1) * width) / grid[1]) - x),
    height: Math.max(1, Math.round(((row + 1) * height) / grid[0]) - y),
  };
}

function frame(box, kind) {
  return [make("rect", { class: "halo", ...box }), make("rect", { class: `box ${kind}`, ...box })];
}

function shrunk({ x, y, width, height }, by) {
  return { x: x + by, y: y + by, width: width - 2 * by, height: height - 2 * by };
}

// A picture, or of it the patch of a cell with a third of a patch around it.
function tile(picture, { cell = null, grid, kind = "supports", whole = false, label }) {
  const [width, height] = picture.size;
  let view = [0, 0, width, height], box = null;
  if (cell !== null) {
    box = cellBox(cell, grid, picture.size);
    if (!whole) {
      const w = Math.min(width, (5 / 3) * box.width), h = Math.min(height, (5 / 3) * box.height);
      const x = Math.min(Math.max(0, box.x - (w - box.width) / 2), width - w);
      const y = Math.min(Math.max(0, box.y - (h - box.height) / 2), height - h);
      view = [x, y, w, h];
    }
  }
  return make("svg", { class: "tile", viewBox: view.join(" "), role: "img", "aria-label": label },
    make("image", { href: picture.uri, width, height }), box ? frame(box, kind) : []);
}

// What no heat and full heat are. "map": the smallest and largest value of this map, as far as
// they are on the side shown; "training": nothing, and the largest value of any training image.
function heatRange(run, image, u, sign, scale) {
  const at = image.mapped.get(u);
  if (at === undefined) return null;
  const values = image.maps.subarray(at * run.cells, (at + 1) * run.cells);
  let least = Infinity, most = 0;
  for (const v of values) {
    least = Math.min(least, sign * v);
    most = Math.max(most, sign * v);
  }
  const strength = sign > 0 ? image.pos[u] : image.neg[u], top = run.top[sign > 0 ? 0 : 1][u];
  const unit = most > 0 ? strength / most : 0; // of one step of the stored map
  return scale === "training" && top > 0
    ? { values, unit, low: 0, high: top } : { values, unit, low: Math.max(0, least) * unit, high: strength };
}

// The heat map of the side of a unit that decides, transparent where it is cold, in the colour of
// what it does to the class; null where none is stored.
function heat(run, image, u, sign, kind, scale = "map") {
  const range = heatRange(run, image, u, sign, scale);
  if (range === null) return null;
  const { values, unit, low, high } = range, [rows, columns] = run.grid;
  const [dark, light] = COLOURS[kind];
  const small = make("canvas", { width: columns, height: rows });
  const pixels = new ImageData(columns, rows);
  for (let i = 0; i < values.length; i++) {
    const part = high > low ? (sign * values[i] * unit - low) / (high - low) : 0;
    const heat = Math.min(1, Math.max(0, part));
    for (let c = 0; c < 3; c++)
      pixels.data[4 * i + c] = dark[c] + (light[c] - dark[c]) * heat ** 1.5;
    pixels.data[4 * i + 3] = 255 * 0.92 * heat ** 0.75;
  }
  small.getContext("2d").putImageData(pixels, 0, 0);
  const larger = Math.max(1, Math.round(256 / Math.max(rows, columns)));
  const canvas = make("canvas", {
    class: "heatmap", width: columns * larger, height: rows * larger, "aria-hidden": "true",
  });
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(small, 0, 0, canvas.width, canvas.height);
  return canvas;
}

// A small greyed picture with its heat map and box; without a stored map only the box.
function heatTile(run, image, u, side, kind) {
  const picture = pictureOf(run, image.number), canvas = heat(run, image, u, side.sign, kind);
  const label = `Heat map of ${run.nameOf(u)} in ${image.name}`;
  const box = side.cell === null ? [] : frame(cellBox(side.cell, run.grid, picture.size), kind);
  return make("span", { class: "heattile" },
    make("img", { src: picture.uri, alt: "", class: canvas ? "grey" : "" }), canvas,
    make("svg", { viewBox: `0 0 ${picture.size.join(" ")}`, role: "img", "aria-label": label }, box));
}

// -- the window that enlarges -----------------------------------------------------------------

function openZoom(title, picture, { cell = null, grid, kind = "supports", canvas = null } = {}) {
  const dialog = document.getElementById("zoom");
  const view = tile(picture, { cell, grid, kind, whole: true, label: title });
  const frameBox = make("div", { class: "zoomed" }, view, canvas);
  const pane = make("div", { class: "zoompane", tabindex: "0" }, frameBox);
  const slider = make("input", {
    type: "range", min: "1", max: "6", step: "0.25", value: "1", "aria-label": "Enlargement",
    oninput: () => {
      frameBox.style.setProperty("--zoom", slider.value);
      if (cell !== null) {
        const box = cellBox(cell, grid, picture.size), [w, h] = picture.size;
        const x = (box.x + box.width / 2) / w, y = (box.y + box.height / 2) / h;
        pane.scrollTo(pane.scrollWidth * x - pane.clientWidth / 2,
          pane.scrollHeight * y - pane.clientHeight / 2);
      }
    },
  });
  dialog.replaceChildren(
    make("header", {}, make("h2", {}, title),
      make("label", {}, "Enlarge ", slider),
      make("button", { type: "button", class: "button", onclick: () => dialog.close() }, "Close")),
    pane);
  dialog.setAttribute("aria-label", title);
  dialog.showModal();
}

function zoomButton(content, title, open) {
  return make("button", { type: "button", class: "zoomer", title, onclick: open }, content);
}

// Prototypes of one side of a unit as tiles that enlarge.
function prototypeTiles(run, u, sign, kind, whole, most = 5) {
  const known = run.prototypes[u];
  if (!known) return make("p", { class: "none" }, "Its training images are not in this page.");
  const kept = known[sign > 0 ? 0 : 1].slice(0, most);
  if (!kept.length)
    return make("p", { class: "none" }, `No training image excites this side of the ${run.unit}.`);
  const seen = new Map(); // the same patch twice is shown once
  for (const entry of kept) {
    const key = `${entry[0]}:${entry[3]}`;
    if (!seen.has(key)) seen.set(key, { entry, times: 0 });
    seen.get(key).times++;
  }
  return make("ul", { class: "strip", "aria-label": `Prototypes of ${run.nameOf(u)}` },
    [...seen.values()].map(({ entry: [p, label, value, cell], times }) => {
      const picture = DATA.pictures[p];
      const text = picture.missing ? `${label}, ${picture.name}: ${picture.missing}`
        : `${label}, ${picture.name}; activation ${value.toFixed(2)}`;
      const options = {
        cell: picture.missing ? null : cell, grid: run.grid, kind, whole, label: text,
      };
      return make("li", {}, make("figure", {},
        zoomButton(tile(picture, options), text, () => openZoom(text, picture, options)),
        make("figcaption", {}, label, times > 1 ? ` (${times} times)` : "")));
    }));
}
