"use strict";
// Commands to nodes, where the server offers them (--control-password-file) and the password was given.
// It lives in a section of its own, since the rooms are drawn anew every second.
(() => {
  const MOST_ANSWERS = 50;
  // name, button, what its number is, least, most, step, first value, and whether it may be left empty
  const COMMANDS = [
    ["pause", "Pause", "minutes (empty: no end)", 1, 527040, 1, 10, true],
    ["resume", "Resume"],
    ["set-window", "Set window", "seconds", 2, 3600, 1, 30, false],
    ["set-min-group", "Set smallest group", "people", 1, 1000, 1, 8, false],
    ["report", "Report now"],
    ["reload-bundle", "Read model again"],
  ];
  let token = "";
  let busy = false;

  function make(tag, text, attributes) {
    const element = document.createElement(tag);
    if (text !== undefined) element.textContent = text;
    for (const [name, value] of Object.entries(attributes || {})) element.setAttribute(name, value);
    return element;
  }

  const section = make("section", undefined, { id: "control", lang: "en", "aria-labelledby": "control-title" });
  const status = make("p", "", { id: "control-status", role: "status" });
  const body = make("div");

  async function post(path, content) {
    const headers = { "content-type": "application/json", "x-control-token": token };
    const answer = await fetch(`/control/${path}`, { method: "POST", headers, body: JSON.stringify(content) });
    const found = await answer.json().catch(() => ({ error: `the server answered ${answer.status}` }));
    if (answer.status === 401) locked();
    if (!answer.ok) throw new Error(found.error);
    return found;
  }

  // Runs one request at a time; what went wrong is said where a screen reader hears it.
  async function once(saying, work) {
    if (busy) return;
    busy = true;
    section.setAttribute("aria-busy", "true");
    status.textContent = saying;
    try {
      status.textContent = await work();
    } catch (error) {
      status.textContent = error instanceof TypeError ? "The server cannot be reached; nothing is known to be done." : error.message;
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
    const [whoLabel, who] = field("control-who", "Your name, for the log", { autocomplete: "name", maxlength: "60", required: "" });
    const [wordLabel, word] = field("control-password", "Password for commands",
      { type: "password", autocomplete: "current-password", required: "" });
    form.append(whoLabel, who, wordLabel, word, make("button", "Unlock"));
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      once("Unlocking.", async () => {
        const found = await post("open", { who: who.value, password: word.value }).finally(() => { word.value = ""; });
        unlocked(found);
        body.querySelector("select").focus();
        return "Unlocked. Locks by itself after 15 minutes without a command.";
      });
    });
    const details = make("details");
    details.append(make("summary", "Unlock commands to nodes"), form);
    body.replaceChildren(details);
  }

  // One node each, every node of a site, and all of them.
  function targets(nodes) {
    const select = make("select", undefined, { id: "control-target" });
    const add = (value, text) => select.append(Object.assign(make("option", text), { value }));
    const sites = [...new Set(nodes.map((node) => node.split("/")[0]))];
    nodes.forEach((node) => add(node, node));
    if (sites.length > 1) sites.forEach((site) => add(`${site}/*`, `every node of ${site}`));
    if (nodes.length > 1) add("*/*", `all ${nodes.length} nodes`);
    return select;
  }

  function unlocked(found) {
    token = found.token;
    const select = targets(found.nodes);
    const answers = make("ol", undefined, { id: "control-answers", "aria-label": "Answers, the newest first" });
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
        once(`${label}: asking ${whom}.`, async () => {
          const { answers: came } = await post("ask", { command: name, target: select.value, amount });
          const at = new Date().toLocaleTimeString([], { hourCycle: "h23" });
          const items = came.map(({ node, outcome, text }) => {
            const item = make("li", `${at} ${node}, ${label}: `, { class: outcome === "done" ? "done" : "failed" });
            item.append(make("strong", outcome), document.createTextNode(`: ${text}`));
            return item;
          });
          answers.prepend(...items);
          while (answers.children.length > MOST_ANSWERS) answers.lastChild.remove();
          const done = came.filter(({ outcome }) => outcome === "done").length;
          if (came.length === 1) return `${came[0].node}, ${label}: ${came[0].outcome}: ${came[0].text}`;
          return `${label}: ${done} of ${came.length} nodes did it; each answer is in the list.`;
        });
      });
      return form;
    });
    const lock = make("button", "Lock", { type: "button" });
    lock.addEventListener("click", () => once("Locking.", async () => {
      await post("close", {});
      locked();
      body.querySelector("summary").focus();
      return "Locked.";
    }));
    const whom = make("p");
    whom.append(make("label", "Ask", { for: "control-target" }), select, lock);
    const grid = make("div", undefined, { class: "commands" });
    grid.append(...rows);
    body.replaceChildren(whom, grid, answers);
  }

  async function begin() {
    const answer = await fetch("/control").catch(() => null);
    const found = answer && answer.ok ? await answer.json() : { offered: false };
    if (!found.offered) return;
    document.head.append(make("link", undefined, { rel: "stylesheet", href: "/control.css" }));
    section.append(make("h2", "Commands", { id: "control-title" }), body, status);
    document.querySelector("main").append(section);
    if (found.open) unlocked(found);
    else locked();
  }

  begin();
})();
