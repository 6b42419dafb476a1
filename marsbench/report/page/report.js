"use strict";
const unpack = async (id) => {
  const bytes = Uint8Array.from(atob(document.getElementById(id).textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
};
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const drawn = new Set();
const CONFIG = { displaylogo: false, responsive: true, displayModeBar: false };

// Light and dark: the reader's choice, else the system's.
const root = document.documentElement;
const prefers = window.matchMedia("(prefers-color-scheme: dark)");
const setTheme = (theme) => {
  root.dataset.theme = theme;
  drawn.forEach((div) => Plotly.relayout(div, colours(div.layout)));
};
root.dataset.theme = prefers.matches ? "dark" : "light";
prefers.addEventListener("change", () => setTheme(prefers.matches ? "dark" : "light"));
document.getElementById("theme").addEventListener("click", () =>
  setTheme(root.dataset.theme === "dark" ? "light" : "dark"));
const colours = () => ({
  "font.color": css("--ink"), "xaxis.gridcolor": css("--grid"), "yaxis.gridcolor": css("--grid"),
  "xaxis.linecolor": css("--line"), "yaxis.linecolor": css("--line"),
  "hoverlabel.bgcolor": css("--panel"), "hoverlabel.font.color": css("--ink"),
});

const layoutOf = (given) => {
  const axis = (a) => ({ ...a, title: { text: a.title || "", standoff: 8, font: { size: 12 } }, zeroline: false,
    automargin: true, gridcolor: css("--grid"), linecolor: css("--line") });
  return { ...given, title: { text: given.title || "", font: { size: 13 }, x: 0.02, y: 0.985, yanchor: "top" },
    xaxis: axis(given.xaxis), yaxis: axis(given.yaxis), showlegend: false, margin: { l: 8, r: 12, t: given.title ? 28 : 10, b: 8 },
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: css("--ink"), size: 12,
    family: getComputedStyle(document.body).fontFamily }, hoverlabel: { bgcolor: css("--panel"),
    font: { color: css("--ink") } }, dragmode: window.matchMedia("(pointer: coarse)").matches ? false : "zoom" };
};
const show = (div, traces, layout) => {
  drawn.add(div);
  return Plotly.react(div, traces, layoutOf(layout), CONFIG);
};
const el = (tag, props = {}, ...children) => {
  const node = Object.assign(document.createElement(tag), props);
  node.append(...children);
  return node;
};

// A legend for all panels of a figure: each name hides and shows its marks.
const SHAPES = { circle: "M7 3a4 4 0 1 0 .01 0", square: "M3 3h8v8h-8z", "triangle-up": "M7 2l5 9h-10z",
  "triangle-down": "M7 12l5-9h-10z", diamond: "M7 1.500l5 5.500-5 5.500-5-5.500z",
  cross: "M5.500 2h3v3.500h3.500v3h-3.500v3.500h-3v-3.500h-3.500v-3h3.500z",
  x: "M3 4.500l1.500-1.500 2.500 2.500 2.500-2.500 1.500 1.500-2.500 2.500 2.500 2.500-1.500 1.500-2.500-2.500-2.500 2.500-1.500-1.500 2.500-2.500z",
  "triangle-left": "M2 7l9-5v10z", "triangle-right": "M12 7l-9-5v10z",
  star: "M7 1l1.800 4h4.200l-3.400 2.600 1.300 4.200-3.900-2.600-3.900 2.600 1.300-4.200-3.400-2.600h4.200z",
  hexagon: "M4.500 2.500h5l2.500 4.500-2.500 4.500h-5l-2.500-4.500z" };
const swatch = (entry) => {
  const dash = { dash: "5 3", dot: "2 2", dashdot: "6 2 2 2" }[entry.dash] || "";
  const holder = el("span");
  holder.innerHTML = `<svg width="26" height="14" aria-hidden="true"><g transform="translate(6 0)">` +
    `<path d="${SHAPES[entry.symbol] || SHAPES.square}" fill="${entry.color}"/></g>` +
    (entry.symbol ? `<path d="M0 7h26" stroke="${entry.color}" stroke-width="2" stroke-dasharray="${dash}"/>` : "") + "</svg>";
  return holder.firstChild;
};
const legend = (entries, panels) => {
  const box = el("div", { className: "legend" });
  for (const entry of entries) {
    const button = el("button", { type: "button", title: "hide or show" }, swatch(entry), entry.name);
    button.setAttribute("aria-pressed", "true");
    button.addEventListener("click", () => {
      const on = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", String(on));
      for (const div of panels()) {
        const hit = div.data.flatMap((trace, k) => (trace.name === entry.name ? [k] : []));
        if (hit.length) Plotly.restyle(div, { visible: on }, hit);
      }
    });
    box.append(button);
  }
  return box;
};

const drawChart = (holder, chart) => {
  const grid = el("div", { className: "panels" });
  grid.style.setProperty("--columns", Math.min(chart.columns, chart.panels.length));
  const panels = chart.panels.map(() => el("div", { className: "panel" }));
  grid.append(...panels);
  holder.replaceChildren();
  if (chart.title) holder.append(el("p", { className: "note", textContent: chart.title }));
  if (chart.legend.length) holder.append(legend(chart.legend, () => panels));
  holder.append(grid);
  panels.forEach((div, k) => show(div, chart.panels[k].traces, chart.panels[k].layout));
};

// Session lanes: an overview of one system, and one session under all systems.
const bars = (components, lanes, turnOf) => components.map((part, k) => {
  const trace = { type: "bar", orientation: "h", name: part.name, y: [], base: [], x: [], text: [], width: 0.8,
    textposition: "none", marker: { color: part.color, line: { width: 0 } },
    hovertemplate: "%{y}, %{text}<br>" + part.name + " %{x:.1f} s from %{base:.1f} s<extra></extra>" };
  for (const [label, turns] of lanes) {
    turns.forEach((turn, index) => {
      const length = turn[k + 1];
      if (!length) return;
      let start = turn[0];
      for (let j = 1; j <= k; j++) start += turn[j];
      trace.y.push(label); trace.base.push(start / 10); trace.x.push(length / 10);
      trace.text.push("turn " + (index + 1));
    });
  }
  return trace;
});
const laneLayout = (labels, row) => ({ title: "", barmode: "overlay", height: 70 + row * labels.length,
  xaxis: { title: "time (s)", rangemode: "nonnegative" }, yaxis: { title: "", type: "category", categoryorder: "array", categoryarray: labels,
    range: [labels.length - 0.5, -0.5], dtick: 1, tickfont: { size: 10 } }, shapes: [] });
const drawLanes = (figure, lanes) => {
  const form = figure.querySelector("form"), overview = figure.querySelector(".overview");
  const detail = figure.querySelector(".detail"), systems = Object.keys(lanes.systems);
  const short = lanes.sessions.map((_, k) => String(k + 1));
  form.elements.system.append(...systems.map((name) => el("option", { textContent: name })));
  form.elements.session.append(...lanes.sessions.map((id, k) => el("option", { value: k, textContent: `${k + 1}: ${id}` })));
  figure.querySelector(".legend").replaceWith(legend(lanes.components.map((part) => ({ ...part })), () => [overview, detail]));
  const drawDetail = () => {
    const k = Number(form.elements.session.value);
    show(detail, bars(lanes.components, systems.map((name) => [name, lanes.systems[name][k]])), {
      ...laneLayout(systems, 34), title: `session ${k + 1} (${lanes.sessions[k]}) under every system` });
    const head = el("tr", {}, ...["turn", "ready s", ...lanes.components.map((part) => part.name)].map((name) =>
      el("th", { textContent: name, scope: "col" })));
    const rows = lanes.systems[form.elements.system.value][k].map((turn, index) => el("tr", {},
      el("th", { textContent: index + 1, scope: "row" }), ...turn.map((value) => el("td", { textContent: (value / 10).toFixed(1) }))));
    figure.querySelector(".turns").replaceChildren(
      el("caption", { className: "note key", textContent: `turns of session ${k + 1} under ${form.elements.system.value}, seconds` }),
      el("thead", {}, head), el("tbody", {}, ...rows));
  };
  const drawOverview = () => {
    const name = form.elements.system.value;
    return show(overview, bars(lanes.components, lanes.systems[name].map((turns, k) => [short[k], turns])), laneLayout(short, 15));
  };
  form.elements.system.addEventListener("change", () => { drawOverview(); drawDetail(); });
  form.elements.session.addEventListener("change", drawDetail);
  drawOverview().then(() => overview.on("plotly_click", (event) => {
    form.elements.session.value = Number(event.points[0].y) - 1;
    drawDetail();
  }));
  drawDetail();
};

// The table: a heading sorts, the form filters.
const valueOf = (cell) => {
  const text = cell.dataset.value;
  return text === "" ? null : Number.isNaN(Number(text)) ? text : Number(text);
};
const sortBy = (table, column) => {
  const heads = [...table.tHead.rows[0].cells], head = heads[column];
  const up = head.getAttribute("aria-sort") !== "ascending";
  heads.forEach((cell) => cell.setAttribute("aria-sort", "none"));
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  const rows = [...table.tBodies[0].rows].map((row) => [valueOf(row.cells[column]), row]);
  rows.sort(([a], [b]) => {
    if (a === null || b === null) return (a === null) - (b === null);
    const order = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
    return up ? order : -order;
  });
  table.tBodies[0].append(...rows.map(([, row]) => row));
};
for (const form of document.querySelectorAll("form[data-table]")) {
  const table = document.getElementById(form.dataset.table + "-rows");
  [...table.tHead.rows[0].cells].forEach((cell, k) => cell.querySelector("button").addEventListener("click", () => sortBy(table, k)));
  const filter = () => {
    const { text, place, stable, count } = form.elements;
    let shown = 0;
    for (const row of table.tBodies[0].rows) {
      row.hidden = !(row.dataset.system.includes(text.value.trim()) && (!place.value || row.dataset.place === place.value) &&
        !(stable.checked && row.dataset.unstable === "1"));
      shown += !row.hidden;
    }
    count.value = `${shown} of ${table.tBodies[0].rows.length} rows`;
  };
  form.addEventListener("input", filter);
  form.addEventListener("change", filter);
  filter();
}

(async () => {
  const content = JSON.parse(await unpack("content"));
  document.head.append(el("script", { textContent: await unpack("plotly") }));
  const draw = (holder) => holder.dataset.lanes ? drawLanes(holder, content.lanes[holder.dataset.lanes])
    : drawChart(holder, content.charts[holder.dataset.chart]);
  const watcher = new IntersectionObserver((entries) => entries.forEach((entry) => {
    if (!entry.isIntersecting) return;
    watcher.unobserve(entry.target);
    draw(entry.target);
  }), { rootMargin: "600px" });
  const holders = document.querySelectorAll("[data-chart], [data-lanes]");
  if (location.hash === "#all") holders.forEach(draw); else holders.forEach((holder) => watcher.observe(holder));
  root.dataset.ready = "yes";
})();
