"use strict";
// The review of a record: one part at a time, one key a label. Nothing is loaded from anywhere else.
const $ = id => document.getElementById(id);
const WORDS = {OK: "passed", ANOMALY: "rejected", NOT_INSPECTED: "not inspected"};
const SAID = {good: "good", defect: "defect", unsure: "unsure"};
let state = null, queue = "rejects", shown = null, heat = false, later = new Set(), again = null, busy = false;

const text = (id, value) => { $(id).textContent = value; };
const who = () => $("who").value.trim().replace(/\s+/g, " ");
const name = item => item.part !== null ? `Part ${item.part}` : item.file || `Row ${item.seq}`;
const figure = value => value === null || value === undefined ? "–" : Number(value).toPrecision(4);

function problem(message) { $("problem").hidden = !message; text("problem", message || ""); }

async function ask(path, body) {
  const options = body === undefined ? {} : {
    method: "POST",
    headers: {"Content-Type": "application/json", "X-Edgead-Word": state ? state.word : ""},
    body: JSON.stringify(body),
  };
  const answer = await fetch(path, options);
  if (!answer.ok) throw new Error((await answer.text()).trim() || answer.statusText);
  return answer.json();
}

async function refresh() {
  if (!who()) { show(null); return; }
  try {
    state = await ask(`api/review/queue?kind=${queue}&who=${encodeURIComponent(who())}`);
    problem("");
  } catch (error) { problem(error.message); return; }
  for (const kind of ["rejects", "near", "sample"]) text(`count-${kind}`, state.counts[kind]);
  text("progress", `${state.parts} parts · ${state.labels.good} good, ${state.labels.defect} defects, ${state.labels.unsure} unsure said`);
  text("escapes", state.escapes.text);
  text("promise", state.promise ? state.promise.text : "This bundle promises no rate that could be watched.");
  $("promise-broken").hidden = !(state.promise && state.promise.broken);
  text("promise-broken", state.promise && state.promise.broken ? state.promise.text : "");
  $("kinds").replaceChildren(...state.kinds.map(kind => Object.assign(document.createElement("option"), {value: kind})));
  listMine(); offer(); show(next());
}

function next() {
  if (again) return again;
  return state.items.find(item => !later.has(item.seq)) || null;
}

function listMine() {
  $("mine").replaceChildren(...state.mine.map(item => {
    const line = document.createElement("li"), button = document.createElement("button");
    button.type = "button";
    const kind = item.said.defect ? `: ${item.said.defect}` : "";
    button.append(Object.assign(document.createElement("span"), {textContent: name(item)}),
      Object.assign(document.createElement("b"), {textContent: SAID[item.said.label] + kind}));
    button.addEventListener("click", () => { again = item; show(item); });
    line.append(button);
    return line;
  }));
}

function show(item) {
  shown = item;
  for (const button of document.querySelectorAll(".say")) button.disabled = !item;
  if (!item) {
    $("picture").hidden = true; $("no-picture").hidden = false;
    text("no-picture", who() ? "Nothing is left to look at here." : "Write your name to begin.");
    text("part-name", "No part"); $("caption").textContent = "\u00a0";
    $("picture-box").dataset.state = "NONE";
    return;
  }
  text("part-name", `${name(item)} · ${WORDS[item.decision]}`);
  const when = new Date(item.time_ms).toLocaleString();
  text("caption", `${when} · score ${figure(item.score)}, threshold ${figure(item.threshold)}` +
    (item.category ? ` · ${item.category}` : "") + (item.reason ? ` · ${item.reason}` : ""));
  $("picture-box").dataset.state = item.decision;
  const picture = $("picture"), wanted = `api/review/${item.seq}.jpg?heat=${heat ? 1 : 0}`;
  picture.alt = `${name(item)}, ${WORDS[item.decision]}${heat ? ", with heat map" : ""}`;
  picture.onload = () => { picture.hidden = false; $("no-picture").hidden = true; };
  picture.onerror = () => { picture.hidden = true; $("no-picture").hidden = false; text("no-picture", "Its picture cannot be shown: it was removed or altered."); };
  if (picture.getAttribute("src") !== wanted) picture.src = wanted;
}

async function say(label) {
  if (!shown || busy) return;  // a double click says it once
  busy = true;
  const kind = $("kind").value.trim();
  try {
    await ask("api/review/label", {seq: shown.seq, label, who: who(), defect: label === "defect" && kind ? kind : null});
    again = null;
    await refresh();
  } catch (error) { problem(error.message); } finally { busy = false; }
}

function choose(kind) {
  queue = kind; later = new Set(); again = null;
  for (const button of document.querySelectorAll("[data-queue]"))
    button.setAttribute("aria-checked", String(button.dataset.queue === kind));
  refresh();
}

function toggleHeat() { heat = !heat; $("heat").setAttribute("aria-pressed", String(heat)); if (shown) show(shown); }
function skip() { if (!shown) return; if (again) again = null; else later.add(shown.seq); show(next()); }
function back() { const last = state && state.mine[0]; if (last) { again = last; show(last); } }

function offer() {
  const waiting = state.waiting;
  $("offer").hidden = !waiting;
  if (!waiting) return;
  const taught = waiting.taught;
  $("take").hidden = Boolean(waiting.problem);
  text("offer-text", waiting.problem || `It learned ${taught.good} good parts and ${taught.defects} defects from ` +
    `${taught.labelled_by.join(", ")}. Of the labelled parts, false alarms: ${taught.gate.false_alarms.old} before, ` +
    `${taught.gate.false_alarms.new} now; escapes: ${taught.gate.escapes.old} before, ${taught.gate.escapes.new} now. ` +
    `${taught.waived.length ? taught.waived.length + " waived." : "Nothing right became wrong."}`);
}

async function take() {
  $("confirm-take").disabled = true;
  try {
    await ask("api/review/takeover", {who: who(), sha256: state.waiting.sha256});
    $("confirm").close();
    await refresh();
  } catch (error) { text("confirm-error", error.message); } finally { $("confirm-take").disabled = false; }
}

for (const button of document.querySelectorAll(".say")) button.addEventListener("click", () => say(button.dataset.label));
for (const button of document.querySelectorAll("[data-queue]")) button.addEventListener("click", () => choose(button.dataset.queue));
$("heat").addEventListener("click", toggleHeat);
$("skip").addEventListener("click", skip);
$("back").addEventListener("click", back);
$("who").addEventListener("change", () => { localStorage.setItem("edgead-reviewer", who()); later = new Set(); again = null; refresh(); });
$("take").addEventListener("click", () => {
  text("confirm-error", ""); text("confirm-text", `${who()}, this is written into the record. The line goes on without losing a frame; ` +
    "the bundle that judges now is kept beside as “previous”."); $("confirm").showModal();
});
$("confirm-cancel").addEventListener("click", () => $("confirm").close());
$("confirm-take").addEventListener("click", take);
document.addEventListener("keydown", event => {
  if (event.target.matches("input") || event.ctrlKey || event.metaKey || event.altKey || $("confirm").open) {
    if (event.key === "Enter" && event.target.matches("input")) event.target.blur();
    return;
  }
  const keys = {g: () => say("good"), d: () => say("defect"), u: () => say("unsure"), h: toggleHeat, ArrowRight: skip,
    ArrowLeft: back, 1: () => choose("rejects"), 2: () => choose("near"), 3: () => choose("sample"), k: () => $("kind").focus()};
  const action = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (action) { event.preventDefault(); action(); }
});
$("who").value = localStorage.getItem("edgead-reviewer") || "";
if (!$("who").value) $("who").focus();
refresh();
