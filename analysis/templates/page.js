// Sorts tables and offers figures for download. Without it the page says the same.
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

// What has no number stands last in both directions; equal rows stay in their order.
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

// The picture is in the page once: its link is made of it.
for (const link of document.querySelectorAll("a.png")) {
  link.href = link.closest("figure").querySelector("img").src;
  link.hidden = false;
}

// What is folded away on a screen is printed; afterwards it is as it was.
let opened = [];
addEventListener("beforeprint", () => {
  opened = [...document.querySelectorAll("details:not([open])")];
  opened.forEach((each) => (each.open = true));
});
addEventListener("afterprint", () => opened.forEach((each) => (each.open = false)));
