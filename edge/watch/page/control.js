// Commands to nodes, where the server offers them (--control-password-file) and the password was given.
// It lives in a section of its own, since the rooms are drawn anew every second. What a node answers and
// the server refuses is English, and marked so for who has it read aloud.
import { count, t } from "./words.js";

const MOST_ANSWERS = 50;
// name, button, what its number is, least, most, step, first value, and whether it may be left empty
const COMMANDS = [
  ["pause", t("Pause"), t("minutes (empty: no end)"), 1, 527040, 1, 10, true],
  ["resume", t("Resume")],
  ["set-window", t("Set window"), t("seconds"), 2, 3600, 1, 30, false],
  ["set-min-group", t("Set smallest group"), t("people"), 1, 1000, 1, 8, false],
  ["report", t("Report now")],
  ["reload-bundle", t("Read model again")],
];
const OUTCOMES = { done: t("done"), refused: t("refused"), "no answer": t("no answer") };
let token = "";
let busy = false;

function make(tag, text, attributes) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  for (const [name, value] of Object.entries(attributes || {})) element.setAttribute(name, value);
  return element;
}

const section = make("section", undefined, { id: "control", "aria-labelledby": "control-title" });
const status = make("p", "", { id: "control-status", role: "status" });
const body = make("div");

async function post(path, content) {
  const headers = { "content-type": "application/json", "x-control-token": token };
  const answer = await fetch(`/control/${path}`, { method: "POST", headers, body: JSON.stringify(content) });
  const found = await answer.json().catch(() => ({ error: `the server answered ${answer.status}` }));
  if (answer.status === 401) locked();
  if (!answer.ok) throw new Refused(found.error);
  return found;
}

class Refused extends Error {}

function say(text, lang) {
  status.textContent = text;
  if (lang) status.setAttribute("lang", lang);
  else status.removeAttribute("lang");
}

// Runs one request at a time; what went wrong is said where a screen reader hears it.
async function once(saying, work) {
  if (busy) return;
  busy = true;
  section.setAttribute("aria-busy", "true");
  say(saying);
  try {
    say(await work());
  } catch (error) {
    if (error instanceof Refused) say(error.message, "en");
    else say(t("The server cannot be reached; nothing is known to be done."));
  }
  busy = false;
  section.removeAttribute("aria-busy");
}

function field(id, label, attributes) {
  const input = make("input", undefined, { id, ...attributes });
  return [make("label", label, { for: id }), input];
}

function locked() {
  token = "";
  const form = make("form");
  const [whoLabel, who] = field("control-who", t("Your name, for the log"), { autocomplete: "name", maxlength: "60", required: "" });
  const [wordLabel, word] = field("control-password", t("Password for commands"),
    { type: "password", autocomplete: "current-password", required: "" });
  form.append(whoLabel, who, wordLabel, word, make("button", t("Unlock")));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    once(t("Unlocking."), async () => {
      const found = await post("open", { who: who.value, password: word.value }).finally(() => { word.value = ""; });
      unlocked(found);
      body.querySelector("select").focus();
      return t("Unlocked. Locks by itself after 15 minutes without a command.");
    });
  });
  const details = make("details");
  details.append(make("summary", t("Unlock commands to nodes")), form);
  body.replaceChildren(details);
}

// One node each, every node of a site, and all of them.
function targets(nodes) {
  const select = make("select", undefined, { id: "control-target" });
  const add = (value, text) => select.append(Object.assign(make("option", text), { value }));
  const sites = [...new Set(nodes.map((node) => node.split("/")[0]))];
  nodes.forEach((node) => add(node, node));
  if (sites.length > 1) sites.forEach((site) => add(`${site}/*`, t("every node of {site}", { site })));
  if (nodes.length > 1) add("*/*", count("all {n} nodes", nodes.length));
  return select;
}

function unlocked(found) {
  token = found.token;
  const select = targets(found.nodes);
  const answers = make("ol", undefined, { id: "control-answers", "aria-label": t("Answers, the newest first") });
  const rows = COMMANDS.map(([name, label, unit, least, most, step, first, empty]) => {
    const form = make("form", undefined, { class: "command" });
    const button = make("button", label);
    form.append(button);
    let input;
    if (unit) {
      const limits = { type: "number", min: least, max: most, step, value: first, inputmode: "numeric" };
      const [unitLabel, made] = field(`control-${name}`, unit, limits);
      input = made;
      if (!empty) input.required = true;
      form.append(input, unitLabel);
    }
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      const many = select.value.includes("*");
      const whom = select.options[select.selectedIndex].text;
      if (many && !window.confirm(`${label}: ${whom}?`)) return;
      const amount = input && input.value !== "" ? Number(input.value) : null;
      once(t("{command}: asking {whom}.", { command: label, whom }), async () => {
        const { answers: came } = await post("ask", { command: name, target: select.value, amount });
        const at = new Date().toLocaleTimeString([], { hourCycle: "h23" });
        const items = came.map(({ node, outcome, text }) => {
          const item = make("li", `${at} ${node}, ${label}: `, { class: outcome === "done" ? "done" : "failed" });
          item.append(make("strong", OUTCOMES[outcome]), ": ", make("span", text, { lang: "en" }));
          return item;
        });
        answers.prepend(...items);
        while (answers.children.length > MOST_ANSWERS) answers.lastChild.remove();
        const done = came.filter(({ outcome }) => outcome === "done").length;
        const [{ node, outcome, text }] = came;
        if (came.length === 1) return `${node}, ${label}: ${OUTCOMES[outcome]}: ${text}`;
        return t("{command}: {done} of {n} nodes did it; each answer is in the list.", { command: label, done, n: came.length });
      });
    });
    return form;
  });
  const lock = make("button", t("Lock"), { type: "button" });
  lock.addEventListener("click", () => once(t("Locking."), async () => {
    await post("close", {});
    locked();
    body.querySelector("summary").focus();
    return t("Locked.");
  }));
  const whom = make("p");
  whom.append(make("label", t("Ask"), { for: "control-target" }), select, lock);
  const grid = make("div", undefined, { class: "commands" });
  grid.append(...rows);
  body.replaceChildren(whom, grid, answers);
}

async function begin() {
  const answer = await fetch("/control").catch(() => null);
  const found = answer && answer.ok ? await answer.json() : { offered: false };
  if (!found.offered) return;
  document.head.append(make("link", undefined, { rel: "stylesheet", href: "/control.css" }));
  section.append(make("h2", t("Commands"), { id: "control-title" }), body, status);
  document.querySelector("main").append(section);
  if (found.open) unlocked(found);
  else locked();
}

begin();
