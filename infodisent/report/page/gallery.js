// What classes are made of and what units mean: their weights, prototypes, and images.

function thumb(run, i, text, unit = null) {
  const picture = pictureOf(run, i), image = run.images[i];
  const full = unit === null ? null : run.image(i), side = full && run.side(full, unit);
  const label = `Image ${i + 1}: ${image.predicted}`;
  const view = tile(picture, {
    cell: side ? side.cell : null, grid: run.grid, label,
    kind: side && side.sign < 0 ? "opposes" : "supports",
  });
  return make("li", {}, make("a", { href: `#image-${i + 1}`, title: label }, view,
    make("span", {}, `${i + 1} · `, make("bdi", {}, text)),
    image.right === false ? make("span", { class: "bad" }, `✗ is ${image.true}`) : null));
}

function thumbs(title, run, entries, unit = null) {
  if (!entries.length) return null;
  return make("section", { class: "group" }, make("h4", {}, `${title} (${entries.length})`),
    make("ul", { class: "thumbs" }, entries.map(([i, text]) => thumb(run, i, text, unit))));
}

function images(run) { return run.images.map((_, i) => i); }

// The class of a run: its heaviest units, and every image decided for it or taken from it.
function classPanel(run, k) {
  const name = run.classes[k], weights = run.weights(k);
  const units = weights
    ? [...weights.keys()].filter((u) => weights[u] !== 0)
      .sort((p, q) => Math.abs(weights[q]) - Math.abs(weights[p])) : [];
  const list = images(run), chance = (i) => percent(run.chance(run.image(i), k));
  const of = (test) => list.filter((i) => test(run.images[i])).map((i) => [i, chance(i)]);
  const said = (image) => image.labels.includes(name);
  return [
    make("h3", {}, make("bdi", {}, name)),
    weights ? make("p", { class: "short" },
      `${many(units.length, run.unit)} count for it; the heaviest are below.`)
      : make("p", { class: "short" }, `This model does not weigh ${run.unit}s class by class.`),
    make("ol", { class: "meanings" }, units.slice(0, 8).map((u) => make("li", {},
      make("p", { class: "asked" }, make("a", { href: `#unit-${run.number}-${run.used[u]}` },
        run.nameOf(u)), make("small", {}, ` weight ${plain(weights[u])}`)),
      prototypeTiles(run, u, weights[u] < 0 ? 1 : 1, weights[u] < 0 ? "opposes" : "supports",
        false, 4)))),
    thumbs("Decided for it, rightly", run, of((image) => said(image) && image.right === true)),
    thumbs("Decided for it, wrongly", run, of((image) => said(image) && image.right === false)),
    thumbs("Decided for it", run, of((image) => said(image) && image.right === null)),
    thumbs("Of this class, but decided otherwise", run,
      of((image) => image.true === name && !said(image))),
  ];
}

// A unit: training images of both sides, weights, and every image in which it is shown.
function unitPanel(run, u) {
  const decided = images(run).filter((i) => run.images[i].shown.includes(u)).map((i) => {
    const image = run.image(i);
    return [i, run.contributions(image, image.explained)[u]];
  }).sort((p, q) => Math.abs(q[1]) - Math.abs(p[1]));
  const text = (entries) => entries.map(([i, value]) => [i, signed(value)]);
  const weighted = run.linear ? run.kept.map((k) => [k, run.weights(k)[u]])
    .filter(([, w]) => w !== 0).sort((p, q) => Math.abs(q[1]) - Math.abs(p[1])).slice(0, 12) : [];
  const largest = weighted.length ? Math.abs(weighted[0][1]) : 1;
  const two = run.top[1][u] > 0;
  return [
    make("h3", {}, run.nameOf(u)),
    make("div", { class: "sides" },
      make("div", {}, make("h4", { class: "supports" }, "strongest"),
        prototypeTiles(run, u, 1, "supports", false)),
      two ? make("div", {}, make("h4", { class: "opposes" }, "strongest opposite"),
        prototypeTiles(run, u, -1, "opposes", false)) : null),
    weighted.length ? make("section", { class: "group" }, make("h4", {}, "Weights"),
      make("ol", { class: "weights" }, weighted.map(([k, w]) => make("li", {},
        make("a", { href: `#class-${run.number}-${k}` }, make("bdi", {}, run.classes[k])),
        make("span", { class: "meter" },
          make("i", { class: kindOf(w), style: { width: (100 * Math.abs(w)) / largest + "%" } })),
        make("span", { class: "num" }, plain(w)))))) : null,
    thumbs("Images where it speaks for the class", run, text(decided.filter(([, v]) => v > 0)), u),
    thumbs("Images where it speaks against it", run, text(decided.filter(([, v]) => v < 0)), u),
    decided.length ? null
      : make("p", { class: "none" }, "It is among the strongest of no image in this page."),
  ];
}

// Units by how many images they are shown in; the same first patch is one entry.
function unitIndex(run) {
  const votes = new Map();
  for (const image of run.images)
    for (const u of image.shown) votes.set(u, (votes.get(u) || 0) + 1);
  for (const u of Object.keys(run.prototypes).map(Number))
    if (!votes.has(u)) votes.set(u, 0);
  const first = new Map(), groups = new Map();
  const order = [...votes.keys()].sort((p, q) => votes.get(q) - votes.get(p) || p - q);
  for (const u of order) {
    const kept = (run.prototypes[u] || [[], []])[0][0];
    const key = kept ? `${kept[0]}:${kept[3]}` : `u${u}`;
    if (!first.has(key)) { first.set(key, u); groups.set(u, []); }
    else groups.get(first.get(key)).push(u);
  }
  return [...groups].map(([u, same]) => ({ u, same, votes: votes.get(u) }));
}

function drawUnits(run, host) {
  const entry = (u, votes) => make("a", { href: `#unit-${run.number}-${run.used[u]}` },
    run.nameOf(u), make("small", {}, votes ? ` ${many(votes, "image")}` : ""));
  host.replaceChildren(...unitIndex(run).map(({ u, same, votes }) => make("li", {}, entry(u, votes),
    same.length ? make("details", {},
      make("summary", {}, `${same.length} more on the same patch`),
      make("ul", {}, same.map((other) => make("li", {}, entry(other, 0))))) : null)));
}

function drawClasses(run, host) {
  host.replaceChildren(...run.kept.map((k) => {
    const count = run.images.filter((image) => image.labels.includes(run.classes[k])).length;
    return make("li", {}, make("a", { href: `#class-${run.number}-${k}` },
      make("bdi", {}, run.classes[k]), make("small", {}, count ? ` ${many(count, "image")}` : "")));
  }));
}

function openGallery(kind, run, at) {
  const host = document.getElementById(`${kind}-panel`);
  host.replaceChildren(...(kind === "class" ? classPanel(run, at) : unitPanel(run, at))
    .filter((part) => part !== null));
  const index = document.getElementById(`${kind}-index`);
  (kind === "class" ? drawClasses : drawUnits)(run, index);
  const hash = `#${kind}-${run.number}-${kind === "class" ? at : run.used[at]}`;
  for (const link of index.querySelectorAll("a"))
    if (link.getAttribute("href") === hash) {
      link.setAttribute("aria-current", "true");
      link.closest("details")?.setAttribute("open", "");
    }
}
