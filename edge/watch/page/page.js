"use strict";
// Text of a message goes into the page as text alone (textContent), never as markup.

// Okabe and Ito's colours, which people with any colour vision tell apart, and greys.
const COLOURS = ["#999999", "#e69f00", "#56b4e9", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#f0e442"];
const GREYS = { unclassified: "#c9c9c9", other: "#6b6b6b" };
const CHART_MS = 10000;
const MINUTE_MS = 60000;

const find = (selector) => document.querySelector(selector);
let labels = [];

function make(tag, text, className) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  if (className) element.className = className;
  return element;
}

function colour(label) {
  return GREYS[label] || COLOURS[Math.max(0, labels.indexOf(label)) % COLOURS.length];
}

function bar(counts) {
  const box = make("div", undefined, "mix");
  box.setAttribute("aria-hidden", "true");
  for (const label of labels) {
    if (!(counts && counts[label] > 0)) continue;
    const part = make("span");
    part.style.flex = String(counts[label]);
    part.style.background = colour(label);
    part.title = `${label} ${counts[label]}`;
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
  if (seconds < 60) return `${seconds} s ago`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  return `${Math.floor(seconds / 3600)} h ago`;
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
  const facts = [`heard ${ago(room.heard_seconds)}`];
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
  find("#trouble ul").replaceChildren(...bad.map((room) => {
    const why = room.reason ? `: ${room.reason}` : "";
    return make("li", `${room.node} is ${room.state}${why}, heard ${ago(room.heard_seconds)}`);
  }));
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

function show(state) {
  const changed = state.labels.join() !== labels.join();
  labels = state.labels;
  if (changed) legend();
  const off = state.rooms.length - state.online;
  const parts = [`${state.online} of ${state.rooms.length} rooms online`, `${state.people} people in view`];
  if (off) parts.push(`${off} ${off === 1 ? "needs" : "need"} a look`);
  const hidden = state.hidden_rooms;
  if (hidden) parts.push(`${hidden} small ${hidden === 1 ? "group" : "groups"} hidden`);
  const summary = parts.join(" · ");
  if (find("#summary").textContent !== summary) find("#summary").textContent = summary;
  trouble(state.rooms);
  find("#rooms").replaceChildren(...state.rooms.map(card));
  choices(state.rooms);
  const refused = Object.entries(state.refused).map(([reason, n]) => `${n} ${reason}`).join(", ");
  find("#foot").textContent = `broker ${state.broker}${refused ? `; refused messages: ${refused}` : ""}`;
  if (changed) draw();
}

// A moment of this machine's own time zone, as the chart takes it.
function local(time) {
  const moment = new Date(time);
  return new Date(moment - moment.getTimezoneOffset() * MINUTE_MS).toISOString().slice(0, 19);
}

// From the first minute to the last, and never less than a quarter of an hour.
function span(minutes) {
  if (!minutes.length) return undefined;
  const first = new Date(minutes[0].time).getTime();
  const last = new Date(minutes[minutes.length - 1].time).getTime() + MINUTE_MS;
  return [local(first), local(Math.max(last, first + 15 * MINUTE_MS))];
}

async function draw() {
  const node = find("#node").value;
  const answer = await fetch(`/timeline${node ? `?node=${encodeURIComponent(node)}` : ""}`);
  if (!answer.ok) return;
  const { minutes, labels: names } = await answer.json();
  const style = getComputedStyle(document.body);
  const ink = style.getPropertyValue("--ink");
  const line = style.getPropertyValue("--line");
  const times = minutes.map((minute) => local(minute.time));
  const traces = names.map((label) => ({
    type: "bar", name: label, x: times, width: MINUTE_MS, offset: 0, marker: { color: colour(label) },
    y: minutes.map((minute) => (minute.counts ? minute.counts[label] : null)),
    hovertemplate: `%{y:.1f} ${label.replace(/[<>&]/g, "")}<extra></extra>`,
  }));
  traces.push({
    type: "bar", name: "hidden", x: times, width: MINUTE_MS, offset: 0, yaxis: "y2", opacity: 0.55, hoverinfo: "skip",
    y: minutes.map((minute) => minute.hidden || null),
    marker: { color: "rgba(0,0,0,0)", pattern: { shape: "/", fgcolor: "#8c8f94", solidity: 0.25 } },
  });
  Plotly.react("chart", traces, {
    barmode: "stack", bargap: 0, showlegend: false, margin: { l: 46, r: 10, t: 8, b: 38 },
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: ink },
    xaxis: { type: "date", gridcolor: line, tickformat: "%H:%M", range: span(minutes) },
    yaxis: { title: { text: "people" }, rangemode: "tozero", gridcolor: line },
    yaxis2: { overlaying: "y", range: [0, 1], visible: false },
  }, { displayModeBar: false, responsive: true, staticPlot: false });
  figures(minutes, names);
}

function figures(minutes, names) {
  const head = make("tr");
  for (const name of ["minute", ...names, "hidden"]) {
    const cell = make("th", name);
    cell.scope = "col";
    head.append(cell);
  }
  const rows = minutes.slice(-30).reverse().map((minute) => {
    const row = make("tr");
    const first = make("th", local(minute.time).slice(11, 16));
    first.scope = "row";
    row.append(first);
    for (const label of names) row.append(make("td", minute.counts ? String(minute.counts[label]) : "–"));
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
  source.onerror = () => { find("#summary").textContent = "The page has lost its server; it tries again by itself."; };
}

window.addEventListener("DOMContentLoaded", () => {
  find("#node").addEventListener("change", draw);
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  listen();
  draw();
  setInterval(draw, CHART_MS);
});
