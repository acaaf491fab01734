// Which part is open, keys, and light or dark.

const TABS = ["images", "classes", "units", "model"];

function openTab(name) {
  for (const tab of TABS) {
    document.getElementById(`tab-${tab}`).setAttribute("aria-selected", tab === name);
    document.getElementById(`tab-${tab}`).tabIndex = tab === name ? 0 : -1;
    document.getElementById(tab).hidden = tab !== name;
  }
}

// Addresses: #image-3, #class-0-2 and #unit-0-117 (run, number), or a part of the page as in
// #of-classes. None is the id of an element, which the browser would scroll to by itself.
function route() {
  const [, part] = location.hash.match(/^#of-([a-z]+)$/) || [];
  const [, kind, first, second] = location.hash.match(/^#([a-z]+)-(\d+)(?:-(\d+))?$/) || [];
  const run = RUNS[second === undefined ? 0 : Number(first)] || RUNS[0];
  if (kind === "image" && Number(first) >= 1 && Number(first) <= RUNS[0].images.length) {
    openTab("images");
    choose(Number(first) - 1);
    showCurrent();
    return;
  }
  if (kind === "class" && run.row.has(Number(second))) {
    openTab("classes");
    openGallery("class", run, Number(second));
  } else if (kind === "unit" && run.place.has(Number(second))) {
    openTab("units");
    openGallery("unit", run, run.place.get(Number(second)));
  } else if (part === "classes") {
    openTab("classes");
    openGallery("class", RUNS[0], RUNS[0].images[LIST.chosen].explained);
  } else if (part === "units") {
    openTab("units");
    const index = unitIndex(RUNS[0]);
    if (index.length) openGallery("unit", RUNS[0], index[0].u);
  } else openTab(part === "model" ? "model" : "images");
  window.scrollTo(0, 0);
}

// Open an address at once: the event that tells of it may come after the next key.
function go(address) {
  location.hash = address;
  route();
}

// Scroll the list, and only the list, to the chosen image.
function showCurrent() {
  const list = document.getElementById("list"), item = list.querySelector(".current");
  if (!item) return;
  const box = list.getBoundingClientRect(), own = item.getBoundingClientRect();
  if (own.top < box.top || own.bottom > box.bottom)
    list.scrollTop += own.top - box.top - box.height / 2;
  if (own.left < box.left || own.right > box.right)
    list.scrollLeft += own.left - box.left - box.width / 2;
}

function theme(dark) {
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  field("theme").textContent = dark ? "Light" : "Dark";
}

function keys(event) {
  const typing = event.target.closest("input, select, textarea, dialog");
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.getAttribute("role") === "tab" && /^Arrow(Left|Right)$/.test(event.key)) {
    const by = event.key === "ArrowRight" ? 1 : TABS.length - 1;
    const next = TABS[(TABS.indexOf(event.target.id.slice(4)) + by) % TABS.length];
    go(`of-${next}`);
    document.getElementById(`tab-${next}`).focus();
    return;
  }
  if (typing) return;
  const moves = { ArrowLeft: -1, ArrowRight: 1, k: -1, j: 1 };
  if (event.key in moves && !document.getElementById("images").hidden) step(moves[event.key]);
  else if (event.key === "/") {
    go(`image-${LIST.chosen + 1}`);
    field("search").focus();
  } else if (event.key === "d") field("theme").click();
  else return;
  event.preventDefault();
}

function start() {
  // an address names what is open; the browser must not also scroll to a line of the list
  for (const item of LIST.items) item.removeAttribute("id");
  theme(window.matchMedia("(prefers-color-scheme: dark)").matches);
  field("theme").addEventListener("click", () =>
    theme(document.documentElement.dataset.theme !== "dark"));
  for (const tab of TABS)
    document.getElementById(`tab-${tab}`).addEventListener("click", () => {
      go(tab === "images" ? `image-${LIST.chosen + 1}` : `of-${tab}`);
    });
  startList();
  filterList();
  window.addEventListener("hashchange", route);
  document.addEventListener("keydown", keys);
  document.getElementById("zoom").addEventListener("click", (event) => {
    if (event.target.id === "zoom") event.target.close();
  });
  route();
  document.documentElement.dataset.ready = "yes";
}

start();
