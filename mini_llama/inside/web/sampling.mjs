// From logits to the probabilities that are drawn from: mini_llama/inference/sampling.py again.

const SMALLEST = 1.1754943508222875e-38, LARGEST = 3.4028234663852886e38; // float32's

export function softmax(logits, temperature) {
  const divisor = Math.min(Math.max(temperature, SMALLEST), LARGEST);
  let largest = -Infinity;
  for (const logit of logits) if (logit > largest) largest = logit;
  const found = new Float64Array(logits.length);
  let total = 0;
  for (let i = 0; i < logits.length; i++) {
    total += found[i] = Math.exp((logits[i] - largest) / divisor);
  }
  return found.map((value) => value / total);
}

function normalised(values) {
  let total = 0;
  for (const value of values) total += value;
  return values.map((value) => value / total);
}

// Drop p < epsilon; if none is left keep the most probable one.
export function epsilonFilter(probabilities, epsilon) {
  const kept = probabilities.map((p) => (Math.fround(p) < Math.fround(epsilon) ? 0 : p));
  if (!kept.some((p) => p > 0)) {
    const best = probabilities.indexOf(probabilities.reduce((a, b) => Math.max(a, b)));
    kept[best] = 1;
  }
  return normalised(kept);
}

// Keep the fewest tokens, most probable first, whose probabilities reach topP together.
export function topPFilter(probabilities, topP) {
  const order = descending(probabilities);
  const bound = Math.max(topP, SMALLEST);
  const kept = new Float64Array(probabilities.length);
  let before = 0;
  for (const i of order) {
    if (!(before < bound)) break;
    kept[i] = probabilities[i];
    before += probabilities[i];
  }
  return normalised(kept);
}

// Indices by falling value; among equals the smaller index comes first.
export function descending(values) {
  return Uint32Array.from(values.keys()).sort((a, b) => values[b] - values[a] || a - b);
}

export const KEPT = 0, BY_EPSILON = 1, BY_TOP_P = 2, BY_TEMPERATURE = 3;

// {before, after, cut}: softmax at the temperature, what is drawn from, and for each token KEPT or
// what took it out. Temperature 0 is the most probable token, the smallest id among equals.
export function sampling(logits, { temperature, epsilon, topP }) {
  const cut = new Uint8Array(logits.length);
  if (temperature === 0) {
    const after = new Float64Array(logits.length);
    let best = 0;
    for (let i = 1; i < logits.length; i++) if (logits[i] > logits[best]) best = i;
    cut.fill(BY_TEMPERATURE)[best] = KEPT;
    after[best] = 1;
    return { before: softmax(logits, 1), after, cut };
  }
  const before = softmax(logits, temperature);
  let after = before;
  for (const [filter, bound, acts, reason] of [
    [epsilonFilter, epsilon, epsilon > 0, BY_EPSILON],
    [topPFilter, topP, topP < 1, BY_TOP_P],
  ]) {
    if (!acts) continue;
    const next = filter(after, bound);
    for (let i = 0; i < cut.length; i++) if (after[i] > 0 && next[i] === 0) cut[i] = reason;
    after = next;
  }
  return { before, after, cut };
}
