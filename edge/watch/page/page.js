"use strict";
// Text of a message goes into the page as text alone (textContent), never as markup.

// Okabe and Ito's colours, which people with any colour vision tell apart, and greys.
const COLOURS = ["#999999", "#e69f00", "#56b4e9", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#f0e442"];
// A map, since a label may be called "constructor".
const GREYS = new Map([["unclassified", "#c9c9c9"], ["other", "#6b6b6b"], ["other labels", "#4a4a4a"]]);
const CHART_MS = 10000;
const MINUTE_MS = 60000;
const AGAIN_MS = 5000;
const MANY_ROOMS = 24; // from here on a card is a few lines
const MINUTES_IN_TABLE = 30;
const MOST_TROUBLE = 8;

const find = (selector) => document.querySelector(selector);
let labels = [];
let goneRooms = [];

function make(tag, text, className) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  if (className) element.className = className;
  return element;
}

function colour(label) {
  return GREYS.get(label) || COLOURS[Math.max(0, labels.indexOf(label)) % COLOURS.length];
}

function amount(counts, label) {
  return counts && Object.hasOwn(counts, label) ? counts[label] : 0;
}

function bar(counts) {
  const box = make("div", undefined, "mix");
  box.setAttribute("aria-hidden", "true");
  for (const label of labels) {
    const n = amount(counts, label);
    if (!(n > 0)) continue;
    const part = make("span");
    part.style.flex = String(n);
    part.style.background = colour(label);
    part.title = `${label} ${n}`;
    box.append(part);
  }
  return box;
}

function words(counts) {
  const shown = Object.entries(counts || {}).filter(([, n]) => n > 0).sort((a, b) => b[1] - a[1]);
  return shown.length ? shown.map(([label, n]) => `${n} ${label}`).join(", ") : "nobody";
}

function shares(seconds) {
  const total = Object.values(seconds).reduce((a, b) => a + b, 0);
  const shown = Object.entries(seconds).filter(([, n]) => n > 0).sort((a, b) => b[1] - a[1]).slice(0, 4);
  return shown.map(([label, n]) => `${Math.round((100 * n) / total)} % ${label}`).join(", ");
}

function ago(seconds) {
  if (seconds === null) return "not heard since this page's server started";
  if (seconds < 60) return `heard ${seconds} s ago`;
  if (seconds < 3600) return `heard ${Math.floor(seconds / 60)} min ago`;
  if (seconds < 172800) return `heard ${Math.floor(seconds / 3600)} h ago`;
  return `heard ${Math.floor(seconds / 86400)} days ago`;
}

function card(room) {
  const box = make("article");
  const title = make("h3", room.node);
  title.append(make("span", room.state, `state ${room.state}`));
  box.append(title);
  if (!room.present && (room.people !== null || room.hidden !== null)) {
    box.append(make("p", "no reading for a while"));
  } else if (room.hidden !== null) {
    box.append(make("p", `${room.hidden} people: too few to show expressions`));
    const mix = bar(null);
    mix.classList.add("hidden");
    box.append(mix);
  } else if (room.people !== null) {
    box.append(make("p", `${room.people} people: ${words(room.counts)}`), bar(room.counts));
  } else {
    box.append(make("p", room.unseen === null ? "no reading yet" : `nothing seen (${room.unseen})`));
  }
  if (Object.values(room.lesson).some((n) => n > 0)) {
    box.append(make("p", "the last 45 minutes", "label"), bar(room.lesson));
    box.append(make("p", shares(room.lesson), "words"));
  }
  const facts = [ago(room.heard_seconds)];
  if (room.temperature !== null) facts.push(`${Math.round(room.temperature)} °C`);
  if (room.waiting) facts.push(`${room.waiting} readings waiting`);
  if (room.lost) facts.push(`${room.lost} readings lost`);
  if (room.clock_synced === false) facts.push("clock not synchronised");
  box.append(make("p", facts.join(" · "), "note"));
  return box;
}

function trouble(rooms) {
  const bad = rooms.filter((room) => room.state !== "online" && room.state !== "starting");
  find("#trouble").hidden = bad.length === 0;
  const items = bad.slice(0, MOST_TROUBLE).map((room) => {
    const why = room.reason ? `: ${room.reason}` : "";
    return make("li", `${room.node} is ${room.state}${why}, ${ago(room.heard_seconds)}`);
  });
  const more = bad.length - items.length;
  if (more > 0) items.push(make("li", `and ${more} more, first among the rooms below`));
  find("#trouble ul").replaceChildren(...items);
}

function legend() {
  find("#legend").replaceChildren(...labels.map((label) => {
    const item = make("li");
    const key = make("span", undefined, "key");
    key.style.background = colour(label);
    key.setAttribute("aria-hidden", "true");
    item.append(key, document.createTextNode(label));
    return item;
  }));
}

function choices(rooms) {
  const select = find("#node");
  const wanted = ["", ...rooms.map((room) => room.node).sort()];
  if (wanted.length === select.options.length && wanted.every((n, i) => select.options[i].value === n)) return;
  const chosen = select.value;
  select.replaceChildren(...wanted.map((node) => {
    const option = make("option", node || "the whole school");
    option.value = node;
    return option;
  }));
  select.value = wanted.includes(chosen) ? chosen : "";
}

// Thousands of rooms may be gone: they are written only where somebody looks.
function listGone() {
  if (!find("#gone").open) return;
  const text = (room) => `${room.node} is ${room.state}, ${ago(room.heard_seconds)}`;
  find("#gone ul").replaceChildren(...goneRooms.map((room) => make("li", text(room))));
}

function show(state) {
  const changed = state.labels.join() !== labels.join();
  labels = state.labels;
  if (changed) legend();
  const here = state.rooms.filter((room) => !room.gone);
  const gone = state.rooms.filter((room) => room.gone);
  const off = here.length - state.online;
  const parts = [`${state.online} of ${here.length} rooms online`, `${state.people} people in view`];
  if (off) parts.push(`${off} ${off === 1 ? "needs" : "need"} a look`);
  const hidden = state.hidden_rooms;
  if (hidden) parts.push(`${hidden} small ${hidden === 1 ? "group" : "groups"} hidden`);
  const summary = parts.join(" · ");
  if (find("#summary").textContent !== summary) find("#summary").textContent = summary;
  trouble(here);
  find("#rooms").className = here.length > MANY_ROOMS ? "many" : "";
  find("#rooms").replaceChildren(...here.map(card));
  find("#gone").hidden = gone.length === 0;
  find("#gone summary").textContent = `${gone.length} ${gone.length === 1 ? "room" : "rooms"} not heard for a day or more`;
  goneRooms = gone;
  listGone();
  choices(state.rooms);
  const refused = Object.entries(state.refused).map(([reason, n]) => `${n} ${reason}`).join(", ");
  find("#foot").textContent = `broker ${state.broker}${refused ? `; refused messages: ${refused}` : ""}`;
  if (changed) draw();
}

// Moments are in ms UTC, so that an hour that comes twice (clocks set back) takes its place twice; only
// what is written is local time, with its zone where two zones are in view.
const clock = new Intl.DateTimeFormat([], { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
const zoned = new Intl.DateTimeFormat([], { hour: "2-digit", minute: "2-digit", hourCycle: "h23", timeZoneName: "short" });

const offset = (ms) => new Date(ms).getTimezoneOffset() * MINUTE_MS;
// As the chart takes a moment: it would shift a number of ms into the browser's own zone.
const utc = (ms) => new Date(ms).toISOString().slice(0, 19);
const zone = (ms) => zoned.formatToParts(ms).find((part) => part.type === "timeZoneName").value;

// How to write moments from `first` to `last`.
function writer(first, last) {
  return offset(first) === offset(last) ? (ms) => clock.format(ms) : (ms) => zoned.format(ms);
}

// From the first minute to the last, and never less than a quarter of an hour.
function span(times) {
  if (!times.length) return undefined;
  return [times[0], Math.max(times[times.length - 1] + MINUTE_MS, times[0] + 15 * MINUTE_MS)];
}

// Full quarters, halves or hours of local time, as many as fit.
function ticks(range, width) {
  if (!range) return { tickvals: [], ticktext: [] };
  const most = Math.max(2, Math.floor(width / 110));
  const step = MINUTE_MS * ([5, 10, 15, 30, 60, 120].find((m) => (range[1] - range[0]) / (m * MINUTE_MS) <= most) || 240);
  const write = writer(...range);
  const tickvals = [];
  const first = range[0] - offset(range[0]);
  for (let at = range[0] + (step - (first % step)) % step; at <= range[1]; at += step) tickvals.push(at);
  return { tickvals: tickvals.map(utc), ticktext: tickvals.map(write) };
}

// Text of a node inside a template of the chart, which knows tags, entities and %{...}.
function plain(text) {
  return text.replace(/[^\p{L}\p{N} ]/gu, (c) => `&#${c.codePointAt(0)};`);
}

async function draw() {
  const node = find("#node").value;
  const answer = await fetch(`/timeline${node ? `?node=${encodeURIComponent(node)}` : ""}`);
  if (!answer.ok) return;
  const { minutes, labels: names } = await answer.json();
  const style = getComputedStyle(document.body);
  const ink = style.getPropertyValue("--ink");
  const line = style.getPropertyValue("--line");
  const times = minutes.map((minute) => Date.parse(minute.time));
  const places = times.map(utc);
  const range = span(times);
  const written = times.map(range ? writer(...range) : String);
  const traces = names.map((label) => ({
    type: "bar", name: plain(label), x: places, width: MINUTE_MS, offset: 0, marker: { color: colour(label) },
    y: minutes.map((minute) => (minute.counts ? amount(minute.counts, label) : null)),
    customdata: written, hovertemplate: `%{y:.1f} ${plain(label)}<br>%{customdata}<extra></extra>`,
  }));
  traces.push({
    type: "bar", name: "hidden", x: places, width: MINUTE_MS, offset: 0, yaxis: "y2", opacity: 0.55, hoverinfo: "skip",
    y: minutes.map((minute) => minute.hidden || null),
    marker: { color: "rgba(0,0,0,0)", pattern: { shape: "/", fgcolor: "#8c8f94", solidity: 0.25 } },
  });
  Plotly.react("chart", traces, {
    barmode: "stack", bargap: 0, showlegend: false, margin: { l: 46, r: 10, t: 8, b: 38 },
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: ink },
    xaxis: { type: "date", gridcolor: line, tickangle: 0, range: range && range.map(utc), ...ticks(range, find("#chart").clientWidth) },
    yaxis: { title: { text: "people" }, rangemode: "tozero", gridcolor: line },
    yaxis2: { overlaying: "y", range: [0, 1], visible: false },
  }, { displayModeBar: false, responsive: true, staticPlot: false });
  figures(minutes, names);
}

function figures(minutes, names) {
  const head = make("tr");
  const last = minutes.slice(-MINUTES_IN_TABLE).reverse();
  const times = last.map((minute) => Date.parse(minute.time));
  const one = times.length === 0 || offset(times[0]) === offset(times[times.length - 1]);
  const write = one ? (ms) => clock.format(ms) : (ms) => zoned.format(ms);
  const heading = one && times.length ? `minute (${zone(times[0])})` : "minute";
  for (const name of [heading, ...names, "hidden"]) {
    const cell = make("th", name);
    cell.scope = "col";
    head.append(cell);
  }
  const rows = last.map((minute, i) => {
    const row = make("tr");
    const first = make("th", write(times[i]));
    first.scope = "row";
    row.append(first);
    for (const label of names) row.append(make("td", minute.counts ? String(amount(minute.counts, label)) : "–"));
    row.append(make("td", `${Math.round(100 * minute.hidden)} %`));
    return row;
  });
  const top = make("thead");
  top.append(head);
  const body = make("tbody");
  body.append(...rows);
  find("#figures").replaceChildren(top, body);
}

function listen() {
  const source = new EventSource("/events");
  source.onmessage = (event) => show(JSON.parse(event.data));
  source.onerror = async () => {
    find("#summary").textContent = "The page has lost its server; it tries again by itself.";
    if (source.readyState !== EventSource.CLOSED) return;
    // Refused, such as where too many watch: then it asks now and again.
    setTimeout(listen, AGAIN_MS);
    const answer = await fetch("/state").catch(() => null);
    if (answer && answer.ok) show(await answer.json());
  };
}

window.addEventListener("DOMContentLoaded", () => {
  find("#node").addEventListener("change", draw);
  find("#gone").addEventListener("toggle", listGone);
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  listen();
  draw();
  setInterval(draw, CHART_MS);
});
