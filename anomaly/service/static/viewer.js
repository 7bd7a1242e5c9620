// One image at large: its verdict, the heat map over it, and what the model found where.

import { element, figure } from "./dom.js";
import { verdictOf } from "./verdict.js";
import { gauge } from "./score_gauge.js";
import { drawnMap, enlarged } from "./heat_map.js";

const [LEAST_SIDE, MOST_SIDE] = [640, 1280];
const START_OPACITY = 60;

/** Fill two elements: `place` with the picture, `facts` with the words. onStep(-1 or 1) asks for the image before or after. */
export function createViewer(place, facts, { onClose, onStep }) {
  let layers = null; // {base, heat, line, scale} of the item that is shown
  let shown = null;

  const canvas = element("canvas", { role: "img" });
  const drawing = canvas.getContext("2d");
  const notice = element("p", { class: "note viewer-notice", hidden: true });
  const opacity = element("input", { type: "range", id: "opacity", min: 0, max: 100, value: START_OPACITY, input: paint });
  const number = element("output", { for: "opacity", class: "number" });
  const outlines = element("input", { type: "checkbox", id: "outlines", checked: true, change: paint });
  const position = element("span", { class: "viewer-position note" });
  const controls = element("div", { class: "viewer-controls" },
    element("label", { for: "opacity" }, "Heat map"), opacity, number,
    element("label", { for: "outlines", class: "check" }, outlines, "Threshold line and regions"),
    element("span", { class: "legend", role: "img", "aria-label": "Colours: none below half the threshold, yellow at the threshold, red at twice the threshold" },
      element("i", {}), element("small", {}, "½"), element("small", {}, "threshold"), element("small", {}, "2×")),
    position,
    element("span", { class: "steps" },
      element("button", { type: "button", class: "small", "aria-label": "Image before", click: () => onStep(-1) }, "‹"),
      element("button", { type: "button", class: "small", "aria-label": "Image after", click: () => onStep(1) }, "›"),
      element("button", { type: "button", class: "small", click: onClose }, "Close")));
  place.replaceChildren(element("div", { class: "viewer-canvas" }, canvas, notice), controls);

  async function show(item, where) {
    shown = item;
    position.textContent = where;
    describe(item);
    const made = item.picture ? await layersOf(item) : null;
    if (shown !== item) return;
    layers = made;
    canvas.hidden = layers === null;
    notice.hidden = layers !== null && !item.isDrawn;
    notice.textContent = item.notice || (item.isDrawn
      ? "This browser cannot show such a file as it is scored. The service laid the map over it."
      : item.status === "ok"
        ? "This picture is no longer kept: give it again to see its map."
        : "There is no picture of a file that could not be scored.");
    opacity.disabled = outlines.disabled = !layers?.heat;
    canvas.setAttribute("aria-label", `${item.name} with its heat map: ${verdictOf(item).words}, ${item.regions.length} regions`);
    paint();
  }

  function paint() {
    number.textContent = `${opacity.value} %`;
    if (layers === null) return;
    const { base, heat, line } = layers;
    canvas.width = base.width;
    canvas.height = base.height;
    drawing.drawImage(base, 0, 0);
    if (!heat) return;
    drawing.globalAlpha = opacity.value / 100;
    drawing.drawImage(heat, 0, 0);
    drawing.globalAlpha = 1;
    if (outlines.checked) {
      drawing.drawImage(line, 0, 0);
      shown.regions.forEach((region, at) => box(region, at + 1));
    }
  }

  function box(region, label) {
    const thickness = Math.max(1, Math.round(Math.min(canvas.width, canvas.height) / 400));
    const [x, y, width, height] = [region.x, region.y, region.width, region.height].map((length) => length * layers.scale);
    for (const [colour, more] of [["#000000", 2], ["#ffffff", 0]]) {
      drawing.strokeStyle = colour;
      drawing.lineWidth = thickness + more;
      drawing.setLineDash(more ? [] : [6 * thickness, 4 * thickness]);
      drawing.strokeRect(x, y, width, height);
    }
    const size = Math.max(11, Math.round(canvas.width / 50));
    drawing.setLineDash([]);
    drawing.font = `600 ${size}px system-ui, sans-serif`;
    const across = drawing.measureText(label).width + 0.7 * size;
    const top = y >= 1.3 * size ? y - 1.3 * size : y;
    drawing.fillStyle = "#000000";
    drawing.fillRect(x, top, across, 1.3 * size);
    drawing.fillStyle = "#ffffff";
    drawing.textBaseline = "middle";
    drawing.fillText(label, x + 0.35 * size, top + 0.68 * size);
  }

  function describe(item) {
    const { kind, words, symbol } = verdictOf(item);
    const head = element("div", { class: `judgement is-${kind}` },
      element("h2", { class: "verdict" }, element("span", { class: "symbol", "aria-hidden": "true" }, symbol), words),
      element("p", { class: "judged-name" }, item.name));
    if (item.status !== "ok") {
      facts.replaceChildren(head, element("p", { class: "alert" }, item.message), factList([["Error code", item.status]]));
      return;
    }
    facts.replaceChildren(head,
      element("div", { class: "judged-score" },
        element("span", { class: "number big" }, figure(item.score)),
        element("span", {}, item.score > item.threshold ? `above the threshold ${figure(item.threshold)}` : `within the threshold ${figure(item.threshold)}`)),
      gauge(item),
      element("div", { class: "gauge-scale note", "aria-hidden": "true" }, element("span", {}, "typical"), element("span", {}, "threshold"), element("span", {}, "2× and more")),
      factList([
        ["p-value", item.p_value === null ? null : element("span", { title: "Share of the calibration images, this one among them, that score as high or higher" }, figure(item.p_value))],
        ["Size", `${item.width} × ${item.height} px`],
        ["SHA-256", element("code", { title: item.sha256 }, `${item.sha256.slice(0, 12)}…`)],
        ["Model", element("code", {}, item.model)],
      ]),
      regions(item));
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

function factList(rows) {
  const kept = rows.filter(([, value]) => value !== null);
  return element("dl", { class: "facts" }, ...kept.flatMap(([term, value]) => [element("dt", {}, term), element("dd", {}, value)]));
}

function regions(item) {
  if (item.regions.length === 0) return element("p", { class: "note" }, "No region of the map is above the threshold.");
  const rows = item.regions.map((region, at) => element("tr", {},
    element("th", { scope: "row" }, String(at + 1)),
    element("td", {}, `${region.x}, ${region.y}`),
    element("td", {}, `${region.width} × ${region.height}`),
    element("td", {}, region.area.toLocaleString("en")),
    element("td", {}, `${figure(region.peak)}${region.weak ? " (weak)" : ""}`)));
  const heads = ["#", "x, y", "w × h", "area px", "peak"].map((words) => element("th", { scope: "col" }, words));
  return element("div", { class: "regions", tabindex: 0, role: "region", "aria-label": "Regions above the threshold" },
    element("table", {},
      element("caption", {}, item.regions[0].weak ? "No pixel is above the threshold; the map is highest here" : "Regions above the threshold"),
      element("thead", {}, element("tr", {}, ...heads)), element("tbody", {}, ...rows)));
}

async function layersOf(item) {
  const bitmap = await createImageBitmap(item.picture);
  const long = Math.max(bitmap.width, bitmap.height);
  const scale = long < LEAST_SIDE ? Math.ceil(LEAST_SIDE / long) : Math.min(1, MOST_SIDE / long);
  const [width, height] = [bitmap.width, bitmap.height].map((side) => Math.max(1, Math.round(side * scale)));
  const base = new OffscreenCanvas(width, height);
  const drawing = base.getContext("2d");
  drawing.imageSmoothingEnabled = scale < 1; // few pixels are shown as they are
  drawing.imageSmoothingQuality = "high";
  drawing.drawImage(bitmap, 0, 0, width, height);
  bitmap.close();
  const drawn = item.map ? drawnMap(enlarged(item.map, { width, height }), { width, height, threshold: item.threshold }) : {};
  return { base, scale: width / item.width, ...drawn };
}
