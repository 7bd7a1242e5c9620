// The calibrated anomaly map as a heat map over its image, with the geometry and colours of `anomaly/imaging/overlay.py`.
//
// Values below half the threshold are transparent. Yellow fades in up to the threshold and turns to red at twice the threshold.
// A cyan line shows the threshold. Lightness falls along the scale, so the order is visible without hues.

import { decodeLevels } from "./png16.js";

const COLOUR_AT_THRESHOLD = [255, 210, 0];
const COLOUR_AT_TWICE_THRESHOLD = [215, 0, 60];
const CONTOUR_COLOUR = [0, 255, 255, 255];
const MAX_SIDE = 1024;

/** Read the `map` of a response: {width, height, values: Float32Array, resize}; large maps keep the maximum of each block. */
export async function readMap({ png, step, zero, resize }) {
  const { width, height, levels } = await decodeLevels(png);
  const block = Math.ceil(Math.max(width, height) / MAX_SIDE);
  const numColumns = Math.ceil(width / block);
  const numRows = Math.ceil(height / block);
  const values = new Float32Array(numColumns * numRows).fill(-Infinity);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const index = Math.floor(y / block) * numColumns + Math.floor(x / block);
      values[index] = Math.max(values[index], levels[y * width + x] * step - zero);
    }
  }
  return { width: numColumns, height: numRows, values, resize };
}

/** Enlarge a map to the size of its image: (height * width) values in row order, bilinear with half-pixel centres. */
export function enlargeMap(map, { width, height }) {
  let scaleX = map.width / width;
  let scaleY = map.height / height;
  if (map.resize === "letterbox") scaleX = scaleY = Math.min(scaleX, scaleY);
  const columns = interpolationWeights(width, map.width, scaleX);
  const rows = interpolationWeights(height, map.height, scaleY);
  const values = new Float32Array(width * height);
  for (let y = 0; y < height; y++) {
    const top = rows.first[y] * map.width;
    const bottom = rows.second[y] * map.width;
    for (let x = 0; x < width; x++) {
      const [left, right, share] = [columns.first[x], columns.second[x], columns.share[x]];
      const high = map.values[top + left] * (1 - share) + map.values[top + right] * share;
      const low = map.values[bottom + left] * (1 - share) + map.values[bottom + right] * share;
      values[y * width + x] = high + (low - high) * rows.share[y];
    }
  }
  return values;
}

/** For each of `num` pixels: its two neighbours among `size` map pixels inside the image, and the share of the second. */
function interpolationWeights(num, size, scale) {
  const low = Math.ceil((size - num * scale) / 2 - 0.5 - 1e-6);
  const [minimum, maximum] = [Math.min(low, size - 1 - low), Math.max(low, size - 1 - low)];
  const weights = { first: new Int32Array(num), second: new Int32Array(num), share: new Float32Array(num) };
  for (let index = 0; index < num; index++) {
    const position = Math.min(maximum, Math.max(minimum, (index + 0.5 - num / 2) * scale + size / 2 - 0.5));
    weights.first[index] = Math.floor(position);
    weights.second[index] = Math.min(weights.first[index] + 1, size - 1);
    weights.share[index] = position - weights.first[index];
  }
  return weights;
}

/** Render an enlarged map as two canvases: the heat map, and the line at the threshold. */
export function renderMap(values, { width, height, threshold }) {
  const heat = new ImageData(width, height);
  const line = new ImageData(width, height);
  const thickness = Math.max(1, Math.round(Math.min(width, height) / 250));
  for (let index = 0; index < values.length; index++) {
    const ratio = values[index] / threshold;
    if (ratio <= 0.5) continue;
    const beyond = Math.min(1, Math.max(0, ratio - 1));
    for (let c = 0; c < 3; c++) heat.data[4 * index + c] = COLOUR_AT_THRESHOLD[c] + (COLOUR_AT_TWICE_THRESHOLD[c] - COLOUR_AT_THRESHOLD[c]) * beyond;
    heat.data[4 * index + 3] = 255 * Math.min(1, 2 * ratio - 1);
    if (values[index] > threshold && isEdge(values, index, { width, height, threshold, reach: thickness })) line.data.set(CONTOUR_COLOUR, 4 * index);
  }
  return { heat: canvasOf(heat), line: canvasOf(line) };
}

function isEdge(values, index, { width, height, threshold, reach }) {
  const x = index % width;
  const y = (index - x) / width;
  const isBelow = (toX, toY) => toX >= 0 && toY >= 0 && toX < width && toY < height && values[toY * width + toX] <= threshold;
  return isBelow(x - reach, y) || isBelow(x + reach, y) || isBelow(x, y - reach) || isBelow(x, y + reach);
}

function canvasOf(pixels) {
  const canvas = new OffscreenCanvas(pixels.width, pixels.height);
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return canvas;
}
