// The scoring page: connects its parts.

import { ApiClient, RequestFailed } from "./api_client.js";
import { csvOf } from "./csv.js";
import { download, element, formatNumber } from "./dom.js";
import { listenForImages } from "./file_input.js";
import { createGallery } from "./gallery.js";
import { drawModelCard } from "./model_card.js";
import { ScoringApi } from "./scoring_api.js";
import { ScoringQueue } from "./scoring_queue.js";
import { createThresholdExplorer } from "./threshold_explorer.js";
import { createTokenDialog } from "./token_dialog.js";
import { verdictOf } from "./verdict.js";
import { createViewer } from "./viewer.js";

const byId = (id) => document.getElementById(id);
const CARD_SECONDS = 30;
let models = [];
let threshold = 1;
let isFollowing = true; // show the newest image until the user opens one

const api = new ScoringApi(new ApiClient(createTokenDialog()));
const viewer = createViewer(byId("viewer"), byId("verdict"), { onClose: close, onStep: step });
const gallery = createGallery(byId("gallery"), {
  onOpen: (item) => open(item, { byUser: true }),
  actions: [
    { label: "Export CSV", run: (items) => download("verdicts.csv", csvOf(items), "text/csv") },
    { label: "Clear", run: clear },
  ],
});
const explorer = createThresholdExplorer(byId("threshold"), { onTry: gallery.tryThreshold });
const queue = new ScoringQueue(api, { onItem: addItem, onDrop: dropItem, onProgress: showProgress });
listenForImages({ input: byId("files"), dropZone: document.body, onFiles: scoreFiles });

byId("stop").addEventListener("click", () => queue.stop());
byId("model").addEventListener("change", showVersions);
byId("version").addEventListener("change", showCard);
addEventListener("keydown", (event) => {
  if (event.key === "Escape" && viewer.shown() !== null && !document.querySelector("dialog[open]") && event.target.type !== "search") close();
});
byId("viewer").addEventListener("keydown", (event) => {
  const steps = { ArrowLeft: -1, ArrowRight: 1 };
  if (steps[event.key] && event.target.tagName !== "INPUT") step(steps[event.key]);
});
setInterval(() => document.visibilityState === "visible" && models.length > 0 && showCard(), 1000 * CARD_SECONDS);
start();

async function start() {
  try {
    models = await api.models();
  } catch (error) {
    showError(error);
    return;
  }
  const names = [...new Set(models.map((model) => model.name))];
  byId("model").replaceChildren(...names.map((name) => element("option", {}, name)));
  showVersions();
}

function showVersions() {
  const versions = models.filter((model) => model.name === byId("model").value).map((model) => model.version);
  versions.sort((a, b) => b - a);
  byId("version").replaceChildren(...versions.map((version) => element("option", {}, version)));
  showCard();
}

async function showCard() {
  const choice = chosenModel();
  try {
    const card = await api.card(choice.model, choice.version);
    if (JSON.stringify(choice) !== JSON.stringify(chosenModel())) return;
    const notice = card.current ? "" : "the new model file was refused; the previous model stays active";
    drawModelCard(byId("card"), { name: choice.model, version: choice.version, card, notice });
    byId("error").hidden = true;
    threshold = card.threshold;
    explorer.update(gallery.items(), threshold);
  } catch (error) {
    showError(error);
  }
}

function chosenModel() {
  return { model: byId("model").value, version: byId("version").value };
}

function showError(error) {
  if (!(error instanceof RequestFailed)) throw error;
  showMessage(error.message);
}

function showMessage(message) {
  byId("error").textContent = message;
  byId("error").hidden = false;
}

function scoreFiles(files) {
  if (models.length === 0) {
    showMessage("No model is available because the service has not responded. Reload this page.");
    return;
  }
  isFollowing = true;
  queue.add(files, chosenModel());
}

function addItem(item) {
  gallery.add(item);
  explorer.update(gallery.items(), threshold);
  announce(item);
  if (isFollowing) open(item, { byUser: false });
}

function dropItem(item) {
  gallery.remove(item);
  if (viewer.shown() === item) close();
  showMessage("The page is full and drops its oldest images. Export the verdicts as CSV to keep them.");
}

function announce(item) {
  const { words } = verdictOf(item);
  byId("announcement").textContent = item.status === "ok"
    ? `${item.name}: ${words}, score ${formatNumber(item.score)}, threshold ${formatNumber(item.threshold)}, regions ${item.regions.length}.`
    : `${item.name}: ${words}. ${item.message}`;
}

function showProgress({ done, total, text }) {
  byId("progress").hidden = byId("stop").hidden = total === 0;
  byId("progress").textContent = total === 0 ? "" : `${done} of ${total} ${text ? `· ${text}` : ""}`;
  if (total === 0) showCard();
}

function open(item, { byUser }) {
  if (byUser) isFollowing = false;
  const items = gallery.shown();
  const index = items.indexOf(item);
  document.body.classList.add("has-image");
  viewer.show(item, index < 0 ? "" : `${index + 1} / ${items.length}`);
  gallery.open(item);
  if (byUser) byId("viewer").focus();
}

function step(by) {
  const next = gallery.neighbour(viewer.shown(), by);
  if (next) open(next, { byUser: true });
}

function close() {
  const item = viewer.shown();
  viewer.hide();
  gallery.open(null);
  document.body.classList.remove("has-image");
  isFollowing = true;
  if (item) gallery.focus(item);
}

function clear() {
  if (viewer.shown() !== null) close();
  gallery.clear();
  queue.clear();
  explorer.update([], threshold);
  byId("files").focus();
}
