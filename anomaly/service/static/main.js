// The page as a whole: which part tells which.

import { Asker, Refused } from "./api_client.js";
import { csvOf } from "./csv.js";
import { download, element, figure } from "./dom.js";
import { createGallery } from "./gallery.js";
import { takeImages } from "./file_input.js";
import { drawCard } from "./model_card.js";
import { Service } from "./scoring_api.js";
import { Session } from "./scoring_queue.js";
import { createTokenDialog } from "./token_dialog.js";
import { verdictOf } from "./verdict.js";
import { createViewer } from "./viewer.js";
import { createWhatIf } from "./threshold_explorer.js";

const at = (id) => document.getElementById(id);
const CARD_SECONDS = 30;
let models = [];
let threshold = 1;
let isFollowing = true; // until a person opens an image, the newest is shown

const service = new Service(new Asker(createTokenDialog()));
const viewer = createViewer(at("picture"), at("judged"), { onClose: close, onStep: step });
const gallery = createGallery(at("gallery"), {
  onOpen: (item) => open(item, { byHand: true }),
  actions: [
    { label: "Export CSV", run: (items) => download("verdicts.csv", csvOf(items), "text/csv") },
    { label: "Clear", run: clear },
  ],
});
const whatIf = createWhatIf(at("threshold"), { onTry: gallery.tryThreshold });
const session = new Session(service, { onItem: judged, onLeft: left, onProgress: progress });
takeImages({ input: at("files"), dropZone: document.body, onFiles: take });

at("stop").addEventListener("click", () => session.stop());
at("model").addEventListener("change", chooseVersions);
at("version").addEventListener("change", showCard);
addEventListener("keydown", (event) => {
  if (event.key === "Escape" && viewer.shown() !== null && !document.querySelector("dialog[open]") && event.target.type !== "search") close();
});
at("picture").addEventListener("keydown", (event) => {
  const moves = { ArrowLeft: -1, ArrowRight: 1 };
  if (moves[event.key] && event.target.tagName !== "INPUT") step(moves[event.key]);
});
setInterval(() => document.visibilityState === "visible" && models.length > 0 && showCard(), 1000 * CARD_SECONDS);
start();

async function start() {
  try {
    models = await service.models();
  } catch (error) {
    fault(error);
    return;
  }
  const names = [...new Set(models.map((model) => model.name))];
  at("model").replaceChildren(...names.map((name) => element("option", {}, name)));
  chooseVersions();
}

function chooseVersions() {
  const versions = models.filter((model) => model.name === at("model").value).map((model) => model.version);
  versions.sort((a, b) => b - a);
  at("version").replaceChildren(...versions.map((version) => element("option", {}, version)));
  showCard();
}

async function showCard() {
  const choice = chosen();
  try {
    const card = await service.card(choice.model, choice.version);
    if (JSON.stringify(choice) !== JSON.stringify(chosen())) return;
    const reason = card.current ? "" : "its file was replaced by one that is refused; the model before it goes on";
    drawCard(at("card"), { name: choice.model, version: choice.version, card, reason });
    at("fault").hidden = true;
    threshold = card.threshold;
    whatIf.update(gallery.items(), threshold);
  } catch (error) {
    fault(error);
  }
}

function chosen() {
  return { model: at("model").value, version: at("version").value };
}

function fault(error) {
  if (!(error instanceof Refused)) throw error;
  at("fault").textContent = error.message;
  at("fault").hidden = false;
}

function take(files) {
  if (models.length === 0) {
    at("fault").textContent = "No model is known yet: the service has not answered. Load this page again.";
    at("fault").hidden = false;
    return;
  }
  isFollowing = true;
  session.add(files, chosen());
}

function judged(item) {
  gallery.add(item);
  whatIf.update(gallery.items(), threshold);
  announce(item);
  if (isFollowing) open(item, { byHand: false });
}

function left(item) {
  gallery.remove(item);
  if (viewer.shown() === item) close();
  at("fault").textContent = "The oldest images are leaving this session: export their verdicts as CSV before they do.";
  at("fault").hidden = false;
}

function announce(item) {
  const { words } = verdictOf(item);
  at("announced").textContent = item.status === "ok"
    ? `${item.name}: ${words}, score ${figure(item.score)}, threshold ${figure(item.threshold)}, regions ${item.regions.length}.`
    : `${item.name}: ${words}. ${item.message}`;
}

function progress({ done, total, words }) {
  at("progress").hidden = at("stop").hidden = total === 0;
  at("progress").textContent = total === 0 ? "" : `${done} of ${total} ${words ? `· ${words}` : ""}`;
  if (total === 0) showCard();
}

function open(item, { byHand }) {
  if (byHand) isFollowing = false;
  const items = gallery.shown();
  const place = items.indexOf(item);
  document.body.classList.add("has-image");
  viewer.show(item, place < 0 ? "" : `${place + 1} / ${items.length}`);
  gallery.open(item);
  if (byHand) at("picture").focus();
}

function step(by) {
  const next = gallery.neighbour(viewer.shown(), by);
  if (next) open(next, { byHand: true });
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
  session.clear();
  whatIf.update([], threshold);
  at("files").focus();
}
