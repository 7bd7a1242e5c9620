// The open image: its verdict, its heat map, and its regions above the threshold.

import { element, factList, formatCount, formatNumber } from "./dom.js";
import { enlargeMap, renderMap } from "./heat_map.js";
import { scoreGauge } from "./score_gauge.js";
import { terms } from "./review_terms.js";
import { verdictOf } from "./verdict.js";

const [MIN_SIDE, MAX_SIDE] = [640, 1280];
const INITIAL_OPACITY = 60;

/** Fill the element `stage` with the image and `facts` with its verdict. onStep(-1 or 1): the user selects the previous or next image. */
export function createViewer(stage, facts, { onClose, onStep }) {
  let layers = null; // {base, heat, line, scale} of the shown item
  let shown = null;

  const canvas = element("canvas", { role: "img" });
  const context = canvas.getContext("2d");
  const notice = element("p", { class: "note viewer-notice", hidden: true });
  const opacity = element("input", { type: "range", id: "opacity", min: 0, max: 100, value: INITIAL_OPACITY, input: paint });
  const number = element("output", { for: "opacity", class: "number" });
  const outlines = element("input", { type: "checkbox", id: "outlines", checked: true, change: paint });
  const position = element("span", { class: "viewer-position note" });
  const controls = element("div", { class: "viewer-controls" },
    element("label", { for: "opacity" }, "Heat map"), opacity, number,
    element("label", { for: "outlines", class: "check" }, outlines, "Threshold line and regions"),
    element("span", { class: "legend", role: "img", "aria-label": "Colours: transparent below half the threshold, yellow at the threshold, red at twice the threshold" },
      element("i", {}), element("small", {}, "½"), element("small", {}, "threshold"), element("small", {}, "2×")),
    position,
    element("span", { class: "steps" },
      element("button", { type: "button", class: "small", "aria-label": "Previous image", click: () => onStep(-1) }, "‹"),
      element("button", { type: "button", class: "small", "aria-label": "Next image", click: () => onStep(1) }, "›"),
      element("button", { type: "button", class: "small", click: onClose }, "Close")));
  stage.replaceChildren(element("div", { class: "viewer-canvas" }, canvas, notice), controls);

  async function show(item, positionText) {
    shown = item;
    position.textContent = positionText;
    describe(item);
    const newLayers = item.picture ? await layersOf(item) : null;
    if (shown !== item) return;
    layers = newLayers;
    canvas.hidden = layers === null;
    notice.hidden = layers !== null && !item.isOverlay;
    notice.textContent = item.notice || (item.isOverlay
      ? "The browser decodes this file in another way than the service. The service drew the heat map."
      : item.status === "ok"
        ? "The page no longer stores this image. Add the file again to see its heat map."
        : "This file could not be scored and cannot be displayed.");
    opacity.disabled = outlines.disabled = !layers?.heat;
    canvas.setAttribute("aria-label", `${item.name} with its heat map: ${verdictOf(item).words}, ${formatCount(item.regions.length, "region")}`);
    paint();
  }

  function paint() {
    number.textContent = `${opacity.value} %`;
    if (layers === null) return;
    const { base, heat, line } = layers;
    canvas.width = base.width;
    canvas.height = base.height;
    context.drawImage(base, 0, 0);
    if (!heat) return;
    context.globalAlpha = opacity.value / 100;
    context.drawImage(heat, 0, 0);
    context.globalAlpha = 1;
    if (outlines.checked) {
      context.drawImage(line, 0, 0);
      shown.regions.forEach((region, index) => drawRegion(region, index + 1));
    }
  }

  function drawRegion(region, number) {
    const thickness = Math.max(1, Math.round(Math.min(canvas.width, canvas.height) / 400));
    const [x, y, width, height] = [region.x, region.y, region.width, region.height].map((length) => length * layers.scale);
    for (const [colour, extraWidth] of [["#000000", 2], ["#ffffff", 0]]) {
      context.strokeStyle = colour;
      context.lineWidth = thickness + extraWidth;
      context.setLineDash(extraWidth ? [] : [6 * thickness, 4 * thickness]);
      context.strokeRect(x, y, width, height);
    }
    const size = Math.max(11, Math.round(canvas.width / 50));
    context.setLineDash([]);
    context.font = `600 ${size}px system-ui, sans-serif`;
    const labelWidth = context.measureText(number).width + 0.7 * size;
    const top = y >= 1.3 * size ? y - 1.3 * size : y;
    context.fillStyle = "#000000";
    context.fillRect(x, top, labelWidth, 1.3 * size);
    context.fillStyle = "#ffffff";
    context.textBaseline = "middle";
    context.fillText(number, x + 0.35 * size, top + 0.68 * size);
  }

  function describe(item) {
    const { kind, words, symbol } = verdictOf(item);
    const head = element("div", { class: `verdict-head is-${kind}` },
      element("h2", { class: "verdict" }, element("span", { class: "symbol", "aria-hidden": "true" }, symbol), words),
      element("p", { class: "verdict-name" }, item.name));
    if (item.status !== "ok") {
      facts.replaceChildren(head, element("p", { class: "alert" }, item.message), factList([["Error code", item.status]]));
      return;
    }
    facts.replaceChildren(head,
      element("div", { class: "verdict-score" },
        element("span", { class: "number big" }, formatNumber(item.score)),
        element("span", {}, item.score > item.threshold ? `above the threshold ${formatNumber(item.threshold)}` : `not above the threshold ${formatNumber(item.threshold)}`)),
      scoreGauge(item),
      element("div", { class: "gauge-scale note", "aria-hidden": "true" }, element("span", {}, "typical"), element("span", {}, "threshold"), element("span", {}, "2× or more")),
      factList([
        ["p-value", item.p_value === null ? null : element("span", { title: terms.p }, formatNumber(item.p_value))],
        ["Size", `${item.width} × ${item.height} px`],
        ["SHA-256", element("code", { title: item.sha256 }, `${item.sha256.slice(0, 12)}…`)],
        ["Model", item.model === "" ? null : element("code", {}, item.model)],
      ]),
      item.model === "" ? "" : regionTable(item), // training images have no regions
      item.evidence ? evidenceFigure(item) : "");
  }

  return {
    show,
    hide() {
      shown = layers = null;
      facts.replaceChildren();
    },
    shown: () => shown,
  };
}

function regionTable(item) {
  if (item.regions.length === 0) return element("p", { class: "note" }, "No region is above the threshold.");
  const rows = item.regions.map((region, index) => element("tr", {},
    element("th", { scope: "row" }, String(index + 1)),
    element("td", {}, `${region.x}, ${region.y}`),
    element("td", {}, `${region.width} × ${region.height}`),
    element("td", {}, formatCount(region.area)),
    element("td", {}, `${formatNumber(region.peak)}${region.weak ? " (weak)" : ""}`)));
  const heads = ["#", "x, y", "w × h", "area px", "peak"].map((name) => element("th", { scope: "col" }, name));
  return element("div", { class: "regions", tabindex: 0, role: "region", "aria-label": "Regions above the threshold" },
    element("table", {},
      element("caption", {}, item.regions[0].weak ? "No pixel is above the threshold; peak of the anomaly map" : "Regions above the threshold"),
      element("thead", {}, element("tr", {}, ...heads)), element("tbody", {}, ...rows)));
}

function evidenceFigure(item) {
  return element("figure", { class: "evidence" },
    element("img", { src: item.evidence, alt: `Regions of ${item.name}, each beside the nearest good patch of the memory bank` }),
    element("figcaption", { class: "note" }, "Left: region of this image. Right: nearest patch of the good training images."));
}

async function layersOf(item) {
  const bitmap = await createImageBitmap(item.picture);
  const long = Math.max(bitmap.width, bitmap.height);
  const scale = long < MIN_SIDE ? Math.ceil(MIN_SIDE / long) : Math.min(1, MAX_SIDE / long);
  const [width, height] = [bitmap.width, bitmap.height].map((side) => Math.max(1, Math.round(side * scale)));
  const base = new OffscreenCanvas(width, height);
  const context = base.getContext("2d");
  context.imageSmoothingEnabled = scale < 1; // small images keep sharp pixels
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, width, height);
  bitmap.close();
  const heatMap = item.map ? renderMap(enlargeMap(item.map, { width, height }), { width, height, threshold: item.threshold }) : {};
  return { base, scale: width / item.width, ...heatMap };
}
