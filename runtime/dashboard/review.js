"use strict";
// One part at a time; every answer is a row of the record before the next part is shown.

const $ = id => document.getElementById(id);
const QUEUES = ["", "rejected", "near", "sample"];
const WORDS = {good: "good", defect: "defect", unsure: "unsure"};
let who = "", word = "", part = null, last = 0, skip = [], heat = false, busy = false, waiting = null;

function text(id, value) { $(id).textContent = value; }

function problem(message) {
  $("problem").hidden = !message;
  text("problem", message || "");
}

async function fetched(url, options) {
  const answer = await fetch(url, {cache: "no-store", ...options});
  if (answer.status === 401) { location.assign("login"); throw new Error("log in first"); }
  if (!answer.ok) throw new Error((await answer.text()).trim());
  return answer.json();
}

// The next part, or the one of a row, to look at it again.
async function show(row) {
  const asked = new URLSearchParams({who, queue: $("queue").value, skip: skip.slice(-200).join(",")});
  if (row) asked.set("row", String(row));
  const found = await fetched(`api/review/next?${asked}`);
  word = found.word; part = found.part; heat = false;
  text("left", QUEUES.slice(1).map(name => `${name} ${found.left[name]}`).join(" · ") + " left");
  text("escapes", found.escapes.said);
  text("promise", found.promise ? found.promise.text : "This bundle promises no rate that could be watched.");
  $("promise").classList.toggle("broken", Boolean(found.promise && found.promise.broken));
  offer(found.waiting);
  $("nothing").hidden = part !== null;
  text("part-title", part ? part.part_id || `Row ${part.row}` : "Part");
  const mine = part ? part.mine.map(one => WORDS[one.label] + (one.defect ? ` (${one.defect})` : "")) : [];
  text("mine", mine.length ? `You said before: ${mine.join(", then ")}.` : "");
  $("kind").value = "";
  kinds(found.kinds);
  picture();
}

function kinds(names) {
  $("known").replaceChildren(...names.map((name, place) => {
    const item = document.createElement("li"), button = document.createElement("button"), key = document.createElement("kbd");
    key.textContent = String(place + 1);
    button.type = "button";
    button.append(key, name);
    button.addEventListener("click", () => { $("kind").value = name; });
    item.append(button);
    return item;
  }));
  $("kinds").replaceChildren(...names.map(name => Object.assign(document.createElement("option"), {value: name})));
}

function offer(found) {
  waiting = found;
  $("offer").hidden = !waiting;
  if (!waiting) return;
  const taught = waiting.taught;
  $("take").hidden = Boolean(waiting.problem);
  text("offer-text", waiting.problem || `It learned ${taught.good} good parts and ${taught.defects} defects, labelled by ` +
    `${taught.labelled_by.join(", ")}. Of the labelled parts, good ones rejected: ${taught.gate.false_alarms.old} before, ` +
    `${taught.gate.false_alarms.new} now; defects passed: ${taught.gate.escapes.old} before, ${taught.gate.escapes.new} now` +
    `${taught.waived.length ? `; ${taught.waived.length} waived` : ""}.`);
}

async function takeOver() {
  const body = JSON.stringify({who, sha256: waiting.sha256});
  const headers = {"Content-Type": "application/json", "X-Edgead-Word": word};
  $("confirm-take").disabled = true;
  try {
    await fetched("api/review/takeover", {method: "POST", headers, body});
    $("confirm").close();
    text("said", "The taught bundle judges from now on.");
    await show();
  } catch (error) { text("confirm-error", error.message); } finally { $("confirm-take").disabled = false; }
}

function picture() {
  const image = $("picture"), said = $("model-said");
  image.hidden = part === null;
  said.hidden = part === null || !heat;
  $("heat").setAttribute("aria-pressed", String(heat));
  if (!part) { image.removeAttribute("src"); return; }
  image.src = `api/review/picture/${part.row}.jpg?heat=${heat ? 1 : 0}`;
  image.alt = `Part ${part.part_id || `of row ${part.row}`}${heat ? " with its heat map" : ""}`;
  const score = part.score === null ? "" : `, score ${part.score.toPrecision(4)} against ${part.threshold.toPrecision(4)}`;
  text("model-said", `The model said ${part.decision}${score}${part.reason ? `: ${part.reason}` : ""}`);
}

async function act(work) {
  if (busy) return;
  busy = true;
  try { await work(); problem(""); } catch (error) { problem(error.message); } finally { busy = false; }
}

const label = said => act(async () => {
  if (!part) return;
  const defect = said === "defect" ? $("kind").value.trim() || null : null;
  const body = JSON.stringify({row: part.row, label: said, who, defect});
  const headers = {"Content-Type": "application/json", "X-Edgead-Word": word};
  await fetched("api/review/label", {method: "POST", headers, body});
  text("said", `${part.part_id || `Row ${part.row}`}: ${WORDS[said]}${defect ? ` (${defect})` : ""}, written down.`);
  last = part.row;
  await show();
});

const KEYS = {
  g: () => label("good"),
  d: () => label("defect"),
  u: () => label("unsure"),
  h: () => { heat = !heat; picture(); },
  k: () => $("kind").focus(),
  s: () => act(async () => { if (part) skip.push(part.row); await show(); }),
  b: () => act(async () => { if (last) await show(last); }),
  q: () => { $("queue").selectedIndex = ($("queue").selectedIndex + 1) % QUEUES.length; changed(); },
};

function changed() {
  skip = [];
  act(() => show());
}

document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || $("name").open || $("confirm").open) return;
  if (event.target === $("kind")) {
    if (event.key === "Enter" || event.key === "Escape") { event.preventDefault(); $("kind").blur(); }
    return;
  }
  if (event.target instanceof HTMLSelectElement) return;
  const key = event.key.toLowerCase(), number = Number(key);
  if (KEYS[key]) { event.preventDefault(); KEYS[key](); }
  else if (number >= 1 && number <= $("known").children.length) $("known").children[number - 1].firstChild.click();
});
for (const name of ["good", "defect", "unsure"]) $(name).addEventListener("click", () => label(name));
for (const [id, key] of [["heat", "h"], ["skip", "s"], ["back", "b"]]) $(id).addEventListener("click", KEYS[key]);
$("queue").addEventListener("change", changed);
$("take").addEventListener("click", () => {
  text("confirm-error", "");
  text("confirm-text", `${who}, your name goes into the record. The line goes on without losing a frame; the bundle that ` +
    "judges now is kept beside it as “previous”.");
  $("confirm").showModal();
});
$("confirm-cancel").addEventListener("click", () => $("confirm").close());
$("confirm-take").addEventListener("click", takeOver);
$("name-form").addEventListener("submit", () => {
  who = $("who").value.trim().replace(/\s+/g, " ");
  text("reviewer", who);
  act(() => show());
});
$("name").addEventListener("cancel", event => event.preventDefault());
$("name").showModal();
