"use strict";
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

  // Numbers by size, words by alphabet; a cell without a value always comes last.
  function compare(a, b, sign) {
    if (a === "" || b === "") return (a === "") - (b === "");
    const x = Number(a), y = Number(b);
    return sign * (Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b) : x - y);
  }
  function sortBy(column) {
    const head = heads[column];
    const first = head.dataset.first || "ascending";
    const other = first === "ascending" ? "descending" : "ascending";
    const order = head.getAttribute("aria-sort") === first ? other : first;
    heads.forEach((one) => one.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", order);
    const sign = order === "ascending" ? 1 : -1;
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

(() => {
  const specs = JSON.parse(document.getElementById("chart-specs").textContent);
  const font = getComputedStyle(document.body).fontFamily;
  const plain = { labelColor: "var(--soft)", titleColor: "var(--soft)", titleFontWeight: 500, labelFontSize: 11.5, titleFontSize: 12 };
  const config = {
    font, background: "transparent", view: { stroke: null },
    axis: { ...plain, gridColor: "var(--line)", domainColor: "var(--muted)", tickColor: "var(--muted)", titlePadding: 10 },
    legend: { ...plain, orient: "top", symbolStrokeWidth: 2, offset: 12 },
  };
  const tip = document.createElement("div");
  tip.id = "vg-tooltip";
  tip.hidden = true;
  document.body.append(tip);
  function showTip(_handler, event, _item, value) {
    tip.hidden = value === null || value === undefined || value === "";
    if (tip.hidden) return;
    tip.textContent = typeof value === "object" ? Object.entries(value).map(([k, v]) => `${k}: ${v}`).join("\n") : String(value);
    tip.style.left = `${Math.min(event.clientX + 12, window.innerWidth - tip.offsetWidth - 8)}px`;
    tip.style.top = `${Math.min(event.clientY + 12, window.innerHeight - tip.offsetHeight - 8)}px`;
  }
  // Nothing is ever loaded: the loader refuses.
  const loader = vega.loader();
  loader.load = loader.sanitize = () => Promise.reject(new Error("this page loads nothing"));
  const draw = async (name, spec) => {
    const place = document.getElementById(`chart-${name}`);
    const compiled = vegaLite.compile({ ...spec, config }).spec;
    const view = new vega.View(vega.parse(compiled), { renderer: "svg", container: place, loader, tooltip: showTip, hover: true });
    await view.runAsync();
    const svg = place.querySelector("svg");
    svg.setAttribute("role", "img");
    svg.setAttribute("aria-label", place.dataset.label);
    window.addEventListener("resize", () => view.resize().runAsync());
  };
  Promise.all(Object.entries(specs).map(([name, spec]) => draw(name, spec)))
    .then(() => { document.documentElement.dataset.charts = "drawn"; });
})();
