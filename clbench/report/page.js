"use strict";
const narrow = matchMedia("(max-width: 700px)").matches;
const plots = new Map();  // section -> its drawn figures

function place(spec, plot) {
  const facet = spec.encoding && spec.encoding.facet;
  if (narrow) shrink(spec, facet);
  const room = plot.clientWidth - (narrow ? 45 : 100);  // beside the axis and the legend
  if (facet) facet.columns = Math.max(1, Math.floor(room / (spec.width + 22)));
  if (spec.concat) spec.columns = Math.max(1, Math.floor(room / (Math.max(...spec.concat.map(panel => panel.width)) + 90)));
  return spec;
}

// For a phone: the legend below, short names at the axes, none beside the points.
function shrink(spec, facet) {
  const parts = [spec, ...(spec.layer || [])].map(part => part.encoding).filter(Boolean);
  const labels = parts.flatMap(part => part.color && part.color.scale && part.color.scale.domain || []);
  const long = labels.some(label => String(label).length > 18);
  const legend = { ...(spec.config || {}).legend, orient: "bottom", columns: long ? 1 : 2, labelLimit: long ? 260 : 130 };
  spec.config = { ...spec.config, legend };
  for (const part of parts) if (part.y && part.y.axis) part.y.axis.labelLimit = 100;
  if (spec.layer) spec.layer = spec.layer.filter(part => !(part.encoding.text && part.encoding.text.field === "row"));
  if (facet) spec.width = spec.height = 116;
}

// Vega-Lite cannot have a width that fits and a height by the row, so the height is reckoned here.
function by_row(spec) {
  if (!spec.height || !spec.height.step) return null;
  const step = spec.height.step, values = spec.data.values || spec.datasets[spec.data.name];
  const rows = [...new Set(values.map(value => value.row))];
  const height = shown => step * Math.max(1, shown ? rows.filter(row => shown.includes(row)).length : rows.length);
  spec.height = height(false);
  return height;
}

async function draw(section) {
  for (const figure of section.querySelectorAll("figure")) {
    const source = figure.querySelector("script"), plot = figure.querySelector(".plot");
    if (!source) continue;
    try {
      const spec = place(JSON.parse(source.textContent), plot), height = by_row(spec);
      const { view } = await vegaEmbed(plot, spec, embedding);
      plots.get(section).push({ view, height });
    } catch (error) {
      plot.textContent = "This figure could not be drawn: " + error;
      console.error(error);
    }
    await new Promise(next => setTimeout(next));  // a long page stays usable while it is drawn
  }
}

function sort(table, column, heading) {
  const up = heading.getAttribute("aria-sort") !== "ascending";
  for (const other of table.tHead.rows[0].cells) other.setAttribute("aria-sort", "none");
  heading.setAttribute("aria-sort", up ? "ascending" : "descending");
  const sign = up ? 1 : -1, body = table.tBodies[0];
  const number = row => row.cells[column].dataset.value;
  const compare = (a, b) => {
    if (row_header(a, column)) return sign * a.dataset.label.localeCompare(b.dataset.label);
    if (number(a) === undefined || number(b) === undefined) return (number(a) === undefined) - (number(b) === undefined);
    return sign * (number(a) - number(b));
  };
  body.append(...[...body.rows].sort(compare));
}

function row_header(row, column) { return row.cells[column].tagName === "TH"; }

function filter(section) {
  const words = section.querySelector(".words").value.toLowerCase().split(/\s+/).filter(Boolean);
  const method = section.querySelector(".method").value;
  const rows = [...section.querySelectorAll(".leaderboard tbody tr")];
  for (const row of rows) {
    const text = (row.dataset.label + " " + row.className).toLowerCase();
    row.hidden = (method && row.dataset.method !== method) || !words.every(word => text.includes(word));
  }
  const left = rows.filter(row => !row.hidden);
  section.querySelector(".count").textContent = left.length < rows.length ? `${left.length} of ${rows.length} rows` : "";
  const shown = left.length < rows.length ? left.map(row => row.dataset.label) : false;
  for (const { view, height } of plots.get(section)) {
    if (!("shown" in view.getState().signals)) continue;  // a tree, which has no rows
    if (height) view.height(height(shown));
    view.signal("shown", shown).runAsync();
  }
}

(async () => {
  const sections = [...document.querySelectorAll("section.suite")];
  for (const section of sections) {
    plots.set(section, []);
    const table = section.querySelector(".leaderboard");
    [...table.tHead.rows[0].cells].forEach((heading, column) => {
      heading.firstElementChild.addEventListener("click", () => sort(table, column, heading));
    });
    section.querySelector(".controls").addEventListener("input", () => filter(section));
    section.querySelector(".controls").addEventListener("submit", event => event.preventDefault());
  }
  for (const section of sections) await draw(section);
  document.body.dataset.drawn = "all";
})();

addEventListener("beforeprint", () => document.querySelectorAll("section > details").forEach(each => { each.open = true; }));
