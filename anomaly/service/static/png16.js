// A decoder of 16-bit greyscale PNG files; a canvas would keep only 8 bits.
// PNG (third edition): chunks §5.3, filters §9.2.

const SIGNATURE_LENGTH = 8;

/** Decode the base64 of a 16-bit greyscale PNG without interlacing: {width, height, levels: Uint16Array}. */
export async function decodeLevels(base64) {
  const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  const parts = [];
  let width = 0;
  let height = 0;
  for (let start = SIGNATURE_LENGTH; start < bytes.length; ) {
    const length = view.getUint32(start);
    const kind = String.fromCharCode(...bytes.subarray(start + 4, start + 8));
    const data = start + 8;
    if (kind === "IHDR") {
      width = view.getUint32(data);
      height = view.getUint32(data + 4);
      const [depth, colour, , , interlace] = bytes.subarray(data + 8, data + 13);
      if (depth !== 16 || colour !== 0 || interlace !== 0) throw new Error("this PNG is not an anomaly map: it needs 16-bit greyscale without interlacing");
    } else if (kind === "IDAT") parts.push(bytes.subarray(data, data + length));
    start = data + length + 4;
  }
  const stream = new Blob(parts).stream().pipeThrough(new DecompressionStream("deflate"));
  return { width, height, levels: unfilter(new Uint8Array(await new Response(stream).arrayBuffer()), width, height) };
}

/** Undo the filter of each row; a row consists of the filter number and two bytes per pixel. */
function unfilter(raw, width, height) {
  const stride = 2 * width;
  const levels = new Uint16Array(width * height);
  let above = new Uint8Array(stride);
  for (let y = 0; y < height; y++) {
    const filter = raw[y * (stride + 1)];
    const row = raw.subarray(y * (stride + 1) + 1, (y + 1) * (stride + 1));
    for (let x = 0; x < stride; x++) {
      const left = x >= 2 ? row[x - 2] : 0;
      const corner = x >= 2 ? above[x - 2] : 0;
      row[x] += [0, left, above[x], (left + above[x]) >> 1, filter === 4 ? paeth(left, above[x], corner) : 0][filter];
    }
    for (let x = 0; x < width; x++) levels[y * width + x] = (row[2 * x] << 8) | row[2 * x + 1];
    above = row;
  }
  return levels;
}

function paeth(left, up, corner) {
  const guess = left + up - corner;
  const [a, b, c] = [Math.abs(guess - left), Math.abs(guess - up), Math.abs(guess - corner)];
  return a <= b && a <= c ? left : b <= c ? up : corner;
}
