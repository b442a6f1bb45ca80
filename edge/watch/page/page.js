// Text of a message goes into the page as text alone (textContent), never as markup.

import { colour } from "./colours.js";
import { setClock, showRooms, tick, watchChoices } from "./rooms.js";
import { opened, watchSchools } from "./schools.js";
import { draw, offer, watchTimeline } from "./timeline.js";
import { count, name, number, t } from "./words.js";

const AGAIN_MS = 5000;

const find = (selector) => document.querySelector(selector);
// As the server tells it: rooms by node, schools by site or null where rooms are few, the rest by name.
const state = { rooms: new Map(), schools: null, labels: [], refused: {} };
let source = null;
let watched = "";
let drawn = false;

function legend() {
  find("#legend").replaceChildren(...state.labels.map((label) => {
    const item = document.createElement("li");
    const key = document.createElement("span");
    key.className = "key";
    key.style.background = colour(label, state.labels);
    key.setAttribute("aria-hidden", "true");
    item.append(key, document.createTextNode(name(label)));
    return item;
  }));
}

// How many rooms are here, are online and need a look.
function sums() {
  if (state.schools) {
    const add = (key) => [...state.schools.values()].reduce((sum, school) => sum + school[key], 0);
    return [add("rooms"), add("online"), add("trouble")];
  }
  const here = [...state.rooms.values()].filter((room) => !(room.gone || room.off || room.retired));
  return [here.length, here.filter((room) => room.state === "online").length, here.filter((room) => room.trouble).length];
}

function summary() {
  const [here, online, bad] = sums();
  const parts = [
    count("{online} of {n} rooms online", here, { online: number(online) }),
    count("{n} people in view", state.people),
  ];
  if (state.schools) parts.unshift(count("{n} schools", state.schools.size));
  if (bad) parts.push(count("{n} need a look", bad));
  if (state.hidden_rooms) parts.push(count("{n} small groups hidden", state.hidden_rooms));
  const text = parts.join(" · ");
  if (find("#summary").textContent !== text) find("#summary").textContent = text;
}

function apply(change) {
  const before = state.labels.join();
  const { rooms = {}, schools, whole, now, ...rest } = change;
  setClock(now);
  if (whole) {
    state.rooms.clear();
    state.schools = schools ? new Map() : null;
  }
  for (const [site, school] of Object.entries(schools || {})) {
    state.schools.set(site, { ...state.schools.get(site), ...school });
  }
  const changed = new Set(Object.keys(rooms));
  for (const [node, room] of Object.entries(rooms)) {
    state.rooms.set(node, { ...state.rooms.get(node), ...room, node });
  }
  Object.assign(state, rest);
  const relabelled = state.labels.join() !== before;
  if (relabelled) legend();
  summary();
  showRooms(state, relabelled ? null : changed);
  offer(state);
  const refused = Object.entries(state.refused).map(([reason, n]) => `${n} ${reason}`).join(", ");
  // The state is a word and, often, a reason, which is English as all that programs answer.
  const [word, ...reason] = state.broker.split(": ");
  const how = t(`broker ${word}`);
  const foot = reason.length ? t("{what}: {then}", { what: how, then: reason.join(": ") }) : how;
  find("#foot").textContent = refused ? `${foot}; ${t("refused messages: {list}", { list: refused })}` : foot;
  // Once what was put into the page is painted.
  if (relabelled || !drawn) requestAnimationFrame(() => setTimeout(draw));
  drawn = true;
}

const asked = () => `?${new URLSearchParams(opened().map((site) => ["open", site]))}`;

function listen() {
  watched = asked();
  if (source) source.close();
  source = new EventSource(`/events${watched}`);
  source.onmessage = (event) => apply(JSON.parse(event.data));
  source.onerror = async () => {
    find("#summary").textContent = t("The page has lost its server; it tries again by itself.");
    if (source.readyState !== EventSource.CLOSED) return;
    // Refused, such as where too many watch: then it asks now and again.
    setTimeout(listen, AGAIN_MS);
    const answer = await fetch(`/snapshot${watched}`).catch(() => null);
    if (answer && answer.ok) apply(await answer.json());
  };
}

watchChoices(() => showRooms(state, new Set()));
watchSchools(() => {
  showRooms(state, new Set());
  if (asked() !== watched) listen();
});
watchTimeline(() => state.labels);
listen();
setInterval(tick, 1000);
