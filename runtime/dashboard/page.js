"use strict";
// Asks the server for its state a few times a second. What it has not heard of for some seconds is never shown as if it
// were current: a decision turns grey when it is old, and all of them when the server does not answer.

const ASK_MS = 150, ASK_HIDDEN_MS = 2000, GIVE_UP_MS = 4000, LOST_S = 2.5, KEPT = 300, PICTURE_MS = 500;
const WORDS = {OK: "OK", ANOMALY: "ANOMALY", NOT_INSPECTED: "NOT INSPECTED"};
const $ = id => document.getElementById(id);
const figure = Draw.figure;
const whole = number => number.toLocaleString("en-US");

let state = null, heard = 0, heardClock = 0, since = 0, chosen = 0, heat = true;
let shownPicture = "", spoken = "", spokenAt = 0;
// What the large decision stands for: it waits for its picture, so that both are of one frame, but not for long.
let shown = null;
const trace = new Map();
let tried = null, preview = null, asking = 0, category = null;

// Two clocks: one stands still while a computer sleeps, the other one may be set.
const elapsed = (at, clock) => Math.max(performance.now() - at, Date.now() - clock) / 1000;
const silence = () => heard ? elapsed(heard, heardClock) : Infinity;

function text(id, value) {
  const element = $(id);
  if (element.textContent !== value) element.textContent = value;
}

function make(tag, content, name) {
  const element = document.createElement(tag);
  if (content !== undefined) element.textContent = content;
  if (name) element.className = name;
  return element;
}

// What may be shown of a camera now: its decision, or NONE and why. quiet: seconds since the server said this of it.
function unusual(camera) {
  return typeof camera.p_value === "number" ? ` (p ${camera.p_value < 0.001 ? "< 0.001" : camera.p_value.toFixed(3)})` : "";
}

function judge(camera, quiet) {
  if (!state || silence() > LOST_S) return ["NONE", "NO CONNECTION", "The page hears nothing from the program."];
  if (state.state === "hung") return ["NONE", "BACKEND HANGS", "The network does not return; parts are not inspected."];
  if (state.state === "paused") return ["NONE", "PAUSED", "Parts are not inspected."];
  if (camera && camera.state === "reconnecting") return ["NONE", "CAMERA LOST", camera.last_loss || ""];
  if (!camera || camera.decision === null) return ["NONE", "NO RESULT YET", camera && camera.error || ""];
  const age = camera.age_s + quiet;
  if (camera.error) return ["NONE", "CAMERA LOST", camera.error];
  if (age > state.stale_s)
    return ["NONE", "NO CURRENT RESULT", `The last one, ${WORDS[camera.decision]}, is ${age < 90 ? Math.floor(age) + " s" : Math.floor(age / 60) + " min"} old.`];
  return [camera.decision, WORDS[camera.decision], camera.reason || ""];
}

async function ask() {
  try {
    const answer = await fetch(`api/state?since=${since}`, {cache: "no-store", signal: AbortSignal.timeout(GIVE_UP_MS)});
    if (answer.status === 401) { location.assign("login"); return; }
    if (!answer.ok) throw new Error(answer.statusText);
    take(await answer.json());
  } catch (problem) {
    console.debug("no answer:", problem.message);
  }
  tick();
  setTimeout(ask, document.hidden ? ASK_HIDDEN_MS : ASK_MS);
}

function take(fresh) {
  const begunAnew = state && (fresh.word !== state.word || fresh.trace.newest < since);
  if (begunAnew) { trace.clear(); shownPicture = ""; shown = null; }
  state = fresh; heard = performance.now(); heardClock = Date.now();
  since = fresh.trace.newest;
  for (const point of fresh.trace.points) {
    if (!trace.has(point[1])) trace.set(point[1], []);
    const kept = trace.get(point[1]);
    if (kept.length && kept[kept.length - 1][0] >= point[0]) continue;
    kept.push(point);
    if (kept.length > KEPT) kept.shift();
  }
  if (chosen >= fresh.cameras.length) chosen = 0;
  follow();
  showFacts(); showNumbers(); showSinks(); showDrift(); showAnomalies(); showThreshold(); showPicture();
}

function adopt(camera, at, clock) {
  shown = {camera, at, clock};
}

// Let the large decision follow the newest result: at once, or with its picture where that comes soon.
function follow() {
  const camera = state.cameras[chosen], at = heard, clock = heardClock;
  if (!camera) { shown = null; return; }
  const waits = shown && shown.camera.id === camera.id && shown.camera.number !== camera.number && camera.has_picture && !document.hidden;
  if (!waits) adopt(camera, at, clock);
  else setTimeout(() => {
    if (shown && shown.camera.id === camera.id && shown.camera.number < camera.number) { adopt(camera, at, clock); tick(); }
  }, PICTURE_MS);
}

// Everything that depends on how long nothing was heard.
function tick() {
  const quiet = silence(), lost = quiet > LOST_S;
  document.body.dataset.link = lost ? (heard ? "lost" : "waiting") : "live";
  text("link-text", lost ? (heard ? "No connection" : "Connecting …") : "Live");
  $("lost").hidden = !(lost && heard);
  if (lost && heard) text("lost", `Nothing heard from the program for ${Math.floor(quiet)} s. What stands below is old.`);
  const camera = shown && shown.camera;
  const [kind, word, why] = judge(camera, shown ? elapsed(shown.at, shown.clock) : Infinity);
  $("decision").dataset.state = kind;
  text("word", word); text("why", why);
  text("against", kind !== "NONE" && camera.score !== null ? `score ${figure(camera.score)}, threshold ${figure(camera.threshold)}${unusual(camera)}${camera.category ? " · " + camera.category : ""}` : "");
  if (kind === "NONE") $("picture-box").dataset.state = "NONE";
  else if ($("picture-box").dataset.decision) $("picture-box").dataset.state = $("picture-box").dataset.decision;
  showCameras();
  document.title = `${word} · ${state && state.model || "edgead"}`;
  // Not more often than a person can listen to.
  if (word !== spoken && performance.now() - spokenAt > 2000) { spoken = word; spokenAt = performance.now(); text("spoken", word); }
  drawTrace();
}

function showFacts() {
  text("model", state.model || "edgead");
  $("review").hidden = !state.review;
  const backend = state.backend;
  text("backend", backend ? `${backend.name} ${backend.version} · ${backend.precision}` : "");
  const seconds = Math.floor(state.seconds || 0), pad = number => String(number).padStart(2, "0");
  text("uptime", `running ${Math.floor(seconds / 3600)}:${pad(Math.floor(seconds / 60) % 60)}:${pad(seconds % 60)}`);
}

function showCameras() {
  const list = $("cameras"), cameras = state ? state.cameras : [];
  while (list.children.length > cameras.length) list.lastChild.remove();
  cameras.forEach((camera, index) => {
    if (!list.children[index]) {
      const button = make("button"), shapes = document.querySelector("#decision svg").cloneNode(true);
      button.type = "button";
      button.append(shapes, make("b"), make("span"));
      button.addEventListener("click", () => { chosen = index; shownPicture = ""; follow(); showPicture(); tick(); });
      const item = make("li"); item.append(button); list.append(item);
    }
    const button = list.children[index].firstChild;
    const own = shown && shown.camera.id === camera.id;
    const [kind, word] = own ? judge(shown.camera, elapsed(shown.at, shown.clock)) : judge(camera, silence());
    button.setAttribute("aria-pressed", String(index === chosen));
    if (button.dataset.state !== kind) button.dataset.state = kind;
    const [, name, line] = button.children;
    const said = `${word} · ${camera.rate} a second` + (camera.captured !== undefined ? ` · ${whole(camera.captured)} frames` : "");
    const called = cameras.length > 1 ? `${index + 1}  ${camera.name}` : camera.name;
    if (name.textContent !== called) name.textContent = called;
    if (line.textContent !== said) line.textContent = said;
  });
  const camera = cameras[chosen];
  text("stage-title", camera ? camera.name : "Camera");
}

async function showPicture() {
  const camera = state.cameras[chosen], at = heard, clock = heardClock;
  if (!camera || camera.decision === null || document.hidden) return;
  const wanted = `${chosen}/${camera.number}/${heat}`;
  if (wanted === shownPicture || showPicture.busy) return;
  showPicture.busy = true;
  try {
    const caption = `Frame ${whole(camera.frame_index)}${camera.file ? " · " + camera.file : ""} · ${WORDS[camera.decision]}` +
      (camera.score !== null ? ` · score ${figure(camera.score)}, threshold ${figure(camera.threshold)}` : "") +
      (camera.category ? ` · ${camera.category}` : "") + (heat && camera.has_picture && !camera.has_map ? " · no heat map" : "");
    if (camera.has_picture) {
      const next = new Image();
      next.src = `api/picture/${camera.id}.jpg?number=${camera.number}&heat=${heat ? 1 : 0}`;
      await next.decode();
      $("picture").src = next.src;
      $("picture").alt = caption;
    }
    $("picture").hidden = !camera.has_picture; $("no-picture").hidden = camera.has_picture;
    if (!camera.has_picture) text("no-picture", "This frame has no picture.");
    text("caption", caption);
    $("picture-box").dataset.decision = camera.decision;
    shownPicture = wanted;
    if (state.cameras[chosen] && state.cameras[chosen].id === camera.id && (!shown || shown.camera.number <= camera.number))
      adopt(camera, at, clock);
  } catch (problem) {
    console.debug("no picture:", problem.message);
  } finally {
    showPicture.busy = false;
  }
  tick();
}

function drawTrace() {
  const routed = !!(state && state.control && state.control.thresholds.length > 1);
  Draw.trace($("trace"), trace.get(chosen) || [], KEPT, tried, routed);
}

function showNumbers() {
  const latency = state.latency_ms, shown = value => value === null ? "–" : `${value.toFixed(value < 10 ? 2 : 1)} ms`;
  text("p50", shown(latency.p50)); text("p99", shown(latency.p99));
  text("latency-of", latency.count ? `last ${whole(latency.count)}` : "");
  const frames = state.frames;
  if (!frames) return;
  const rows = [["captured", frames.captured, "sum"], ["inspected", frames.inspected], ["dropped", frames.dropped],
    ["failed", frames.failed], ["in flight", frames.in_flight]];
  $("ledger").replaceChildren(...rows.flatMap(([name, count, kind]) => [make("dt", name, kind), make("dd", whole(count), kind)]));
  const sum = frames.inspected + frames.dropped + frames.failed + frames.in_flight;
  text("balance", sum === frames.captured ? "captured = inspected + dropped + failed + in flight ✓" : `${whole(frames.captured - sum)} unaccounted for`);
  const reasons = [...Object.entries(frames.dropped_reasons).map(([why, count]) => `dropped ${whole(count)}: ${why}`),
    ...Object.entries(frames.failed_reasons).map(([why, count]) => `failed ${whole(count)}: ${why}`)];
  $("reasons").replaceChildren(...reasons.map(reason => make("div", reason)));
}

function showSinks() {
  const rows = (state.sinks || []).map(sink => {
    const row = make("tr"), name = make("td", sink.name);
    if (sink.last_error) name.append(make("small", sink.last_error));
    row.append(name, make("td", whole(sink.written)), make("td", whole(sink.failed), sink.failed ? "bad" : ""),
      make("td", whole(sink.missed), sink.missed ? "bad" : ""), make("td", whole(sink.pending)));
    return row;
  });
  $("sinks").replaceChildren(...rows);
}

function showDrift() {
  const said = [
    ...(state.promise || []).filter(one => one.broken).map(one => one.text),
    ...(state.drift || []).filter(one => one.drifting).map(one => one.text),
  ];
  $("drift").hidden = !said.length;
  text("drift", said.join(" · "));
}

function showAnomalies() {
  const list = $("anomalies"), now = state.anomalies.map(anomaly => `a${anomaly.number}`);
  if ([...list.children].map(item => item.id).join() === now.join()) return;
  const there = new Map([...list.children].map(item => [item.id, item]));
  list.replaceChildren(...state.anomalies.map(anomaly => there.get(`a${anomaly.number}`) || thumbnail(anomaly)));
  $("no-anomalies").hidden = now.length > 0;
  text("anomalies-count", now.length ? `the newest ${now.length}` : "");
}

function thumbnail(anomaly) {
  const item = make("li"), button = make("button"), clock = new Date(anomaly.time).toLocaleTimeString();
  item.id = `a${anomaly.number}`;
  button.type = "button";
  if (anomaly.has_picture) {
    const picture = make("img");
    picture.src = `api/anomaly/${anomaly.number}.jpg`; picture.alt = ""; picture.loading = "lazy";
    button.append(picture);
  }
  const name = (state.cameras[anomaly.source] || {name: ""}).name;
  const said = `Frame ${anomaly.frame_index}, ${clock}, score ${figure(anomaly.score)}`;
  button.append(make("div", clock), make("div", `${figure(anomaly.score)} / ${figure(anomaly.threshold)}`));
  button.setAttribute("aria-label", `Anomaly: ${said}`);
  button.addEventListener("click", () => {
    text("look-title", name);
    text("look-text", `${said}, threshold ${figure(anomaly.threshold)}${anomaly.category ? ", " + anomaly.category : ""}`);
    $("look-picture").hidden = !anomaly.has_picture;
    if (anomaly.has_picture) $("look-picture").src = `api/anomaly/${anomaly.number}.jpg?large=1`;
    $("look-picture").alt = said;
    $("look").showModal();
  });
  item.append(button);
  return item;
}

// The threshold

const current = () => state.control.thresholds.find(entry => entry.category === category);

function showThreshold() {
  const control = state.control;
  $("threshold-box").hidden = !control; $("no-threshold").hidden = !!control;
  if (!control) return;
  if (!current()) { category = control.thresholds[0].category; tried = null; }
  $("category-label").hidden = category === null;
  const names = control.thresholds.map(entry => entry.category);
  if (category !== null && [...$("category").options].map(option => option.value).join() !== names.join())
    $("category").replaceChildren(...names.map(name => new Option(name, name, name === category, name === category)));
  text("threshold-now", `now ${figure(current().value)}`);
  text("locked", control.locked ? `To try out only: ${control.locked}.` : "");
  $("changes").replaceChildren(...control.changes.map(change =>
    make("li", `${new Date(change.time).toLocaleTimeString()} ${change.who}: ${figure(change.old)} → ${figure(change.new)}${change.category ? " (" + change.category + ")" : ""}`)));
  const wait = preview ? 1000 : 0;
  if (performance.now() - asking > wait) askPreview();
}

async function askPreview() {
  asking = performance.now();
  const value = tried === null ? current().value : tried;
  const query = new URLSearchParams({value}); if (category !== null) query.set("category", category);
  try {
    const answer = await fetch(`api/preview?${query}`, {cache: "no-store", signal: AbortSignal.timeout(GIVE_UP_MS)});
    if (!answer.ok) return;
    preview = await answer.json();
  } catch (problem) { console.debug("no preview:", problem.message); return; }
  showPreview();
}

function describe(result) {
  const changed = result.to_anomaly + result.to_ok;
  if (!result.parts) return "No parts judged yet.";
  if (!changed) return `None of the last ${whole(result.parts)} parts would change.`;
  return `${whole(changed)} of the last ${whole(result.parts)} parts would change: ${whole(result.to_anomaly)} from OK to anomaly, ${whole(result.to_ok)} from anomaly to OK.`;
}

function showPreview() {
  const now = current().value, value = tried === null ? now : tried;
  // While somebody moves the slider, the ends of its scale stay where they are.
  if (tried === null || !showPreview.scale) showPreview.scale = [preview.histogram.low, preview.histogram.high];
  const [low, high] = showPreview.scale;
  Draw.histogram($("histogram"), {...preview.histogram}, now, tried);
  if (document.activeElement !== $("slider")) $("slider").value = String(Math.round((value - low) / (high - low) * 1000));
  $("slider").setAttribute("aria-valuetext", figure(value));
  if (document.activeElement !== $("value")) $("value").value = figure(value);
  text("flips", tried === null ? "Move the slider to see what another threshold would have changed." : describe(preview));
  $("apply").disabled = tried === null || tried === now || !!state.control.locked;
}

function attempt(value) {
  tried = Number.isFinite(value) ? value : null;
  askPreview(); drawTrace();
}

$("slider").addEventListener("input", () => {
  const [low, high] = showPreview.scale || [0, 1];
  attempt(Number((low + Number($("slider").value) / 1000 * (high - low)).toPrecision(4)));
});
$("value").addEventListener("input", () => attempt($("value").value === "" ? NaN : Number($("value").value)));
$("reset").addEventListener("click", () => { tried = null; $("value").blur(); askPreview(); drawTrace(); });
$("category").addEventListener("change", () => { category = $("category").value; tried = null; showThreshold(); askPreview(); });
$("heat").addEventListener("click", () => {
  heat = !heat; $("heat").setAttribute("aria-pressed", String(heat)); shownPicture = ""; showPicture();
});

let asked = null;
$("apply").addEventListener("click", () => {
  asked = {value: tried, expected: current().value, category};
  text("confirm-text", `From ${figure(asked.expected)} to ${figure(asked.value)}${category ? " for " + category : ""}. ${describe(preview)}`);
  $("confirm-risk").hidden = asked.value < asked.expected;
  text("confirm-risk", "A higher threshold lets parts pass that were rejected until now.");
  text("confirm-error", "");
  $("confirm").showModal(); $("who").focus();
});

$("confirm-cancel").addEventListener("click", () => $("confirm").close());
$("confirm-form").addEventListener("submit", async event => {
  event.preventDefault();
  $("confirm-apply").disabled = true;
  try {
    const answer = await fetch("api/threshold", {method: "POST", signal: AbortSignal.timeout(GIVE_UP_MS),
      headers: {"Content-Type": "application/json", "X-Edgead-Word": state.word},
      body: JSON.stringify({...asked, who: $("who").value})});
    if (!answer.ok) throw new Error((await answer.text()).trim());
    tried = null; $("confirm").close(); $("value").blur(); askPreview();
  } catch (problem) {
    text("confirm-error", `Not changed: ${problem.message}`);
  } finally {
    $("confirm-apply").disabled = false;
  }
});

document.addEventListener("visibilitychange", tick);
window.addEventListener("resize", () => { drawTrace(); if (preview) showPreview(); });
setInterval(tick, 250);
ask();
