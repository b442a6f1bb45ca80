// The timeline: bars of people, and below them a strip of what small groups keep hidden.

import { colour } from "./colours.js";
import { language, name, number, spans, t, tenth, zone } from "./words.js";

const MINUTE_MS = 60000;
const DAY_MS = 1440 * MINUTE_MS;
const NEW_MS = 20000; // between questions for minutes
const STORED_MS = 300000; // and for what the recorder stored
const ROWS_IN_TABLE = 30;
const STEPS = [5, 10, 15, 30, 60, 120, 240, 360, 720, 1440, 2880, 10080];
const SPANS = {
  lesson: "this lesson (45 minutes)", hours: "four hours", day: "a day", week: "a week", month: "four weeks",
};

const find = (selector) => document.querySelector(selector);
let held = { key: "", bars: new Map(), labels: [], change: "", step: MINUTE_MS, asked: 0 };
let allLabels = () => [];
let figure = null;
let script = null;
let whole = "";

// The charts' script is large: it is asked for once the rooms are shown.
function plotly() {
  script ||= new Promise((done, failed) => {
    const element = document.createElement("script");
    element.src = "/plotly.js";
    element.onload = done;
    element.onerror = () => { script = null; failed(new Error("no chart")); };
    document.head.append(element);
  });
  return script;
}

// Moments are in ms UTC, so that an hour that comes twice (clocks set back) takes its place twice; only
// what is written is the school's time, with its zone where two zones are in view.
const of = (options) => new Intl.DateTimeFormat(language, { timeZone: zone, hourCycle: "h23", ...options });
const clock = of({ hour: "2-digit", minute: "2-digit" });
const zoned = of({ hour: "2-digit", minute: "2-digit", timeZoneName: "short" });
const dated = of({ weekday: "short", day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" });
const day = of({ weekday: "short", day: "numeric", month: "short" });
const parts = new Intl.DateTimeFormat("en-US", {
  timeZone: zone, hourCycle: "h23", year: "numeric", month: "numeric", day: "numeric", hour: "numeric", minute: "numeric",
});

// By how much the school's clocks are ahead of UTC, in ms.
function offset(ms) {
  const at = Object.fromEntries(parts.formatToParts(ms).map((part) => [part.type, Number(part.value)]));
  return Date.UTC(at.year, at.month - 1, at.day, at.hour, at.minute) - Math.floor(ms / MINUTE_MS) * MINUTE_MS;
}

// As the chart takes a moment: it would shift a number of ms into the browser's own zone.
const utc = (ms) => new Date(ms).toISOString().slice(0, 19);
const zoneNow = (ms) => zoned.formatToParts(ms).find((part) => part.type === "timeZoneName").value;

// How to write moments from `first` to `last`.
function writer(first, last) {
  if (last - first > DAY_MS) return (ms) => dated.format(ms);
  return offset(first) === offset(last) ? (ms) => clock.format(ms) : (ms) => zoned.format(ms);
}

// From the first bar to the last, and never less than fifteen.
function extent(times, step) {
  if (!times.length) return undefined;
  return [times[0], Math.max(times[times.length - 1] + step, times[0] + 15 * step)];
}

// Full quarters, hours or days of the school's time, as many as fit.
function ticks(range, width) {
  if (!range) return { tickvals: [], ticktext: [] };
  const most = Math.max(2, Math.floor(width / 110));
  const step = MINUTE_MS * (STEPS.find((m) => (range[1] - range[0]) / (m * MINUTE_MS) <= most) || 10080);
  const write = step >= DAY_MS ? (ms) => day.format(ms) : writer(...range);
  const whole = Math.min(step, DAY_MS);
  const after = (at) => (whole - ((at + offset(at)) % whole)) % whole;
  const tickvals = [];
  for (let at = range[0] + after(range[0]); at <= range[1]; at += step) {
    const late = (at + offset(at)) % whole; // where clocks were changed in between
    tickvals.push(late > whole / 2 ? at + whole - late : at - late);
  }
  return { tickvals: tickvals.map(utc), ticktext: tickvals.map(write) };
}

// Text of a node inside a template of the chart, which knows tags, entities and %{...}.
function plain(text) {
  return text.replace(/[^\p{L}\p{N} ]/gu, (c) => `&#${c.codePointAt(0)};`);
}

const amount = (counts, label) => (counts && Object.hasOwn(counts, label) ? counts[label] : 0);

function chosen() {
  const place = find("#node").value;
  const span = find("#span").value || spans[0];
  return { place, span, query: `?span=${span}${place ? `&place=${encodeURIComponent(place)}` : ""}` };
}

// Returns the bars in order, asking only for those that changed; null where they cannot be had.
async function fetchBars() {
  const { query } = chosen();
  const after = held.key === query && held.change ? `&after=${held.change}` : "";
  const answer = await fetch(`/timeline${query}${after}`).catch(() => null);
  if (!answer || !answer.ok) return null;
  const found = await answer.json();
  if (chosen().query !== query) return null; // somebody chose another one meanwhile
  const bars = found.part ? held.bars : new Map();
  for (const bar of found.minutes) bars.set(Date.parse(bar.time), bar);
  const step = 1000 * found.step_seconds;
  held = { key: query, bars, labels: found.labels, change: found.change, step, asked: Date.now() };
  if (!held.change) return [...bars.entries()];
  return filled(bars, chosen().span === "lesson" ? 45 : 240);
}

// Minutes without a reading are gaps; those that are too old are forgotten.
function filled(bars, most) {
  const newest = Math.max(...bars.keys());
  for (const at of bars.keys()) if (at <= newest - most * MINUTE_MS) bars.delete(at);
  const list = [];
  for (let at = Math.min(...bars.keys()); at <= newest; at += MINUTE_MS) {
    list.push([at, bars.get(at) || { counts: null, hidden: 0, unseen: 0 }]);
  }
  return list;
}

export async function draw() {
  const [bars] = await Promise.all([fetchBars(), plotly().catch(() => null)]);
  if (bars === null) return;
  const { labels: names, step } = held;
  const style = getComputedStyle(document.body);
  const [ink, line, ground] = ["--ink", "--line", "--ground"].map((key) => style.getPropertyValue(key));
  const times = bars.map(([at]) => at);
  const places = times.map(utc);
  const range = extent(times, step);
  const written = times.map(range ? writer(...range) : String);
  // A bar is as wide as its time, which the change of clocks makes longer or shorter.
  const widths = times.map((at, i) => Math.min((times[i + 1] || at + step) - at, step));
  const traces = names.map((label) => ({
    type: "bar", name: plain(name(label)), x: places, width: widths, offset: 0, marker: { color: colour(label, allLabels()) },
    y: bars.map(([, bar]) => (bar.counts ? amount(bar.counts, label) : null)),
    text: bars.map(([, bar]) => tenth(amount(bar.counts, label))), textposition: "none",
    customdata: written, hovertemplate: `%{text} ${plain(name(label))}<br>%{customdata}<extra></extra>`,
  }));
  traces.push({
    type: "bar", name: plain(t("hidden")), x: places, width: widths, offset: 0, yaxis: "y2", showlegend: false,
    y: bars.map(([, bar]) => (bar.counts === null && !bar.hidden ? null : 100 * bar.hidden)),
    customdata: written, hovertemplate: `%{y:.0f} % ${plain(t("hidden"))}<br>%{customdata}<extra></extra>`,
    marker: { color: style.getPropertyValue("--hidden") },
  });
  const layout = {
    barmode: "stack", bargap: 0, showlegend: false, margin: { l: 52, r: 10, t: 8, b: 50 },
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: ink },
    xaxis: {
      type: "date", gridcolor: line, tickangle: 0, ticklabelstandoff: 5, range: range && range.map(utc), anchor: "y2",
      title: { text: plain(zone), font: { size: 12 } }, ...ticks(range, find("#chart").clientWidth),
    },
    yaxis: { title: { text: plain(t("people")) }, rangemode: "tozero", gridcolor: line, domain: [0.3, 1] },
    yaxis2: {
      title: { text: plain(t("hidden")), font: { size: 12 } }, range: [0, 100], domain: [0, 0.2], gridcolor: line,
      tickvals: [0, 50, 100], ticktext: ["0", "50", "100 %"], fixedrange: true,
    },
  };
  figure = { traces, layout, ground };
  if (window.Plotly) Plotly.react("chart", traces, layout, { displayModeBar: false, responsive: true });
  figures(bars, names, step);
}

function figures(bars, names, step) {
  const head = document.createElement("tr");
  const last = bars.slice(-ROWS_IN_TABLE).reverse();
  const times = last.map(([at]) => at);
  const one = times.length === 0 || offset(times[0]) === offset(times[times.length - 1]);
  const write = times.length ? writer(times[times.length - 1], times[0]) : String;
  const unit = step === MINUTE_MS ? t("minute") : t("from");
  const heading = one && times.length ? `${unit} (${zoneNow(times[0])})` : unit;
  const cell = (tag, text, scope) => {
    const made = document.createElement(tag);
    made.textContent = text;
    if (scope) made.scope = scope;
    return made;
  };
  head.append(...[heading, ...names.map(name), t("hidden")].map((text) => cell("th", text, "col")));
  const rows = last.map(([at, bar]) => {
    const row = document.createElement("tr");
    row.append(cell("th", write(at), "row"));
    for (const label of names) row.append(cell("td", bar.counts ? tenth(amount(bar.counts, label)) : "–"));
    row.append(cell("td", `${number(Math.round(100 * bar.hidden))} %`));
    return row;
  });
  const top = document.createElement("thead");
  top.append(head);
  const body = document.createElement("tbody");
  body.append(...rows);
  find("#figures").replaceChildren(top, body);
}

// The chart as a picture, with what the page says around it.
async function picture() {
  if (!figure || !window.Plotly) return;
  const { place, span } = chosen();
  const title = `${place || whole} · ${t(SPANS[span])}`;
  const layout = {
    ...figure.layout, paper_bgcolor: figure.ground, plot_bgcolor: figure.ground, showlegend: true,
    title: { text: plain(title) }, margin: { l: 60, r: 20, t: 50, b: 55 }, legend: { traceorder: "normal" },
  };
  const filename = `${place.replaceAll("/", "-") || "all"}-${span}`;
  await Plotly.downloadImage({ data: figure.traces, layout }, { format: "png", width: 1280, height: 560, filename });
}

// Offer the sites and rooms there are.
export function offer(state) {
  const select = find("#node");
  const nodes = [...state.rooms.values()].filter((room) => !room.retired);
  const sites = state.schools ? [...state.schools.keys()] : [...new Set(nodes.map((room) => room.site))].sort();
  whole = state.schools ? t("all schools") : t("the whole school");
  const wanted = ["", ...(sites.length > 1 ? sites : []), ...nodes.map((room) => room.node).sort()];
  if (wanted.length === select.options.length && wanted.every((n, i) => select.options[i].value === n)
    && select.options[0].textContent === whole) return;
  const was = select.value;
  select.replaceChildren(...wanted.map((place) => {
    const option = document.createElement("option");
    option.value = place;
    option.textContent = place || whole;
    return option;
  }));
  select.value = wanted.includes(was) ? was : "";
}

export function watchTimeline(labels) {
  allLabels = labels;
  find("#span").replaceChildren(...spans.map((key) => {
    const option = document.createElement("option");
    option.value = key;
    option.textContent = t(SPANS[key]);
    return option;
  }));
  find("#span").value = "hours";
  find("#zone").textContent = t("Times are in {zone}.", { zone });
  find("#node").addEventListener("change", draw);
  find("#span").addEventListener("change", draw);
  // The answer is a file, so the page stays.
  find("#csv").addEventListener("click", () => window.location.assign(`/timeline.csv${chosen().query}`));
  find("#png").addEventListener("click", picture);
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  setInterval(() => {
    if (held.change || Date.now() - held.asked > STORED_MS) draw();
  }, NEW_MS);
}
