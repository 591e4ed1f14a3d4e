// The one script of these pages: it keeps a page up to date, and talks with the models.
// Texts from the server are only ever put in as text, or as markup that the server has escaped.
"use strict";

const EVERY_MS = 2000;

function replaceParts(parts) {
  for (const [name, html] of Object.entries(parts)) {
    const place = document.querySelector(`[data-part="${CSS.escape(name)}"]`);
    if (!place) continue;
    const open = [...place.querySelectorAll("details")].map((one) => one.open);
    const scrolled = [...place.querySelectorAll("pre.log")].map((one) =>
      one.scrollTop + one.clientHeight >= one.scrollHeight - 4 ? Infinity : one.scrollTop);
    const focused = place.contains(document.activeElement)
      ? [...place.querySelectorAll("a, button, [tabindex], summary")].indexOf(document.activeElement) : -1;
    const made = new DOMParser().parseFromString(html, "text/html");
    place.replaceChildren(...made.body.childNodes);
    place.querySelectorAll("details").forEach((one, at) => { if (open[at]) one.open = true; });
    place.querySelectorAll("pre.log").forEach((one, at) => { one.scrollTop = Math.min(scrolled[at] ?? Infinity, one.scrollHeight); });
    if (focused >= 0) place.querySelectorAll("a, button, [tabindex], summary")[focused]?.focus({ preventScroll: true });
  }
}

async function watch(main) {
  let mark = main.dataset.mark;
  for (;;) {
    await new Promise((done) => setTimeout(done, EVERY_MS));
    if (document.hidden) continue;
    try {
      const url = new URL(main.dataset.live, location.href);
      url.searchParams.set("mark", mark);
      const answer = await fetch(url, { headers: { Accept: "application/json" } });
      if (answer.status === 401) location.reload();
      if (!answer.ok) continue;
      const found = await answer.json();
      if (found.go) return location.assign(found.go);
      mark = found.mark;
      replaceParts(found.parts);
    } catch {
      // The server may be away for a moment; the next look says so again.
    }
  }
}

// Chat: each side is asked by the same words, and keeps what it has said itself.

const sides = { left: [], right: [] };
let running = null;

async function* pieces(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data: ") || line === "data: [DONE]") continue;
      const found = JSON.parse(line.slice(6));
      if (found.error) throw new Error(found.error.message);
      yield found.choices?.[0]?.delta?.content ?? "";
    }
  }
}

async function answerOn(turns, model, place, settings, signal) {
  let said = "";
  try {
    const answer = await fetch("/v1/chat/completions", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ model, messages: turns, stream: true, ...settings }),
      signal,
    });
    if (!answer.ok) throw new Error((await answer.json()).error?.message ?? `status ${answer.status}`);
    for await (const piece of pieces(answer)) {
      said += piece;
      place.textContent = said;
    }
    if (!said) place.textContent = "(nothing)";
  } catch (failure) {
    const note = document.createElement("span");
    note.className = "lost";
    note.textContent = signal.aborted ? " (stopped)" : ` (${failure.message})`;
    place.append(note);
  }
  turns.push({ role: "assistant", content: said });
}

function newTurn(said, models) {
  const turn = document.createElement("article");
  turn.className = "turn";
  const mine = document.createElement("p");
  mine.className = "mine";
  mine.dir = "auto";
  mine.textContent = said;
  const both = document.createElement("div");
  both.className = "sides";
  const places = models.map(([side, model]) => {
    const column = document.createElement("div");
    const name = document.createElement("p");
    name.className = side === "left" ? "side t0" : "side t1";
    name.textContent = model;
    const place = document.createElement("pre");
    place.dir = "auto";
    column.append(name, place);
    both.append(column);
    return place;
  });
  turn.append(mine, both);
  document.getElementById("turns").append(turn);
  turn.scrollIntoView({ block: "nearest" });
  return places;
}

async function ask(event) {
  event.preventDefault();
  const said = document.getElementById("said");
  if (running || !said.value.trim()) return;
  const models = ["left", "right"]
    .map((side) => [side, document.getElementById(`model-${side}`).value])
    .filter(([, model]) => model);
  const settings = {
    temperature: Number(document.getElementById("temperature").value.trim() || 0),
    max_tokens: Number(document.getElementById("tokens").value.trim() || 256),
  };
  const places = newTurn(said.value, models);
  for (const [side] of models) sides[side].push({ role: "user", content: said.value });
  said.value = "";
  running = new AbortController();
  document.getElementById("stop").disabled = false;
  document.getElementById("send").disabled = true;
  await Promise.all(models.map(([side, model], at) =>
    answerOn(sides[side], model, places[at], settings, running.signal)));
  running = null;
  document.getElementById("stop").disabled = true;
  document.getElementById("send").disabled = false;
  said.focus();
}

function beginAnew() {
  running?.abort();
  sides.left = [];
  sides.right = [];
  document.getElementById("turns").replaceChildren();
}

function openChat(form) {
  form.addEventListener("submit", ask);
  document.getElementById("stop").addEventListener("click", () => running?.abort());
  document.getElementById("clear").addEventListener("click", beginAnew);
  for (const side of ["left", "right"]) {
    document.getElementById(`model-${side}`).addEventListener("change", beginAnew);
  }
  document.getElementById("said").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      form.requestSubmit();
    }
  });
}

const main = document.querySelector("main[data-live]");
if (main) watch(main);
const form = document.getElementById("ask");
if (form) openChat(form);
for (const log of document.querySelectorAll("pre.log")) log.scrollTop = log.scrollHeight;
document.getElementById("faults")?.focus();
