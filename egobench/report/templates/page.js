"use strict";
// Numbers by size, words by alphabet; a cell without a value always comes last.
function compare(a, b, sign) {
  if (a === "" || b === "") return (a === "") - (b === "");
  const x = Number(a), y = Number(b);
  return sign * (Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b) : x - y);
}
// Turns the order of a column round, marks it, and returns its sign.
function turn(heads, column) {
  const head = heads[column];
  const first = head.dataset.first || "ascending";
  const other = first === "ascending" ? "descending" : "ascending";
  const order = head.getAttribute("aria-sort") === first ? other : first;
  heads.forEach((one) => one.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", order);
  return order === "ascending" ? 1 : -1;
}

(() => {
  const table = document.getElementById("cells");
  const body = table.tBodies[0];
  const rows = Array.from(body.rows);
  const heads = Array.from(table.tHead.rows[0].cells);
  const filter = document.getElementById("filter");
  const selects = Array.from(document.querySelectorAll("select[data-column]"));
  const count = document.getElementById("count");
  const texts = new Map(rows.map((row) => [row, (row.id + " " + row.textContent).toLowerCase()]));
  const valueOf = (row, column) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();

  function sortBy(column) {
    const sign = turn(heads, column);
    const ranked = rows.slice().sort((a, b) => compare(valueOf(a, column), valueOf(b, column), sign));
    body.append(...ranked);
  }
  function applyFilters() {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      const matches = words.every((word) => texts.get(row).includes(word)) &&
        selects.every((one) => !one.value || valueOf(row, Number(one.dataset.column)) === one.value);
      row.hidden = !matches;
      shown += matches;
    }
    count.textContent = `${shown} of ${rows.length} cells`;
  }
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => sortBy(column)));
  filter.addEventListener("input", applyFilters);
  selects.forEach((one) => one.addEventListener("change", applyFilters));
  document.getElementById("reset").addEventListener("click", () => {
    filter.value = "";
    selects.forEach((one) => { one.value = ""; });
    applyFilters();
    filter.focus();
  });
  document.querySelector(".controls").hidden = false;
  applyFilters();
})();

// A variant is a row and, below it, what it lost by category: they move together.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = Array.from(table.tHead.rows[0].cells);
  const groups = Array.from(table.tBodies);
  const valueOf = (group, column) => group.rows[0].cells[column]?.dataset.value ?? "";
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const sign = turn(heads, column);
    table.append(...groups.slice().sort((a, b) => compare(valueOf(a, column), valueOf(b, column), sign)));
  }));
}
