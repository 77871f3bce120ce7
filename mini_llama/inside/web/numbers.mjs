// Numbers of a trace, and the formulas that the page computes itself.
// Shapes: T positions, H query heads, K key heads, D head_dim.

const READERS = {
  f4: (buffer) => new Float32Array(buffer),
  i4: (buffer) => new Int32Array(buffer),
  u1: (buffer) => new Uint8Array(buffer),
  f2: (buffer) => Float32Array.from(new Uint16Array(buffer), halfToNumber),
};

// An array as page_data.py packs it: {shape, data}.
export function unpack(packed) {
  const bytes = Uint8Array.from(atob(packed.data), (sign) => sign.charCodeAt(0));
  return { shape: packed.shape, data: READERS[packed.type](bytes.buffer) };
}

// IEEE 754's binary16.
export function halfToNumber(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  return sign * (1024 + fraction) * 2 ** (exponent - 25);
}

// The part of an array with these first indices, as a typed array.
export function part(array, ...indices) {
  const inner = array.shape.slice(indices.length).reduce((a, b) => a * b, 1);
  let offset = 0;
  indices.forEach((index, i) => { offset = offset * array.shape[i] + index; });
  return array.data.subarray(offset * inner, (offset + 1) * inner);
}

// softmax of scores where `visible` is not 0; the others get 0.
export function maskedSoftmax(scores, visible) {
  let largest = -Infinity;
  for (let i = 0; i < scores.length; i++) {
    if (visible[i] && scores[i] > largest) largest = scores[i];
  }
  const found = new Float64Array(scores.length);
  let total = 0;
  for (let i = 0; i < scores.length; i++) {
    if (visible[i]) total += found[i] = Math.exp(scores[i] - largest);
  }
  return found.map((value) => value / total);
}

// A pair (even, odd) turned by an angle, and scaled by RoPE's factor: rope.rotate.
export function turn(even, odd, angle, factor = 1) {
  const cos = factor * Math.cos(angle), sin = factor * Math.sin(angle);
  return [even * cos - odd * sin, even * sin + odd * cos];
}

// What each pair of features adds to the score of a query and a key, each (D,) and turned by its
// position: their sum is q·k / sqrt(D).
export function pairProducts(query, key, positions, frequencies, factor = 1) {
  const scale = 1 / Math.sqrt(query.length);
  return Array.from(frequencies, (frequency, i) => {
    const q = turn(query[2 * i], query[2 * i + 1], positions[0] * frequency, factor);
    const k = turn(key[2 * i], key[2 * i + 1], positions[1] * frequency, factor);
    return (q[0] * k[0] + q[1] * k[1]) * scale;
  });
}

export function silu(x) {
  return x / (1 + Math.exp(-x));
}

export function indexOfMax(values) {
  let best = 0;
  for (let i = 1; i < values.length; i++) if (values[i] > values[best]) best = i;
  return best;
}

// The largest magnitude, at least a little above 0, so that it may divide.
export function magnitude(values) {
  let largest = 1e-30;
  for (const value of values) largest = Math.max(largest, Math.abs(value));
  return largest;
}

// A number for people: four digits that count, or 1.2e-7.
export function show(value) {
  if (!Number.isFinite(value)) return value > 0 ? "∞" : value < 0 ? "−∞" : "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size < 1e-3 || size >= 1e5) return value.toExponential(1).replaceAll("-", "−");
  const digits = size >= 100 ? 1 : size >= 10 ? 2 : 3;
  return value.toFixed(digits).replace("-", "−");
}

export function percent(p) {
  if (p >= 0.0995) return `${(100 * p).toFixed(0)} %`;
  return p >= 0.0005 ? `${(100 * p).toFixed(1)} %` : p > 0 ? "< 0.1 %" : "0";
}
