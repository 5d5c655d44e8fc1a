"use strict";
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
