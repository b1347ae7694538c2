// What is drawn, dropped, pasted or chosen goes to /predict, and the answer is shown.
// Files are sent as they are, drawings black on white: all preprocessing is the server's.

const SIZE = 280; // side of the drawing that is sent, in pixels
const SHARPNESS = 3; // pixels of the canvas on the page for each of those
const PEN = SIZE / 20; // a thicker one fills the holes of small digits
const STEP = 14, SMALL_STEP = 4; // of the keyboard's pen
const LIVE_MS = 150; // between two requests in the middle of a stroke
const PATIENCE_MS = 60_000;
const RETRIES = 5, LONGEST_WAIT_S = 10; // where the server says "later"
const UNDOABLE = 100;
const SIDE = 28; // of what the net sees
const SILENT = "The server does not answer", CLOSED = "The file cannot be read: is it a folder?";
const BLANK = { strokes: [], picture: null };
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

const $ = (id) => document.getElementById(id);
const drawing = $("drawing"), preview = $("preview"), result = $("result");

// ---- What there is to read. A state is not changed, but for the stroke that is being drawn.

let state = BLANK;
let past = [];
let stroke = null; // the one that is being drawn, the last of the state's
let pointer = null; // what draws it; null is the keyboard

const isBlank = () => !state.picture && !state.strokes.length;

function become(next) {
  state = next;
  stroke = null;
  showPicture();
  paint();
}

function change(next) {
  past = [...past.slice(1 - UNDOABLE), state];
  become(next);
}

function begin(point) {
  if (state.picture) dropRequests();
  const points = [point];
  change({ strokes: [...(state.picture ? [] : state.strokes), points], picture: null });
  stroke = points;
  ask({ final: false });
}

function extend(points) {
  stroke.push(...points);
  paint();
  ask({ final: false });
}

function end() {
  stroke = pointer = null;
  paint();
  ask({ final: true });
}

function clear() {
  dropRequests();
  if (!isBlank()) change(BLANK);
  ask({ final: true });
  announce("Cleared");
}

function undo() {
  dropRequests();
  if (past.length) become(past.pop());
  ask({ final: true });
  if (isBlank()) announce("Nothing is drawn");
}

function take(file) {
  if (!file) return;
  dropRequests();
  change({ strokes: [], picture: file });
  ask({ final: true });
}

// ---- The sheet of paper

let frame = 0;
let pen = { x: SIZE / 2, y: SIZE / 2 };
let penShown = false;

function paint() {
  frame ||= requestAnimationFrame(() => {
    frame = 0;
    const context = drawing.getContext("2d");
    context.setTransform(SHARPNESS, 0, 0, SHARPNESS, 0, 0);
    context.clearRect(0, 0, SIZE, SIZE);
    ink(context, state.strokes, "#161c48");
    if (penShown) showPen(context);
  });
  $("invitation").hidden = !isBlank();
}

function ink(context, strokes, colour) {
  Object.assign(context, { lineCap: "round", lineJoin: "round", lineWidth: PEN, strokeStyle: colour });
  for (const points of strokes) {
    context.beginPath();
    context.moveTo(points[0].x, points[0].y);
    for (let i = 1; i + 1 < points.length; i++) {
      const here = points[i], next = points[i + 1];
      context.quadraticCurveTo(here.x, here.y, (here.x + next.x) / 2, (here.y + next.y) / 2);
    }
    const last = points.at(-1);
    context.lineTo(last.x + 0.01, last.y); // a line of no length is not drawn everywhere
    context.stroke();
  }
}

function showPen(context) {
  context.beginPath();
  context.arc(pen.x, pen.y, PEN / 2, 0, 2 * Math.PI);
  Object.assign(context, { lineWidth: 2, strokeStyle: "#3447d4", fillStyle: stroke ? "#3447d4" : "#fffc" });
  context.fill();
  context.stroke();
}

function toPng(strokes) {
  const canvas = Object.assign(document.createElement("canvas"), { width: SIZE, height: SIZE });
  const context = canvas.getContext("2d", { alpha: false });
  context.fillStyle = "#fff";
  context.fillRect(0, 0, SIZE, SIZE);
  ink(context, strokes, "#000");
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}

function showPicture() {
  const { picture } = state;
  URL.revokeObjectURL(preview.src);
  preview.removeAttribute("src");
  preview.hidden = $("caption").hidden = !picture;
  $("unshown").hidden = true;
  if (!picture) return;
  $("caption").textContent = picture.name;
  preview.alt = `Your picture ${picture.name}`;
  preview.src = URL.createObjectURL(picture);
}

preview.addEventListener("error", () => {
  preview.hidden = true;
  $("unshown").textContent = "This browser cannot show the file. It was sent as it is.";
  $("unshown").hidden = !state.picture;
});

// ---- Mouse, finger, pen, keyboard

function place(event) {
  const box = drawing.getBoundingClientRect();
  return { x: ((event.clientX - box.left) * SIZE) / box.width, y: ((event.clientY - box.top) * SIZE) / box.height };
}

drawing.addEventListener("pointerdown", (event) => {
  if (event.button !== 0 || !event.isPrimary || pointer !== null) return;
  if (stroke) end();
  drawing.setPointerCapture(event.pointerId);
  pointer = event.pointerId;
  penShown = false;
  begin(place(event));
});

drawing.addEventListener("pointermove", (event) => {
  if (!stroke || event.pointerId !== pointer) return;
  const all = event.getCoalescedEvents?.() ?? [];
  extend((all.length ? all : [event]).map(place));
});

for (const name of ["pointerup", "pointercancel", "lostpointercapture"]) {
  drawing.addEventListener(name, (event) => {
    if (event.pointerId !== pointer) return;
    pointer = null;
    if (stroke) end();
  });
}

drawing.addEventListener("keydown", (event) => {
  const arrow = ARROWS[event.key];
  if (pointer !== null || event.ctrlKey || event.metaKey || event.altKey || !(arrow || event.key === " ")) return;
  event.preventDefault();
  penShown = true;
  if (arrow) movePen(arrow, event.shiftKey ? SMALL_STEP : STEP);
  else if (!event.repeat) togglePen();
});

function movePen([right, down], step) {
  const within = (value) => Math.min(SIZE, Math.max(0, value));
  pen = { x: within(pen.x + right * step), y: within(pen.y + down * step) };
  if (stroke) extend([pen]);
  else paint();
}

function togglePen() {
  announce(stroke ? "Pen up" : "Pen down");
  if (stroke) end();
  else begin(pen);
}

drawing.addEventListener("focus", () => {
  penShown = drawing.matches(":focus-visible");
  paint();
});

drawing.addEventListener("blur", () => {
  penShown = false;
  if (stroke && pointer === null) end();
  else paint();
});

document.addEventListener("keydown", (event) => {
  if (event.target === $("key")) return;
  if ((event.ctrlKey || event.metaKey) && !event.shiftKey && event.key.toLowerCase() === "z") undo();
  else if (event.key === "Escape" || event.key === "Delete") clear();
  else return;
  event.preventDefault();
});

// ---- Pictures

const sheet = $("sheet");

for (const name of ["dragenter", "dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault(); // or the browser leaves the page for the file
    sheet.classList.toggle("target", name === "dragenter" || name === "dragover");
    if (name === "drop") offer(event.dataTransfer, "What you dropped is not a file");
  });
}

document.addEventListener("paste", (event) => {
  if (event.target !== $("key")) offer(event.clipboardData, "There is no picture in the clipboard");
});

function offer(transfer, otherwise) {
  if (transfer.files.length) take(transfer.files[0]);
  else complain(otherwise);
}

$("file").addEventListener("change", (event) => {
  take(event.target.files[0]);
  event.target.value = ""; // so that the same file can be chosen again
});
$("undo").addEventListener("click", undo);
$("clear").addEventListener("click", clear);

// ---- Requests: never two at a time, the newest picture wins

let queued = null;
let flying = null; // what aborts the request that is under way
let earliest = 0, timer = 0; // when the next one may start
let key = recall();
let locked = false; // until a key is given

function ask({ final }) {
  queued = isBlank() ? null : { ...state, final, tries: 0 };
  if (queued) return pump();
  $("error").hidden = !locked;
  showNothing();
}

function dropRequests() {
  flying?.abort();
  flying = queued = null;
  result.ariaBusy = "false";
}

async function pump() {
  clearTimeout(timer);
  if (flying || locked || !queued) return;
  const wait = earliest - performance.now();
  if (wait > 0 && !(queued.final && wait <= LIVE_MS)) {
    timer = setTimeout(pump, wait);
    return;
  }
  const job = queued, flight = new AbortController();
  [queued, flying] = [null, flight];
  result.ariaBusy = "true";
  await converse(job, flight.signal);
  if (flying !== flight) return;
  flying = null;
  result.ariaBusy = "false";
  pump();
}

async function converse(job, signal) {
  const [response, answer] = await send(job, signal).catch(() => []);
  if (signal.aborted) return;
  if (!response) fail(job.picture && !(await isReadable(job.picture)) ? CLOSED : SILENT);
  else if (response.status === 401) lock();
  else if (!response.ok) refuse(job, response, answer);
  else if (answer.pixels) show(answer, job.final);
  else fail("What the server answers cannot be read");
}

async function send(job, signal) {
  const body = job.picture ?? (await toPng(job.strokes));
  signal.throwIfAborted();
  const headers = { "Content-Type": body.type || "application/octet-stream" };
  if (key) headers.Authorization = `Bearer ${key}`;
  earliest = performance.now() + LIVE_MS;
  const patient = AbortSignal.any([signal, AbortSignal.timeout(PATIENCE_MS)]);
  const response = await fetch("predict?pixels=true", { method: "POST", headers, body, signal: patient });
  return [response, await response.json().catch(() => ({}))];
}

const isReadable = (file) => file.slice(0, 1).arrayBuffer().then(() => true, () => false);

function refuse(job, response, answer) {
  fail(answer.error ?? `The server answers with status ${response.status}`);
  if (!response.headers.has("Retry-After") || job.tries >= RETRIES) return;
  const seconds = Number(response.headers.get("Retry-After")) || 1;
  earliest = performance.now() + 1000 * Math.min(seconds, LONGEST_WAIT_S);
  queued ??= { ...job, tries: job.tries + 1 };
}

function recall() {
  try {
    return sessionStorage.getItem("key");
  } catch {
    return null; // the browser keeps nothing
  }
}

function lock() {
  locked = true;
  $("key-form").hidden = false;
  fail(key ? "This is not the key" : "This server asks for an API key");
  if (key) $("key").focus();
}

$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key = $("key").value;
  try {
    sessionStorage.setItem("key", key);
  } catch {} // then it is asked for again next time
  $("key").value = "";
  $("key-form").hidden = true;
  locked = false;
  drawing.focus();
  ask({ final: true });
});

// ---- Answers

const percent = (share) => `${(100 * share).toFixed(1)}\u00a0%`;

const bars = Array.from({ length: 10 }, (_, label) => {
  const row = document.createElement("li");
  const [name, track, fill, share] = ["name", "track", "fill", "share"].map((className) =>
    Object.assign(document.createElement("span"), { className }));
  name.textContent = label;
  track.append(fill);
  row.append(name, " ", track, share);
  $("bars").append(row);
  return { row, name, fill, share };
});

function announce(sentence) {
  $("announcement").textContent = sentence;
}

function fail(error) {
  showNothing();
  complain(error);
}

function complain(error) {
  if ($("error").textContent !== error) $("error").textContent = error; // or it is read out again and again
  $("error").hidden = false;
}

function showNothing() {
  showVerdict("empty", "", isBlank() ? "Nothing to read yet" : "");
  showBars([]);
  showSeen(null);
  showNotes([]);
}

function show(answer, final) {
  const sure = answer.label !== null, { reason, pixels, probabilities } = answer;
  const seen = pixels.some((row) => row.some(Boolean)); // else there is nothing to guess from
  const share = reason?.startsWith("confidence") ? `, ${percent(answer.confidence)}` : "";
  const guess = seen ? `Best guess ${answer.best_guess}${share}` : "";
  $("error").hidden = true;
  if (sure) showVerdict("sure", answer.label, `${percent(answer.confidence)} sure`);
  else showVerdict("unsure", "Not sure", reason, guess);
  showBars(seen ? probabilities : [], answer.labels, answer.label);
  showSeen(pixels);
  showNotes(answer.preprocessing?.warnings ?? []);
  if (!final) return;
  if (sure) announce(`${answer.label}, ${percent(answer.confidence)}`);
  else announce(["Not sure: " + reason, guess.replace("B", "b")].filter(Boolean).join("; "));
}

function showVerdict(kind, verdict, detail, guess = "") {
  result.dataset.state = kind;
  $("verdict").textContent = verdict;
  $("verdict").classList.toggle("word", String(verdict).length > 2);
  $("detail").textContent = detail;
  $("guess").textContent = guess;
  $("guess").hidden = !guess;
}

function showBars(shares, labels = [], best = null) {
  bars.forEach(({ row, name, fill, share }, i) => {
    const known = i in shares;
    if (labels.length) name.textContent = labels[i];
    share.textContent = known ? percent(shares[i]) : "";
    fill.style.setProperty("--share", known ? shares[i] : 0);
    row.classList.toggle("best", best !== null && (labels[i] ?? i) === best);
  });
}

function showSeen(pixels) {
  const image = new ImageData(SIDE, SIDE);
  (pixels?.flat() ?? []).forEach((level, i) => image.data.set([level, level, level, 255], 4 * i));
  $("seen").getContext("2d").putImageData(image, 0, 0);
  const what = pixels ? "your picture as 28 by 28 pixels, white on black" : "nothing yet";
  $("seen").setAttribute("aria-label", `What the net sees: ${what}`);
}

function showNotes(notes) {
  $("notes").replaceChildren(...notes.map((note) =>
    Object.assign(document.createElement("li"), { textContent: note })));
  $("notes").hidden = !notes.length;
}

paint();
showNothing();
