// The units of an image: rows with patches, the list of all, and the bar of the sum.

const SETTINGS = { whole: false, scale: "map", opacity: 0.85 };

// Units shown in full: the strongest for, then against.
function strongest(sum, most = 6, mostAgainst = 3) {
  // what is nothing beside the largest is in the list of all only
  const least = sum.order.length ? 1e-3 * Math.abs(sum.parts[sum.order[0]]) : 0;
  const counts = sum.order.filter((u) => Math.abs(sum.parts[u]) > least);
  const supports = counts.filter((u) => sum.parts[u] > 0).slice(0, most);
  const opposes = counts.filter((u) => sum.parts[u] < 0).slice(0, mostAgainst);
  return { supports, opposes, all: [...supports, ...opposes] };
}

function kindOf(value) { return value >= 0 ? "supports" : "opposes"; }

// "0.041 × (12.30 − 1.02)" or what else is known of where a number comes from.
function whence(card, u) {
  const { run, image, a, b } = card;
  const two = image.neg[u] > 0;
  const value = two ? `(${plain(image.pos[u])} ${MINUS} ${plain(image.neg[u])})` : plain(image.pos[u]);
  const weights = run.weights(a);
  if (!weights) return `its value here: ${value}`;
  if (b === null) return `${plain(weights[u])} × ${value}`;
  return `(${plain(weights[u])} ${MINUS} ${plain(run.weights(b)[u])}) × ${value}`;
}

// How strong it is beside the training image where it is strongest.
function beside(run, image, u) {
  const side = run.side(image, u), top = run.top[side.sign > 0 ? 0 : 1][u];
  if (!(top > 0)) return null;
  const part = side.value / top;
  const text = `${percent(part, 0)} of training maximum`;
  const title = `The strongest training image has ${plain(top)}`;
  return make("p", { class: part > 1.005 ? "why beyond" : "why", title }, text);
}

function offSwitch(card, u) {
  const { run } = card;
  if (!run.removable) return null;
  const box = make("input", {
    type: "checkbox", checked: !card.off.has(u), "data-unit": run.used[u],
    onchange: () => card.toggle(u, !box.checked),
  });
  return make("label", { class: "counts", title: `See the ${run.score}s without it` },
    box, "count it");
}

function fullRow(card, u, number, folded) {
  const { run, image, sum } = card, value = sum.parts[u], kind = kindOf(value);
  const side = run.side(image, u), picture = pictureOf(run, image.number);
  const largest = Math.abs(sum.parts[sum.order[0]]);
  const cell = { cell: side.cell, grid: run.grid, kind };
  const here = `Patch of ${image.name} that ${run.nameOf(u)} points at`;
  const heatName = `Heat map of ${run.nameOf(u)} in ${image.name}`;
  const enlarge = (title) => () =>
    openZoom(title, picture, { ...cell, canvas: heat(run, image, u, side.sign, kind, SETTINGS.scale) });
  return make("li", {
    class: `row ${kind}${card.off.has(u) ? " off" : ""}`, "data-unit": run.used[u], tabindex: "0",
    "aria-label": `${run.nameOf(u)}, ${signed(value)}`, ...card.showing(u),
  },
    make("div", { class: "numbers" },
      make("p", { class: "value" }, make("span", { class: "n" }, String(number)),
        make("data", { value }, signed(value))),
      make("div", { class: "meter" },
        make("i", { style: { width: (100 * Math.abs(value)) / largest + "%" } })),
      make("p", { class: "why" }, make("a", { href: `#unit-${run.number}-${run.used[u]}` },
        run.nameOf(u))),
      make("p", { class: "why", title: "weight × value here" }, whence(card, u)),
      beside(run, image, u), offSwitch(card, u)),
    make("div", { class: "here" },
      zoomButton(heatTile(run, image, u, side, kind), heatName, enlarge(heatName)),
      side.cell === null ? null
        : zoomButton(tile(picture, { ...cell, label: here }), here, enlarge(here))),
    folded !== undefined
      ? make("details", { class: "folded" },
        make("summary", {}, `the same patches as ${run.nameOf(folded)}`),
        prototypeTiles(run, u, side.sign, kind, SETTINGS.whole))
      : prototypeTiles(run, u, side.sign, kind, SETTINGS.whole));
}

// Units whose first prototype is the same patch as an earlier one's: unit to that earlier unit.
function duplicates(run, image, units) {
  const first = new Map(), found = new Map();
  for (const u of units) {
    const kept = (run.prototypes[u] || [[], []])[run.side(image, u).sign > 0 ? 0 : 1][0];
    if (!kept) continue;
    const key = `${kept[0]}:${kept[3]}`;
    if (first.has(key)) found.set(u, first.get(key));
    else first.set(key, u);
  }
  return found;
}

function rowsOf(card) {
  const { run, sum } = card, shown = strongest(sum);
  const folded = duplicates(run, card.image, shown.all);
  const name = run.classes[card.a], other = card.b === null ? null : run.classes[card.b];
  let number = 0;
  const section = (kind, units) => {
    if (!units.length) return [];
    const words = other === null
      ? `${kind === "supports" ? "Supports" : "Opposes"} ${name}`
      : `Speaks for ${kind === "supports" ? name : other} rather than ` +
        `${kind === "supports" ? other : name}`;
    return [make("h4", { class: kind }, make("span", {}, words),
      make("small", {}, `here · training images where the ${run.unit} is strongest`)),
    make("ol", { class: "rows" }, units.map((u) => fullRow(card, u, ++number, folded.get(u))))];
  };
  if (!shown.all.length)
    return [make("p", { class: "none" }, `No ${run.unit} contributes to this class.`)];
  return [...section("supports", shown.supports), ...section("opposes", shown.opposes)];
}

// The list of all units that add anything, a line each, some at a time.
function allUnits(card) {
  const { run, image, sum } = card, step = 200;
  if (!sum.order.length) return null;
  const body = make("tbody");
  let done = 0;
  const line = (u, i) => {
    const side = run.side(image, u), value = sum.parts[u];
    const where = side.cell === null ? "–"
      : `${Math.floor(side.cell / run.grid[1]) + 1}, ${(side.cell % run.grid[1]) + 1}`;
    return make("tr", {
      class: `${kindOf(value)}${card.off.has(u) ? " off" : ""}`, "data-unit": run.used[u],
      ...card.showing(u),
    },
      make("td", { class: "num" }, String(i + 1)),
      make("th", { scope: "row" },
        make("a", { href: `#unit-${run.number}-${run.used[u]}` }, run.nameOf(u))),
      make("td", { class: "num value" }, make("data", { value }, signed(value, 4))),
      make("td", { class: "num" }, whence(card, u)),
      make("td", {}, where), make("td", {}, offSwitch(card, u)));
  };
  const more = make("button", {
    type: "button", class: "button", hidden: true, onclick: () => grow(),
  });
  const grow = () => {
    const next = sum.order.slice(done, done + step);
    body.append(...next.map((u, i) => line(u, done + i)));
    done += next.length;
    more.hidden = done >= sum.order.length;
    more.textContent = `Show ${Math.min(step, sum.order.length - done)} more`;
  };
  const table = make("table", { class: "all" },
    make("thead", {}, make("tr", {},
      ["", run.unit, "adds", "from", "row, column", ""].map((text, i) =>
        make("th", { scope: "col", class: i === 2 || i === 3 ? "num" : "" }, text)))),
    body);
  const details = make("details", {
    class: "every", open: card.every,
    ontoggle: () => {
      card.every = details.open;
      if (details.open && !done) grow();
    },
  },
    make("summary", {}, `All ${many(sum.order.length, run.unit)} with a part in it`),
    make("div", { class: "scroll", tabindex: "0" }, table), more);
  return details;
}

// -- the sum ----------------------------------------------------------------------------------

function addends(card) {
  const { run, sum } = card, shown = strongest(sum).all;
  const terms = shown.map((u, i) => ({
    label: String(i + 1), name: run.nameOf(u), kind: kindOf(sum.parts[u]),
    value: card.off.has(u) ? 0 : sum.parts[u],
  }));
  const listed = terms.reduce((total, term) => total + term.value, 0);
  const count = run.count - shown.length;
  const rest = `rest of ${many(count, run.unit)}`;
  const offset = card.b === null ? run.offset : `difference of ${run.offset}`;
  return [...terms,
    { label: rest, name: rest, kind: "rest", value: sum.score - sum.offset - listed },
    { label: offset, name: offset, kind: "bias", value: sum.offset }];
}

function sumOf(card) {
  const { run, sum } = card, terms = addends(card);
  const title = card.b === null ? run.score : `difference of ${run.score}s`;
  const pieces = [], ends = [0, sum.score];
  let end = 0;
  [1, -1].forEach((sign, lane) => {
    for (const term of terms) {
      if (term.value * sign <= 0) continue;
      pieces.push({ term, lane, from: Math.min(end, end + term.value) });
      end += term.value;
      ends.push(end);
    }
  });
  const low = Math.min(...ends), span = Math.max(...ends) - low || 1;
  const at = (value) => (100 * (value - low)) / span + "%";
  const bar = make("div", {
    class: "bar", role: "img",
    "aria-label": terms.map((t) => `${signed(t.value, 4)} (${t.name})`).join(" ") +
      ` = ${signed(sum.score, 4)}`,
  },
    pieces.map(({ term, lane, from }) => {
      const width = (100 * Math.abs(term.value)) / span;
      return make("span", {
        class: `piece l${lane} ${term.kind}`, title: `${term.name}: ${signed(term.value, 4)}`,
        style: { left: at(from), width: width + "%" },
      }, width > (term.label.length > 2 ? 12 : 2.2) ? term.label.split(" of ")[0] : "");
    }),
    make("span", { class: "tick", style: { left: at(0) } }),
    make("span", { class: "tick end", style: { left: at(sum.score) } }));
  return make("div", { class: "sum" }, make("h4", {}, "The sum"), bar,
    make("p", { class: "equation" }, terms.map((term) =>
      make("span", { class: `term ${term.kind}`, title: term.name },
        /^\d+$/.test(term.label) ? make("span", { class: `n ${term.kind}` }, term.label) : term.label,
        " ", make("data", { value: term.value }, signed(term.value, 4)))),
      make("span", { class: "term total" }, `= ${title} `,
        make("data", { value: sum.score }, signed(sum.score, 4)))));
}
