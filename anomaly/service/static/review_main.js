// The review of a run as a whole: which part tells which.

import { Asker, Refused } from "./api_client.js";
import { download, figure } from "./dom.js";
import { createLabels, labelWords } from "./labelling.js";
import { drawMeaning, progressOf } from "./review_statistics.js";
import { Run } from "./review_api.js";
import { drawRunCard } from "./run_card.js";
import { createRunList } from "./run_list.js";
import { createTokenDialog } from "./token_dialog.js";
import { verdictOf } from "./verdict.js";
import { createViewer } from "./viewer.js";

const at = (id) => document.getElementById(id);
const KEEP_PICTURES = 40;
const CHECK_SECONDS = 1;
let card = null;
let counts = null;
const pictured = [];

const run = new Run(new Asker(createTokenDialog()));
const viewer = createViewer(at("picture"), at("judged"), { onClose: close, onStep: step });
const list = createRunList(at("gallery"), run, {
  onOpen: (item) => open(item),
  onLabel: (item, label) => labels.set(item, label),
  onCounts: counted,
  onFault: fault,
  onExport: save,
});
const labels = createLabels(at("labelling"), run, { item: subject, onLabelled: labelled, onSaved: saved, onNext: next, onBack: show, onFault: fault });

addEventListener("keydown", (event) => {
  if (event.key === "Escape" && viewer.shown() !== null && !document.querySelector("dialog[open]") && event.target.type !== "search") close();
});
at("picture").addEventListener("keydown", (event) => {
  const moves = { ArrowLeft: -1, ArrowRight: 1 };
  if (moves[event.key] && event.target.tagName !== "INPUT") step(moves[event.key]);
});
at("gallery").addEventListener("focusin", () => labels.draw());
start();

async function start() {
  try {
    card = await run.card();
    document.title = `anomaly: review of ${card.name}`;
    at("run-name").textContent = card.name;
    const first = ["defect", "review"].find((verdict) => card.counts[verdict].all > 0);
    await list.load(first ?? "");
  } catch (error) {
    fault(error);
  }
}

/** The image that keys and buttons are about: the open one, else the one whose tile has the keyboard. */
function subject() {
  if (viewer.shown() !== null) return viewer.shown();
  return at("gallery").contains(document.activeElement) && document.activeElement.classList.contains("tile") ? list.current() : null;
}

function counted(found) {
  counts = found;
  at("progress").textContent = progressOf(counts);
  if (card === null) return;
  drawMeaning(at("meaning"), { counts, card });
  drawRunCard(at("card"), { ...card, counts }, { onCheck: check });
}

function saved(found) {
  at("fault").hidden = true;
  list.counted(found);
}

function fault(error) {
  if (!(error instanceof Refused)) throw error;
  at("fault").textContent = error.message;
  at("fault").hidden = false;
}

/** Compare the files with the manifest, and ask until it is done. */
async function check() {
  try {
    card.files = await run.check();
    while (card.files.state === "checking") {
      counted(counts);
      await new Promise((resolve) => setTimeout(resolve, 1000 * CHECK_SECONDS));
      card.files = (await run.card()).files;
    }
    counted(counts);
  } catch (error) {
    fault(error);
  }
}

async function save(query) {
  try {
    download(`${card.name}.csv`, await run.table(query), "text/csv");
  } catch (error) {
    fault(error);
  }
}

function open(item) {
  document.body.classList.add("has-image");
  list.open(item);
  draw(item);
  labels.draw();
  at("picture").focus();
  load(item).then(async () => {
    if (viewer.shown() !== item) return;
    const following = await list.neighbour(item, 1);
    if (following) load(following); // it is there when it is asked for
  });
}

function draw(item) {
  const items = list.items();
  viewer.show(item, `${items.indexOf(item) + 1} / ${list.total().toLocaleString("en")}`);
  at("map-note").textContent = item.mapNote ?? "";
  at("map-note").hidden = !item.mapNote;
}

/** Fetch picture and map of an image, once; pictures of the last ones are kept. */
function load(item) {
  item.loading ??= fetched(item);
  return item.loading;
}

async function fetched(item) {
  if (item.status !== "ok") return;
  const shown = () => viewer.shown() === item && draw(item);
  item.notice = "Reading the image …";
  shown();
  try {
    item.picture = await run.picture(item.number);
    item.notice = "";
    item.mapNote = "Waiting for the map …";
    shown();
    const { map, note } = await run.map(item.number);
    item.map = map;
    item.mapNote = note;
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    if (item.picture) item.mapNote = `No map: ${error.message}`;
    else item.notice = error.message;
  }
  pictured.push(item);
  if (pictured.length > KEEP_PICTURES) Object.assign(pictured.shift(), { picture: null, map: null, loading: undefined });
  shown();
}

async function step(by) {
  const item = viewer.shown();
  const to = item && (await list.neighbour(item, by));
  if (to && viewer.shown() === item) open(to);
}

function close() {
  const item = viewer.shown();
  viewer.hide();
  list.open(null);
  document.body.classList.remove("has-image");
  if (item && list.items().includes(item)) list.focus(item);
  labels.draw();
}

/** A label is that of the bytes: tiles of equal images show it too. */
function labelled(item) {
  for (const other of list.items()) {
    if (other.sha256 !== item.sha256) continue;
    other.label = item.label;
    list.update(other);
  }
  at("announced").textContent = `${item.short}: ${labelWords(item.label)}.`;
}

async function next(item) {
  const isOpen = viewer.shown() !== null;
  const following = await list.neighbour(item, 1);
  if (!following) {
    at("announced").textContent = `${item.short}: ${labelWords(item.label)}. That was the last of this list.`;
    return;
  }
  at("announced").textContent = `${item.short}: ${labelWords(item.label)}. Next: ${following.short}, ${verdictOf(following).words}, score ${figure(following.score)}.`;
  show(following, isOpen);
}

function show(item, isOpen = viewer.shown() !== null) {
  if (isOpen) open(item);
  else if (list.items().includes(item)) list.focus(item);
  labels.draw();
}
