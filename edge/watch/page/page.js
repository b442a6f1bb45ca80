// Text of a message goes into the page as text alone (textContent), never as markup.

import { colour } from "./colours.js";
import { setClock, showRooms, tick, watchChoices } from "./rooms.js";
import { draw, offer, watchTimeline } from "./timeline.js";
import { count, name, number, t } from "./words.js";

const AGAIN_MS = 5000;

const find = (selector) => document.querySelector(selector);
// As the server tells it: rooms by node, the rest by name.
const state = { rooms: new Map(), labels: [], refused: {} };

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

function summary() {
  const rooms = [...state.rooms.values()];
  const here = rooms.filter((room) => !(room.gone || room.off || room.retired));
  const online = here.filter((room) => room.state === "online").length;
  const off = here.filter((room) => room.trouble).length;
  const parts = [
    count("{online} of {n} rooms online", here.length, { online: number(online) }),
    count("{n} people in view", state.people),
  ];
  if (off) parts.push(count("{n} need a look", off));
  if (state.hidden_rooms) parts.push(count("{n} small groups hidden", state.hidden_rooms));
  const text = parts.join(" · ");
  if (find("#summary").textContent !== text) find("#summary").textContent = text;
}

function apply(change) {
  const before = state.labels.join();
  const { rooms = {}, whole, now, ...rest } = change;
  setClock(now);
  if (whole) state.rooms.clear();
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
  const foot = t("broker {state}", { state: state.broker });
  find("#foot").textContent = refused ? `${foot}; ${t("refused messages: {list}", { list: refused })}` : foot;
  if (relabelled) draw();
}

function listen() {
  const source = new EventSource("/events");
  source.onmessage = (event) => apply(JSON.parse(event.data));
  source.onerror = async () => {
    find("#summary").textContent = t("The page has lost its server; it tries again by itself.");
    if (source.readyState !== EventSource.CLOSED) return;
    // Refused, such as where too many watch: then it asks now and again.
    setTimeout(listen, AGAIN_MS);
    const answer = await fetch("/snapshot").catch(() => null);
    if (answer && answer.ok) apply(await answer.json());
  };
}

watchChoices(() => showRooms(state, new Set()));
watchTimeline(() => state.labels);
listen();
setInterval(tick, 1000);
