// Schools as rows with their sums; a school that is opened shows its rooms, which are asked for then.

import { make } from "./make.js";
import { count, language, mostOpened, number, t } from "./words.js";

const find = (selector) => document.querySelector(selector);
const byName = new Intl.Collator(language, { numeric: true });
const rows = new Map(); // by site: its element
let changed = () => {};
let order = "";

// The sites that somebody has opened, the last one last.
const openedSites = new Set();
export const opened = () => [...openedSites];

// again: called when a school is opened or closed.
export function watchSchools(again) {
  changed = again;
}

function facts(school) {
  const parts = [["online", count("{online} of {n} rooms online", school.rooms, { online: number(school.online) })]];
  if (school.people !== null) parts.push(["people", count("{n} people", school.people)]);
  if (school.trouble) parts.push(["trouble", count("{n} need a look", school.trouble)]);
  if (school.hidden) parts.push(["hidden", count("{n} small groups hidden", school.hidden)]);
  const away = school.off + school.gone;
  if (away) parts.push(["off", count("{n} off", away)]);
  return parts;
}

function row(site) {
  const box = make("details", undefined, "school");
  box.append(make("summary"), make("div", undefined, "inside"));
  box.addEventListener("toggle", () => {
    if (box.open) openedSites.add(site);
    else openedSites.delete(site);
    if (!box.open) box.lastElementChild.replaceChildren();
    // More are sent by no server: the one that was opened first is closed, which comes here again.
    if (openedSites.size > mostOpened) rows.get(opened()[0]).open = false;
    else changed();
  });
  return box;
}

function write(box, site, school) {
  const parts = facts(school);
  const now = JSON.stringify(parts);
  if (box.dataset.facts === now) return;
  box.dataset.facts = now;
  const texts = parts.map(([kind, text]) => make("span", text, kind));
  box.firstElementChild.replaceChildren(make("h3", site, "name"), ...texts.flatMap((part) => [" ", part]));
}

function wanted(site, school, rooms) {
  const text = find("#search").value.trim().toLowerCase();
  const only = find("#filter").value;
  if (only && !school[only]) return false;
  return !text || site.includes(text) || text.startsWith(`${site}/`) || rooms.some((room) => room.node.includes(text));
}

const SORTS = {
  name: () => 0,
  people: ([, a], [, b]) => (b.people ?? -1) - (a.people ?? -1),
  trouble: ([, a], [, b]) => b.trouble - a.trouble,
};

// fill: puts rooms into what a school holds.
export function showSchools(box, schools, rooms, fill) {
  const inside = new Map();
  for (const room of rooms.values()) inside.set(room.site, [...(inside.get(room.site) || []), room]);
  const first = SORTS[find("#sort").value];
  const shown = [...schools]
    .filter(([site, school]) => wanted(site, school, inside.get(site) || []))
    .sort((a, b) => first(a, b) || byName.compare(a[0], b[0]));
  for (const [site, school] of shown) {
    if (!rows.has(site)) rows.set(site, row(site));
    write(rows.get(site), site, school);
  }
  const sites = shown.map(([site]) => site);
  if (order !== sites.join("\n") || !box.firstElementChild) {
    order = sites.join("\n");
    place(box, sites.map((site) => rows.get(site)));
  }
  for (const site of sites) {
    const body = rows.get(site).lastElementChild;
    if (!rows.get(site).open) continue;
    if (inside.has(site)) fill(body, inside.get(site));
    else if (!body.firstElementChild) body.textContent = t("The rooms are coming.");
  }
}

// Moves no row that stands where it should, and leaves the keyboard's focus where it is.
function place(box, wantedRows) {
  const keep = new Set(wantedRows);
  for (const child of [...box.children]) if (!keep.has(child)) child.remove();
  const focused = document.activeElement;
  wantedRows.forEach((element, i) => {
    if (box.children[i] !== element) box.insertBefore(element, box.children[i] || null);
  });
  if (focused.isConnected) focused.focus({ preventScroll: true });
}

// What needs a look in schools that are closed, the worst first; the rooms of the others are known.
export function troubles(schools) {
  const closed = [...schools].filter(([site]) => !openedSites.has(site));
  const bad = closed.filter(([, school]) => school.trouble).sort((a, b) => b[1].trouble - a[1].trouble);
  return {
    items: bad.map(([site, school]) => count("{site}: {n} rooms need a look", school.trouble, { site })),
    wrong: closed.filter(([, school]) => school.unsynced).map(([site, school]) => `${site} (${number(school.unsynced)})`),
  };
}
