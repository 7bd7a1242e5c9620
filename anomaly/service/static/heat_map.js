// A calibrated map in colours over its image: the geometry and the scale of `anomaly/overlay.py`, drawn where a slider can
// move it.
//
// Nothing is drawn below half the threshold; yellow fades in up to the threshold and turns red at twice the threshold and above. A cyan
// line follows the threshold. Lightness falls along the scale, so that its order is seen without its hues.

import { decodeLevels } from "./png16.js";

const AT_LIMIT = [255, 210, 0];
const AT_TWICE_THE_LIMIT = [215, 0, 60];
const CONTOUR = [0, 255, 255, 255];
const MOST_SIDE = 1024;

/** Read the `map` of an answer to {width, height, values: Float32Array, resize}; large maps keep the maximum of each block. */
export async function readMap({ png, step, zero, resize }) {
  const { width, height, levels } = await decodeLevels(png);
  const block = Math.ceil(Math.max(width, height) / MOST_SIDE);
  const across = Math.ceil(width / block);
  const down = Math.ceil(height / block);
  const values = new Float32Array(across * down).fill(-Infinity);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const at = Math.floor(y / block) * across + Math.floor(x / block);
      values[at] = Math.max(values[at], levels[y * width + x] * step - zero);
    }
  }
  return { width: across, height: down, values, resize };
}

/** Enlarge a map to a picture of its image, (height * width) values row by row; bilinear with half-pixel centres. */
export function enlarged(map, { width, height }) {
  let scaleX = map.width / width;
  let scaleY = map.height / height;
  if (map.resize === "letterbox") scaleX = scaleY = Math.min(scaleX, scaleY);
  const columns = taps(width, map.width, scaleX);
  const rows = taps(height, map.height, scaleY);
  const found = new Float32Array(width * height);
  for (let y = 0; y < height; y++) {
    const top = rows.first[y] * map.width;
    const bottom = rows.second[y] * map.width;
    for (let x = 0; x < width; x++) {
      const [left, right, share] = [columns.first[x], columns.second[x], columns.share[x]];
      const high = map.values[top + left] * (1 - share) + map.values[top + right] * share;
      const low = map.values[bottom + left] * (1 - share) + map.values[bottom + right] * share;
      found[y * width + x] = high + (low - high) * rows.share[y];
    }
  }
  return found;
}

/** For each of `num` pixels its two neighbours among `into` and the share of the second; only those on the image count. */
function taps(num, into, scale) {
  const low = Math.ceil((into - num * scale) / 2 - 0.5 - 1e-6);
  const [least, most] = [Math.min(low, into - 1 - low), Math.max(low, into - 1 - low)];
  const found = { first: new Int32Array(num), second: new Int32Array(num), share: new Float32Array(num) };
  for (let at = 0; at < num; at++) {
    const place = Math.min(most, Math.max(least, (at + 0.5 - num / 2) * scale + into / 2 - 0.5));
    found.first[at] = Math.floor(place);
    found.second[at] = Math.min(found.first[at] + 1, into - 1);
    found.share[at] = place - found.first[at];
  }
  return found;
}

/** Colour an enlarged map: two canvases, the heat and the line at the threshold. */
export function drawnMap(values, { width, height, threshold }) {
  const heat = new ImageData(width, height);
  const line = new ImageData(width, height);
  const thickness = Math.max(1, Math.round(Math.min(width, height) / 250));
  for (let at = 0; at < values.length; at++) {
    const ratio = values[at] / threshold;
    if (ratio <= 0.5) continue;
    const beyond = Math.min(1, Math.max(0, ratio - 1));
    for (let c = 0; c < 3; c++) heat.data[4 * at + c] = AT_LIMIT[c] + (AT_TWICE_THE_LIMIT[c] - AT_LIMIT[c]) * beyond;
    heat.data[4 * at + 3] = 255 * Math.min(1, 2 * ratio - 1);
    if (values[at] > threshold && isEdge(values, at, { width, height, threshold, reach: thickness })) line.data.set(CONTOUR, 4 * at);
  }
  return { heat: canvasOf(heat), line: canvasOf(line) };
}

function isEdge(values, at, { width, height, threshold, reach }) {
  const x = at % width;
  const y = (at - x) / width;
  const isBelow = (toX, toY) => toX >= 0 && toY >= 0 && toX < width && toY < height && values[toY * width + toX] <= threshold;
  return isBelow(x - reach, y) || isBelow(x + reach, y) || isBelow(x, y - reach) || isBelow(x, y + reach);
}

function canvasOf(pixels) {
  const canvas = new OffscreenCanvas(pixels.width, pixels.height);
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return canvas;
}
