// The rooms as cards, by site and floor; those that are off, gone or retired as lines. Where the server
// tells of schools, they stand in those that are opened.

import { colour } from "./colours.js";
import { make } from "./make.js";
import { showSchools, troubles as schoolTroubles } from "./schools.js";
import { count, language, name, number, t } from "./words.js";

const MANY_ROOMS = 24; // from here on a card is a few lines
const MOST_TROUBLE = 8;
const AWAY = ["retired", "gone", "off"]; // the first that is true of a room

const find = (selector) => document.querySelector(selector);
const byName = new Intl.Collator(language, { numeric: true });
const cards = new Map(); // by node: its element
const groups = new Map(); // by site and floor: its element
const places = new Map(); // by the element they stand in: the rooms' order, and those that are away
let schools = null;
let listed = [];

function bar(counts, labels) {
  const box = make("div", undefined, "mix");
  box.setAttribute("aria-hidden", "true");
  for (const label of labels) {
    const n = counts && Object.hasOwn(counts, label) ? counts[label] : 0;
    if (!(n > 0)) continue;
    const part = make("span");
    part.style.flex = String(n);
    part.style.background = colour(label, labels);
    part.title = `${name(label)} ${n}`;
    box.append(part);
  }
  return box;
}

function ordered(cells) {
  return Object.entries(cells || {}).filter(([, n]) => n > 0).sort((a, b) => b[1] - a[1]);
}

function words(counts) {
  const shown = ordered(counts);
  return shown.length ? shown.map(([label, n]) => `${number(n)} ${name(label)}`).join(", ") : t("nobody");
}

function shares(cells) {
  return ordered(cells).slice(0, 4).map(([label, n]) => `${number(n)} % ${name(label)}`).join(", ");
}

// Ages are by the server's clock, whatever the browser's says.
let ahead = 0;
export function setClock(now) {
  ahead = Date.now() / 1000 - now;
}

function ago(heard) {
  if (heard === null) return t("not heard since this page's server started");
  const seconds = Math.max(0, Math.floor(Date.now() / 1000 - ahead - heard));
  if (seconds < 60) return t("heard {n} s ago", { n: number(seconds) });
  if (seconds < 3600) return t("heard {n} min ago", { n: number(Math.floor(seconds / 60)) });
  if (seconds < 172800) return t("heard {n} h ago", { n: number(Math.floor(seconds / 3600)) });
  return count("heard {n} days ago", Math.floor(seconds / 86400));
}

function facts(room) {
  const found = [ago(room.heard)];
  if (room.temperature !== null) found.push(`${number(room.temperature)} °C`);
  if (room.waiting) found.push(count("{n} readings waiting", room.waiting));
  if (room.lost) found.push(count("{n} readings lost", room.lost));
  for (const [who, n] of Object.entries(room.behind)) found.push(count("recorder {who} lacks {n} readings", n, { who }));
  return found.join(" · ");
}

function card(room, labels) {
  const box = make("article");
  const title = make("h4", schools ? room.node.slice(room.site.length + 1) : room.node);
  title.append(make("span", t(room.state), `state ${room.state}`));
  box.append(title);
  if (!room.present && (room.people !== null || room.hidden !== null)) {
    box.append(make("p", t("no reading for a while")));
  } else if (room.hidden !== null) {
    box.append(make("p", t("{n} people: too few to show expressions", { n: room.hidden })));
    const mix = bar(null, labels);
    mix.classList.add("hidden");
    box.append(mix);
  } else if (room.people !== null) {
    const people = count("{n} people", room.people);
    box.append(make("p", t("{what}: {then}", { what: people, then: words(room.counts) })), bar(room.counts, labels));
  } else {
    const why = room.unseen === null ? t("no reading yet") : t("nothing seen ({why})", { why: room.unseen });
    box.append(make("p", why));
  }
  if (ordered(room.shares).length) {
    box.append(make("p", t("the last 45 minutes"), "label"), bar(room.shares, labels));
    box.append(make("p", shares(room.shares), "words"));
  }
  box.append(make("p", facts(room), "note"));
  return box;
}

function troubled(room) {
  const values = { node: room.node, state: t(room.state), reason: room.reason, heard: ago(room.heard) };
  return t(room.reason ? "{node} is {state}: {reason}, {heard}" : "{node} is {state}, {heard}", values);
}

function trouble(rooms) {
  const bad = rooms.filter((room) => room.trouble);
  const closed = schools ? schoolTroubles(schools) : { items: [], wrong: [] };
  const all = [...bad.map((room) => () => troubled(room)), ...closed.items.map((text) => () => text)];
  const items = all.slice(0, MOST_TROUBLE).map((write) => write());
  const more = all.length - items.length;
  if (more > 0) items.push(schools ? count("and {n} more", more) : count("and {n} more, first among the rooms below", more));
  const wrong = rooms.filter((room) => room.present && room.clock_synced === false).map((room) => room.node);
  wrong.push(...closed.wrong);
  if (wrong.length) {
    const rest = wrong.length - 3;
    const list = wrong.slice(0, 3).join(", ") + (rest > 0 ? ` ${count("and {n} more", rest)}` : "");
    items.push(t("clock not synchronised: {list}", { list }));
  }
  find("#trouble").hidden = items.length === 0;
  const there = [...find("#trouble ul").children].map((item) => item.textContent);
  if (items.join("\n") === there.join("\n")) return;
  find("#trouble ul").replaceChildren(...items.map((text) => make("li", text)));
}

// Thousands of rooms may be away: they are written only where somebody looks.
function listAway(box, rooms) {
  if (!box.open) return;
  const text = (room) => t("{node} is {state}, {heard}", { node: room.node, state: t(room.state), heard: ago(room.heard) });
  box.querySelector("ul").replaceChildren(...rooms.map((room) => make("li", text(room))));
}

const SUMMARIES = {
  off: "{n} rooms are switched off",
  gone: "{n} rooms not heard for a day or more",
  retired: "{n} rooms are retired",
};

// boxes: what holds a line for each kind; away: rooms by kind.
function showAway(boxes, away) {
  for (const kind of AWAY) {
    const box = boxes.querySelector(`details.${kind}`);
    box.hidden = away[kind].length === 0;
    const text = count(SUMMARIES[kind], away[kind].length);
    const summary = box.querySelector("summary");
    if (summary.textContent !== text) summary.textContent = text;
    box.ontoggle = () => listAway(box, away[kind]);
    listAway(box, away[kind]);
  }
}

function awayBoxes() {
  return AWAY.map((kind) => {
    const box = make("details", undefined, `away ${kind}`);
    box.hidden = true;
    box.append(make("summary"), make("ul"));
    return box;
  });
}

function wanted(room) {
  const text = find("#search").value.trim().toLowerCase();
  if (text && !room.node.includes(text)) return false;
  const only = find("#filter").value;
  if (only === "online") return room.state === "online";
  if (only === "trouble") return room.trouble;
  if (only === "hidden") return room.present && room.hidden !== null;
  return true;
}

const SORTS = {
  name: () => 0,
  people: (a, b) => (b.present ? b.people || 0 : -1) - (a.present ? a.people || 0 : -1),
  trouble: (a, b) => b.trouble - a.trouble || (a.state === "online") - (b.state === "online"),
};

function sort(rooms) {
  const first = SORTS[find("#sort").value];
  return rooms.sort((a, b) => first(a, b) || byName.compare(a.node, b.node));
}

// A heading for each site and floor; none for a floor where the site's names tell only one.
function group(room, floors) {
  if (floors.get(room.site).size < 2) return room.site;
  if (!room.floor) return room.site;
  const floor = /^\d+$/.test(room.floor) ? t("floor {floor}", { floor: room.floor }) : room.floor;
  return `${room.site} · ${floor}`;
}

// box: where they go; rooms: in it.
function arrange(box, rooms) {
  const floors = new Map();
  for (const room of rooms) floors.set(room.site, (floors.get(room.site) || new Set()).add(room.floor));
  const found = new Map();
  for (const room of sort(rooms.filter(wanted))) {
    const key = group(room, floors);
    found.set(key, [...(found.get(key) || []), room.node]);
  }
  const keys = [...found.keys()].sort(byName.compare);
  const now = JSON.stringify(keys.map((key) => [key, found.get(key)]));
  if (now === places.get(box)) return;
  places.set(box, now);
  box.replaceChildren(...keys.map((key) => {
    const part = groups.get(key) || make("section", undefined, "group");
    groups.set(key, part);
    const grid = make("div", undefined, "grid");
    grid.append(...found.get(key).map((node) => cards.get(node)));
    const heading = make("h3", key);
    heading.hidden = schools !== null && schools.has(key); // said by the row
    part.replaceChildren(heading, grid);
    return part;
  }));
  box.classList.toggle("many", rooms.length > MANY_ROOMS);
}

function drawCards(rooms, labels, changed) {
  for (const room of rooms) {
    const old = cards.get(room.node);
    if (old && changed && !changed.has(room.node)) continue;
    const made = card(room, labels);
    if (old) old.replaceWith(made);
    cards.set(room.node, made);
  }
}

// Rooms that are here, and by kind those that are away, in the order of names.
function sorted(rooms) {
  const here = [], away = { retired: [], gone: [], off: [] };
  for (const room of rooms.sort((a, b) => byName.compare(a.node, b.node))) {
    const kind = AWAY.find((key) => room[key]);
    if (kind) away[kind].push(room);
    else here.push(room);
  }
  return { here, away };
}

// What nobody looks at any more costs no memory.
function forget(rooms) {
  for (const node of cards.keys()) if (!rooms.has(node)) cards.delete(node);
  for (const box of places.keys()) if (!box.isConnected) places.delete(box);
  for (const [key, part] of groups) if (!part.isConnected) groups.delete(key);
}

// What a school that is opened holds.
function fill(body, rooms) {
  if (!body.firstElementChild) body.replaceChildren(make("div"), ...awayBoxes());
  const { here, away } = sorted(rooms);
  arrange(body.firstElementChild, here);
  showAway(body, away);
}

// changed: the nodes whose card is drawn again, null for all.
export function showRooms(state, changed) {
  const { here, away } = sorted([...state.rooms.values()]);
  if ((schools === null) !== (state.schools === null)) {
    find("#rooms").replaceChildren();
    find("#rooms").className = "";
    places.clear();
  }
  schools = state.schools;
  listed = here;
  drawCards(here, state.labels, changed);
  trouble(here);
  find("#rooms-title").textContent = schools ? t("Schools") : t("Rooms");
  if (schools) {
    showSchools(find("#rooms"), schools, state.rooms, fill);
    showAway(find("#away"), { retired: [], gone: [], off: [] });
  } else {
    arrange(find("#rooms"), here);
    showAway(find("#away"), away);
  }
  forget(state.rooms);
  const some = here.length || (schools && schools.size);
  const none = some && !find("#rooms article, #rooms > details") ? noneLike() : "";
  if (find("#nothing").textContent !== none) find("#nothing").textContent = none;
}

function noneLike() {
  return schools ? t("No school is like that.") : t("No room is like that.");
}

// Ages grow by themselves; nothing is asked for them.
export function tick() {
  for (const room of listed) {
    const note = cards.get(room.node).lastElementChild;
    const text = facts(room);
    if (note.textContent !== text) note.textContent = text;
  }
  trouble(listed);
}

export function watchChoices(again) {
  for (const id of ["search", "sort", "filter"]) find(`#${id}`).addEventListener("input", again);
}
