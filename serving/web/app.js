// The search page: words, a picture, a part of a picture, or an indexed image; uploads become hits.
import { parseFilter } from "/web/filter.js";
import { call, key, openPicture, setKey, showPicture } from "/web/key.js";

const collection = new URLSearchParams(location.search).get("c") || "images";
const api = `/v1/collections/${encodeURIComponent(collection)}`;
const at = (id) => document.getElementById(id);

/** What is searched for now: words, a file with an optional crop, an image id, or a mix; and what narrows it. */
const query = { text: "", file: null, crop: null, imageId: null, filter: "", hybrid: false };
let running = null;

async function problemOf(response) {
  try {
    const problem = await response.json();
    return `${problem.detail || problem.title} (${problem.code})`;
  } catch {
    return `The server answered ${response.status}.`;
  }
}

function notice(text, isProblem = false) {
  at("notice").textContent = text;
  at("notice").classList.toggle("problem", isProblem);
}

function rememberInAddress() {
  const parameters = new URLSearchParams();
  if (query.text) parameters.set("q", query.text);
  if (query.imageId) parameters.set("like", query.imageId);
  if (query.filter) parameters.set("filter", query.filter);
  if (query.hybrid) parameters.set("hybrid", "1");
  if (collection !== "images") parameters.set("c", collection);
  history.replaceState(null, "", parameters.size ? `?${parameters}` : location.pathname);
}

/** The filter of the box as JSON, "" without one; null if it cannot be read, which the page then says. */
function filterField() {
  let filter = null;
  let problem = null;
  try {
    filter = parseFilter(query.filter);
  } catch (error) {
    problem = error.message;
  }
  at("filter").setAttribute("aria-invalid", String(problem !== null));
  if (problem !== null) {
    notice(problem, true);
    return null;
  }
  return filter === null ? "" : JSON.stringify(filter);
}

async function search() {
  running?.abort();
  const filter = filterField();
  if (filter === null) return;
  if (!query.text && !query.file && !query.imageId) {
    notice(query.filter ? "A filter narrows a search: give words or a picture, too." : "");
    return;
  }
  rememberInAddress();
  running = new AbortController();
  const form = new FormData();
  if (query.text) form.set("text", query.text);
  if (query.imageId) form.set("image_id", query.imageId);
  if (query.file) form.set("image", query.file);
  if (query.file && query.crop) form.set("crop", JSON.stringify(query.crop));
  if (filter) form.set("filter", filter);
  // Only words can be looked up among words.
  if (query.hybrid && query.text) form.set("hybrid", "true");
  form.set("limit", "24");
  notice("Searching…");
  try {
    const response = await call(`${api}/search`, { method: "POST", body: form, signal: running.signal });
    if (!response.ok) {
      // Whether it is there for a key was never asked for, or was refused.
      if (response.status === 401) at("access").open = true;
      notice(await problemOf(response), true);
      return;
    }
    show(await response.json());
  } catch (error) {
    if (error.name !== "AbortError") notice(`The server cannot be reached: ${error.message}`, true);
  }
}

function show(answer) {
  at("hits").replaceChildren(...answer.hits.map(hitElement));
  const { coverage, freshness, took_ms: took } = answer;
  if (!answer.hits.length) notice("Nothing found.");
  else if (coverage.degraded === "metadata") notice("Found by words in captions, tags and file names only.", true);
  else if (coverage.degraded) notice(`Partial answer: ${coverage.shards_answered} of ${coverage.shards_total} shards answered.`, true);
  else if (answer.no_confident_match) notice("No confident match: these are the nearest pictures, but probably not what you asked for.");
  else notice("");
  at("facts").textContent =
    `${answer.hits.length} hits in ${took.total.toFixed(0)} ms · ${coverage.shards_answered} of ${coverage.shards_total} shards · ` +
    `staleness ${freshness.staleness_s.toFixed(1)} s · model ${answer.model}`;
}

function hitElement(hit) {
  const element = at("hit").content.cloneNode(true);
  const content = `${api}/images/${encodeURIComponent(hit.id)}/content`;
  const caption = hit.payload?.caption || hit.payload?.file_name || hit.id;
  const link = element.querySelector(".picture");
  link.href = content;
  link.addEventListener("click", (event) => openPicture(event, content));
  const image = element.querySelector("img");
  showPicture(image, `${content}?size=256`);
  image.alt = caption;
  element.querySelector(".caption").textContent = caption;
  element.querySelector(".score").textContent = hit.score.toFixed(3);
  element.querySelector(".similar").addEventListener("click", () => {
    Object.assign(query, { text: "", file: null, crop: null, imageId: hit.id });
    at("words").value = "";
    at("query-picture").hidden = true;
    search();
    scrollTo({ top: 0 });
  });
  return element;
}

// --- the query picture and its crop

function searchByFile(file) {
  URL.revokeObjectURL(at("query-image").src);
  at("query-image").src = URL.createObjectURL(file);
  at("crop").hidden = true;
  at("query-picture").hidden = false;
  Object.assign(query, { file, crop: null, imageId: null });
  search();
}

let dragFrom = null;

function fractionsAt(event) {
  const box = at("query-image").getBoundingClientRect();
  const clamp = (value) => Math.min(1, Math.max(0, value));
  return { x: clamp((event.clientX - box.left) / box.width), y: clamp((event.clientY - box.top) / box.height) };
}

function cropBetween(a, b) {
  return { x: Math.min(a.x, b.x), y: Math.min(a.y, b.y), width: Math.abs(a.x - b.x), height: Math.abs(a.y - b.y) };
}

at("canvas").addEventListener("pointerdown", (event) => {
  event.preventDefault();
  at("canvas").setPointerCapture(event.pointerId);
  dragFrom = fractionsAt(event);
});
at("canvas").addEventListener("pointermove", (event) => {
  if (!dragFrom) return;
  const crop = cropBetween(dragFrom, fractionsAt(event));
  const percent = (value) => `${value * 100}%`;
  Object.assign(at("crop").style, { left: percent(crop.x), top: percent(crop.y), width: percent(crop.width), height: percent(crop.height) });
  at("crop").hidden = false;
});
at("canvas").addEventListener("pointerup", (event) => {
  const crop = dragFrom && cropBetween(dragFrom, fractionsAt(event));
  dragFrom = null;
  // A click without a drag means the whole picture.
  const drawn = crop && crop.width > 0.02 && crop.height > 0.02;
  at("crop").hidden = !drawn;
  query.crop = drawn ? crop : null;
  search();
});
at("whole").addEventListener("click", () => {
  query.crop = null;
  at("crop").hidden = true;
  search();
});
at("clear").addEventListener("click", () => {
  Object.assign(query, { file: null, crop: null });
  at("query-picture").hidden = true;
  at("query-file").value = "";
  search();
});

// --- uploads: from the receipt to searchable

async function upload(file) {
  const line = document.createElement("li");
  at("uploads").append(line);
  line.textContent = `${file.name}: uploading…`;
  const form = new FormData();
  form.set("file", file);
  form.set("payload", JSON.stringify({ caption: file.name.replace(/\.[^.]*$/, ""), file_name: file.name }));
  const began = performance.now();
  try {
    const response = await call(`${api}/images?wait=searchable`, { method: "POST", body: form });
    if (!response.ok) {
      line.textContent = `${file.name}: ${await problemOf(response)}`;
      return;
    }
    const { id } = await response.json();
    line.textContent = `${file.name}: searchable after ${((performance.now() - began) / 1000).toFixed(1)} s `;
    const similar = document.createElement("button");
    similar.type = "button";
    similar.textContent = "Find it";
    similar.addEventListener("click", () => {
      Object.assign(query, { text: "", file: null, crop: null, imageId: id });
      search();
    });
    line.append(similar);
  } catch (error) {
    line.textContent = `${file.name}: the server cannot be reached: ${error.message}`;
  }
}

// --- where queries come from

at("search").addEventListener("submit", (event) => {
  event.preventDefault();
  query.text = at("words").value.trim();
  query.filter = at("filter").value.trim();
  if (query.text) query.imageId = null;
  search();
});
at("hybrid").addEventListener("change", (event) => {
  query.hybrid = event.target.checked;
  if (query.text) search();
});
at("query-file").addEventListener("change", (event) => event.target.files[0] && searchByFile(event.target.files[0]));
at("upload-file").addEventListener("change", (event) => {
  for (const file of event.target.files) upload(file);
  event.target.value = "";
});
addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dropping");
});
addEventListener("dragleave", (event) => event.relatedTarget || document.body.classList.remove("dropping"));
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  const file = event.dataTransfer.files[0];
  if (file) searchByFile(file);
});
addEventListener("paste", (event) => event.clipboardData.files[0] && searchByFile(event.clipboardData.files[0]));

at("key").value = key();
at("key").addEventListener("change", (event) => {
  setKey(event.target.value.trim());
  search();
});

const given = new URLSearchParams(location.search);
query.text = given.get("q") || "";
query.imageId = given.get("like");
query.filter = given.get("filter") || "";
query.hybrid = given.get("hybrid") === "1";
at("words").value = query.text;
at("filter").value = query.filter;
at("hybrid").checked = query.hybrid;
search();
