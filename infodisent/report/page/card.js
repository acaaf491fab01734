// The card of one image: the large photograph, the classes, and why one of them.

// Steps right and down, short ways first; of equal ones those to the right, then those down.
const STEPS = Array.from({ length: 25 * 25 }, (_, i) => [(i % 25) - 12, Math.floor(i / 25) - 12])
  .sort(([a, b], [c, d]) => a * a + b * b - c * c - d * d || c - a || d - b);

class Card {
  constructor(run, number) {
    this.run = run;
    this.image = run.image(number);
    this.a = this.image.explained;
    this.b = null;
    this.off = new Set();
    this.every = false;
    this.element = make("article", {
      class: "card", "data-run": run.number, "data-image": number + 1,
      "aria-label": `Image ${number + 1}`,
    });
    this.draw();
  }

  draw() {
    this.sum = account(this.run, this.image, this.a, this.b, this.off);
    this.pinned = null;
    this.element.replaceChildren(
      this.header(),
      make("div", { class: "body" },
        make("div", { class: "subject" }, make("div", {}, this.photograph(), this.tools(),
          this.about(), this.classes())),
        make("div", { class: "evidence" }, this.question(), this.consequence(), rowsOf(this),
          allUnits(this))),
      this.path() || "", sumOf(this));
  }

  header() {
    const { run, image } = this;
    const role = this.a === image.explained && !image.abstained && image.labels.includes(run.classes[this.a])
      ? run.multilabel ? "label" : "predicted class" : "explained class";
    return make("header", {},
      make("h3", {}, make("small", {}, `Image ${image.number + 1} · ${role}` +
        (RUNS.length > 1 ? ` · ${run.name}` : "")),
      make("bdi", {}, run.classes[this.a]), " ",
      make("span", { class: "soft" }, percent(run.chance(image, this.a)))),
      this.verdict());
  }

  verdict() {
    const { image } = this;
    if (image.abstained)
      return make("p", { class: "verdict" }, "Abstains: no class is supported",
        image.true === null ? null : ` — it is ${image.true}`);
    if (image.right === false)
      return make("p", { class: "verdict wrong" }, `✗ Wrong — it is ${image.true}`);
    if (image.right) return make("p", { class: "verdict right" }, "✓ Correct");
    if (this.run.multilabel)
      return make("p", { class: "verdict" },
        `Labels of 50 % or more: ${image.labels.join(", ") || "none"}`);
    return make("p", { class: "verdict" }, `Predicted: ${image.predicted}`);
  }

  // -- the photograph ---------------------------------------------------------------------------

  photograph() {
    const { run, image } = this, picture = pictureOf(run, image.number);
    const [width, height] = picture.size;
    this.marks = make("g", { class: "marks" }, this.numbers(picture));
    this.aimed = make("g", { class: "aimed" });
    this.svg = make("svg", {
      viewBox: `0 0 ${width} ${height}`, role: "img",
      "aria-label": `${image.name} as the network sees it, with numbered boxes`,
    }, this.marks, this.aimed);
    this.stage = make("div", { class: "stage" },
      make("img", { src: picture.uri, alt: "", width, height }), this.svg);
    this.caption = make("p", { class: "legend", "aria-live": "polite" });
    this.idle();
    return [zoomButton(this.stage, "Enlarge the photograph", () => {
      const u = this.pinned ?? null, side = u === null ? null : run.side(image, u);
      openZoom(image.name, picture, {
        cell: side && side.cell, grid: run.grid, kind: kindOf(side ? this.sum.parts[u] : 1),
        canvas: side && heat(run, image, u, side.sign, kindOf(this.sum.parts[u]), SETTINGS.scale),
      });
    }), this.caption];
  }

  // Numbered boxes. Several units often point at one cell: a number stands at the free place nearest
  // to its box, and a box of the other kind is drawn inside the first.
  numbers(picture) {
    const { run, image, sum } = this, [width, height] = picture.size;
    const radius = Math.max(width, height) / 30, taken = [], found = [], first = {};
    strongest(sum).all.forEach((u, i) => {
      const side = run.side(image, u);
      if (side.cell === null) return;
      const box = cellBox(side.cell, run.grid, picture.size), kind = kindOf(sum.parts[u]);
      const inset = (first[side.cell] ??= kind) === kind ? 0 : 0.35 * radius;
      let x = Math.min(Math.max(box.x, radius), width - radius);
      let y = Math.min(Math.max(box.y, radius), height - radius);
      for (const [right, down] of STEPS) {
        const a = x + 2 * radius * right, b = y + 2 * radius * down;
        if (a < radius || a > width - radius || b < radius || b > height - radius) continue;
        const near = ([c, d]) => Math.max(Math.abs(a - c), Math.abs(b - d)) < 1.95 * radius;
        if (taken.some(near)) continue;
        [x, y] = [a, b];
        break;
      }
      taken.push([x, y]);
      found.push(...frame(shrunk(box, inset), kind), make("g", { class: `mark ${kind}` },
        make("circle", { cx: x, cy: y, r: radius }),
        make("text", { x, y, "font-size": radius * 1.3 }, String(i + 1))));
    });
    // boxes first, so that no number is under one
    return found.sort((p, q) => (p.tagName === "g") - (q.tagName === "g"));
  }

  // Handlers of a row: while it is under the pointer or in focus its heat map is on the photograph.
  showing(u) {
    return {
      onmouseenter: () => this.aim(u),
      onmouseleave: () => (this.pinned === null ? this.idle() : this.aim(this.pinned)),
      onfocusin: () => { this.pinned = u; this.aim(u); },
    };
  }

  aim(u) {
    const { run, image } = this, side = run.side(image, u), kind = kindOf(this.sum.parts[u]);
    const canvas = heat(run, image, u, side.sign, kind, SETTINGS.scale);
    this.stage.querySelector("canvas")?.remove();
    if (canvas) {
      canvas.style.opacity = SETTINGS.opacity;
      this.svg.before(canvas);
    }
    this.stage.classList.toggle("hot", Boolean(canvas));
    this.stage.dataset.unit = run.used[u];
    const box = side.cell === null ? [] : frame(cellBox(side.cell, run.grid, image.size), kind);
    this.aimed.replaceChildren(...box);
    const range = canvas && heatRange(run, image, u, side.sign, SETTINGS.scale);
    this.caption.replaceChildren(make("b", {}, run.nameOf(u)),
      ...(canvas ? [` ${plain(range.low, 2)} `, make("i", { class: `ramp ${kind}` }),
        ` ${plain(range.high, 2)}`] : [" (no heat map is stored)"]));
    this.current = u;
  }

  idle() {
    this.stage.querySelector("canvas")?.remove();
    this.stage.classList.remove("hot");
    delete this.stage.dataset.unit;
    this.aimed.replaceChildren();
    this.current = null;
    this.caption.textContent = "Point at a row to see its heat map here; click to enlarge.";
  }

  tools() {
    const opacity = make("input", {
      type: "range", min: "0", max: "1", step: "0.05", value: SETTINGS.opacity,
      class: "opacity", "aria-label": "Opacity of the heat map",
      oninput: () => {
        SETTINGS.opacity = Number(opacity.value);
        const canvas = this.stage.querySelector("canvas");
        if (canvas) canvas.style.opacity = SETTINGS.opacity;
      },
    });
    const options = [["map", "its largest value here"], ["training", "training maximum"]];
    const scale = make("select", {
      class: "scale", "aria-label": "What full heat is",
      onchange: () => {
        SETTINGS.scale = scale.value;
        if (this.current !== null) this.aim(this.current);
      },
    }, options.map(([value, text]) =>
      make("option", { value, selected: value === SETTINGS.scale }, text)));
    const whole = make("input", {
      type: "checkbox", class: "whole", checked: SETTINGS.whole,
      onchange: () => { SETTINGS.whole = whole.checked; this.draw(); },
    });
    return make("div", { class: "tools" },
      make("label", {}, "Heat ", opacity), make("label", {}, "full heat: ", scale),
      make("label", {}, whole, " whole training images"));
  }

  about() {
    const { image, run } = this, far = image.far;
    const top = strongest(this.sum).all;
    const beyond = top.filter((u) => {
      const side = run.side(image, u), limit = run.top[side.sign > 0 ? 0 : 1][u];
      return limit > 0 && side.value > 1.005 * limit;
    }).length;
    const words = [];
    if (far && far.unusual) {
      const whose = far.rarity === 0 ? "any training image"
        : `${percent(1 - far.rarity)} of the training images`;
      words.push(`its ${run.unit}s lie further from their usual values than those of ${whose} ` +
        `(${plain(far.distance, 1)} against ${plain(far.typical, 1)})`);
      if (far.energy < 0.01) words.push("no class gets a score as large as for nearly all of them");
    }
    if (beyond && (!far || far.unusual))
      words.push(`${beyond} of the ${top.length} shown are stronger than in any training image`);
    const hint = words.length ? make("p", { class: "warning", role: "note" },
      make("b", {}, "Unlike the training images: "),
      `${words.join("; ")}. The model may not know what this shows, however sure it seems.`) : null;
    const usual = far && !far.unusual ? make("p", { class: "short" },
      `Like the training images: ${percent(far.rarity, 0)} of them lie further out.`) : null;
    return [make("p", { class: "file" }, make("bdi", {}, image.name)),
      image.notes.map((note) => make("p", { class: "file" }, note)), hint, usual];
  }

  // -- classes ----------------------------------------------------------------------------------

  classes() {
    const { run, image, off } = this;
    const logits = off.size ? run.logitsWithout(image, off) : null;
    const chances = logits && run.chancesOf(image, logits);
    const order = run.kept.map((_, row) => row)
      .sort((p, q) => image.logits[q] - image.logits[p]).slice(0, 6);
    const true_ = run.classes.indexOf(image.true), rowOfTrue = run.row.get(true_);
    if (rowOfTrue !== undefined && !order.includes(rowOfTrue)) order.push(rowOfTrue);
    const sums = new Set(run.classesOf(image));
    return make("ol", { class: "chances", "aria-label": "Most probable classes" },
      order.map((row) => {
        const k = run.kept[row], now = chances ? chances[row] : image.chances[row];
        const logit = logits ? logits[row] : image.logits[row];
        return make("li", { class: k === this.a ? "asked" : "", "data-class": k },
          make("i", { style: { width: 100 * now + "%" } }),
          make("button", {
            type: "button", disabled: !sums.has(k), title: `Explain ${run.classes[k]}`,
            onclick: () => this.ask(k, this.b === k ? null : this.b),
          }, make("bdi", {}, run.classes[k]), image.true === run.classes[k] ? " (true)" : ""),
          make("span", { class: "num" }, make("small", {}, plain(logit, 2)), " ",
            chances ? make("s", {}, percent(image.chances[row])) : "", " ", percent(now)));
      }));
  }

  ask(a, b) {
    this.a = a;
    this.b = a === b ? null : b;
    this.draw();
  }

  question() {
    const { run, image } = this, known = run.classesOf(image);
    const options = (chosen, skip) => known.filter((k) => k !== skip).map((k) =>
      make("option", { value: k, selected: k === chosen }, run.classes[k]));
    const why = make("select", {
      class: "why-class", "aria-label": "Class to explain",
      onchange: () => this.ask(Number(why.value), this.b),
    }, options(this.a, null));
    const not = make("select", {
      class: "not-class", "aria-label": "Class to contrast it with",
      onchange: () => this.ask(this.a, not.value === "" ? null : Number(not.value)),
    }, make("option", { value: "" }, "any other"), options(this.b, this.a));
    return make("p", { class: "question" }, "Why ", why, known.length > 1 ? " and not " : "",
      known.length > 1 ? not : "", "?",
      this.b === null ? null : make("small", {},
        `${run.score} ${plain(run.scoreOf(image, this.a), 3)} ${MINUS} ` +
        `${plain(run.scoreOf(image, this.b), 3)}`));
  }

  // -- switching units off ----------------------------------------------------------------------

  toggle(u, off) {
    if (off) this.off.add(u);
    else this.off.delete(u);
    this.draw();
    this.element.querySelector(`input[data-unit="${this.run.used[u]}"]`)?.focus();
  }

  consequence() {
    const { run, image, off } = this;
    if (!off.size) return null;
    const logits = run.logitsWithout(image, off);
    const best = run.kept[logits.indexOf(Math.max(...logits))];
    const before = run.scoreOf(image, this.a), after = logits[run.row.get(this.a)];
    const still = run.classes[best] === image.predicted;
    return make("div", { class: "consequence", role: "status" },
      make("p", {}, make("b", {}, `Without ${many(off.size, run.unit)}: `),
        `the ${run.score} of ${run.classes[this.a]} goes from ${plain(before)} to ${plain(after)}; ` +
        (run.multilabel ? "" : still ? `still ${image.predicted}.`
          : `the prediction becomes ${run.classes[best]}.`)),
      make("button", {
        type: "button", class: "button", onclick: () => { off.clear(); this.draw(); },
      }, "Count all again"));
  }

  // -- the path of a tree -----------------------------------------------------------------------

  path() {
    const { run, image } = this;
    if (!image.path) return null;
    return make("div", { class: "path" }, make("h4", {}, image.path.title),
      make("p", { class: "short" }, "Of ", make("bdi", {}, run.classes[image.explained]),
        `. Left: where in this image. Right: the training image where the ${run.unit} is strongest.`),
      make("ol", {}, image.path.steps.map((step, i) => {
        const u = step.unit, side = u === null ? null : run.side(image, u, step.side);
        const title = `Heat map of ${run.unit} ${step.id} in ${image.name}`;
        const picture = pictureOf(run, image.number);
        return make("li", { class: step.kind },
          make("p", { class: "asked" }, `${i + 1}. ${run.unit} ${step.id}`),
          side ? make("div", { class: "pair" },
            zoomButton(heatTile(run, image, u, side, step.kind), title, () =>
              openZoom(title, picture, {
                cell: side.cell, grid: run.grid, kind: step.kind,
                canvas: heat(run, image, u, side.sign, step.kind),
              })),
            prototypeTiles(run, u, side.sign, step.kind, SETTINGS.whole, 1)) : null,
          make("p", { class: "answer" }, step.answer), make("p", { class: "change" }, step.change),
          make("p", { class: "soft" }, `${step.likeliest} ${percent(step.chance, 0)}` +
            (step.way < 0.995 ? `, gone with ${percent(step.way, 0)}` : "")));
      })));
  }
}
