// The review page: connects its parts.

import { ApiClient, RequestFailed } from "./api_client.js";
import { download, element, formatCount, formatNumber } from "./dom.js";
import { createLabelling, labelName } from "./labelling.js";
import { drawStatistics, progressText } from "./review_statistics.js";
import { terms, useTerms } from "./review_terms.js";
import { ReviewApi } from "./review_api.js";
import { drawRunCard } from "./run_card.js";
import { createRunList } from "./run_list.js";
import { createTokenDialog } from "./token_dialog.js";
import { nameVerdicts, verdictOf } from "./verdict.js";
import { createViewer } from "./viewer.js";

const byId = (id) => document.getElementById(id);
const MAX_PICTURES = 40;
const CHECK_SECONDS = 1;
let counts = null;
const withPicture = [];

const api = new ReviewApi(new ApiClient(createTokenDialog()));
const card = await loadCard();
const viewer = createViewer(byId("viewer"), byId("verdict"), { onClose: close, onStep: step });
const list = createRunList(byId("gallery"), api, {
  onOpen: (item) => open(item),
  onLabel: (item, label) => labelling.set(item, label),
  onCounts: showCounts,
  onError: showError,
  onExport: exportTable,
});
const labelling = createLabelling(byId("labelling"), api, { selected, onLabelled: showLabel, onSaved: showSaved, onNext: goToNext, onUndo: goTo, onError: showError });

addEventListener("keydown", (event) => {
  if (event.key === "Escape" && viewer.shown() !== null && !document.querySelector("dialog[open]") && event.target.type !== "search") close();
});
byId("viewer").addEventListener("keydown", (event) => {
  const steps = { ArrowLeft: -1, ArrowRight: 1 };
  if (steps[event.key] && event.target.tagName !== "INPUT") step(steps[event.key]);
});
byId("gallery").addEventListener("focusin", () => labelling.draw());
start();

/** Load the card and choose its terms; null after an error. */
async function loadCard() {
  try {
    const found = await api.card();
    useTerms(found.kind);
    nameVerdicts(terms.verdicts);
    return found;
  } catch (error) {
    showError(error);
    return null;
  }
}

async function start() {
  if (card === null) return;
  try {
    document.title = `anomaly: review of ${card.name}`;
    byId("run-name").textContent = card.name;
    byId("card-title").textContent = terms.card;
    byId("keys").replaceChildren(...keyHints());
    const first = ["defect", "review"].find((verdict) => card.counts[verdict].all > 0);
    await list.load(first ?? "");
  } catch (error) {
    showError(error);
  }
}

/** The keys in words. */
function keyHints() {
  const keys = [["Enter", "open"], ["← →", "previous and next"], ["g", terms.labels.good], ["d", terms.labels.defect], ["n", "no label"], ["u", "undo"], ["Esc", "close"]];
  return ["Keys: ", ...keys.flatMap(([key, text], index) => [index ? ", " : "", element("kbd", {}, key), ` ${text}`]), ". After a label, the next image opens."];
}

/** The item of the keys and buttons: the open item, or the item of the focused tile. */
function selected() {
  if (viewer.shown() !== null) return viewer.shown();
  return byId("gallery").contains(document.activeElement) && document.activeElement.classList.contains("tile") ? list.current() : null;
}

function showCounts(newCounts) {
  counts = newCounts;
  byId("progress").textContent = progressText(counts);
  if (card === null) return;
  drawStatistics(byId("statistics"), { counts, card });
  drawRunCard(byId("card"), { ...card, counts }, { onCheck: check });
}

function showSaved(newCounts) {
  byId("error").hidden = true;
  list.showCounts(newCounts);
}

function showError(error) {
  if (!(error instanceof RequestFailed)) throw error;
  byId("error").textContent = error.message;
  byId("error").hidden = false;
}

/** Compare the files with the manifest and wait for the result. */
async function check() {
  try {
    card.files = await api.check();
    while (card.files.state === "checking") {
      showCounts(counts);
      await new Promise((resolve) => setTimeout(resolve, 1000 * CHECK_SECONDS));
      card.files = (await api.card()).files;
    }
    showCounts(counts);
  } catch (error) {
    showError(error);
  }
}

async function exportTable(query) {
  try {
    download(`${card.name}.csv`, await api.table(query), "text/csv");
  } catch (error) {
    showError(error);
  }
}

function open(item) {
  document.body.classList.add("has-image");
  list.open(item);
  draw(item);
  labelling.draw();
  byId("viewer").focus();
  load(item).then(async () => {
    if (viewer.shown() !== item) return;
    const following = await list.neighbour(item, 1);
    if (following) load(following); // preload
  });
}

function draw(item) {
  const items = list.items();
  viewer.show(item, `${items.indexOf(item) + 1} / ${formatCount(list.total())}`);
  byId("map-note").textContent = item.mapNote ?? "";
  byId("map-note").hidden = !item.mapNote;
}

/** Load the image and map of an item once; only the latest images stay in memory. */
function load(item) {
  item.loading ??= fetchImage(item);
  return item.loading;
}

async function fetchImage(item) {
  if (item.status !== "ok") return;
  const redraw = () => viewer.shown() === item && draw(item);
  item.notice = "Loading the image …";
  redraw();
  try {
    item.picture = await api.picture(item.number);
    item.notice = "";
    item.mapNote = "Loading the anomaly map …";
    redraw();
    const { map, note } = await api.map(item.number);
    item.map = map;
    item.mapNote = note;
    if (item.verdict === "defect") item.evidence ??= await evidencePicture(item);
  } catch (error) {
    if (!(error instanceof RequestFailed)) throw error;
    if (item.picture) item.mapNote = `No anomaly map: ${error.message}`;
    else item.notice = error.message;
  }
  withPicture.push(item);
  if (withPicture.length > MAX_PICTURES) Object.assign(withPicture.shift(), { picture: null, map: null, loading: undefined });
  redraw();
}

/** Address of the picture of the nearest good patches; null if the run has none. */
async function evidencePicture(item) {
  const picture = await api.evidence(item.number);
  return picture && URL.createObjectURL(picture);
}

async function step(by) {
  const item = viewer.shown();
  const target = item && (await list.neighbour(item, by));
  if (target && viewer.shown() === item) open(target);
}

function close() {
  const item = viewer.shown();
  viewer.hide();
  list.open(null);
  document.body.classList.remove("has-image");
  if (item && list.items().includes(item)) list.focus(item);
  labelling.draw();
}

/** Show a label; identical image files share it. */
function showLabel(item) {
  for (const other of list.items()) {
    if (other.sha256 !== item.sha256) continue;
    other.label = item.label;
    list.update(other);
  }
  byId("announcement").textContent = `${item.short}: ${labelName(item.label)}.`;
}

async function goToNext(item) {
  const isOpen = viewer.shown() !== null;
  const following = await list.neighbour(item, 1);
  if (!following) {
    byId("announcement").textContent = `${item.short}: ${labelName(item.label)}. This was the last image of the list.`;
    return;
  }
  byId("announcement").textContent = `${item.short}: ${labelName(item.label)}. Next: ${following.short}, ${verdictOf(following).words}, score ${formatNumber(following.score)}.`;
  goTo(following, isOpen);
}

function goTo(item, isOpen = viewer.shown() !== null) {
  if (isOpen) open(item);
  else if (list.items().includes(item)) list.focus(item);
  labelling.draw();
}
