// Sorts and filters tables, shows the values of figures, filters their series and makes PNGs of them.
// Without it the page has the same content.
"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const first = head.dataset.first || "ascending";
      const other = first === "ascending" ? "descending" : "ascending";
      const order = head.getAttribute("aria-sort") === first ? other : first;
      heads.forEach((each) => each.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", order);
      sort(table.tBodies[0], column, head.classList.contains("n"), order === "ascending" ? 1 : -1);
    });
  });
}

// Rows without a number stand last in both directions. Equal rows keep their order.
function sort(body, column, numeric, sign) {
  const keyed = [...body.rows].map((row) => ({ row, key: key(row.cells[column], numeric) }));
  keyed.sort((a, b) => {
    if (a.key === null || b.key === null) return (a.key === null) - (b.key === null);
    return sign * (numeric ? (a.key > b.key) - (a.key < b.key) : a.key.localeCompare(b.key));
  });
  body.append(...keyed.map(({ row }) => row));
}

function key(cell, numeric) {
  if (!cell || cell.colSpan > 1) return null;
  if (!numeric) return cell.textContent.trim();
  const value = Number.parseFloat(cell.dataset.value);
  return Number.isNaN(value) ? null : value;
}

// Buttons above a table of several families: with some pressed, only their rows are visible.
for (const table of document.querySelectorAll("table.sortable")) {
  const rows = [...table.tBodies[0].rows];
  const families = [...new Set(rows.map((row) => row.dataset.family).filter(Boolean))].sort();
  if (families.length < 2) continue;
  const list = document.createElement("div");
  list.className = "legend filter";
  list.setAttribute("role", "group");
  list.setAttribute("aria-label", "Families to show");
  const buttons = families.map((family) => {
    const button = document.createElement("button");
    const count = rows.filter((row) => row.dataset.family === family).length;
    button.type = "button";
    button.dataset.family = family;
    button.textContent = `${family} (${count})`;
    return button;
  });
  list.append(...buttons);
  table.parentElement.before(list);
  pressable(list, buttons, (pressed) => {
    const shown = new Set(pressed.map((button) => button.dataset.family));
    for (const row of rows) row.hidden = shown.size > 0 && !shown.has(row.dataset.family);
  });
}

// Makes toggles of the buttons in a list, and calls `change` with those that are pressed.
function pressable(list, buttons, change) {
  const isPressed = (button) => button.getAttribute("aria-pressed") === "true";
  for (const button of buttons) {
    button.setAttribute("aria-pressed", "false");
    button.addEventListener("click", () => {
      button.setAttribute("aria-pressed", String(!isPressed(button)));
      const pressed = buttons.filter(isPressed);
      list.classList.toggle("filtered", pressed.length > 0);
      change(pressed);
    });
  }
}

for (const figure of document.querySelectorAll("figure")) {
  const svg = figure.querySelector(".plot > svg");
  const hidden = new Set();
  showValues(figure, svg, hidden);
  filterSeries(figure, svg, hidden);
  const png = figure.querySelector("button.png");
  png.hidden = false;
  png.addEventListener("click", () => savePng(svg, png.dataset.file));
}

// Lines of data-points: "= SERIES TITLE" before the points of a title, "X Y TEXT" for each point.
function readPoints(svg) {
  const points = [];
  let series = "", title = "";
  for (const line of svg.dataset.points.split("\n")) {
    const [first, second, ...rest] = line.split(" ");
    const text = rest.join(" ");
    if (first === "=") [series, title] = [second, text];
    else if (second) points.push({ series, x: +first, y: +second, text: `${title}: ${text}` });
  }
  return points;
}

// The value nearest to the pointer, or the next one with the arrow keys.
function showValues(figure, svg, hidden) {
  const points = readPoints(svg);
  if (!points.length) return;
  const plot = svg.parentElement;
  const tip = document.createElement("div");
  const dot = document.createElementNS(svg.namespaceURI, "circle");
  tip.className = "tip";
  tip.setAttribute("role", "status");
  tip.hidden = true;
  figure.append(tip);
  for (const [name, value] of Object.entries({ class: "dot", r: 5, fill: "none", stroke: "#000", "stroke-width": 1.5 })) {
    dot.setAttribute(name, value);
  }
  // One stop for the Tab key: the arrow keys show values, and each one is scrolled into view.
  plot.removeAttribute("tabindex");
  svg.setAttribute("tabindex", "0");
  let current = null;

  const shown = () => points.filter((point) => !hidden.has(point.series));
  function show(point) {
    current = point;
    tip.hidden = !point;
    if (!point) return dot.remove();
    dot.setAttribute("cx", point.x);
    dot.setAttribute("cy", point.y);
    svg.append(dot);
    tip.textContent = point.text;
    const box = figure.getBoundingClientRect();
    const at = dot.getBoundingClientRect();
    const left = Math.min(at.right + 6, box.right - tip.offsetWidth);
    tip.style.left = `${Math.max(left, box.left) - box.left}px`;
    tip.style.top = `${Math.max(at.top - tip.offsetHeight - 6, box.top) - box.top}px`;
  }
  function nearest(event) {
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    let best = null, least = 50;
    for (const point of shown()) {
      const distance = Math.hypot(point.x - at.x, point.y - at.y);
      if (distance < least) [best, least] = [point, distance];
    }
    return best;
  }
  for (const kind of ["pointermove", "pointerdown"]) svg.addEventListener(kind, (event) => show(nearest(event)));
  svg.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && show(null));
  svg.addEventListener("blur", () => show(null));
  svg.addEventListener("focus", () => svg.matches(":focus-visible") && show(shown()[0] ?? null));
  svg.addEventListener("keydown", (event) => {
    const all = shown();
    const place = all.indexOf(current);
    const next = { ArrowRight: place + 1, ArrowLeft: place - 1, Home: 0, End: all.length - 1 }[event.key];
    if (event.key === "Escape") show(null);
    if (next === undefined || !all.length) return;
    event.preventDefault();
    show(all[(next + all.length) % all.length]);
    dot.scrollIntoView({ block: "nearest", inline: "nearest" });
    show(current);
  });
  plot.addEventListener("scroll", () => current && !svg.matches(":focus") && show(null));
}

// With entries pressed, only their series are visible; with none, all are.
function filterSeries(figure, svg, hidden) {
  const list = figure.querySelector(".legend");
  if (!list) return;
  const buttons = [...list.querySelectorAll("span[data-s]")].map((entry) => {
    const button = document.createElement("button");
    button.type = "button";
    button.dataset.s = entry.dataset.s;
    button.append(...entry.childNodes);
    entry.replaceWith(button);
    return button;
  });
  pressable(list, buttons, (pressed) => {
    hidden.clear();
    for (const each of buttons) if (pressed.length && !pressed.includes(each)) hidden.add(each.dataset.s);
    for (const drawn of svg.querySelectorAll("[data-s]")) {
      if (hidden.has(drawn.dataset.s)) drawn.setAttribute("visibility", "hidden");
      else drawn.removeAttribute("visibility");
    }
  });
}

// The whole figure, with the legend that the page cuts off, as an image of two pixels per point.
async function savePng(svg, file) {
  const copy = svg.cloneNode(true);
  copy.querySelector(".dot")?.remove();
  const [, , width, height] = svg.dataset.full.split(" ").map(Number);
  copy.setAttribute("viewBox", svg.dataset.full);
  copy.setAttribute("width", 2 * width);
  copy.setAttribute("height", 2 * height);
  const image = new Image();
  image.src = "data:image/svg+xml," + encodeURIComponent(new XMLSerializer().serializeToString(copy));
  await image.decode();
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [2 * width, 2 * height];
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  const link = document.createElement("a");
  link.download = file;
  link.href = canvas.toDataURL("image/png");
  link.click();
}

// Folded parts are printed. Afterwards they are folded again.
let opened = [];
addEventListener("beforeprint", () => {
  opened = [...document.querySelectorAll("details:not([open])")];
  opened.forEach((each) => (each.open = true));
});
addEventListener("afterprint", () => opened.forEach((each) => (each.open = false)));
