// The list of images: search, filters, order, next and previous, and the cards beside it.

const LIST = {
  items: [...document.querySelectorAll("#list > .item")],
  chosen: 0, compared: null, cards: [],
};

function field(name) { return document.getElementById(name); }

function textOf(i) {
  const image = RUNS[0].images[i];
  return [image.name, image.true, image.predicted, ...image.labels].join(" ").toLowerCase();
}

function confidence(i) {
  const run = RUNS[0];
  return run.chance(run.image(i), run.images[i].explained);
}

function matches(i) {
  const run = RUNS[0], image = run.images[i], words = field("search").value.toLowerCase().trim();
  const verdict = field("verdict").value;
  if (words && !words.split(/\s+/).every((word) => textOf(i).includes(word))) return false;
  if (verdict === "unusual" && !(image.far && image.far.unusual)) return false;
  if (verdict === "abstained" && !image.abstained) return false;
  if (verdict === "right" && image.right !== true) return false;
  if (verdict === "wrong" && image.right !== false) return false;
  const predicted = field("predicted").value, true_ = field("true").value;
  if (predicted !== "" && (image.abstained || !image.labels.includes(run.classes[predicted])))
    return false;
  if (true_ !== "" && image.true !== run.classes[true_]) return false;
  const unit = field("unit").value.trim();
  if (unit !== "" && !image.shown.includes(run.place.get(Number(unit)))) return false;
  return true;
}

const ORDERS = {
  given: () => 0,
  sure: (p, q) => confidence(q) - confidence(p),
  unsure: (p, q) => confidence(p) - confidence(q),
  name: (p, q) => RUNS[0].images[p].name.localeCompare(RUNS[0].images[q].name),
  unusual: (p, q) => (RUNS[0].images[q].far?.distance ?? 0) - (RUNS[0].images[p].far?.distance ?? 0),
};

function visible() { return LIST.items.filter((item) => !item.hidden).map((i) => Number(i.dataset.i)); }

function filterList() {
  const list = document.getElementById("list");
  const order = LIST.items.map((_, i) => i);
  const places = new Map(LIST.items.map((item) => [Number(item.dataset.i), item]));
  order.sort((p, q) => ORDERS[field("order").value](p, q) || p - q);
  LIST.items = order.map((i) => places.get(i));
  for (const item of LIST.items) item.hidden = !matches(Number(item.dataset.i));
  list.append(...LIST.items);
  const shown = visible();
  field("found").textContent = shown.length === LIST.items.length
    ? many(shown.length, "image") : `${shown.length} of ${many(LIST.items.length, "image")}`;
  if (shown.length && !shown.includes(LIST.chosen)) choose(shown[0]);
  else choose(LIST.chosen);
}

function resetFilters() {
  for (const name of ["search", "verdict", "predicted", "true", "unit"]) field(name).value = "";
  field("order").value = "given";
  filterList();
}

function step(by) {
  const shown = visible(), at = shown.indexOf(LIST.chosen);
  const next = shown[Math.min(shown.length - 1, Math.max(0, at + by))];
  if (next !== undefined) go(`image-${next + 1}`);
}

function choose(i) {
  if (LIST.chosen !== i || !LIST.cards.length) {
    LIST.chosen = i;
    LIST.compared = LIST.compared && LIST.compared.image !== null
      ? null : LIST.compared; // another run stays, another image does not
    drawCards();
  }
  const shown = visible(), at = shown.indexOf(i);
  for (const item of LIST.items) {
    const current = Number(item.dataset.i) === i;
    item.classList.toggle("current", current);
    const link = item.querySelector(".pick");
    if (current) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  }
  field("place").textContent = at < 0 ? "" : `${at + 1} of ${shown.length}`;
  field("previous").disabled = at <= 0;
  field("next").disabled = at < 0 || at >= shown.length - 1;
}

function drawCards() {
  const { compared } = LIST;
  LIST.cards = [new Card(RUNS[0], LIST.chosen)];
  if (compared) {
    const image = compared.image === null ? LIST.chosen : compared.image;
    LIST.cards.push(new Card(RUNS[compared.run], image));
  }
  const pane = document.getElementById("cards");
  pane.classList.toggle("two", LIST.cards.length > 1);
  pane.replaceChildren(...LIST.cards.map((card) => card.element));
  const value = !compared ? "" : compared.image === null ? `run-${compared.run}` : compared.image;
  field("beside").value = value;
}

function compareWith(value) {
  if (value === "") LIST.compared = null;
  else if (String(value).startsWith("run-"))
    LIST.compared = { run: Number(value.slice(4)), image: null };
  else LIST.compared = { run: 0, image: Number(value) };
  drawCards();
}

function startList() {
  const run = RUNS[0], option = (value, text) => make("option", { value }, text);
  for (const name of ["predicted", "true"])
    field(name).append(...run.classes.map((text, k) => option(k, text)));
  field("true").closest("label").hidden = !run.images.some((image) => image.true !== null);
  field("beside").append(
    ...RUNS.slice(1).map((other) => option(`run-${other.number}`, `the run ${other.name}`)),
    ...run.images.map((image, i) => option(i, `image ${i + 1}: ${image.abstained ? "abstains" : image.predicted}`)));
  field("beside").addEventListener("change", () => compareWith(field("beside").value));
  for (const name of ["verdict", "predicted", "true", "order"])
    field(name).addEventListener("change", filterList);
  for (const name of ["search", "unit"]) field(name).addEventListener("input", filterList);
  field("reset").addEventListener("click", resetFilters);
  field("previous").addEventListener("click", () => step(-1));
  field("next").addEventListener("click", () => step(1));
}
