// The sections of one layer, in the order of llama.py.
import { magnitude, pairProducts, part, percent, show, silu, turn } from "./numbers.mjs";
import { signed, strength } from "./colours.mjs";
import { Matrix, el, numbers, svg } from "./pictures.mjs";
import { figure, section } from "./app.mjs";

const DIALS = 8;

// T rows of components of the width, orange below 0 and blue above.
function strips(app, title, read) {
  const { trace } = app;
  const matrix = new Matrix({
    label: `${title}: one row for each token; the numbers are in the table below`,
    onpick: (r) => app.select({ query: r }),
    tallest: Math.min(22, Math.max(14, 330 / trace.count)),
  });
  const table = numbers("Numbers of the selected token", () => ({
    head: ["component", "value"],
    rows: Array.from(read(app.query), (value, i) => [String(i), show(value)]),
  }));
  app.updates.push(() => {
    const rows = trace.names.map((_, r) => read(r));
    const sizes = rows.map(magnitude).sort((a, b) => a - b);
    const largest = Math.min(sizes.at(-1), 1.5 * sizes[sizes.length >> 1]); // BOS may outshine all
    matrix.draw({
      rows: rows.length, columns: rows[0].length, rowNames: trace.names,
      colour: (r, c) => signed(rows[r][c] / largest), selected: [app.query, null],
    });
    table.update();
  });
  return figure(title, matrix.box, table.box);
}

export function embedding(app) {
  const shown = app.trace.arrays.embedding.shape[1], width = app.trace.config.dim;
  const count = shown < width ? `the first ${shown} of ${width} components` : `all ${width} components`;
  return section(app, {
    title: "Embedding", id: "embedding", sources: ["embedding"],
    text: `Each id picks one row of the embedding matrix. That row is the token's residual stream, which every layer adds to. Shown are ${count}.`,
  }, strips(app, "h₀, one row for each token", (r) => part(app.trace.arrays.embedding, r)));
}

export function norms(app, which) {
  const { trace } = app;
  const [before, after] = which === "attention" ? ["residual", "attention_norm"] : ["middle", "ffn_norm"];
  const offset = which === "attention" ? 0 : 2;
  const says = el("p", { class: "readout" });
  app.updates.push(() => {
    const [a, b] = [offset, offset + 1].map((i) => part(trace.arrays.statistics, app.layer, app.query, i));
    says.replaceChildren(el("bdi", { class: "query" }, trace.names[app.query]),
      `: root mean square ${show(a[1])} → ${show(b[1])}, mean ${show(a[0])} → ${show(b[0])}`);
  });
  return section(app, {
    title: which === "attention" ? "Norm before attention" : "Norm before the feed-forward", level: 3, sources: ["norm"],
  }, el("div", { class: "pair" },
    strips(app, "before", (r) => part(trace.arrays[before], app.layer, r)),
    strips(app, "after", (r) => part(trace.arrays[after], app.layer, r))), says);
}

// Turning arrows

function arrow(x, y, options) {
  const size = Math.hypot(x, y);
  if (size < 1e-9) return null;
  const head = Math.min(9, size * 0.5), angle = Math.atan2(y, x);
  const corner = (turned) => `${x + head * Math.cos(angle + turned)},${y + head * Math.sin(angle + turned)}`;
  return svg("g", options, svg("line", { x1: 0, y1: 0, x2: x, y2: y }),
    svg("polyline", { points: `${corner(2.7)} ${x},${y} ${corner(-2.7)}`, fill: "none" }));
}

function arc(from, angle, radius) {
  const turns = Math.min(Math.abs(angle), 2 * Math.PI * 0.999);
  const steps = Math.max(2, Math.ceil(turns * 12));
  const points = Array.from({ length: steps + 1 }, (_, i) => from + Math.sign(angle) * turns * i / steps)
    .map((a) => `${radius * Math.cos(a)},${-radius * Math.sin(a)}`);
  return points.join(" ");
}

function dial(app, pair, query, key) {
  const { frequencies, ropeFactor } = app.trace.arrays;
  const frequency = frequencies.data[pair], positions = [app.query, app.attended()];
  const vectors = [query, key].map((x) => [x[2 * pair], x[2 * pair + 1]]);
  const longest = Math.max(...vectors.map(([a, b]) => Math.hypot(a, b)), 1e-9) * ropeFactor / 84;
  const shapes = vectors.flatMap(([a, b], i) => {
    const angle = positions[i] * frequency;
    const [x, y] = turn(a, b, angle, ropeFactor);
    const from = Math.atan2(b, a);
    const kind = i ? "key" : "query";
    return [
      svg("polyline", { class: `arc ${kind}`, points: arc(from, angle, i ? 26 : 36), fill: "none" }),
      arrow(a / longest, -b / longest, { class: `arrow before ${kind}` }),
      arrow(x / longest, -y / longest, { class: `arrow ${kind}` }),
    ];
  });
  const degrees = (i) => `${((positions[i] * frequency * 180) / Math.PI % 360).toFixed(0)}°`;
  return el("figure", { class: "dial" },
    svg("svg", { viewBox: "-100 -100 200 200", role: "img",
      "aria-label": `pair ${pair}: the query turns by ${degrees(0)}, the key by ${degrees(1)}` },
    svg("circle", { r: 92, class: "rim" }), svg("line", { x1: -92, x2: 92, class: "axis" }),
    svg("line", { y1: -92, y2: 92, class: "axis" }), ...shapes),
    el("figcaption", {}, `pair ${pair}, θ ${show(frequency)}`, el("br"),
      el("span", { class: "query" }, `${positions[0]}θ = ${degrees(0)}`), el("br"),
      el("span", { class: "key" }, `${positions[1]}θ = ${degrees(1)}`)));
}

// The first pairs, which turn fast, and some of the slow ones.
export function shownPairs(count) {
  if (count <= DIALS) return Array.from({ length: count }, (_, i) => i);
  const rest = Array.from({ length: DIALS - 4 }, (_, i) => Math.round(4 + (i + 1) * (count - 5) / (DIALS - 4)));
  return [0, 1, 2, 3, ...rest];
}

function vectorsOf(app) {
  const { trace } = app;
  return [
    part(trace.arrays.query, app.layer, app.query, app.head),
    part(trace.arrays.key, app.layer, app.attended(), Math.floor(app.head / trace.group)),
  ];
}

function products(app) {
  const [query, key] = vectorsOf(app);
  const { frequencies, ropeFactor } = app.trace.arrays;
  return pairProducts(query, key, [app.query, app.attended()], frequencies.data, ropeFactor);
}

function productChart(values) {
  const largest = magnitude(values), step = 100 / values.length;
  return svg("svg", { class: "products", viewBox: "0 0 100 40", preserveAspectRatio: "none", "aria-hidden": "true" },
    svg("line", { x1: 0, x2: 100, y1: 20, y2: 20, class: "axis" }),
    values.map((value, i) => svg("rect", {
      x: i * step + step * 0.1, width: step * 0.8, y: value > 0 ? 20 - 19 * value / largest : 20,
      height: Math.max(19 * Math.abs(value) / largest, 0.2), class: value > 0 ? "plus" : "minus",
    })));
}

export function rope(app) {
  const { trace } = app;
  const dials = el("div", { class: "dials" });
  const chart = el("div", {}), says = el("p", { class: "readout" });
  const pairs = shownPairs(trace.arrays.frequencies.data.length);
  const table = numbers("Numbers of every pair", () => {
    const [query, key] = vectorsOf(app);
    const { frequencies, ropeFactor } = trace.arrays;
    const values = products(app);
    const pairOf = (x, i, position) => {
      const before = [x[2 * i], x[2 * i + 1]];
      return [before, turn(...before, position * frequencies.data[i], ropeFactor)].map((v) => v.map(show).join(", "));
    };
    return {
      head: ["pair", "θ", "query before", "query after", "key before", "key after", "adds to the score"],
      rows: values.map((value, i) => [String(i), show(frequencies.data[i]),
        ...pairOf(query, i, app.query), ...pairOf(key, i, app.attended()), show(value)]),
    };
  });
  app.updates.push(() => {
    const [query, key] = vectorsOf(app);
    dials.replaceChildren(...pairs.map((pair) => dial(app, pair, query, key)));
    const values = products(app);
    chart.replaceChildren(productChart(values));
    const score = trace.scores(app.layer, app.head, app.query)[app.attended()];
    says.textContent = `The ${values.length} pairs together give q·k / √${2 * values.length} = ${show(score)}.`;
    table.update();
  });
  return section(app, {
    title: "RoPE: queries and keys turn with their positions", level: 3, id: "rope", sources: ["angle", "rope"],
    text: "Each pair of features is an arrow that turns by position · θ. Fast pairs see small distances, slow ones large distances; a score depends only on the difference of the two positions. Dashed is before, solid after.",
  }, el("p", { class: "legend" }, el("span", { class: "query" }, "query"), " of the selected token, ",
    el("span", { class: "key" }, "key"), " of the attended one"),
  dials, figure("What each pair adds to the score", chart), says, table.box);
}

// Attention

function square(app, title, label, colourOf) {
  const { trace } = app;
  const matrix = new Matrix({ label, onpick: (query, key) => app.select({ query, key }),
    largest: Math.min(46, Math.max(26, 460 / trace.count)), tallest: 46 });
  app.updates.push(() => {
    const rows = trace.names.map((_, q) => colourOf(q));
    const key = app.attended();
    matrix.draw({
      rows: trace.count, columns: trace.count, rowNames: trace.names, columnNames: trace.names,
      colour: (r, c) => rows[r](c), hidden: (r, c) => !trace.visible(r)[c], selected: [app.query, key],
    });
  });
  return figure(title, matrix.box);
}

function headPictures(app) {
  const { trace } = app;
  const size = Math.max(2, Math.min(10, Math.floor(132 / trace.count)));
  const buttons = trace.heads().map((head) => {
    const matrix = new Matrix({ label: "", largest: size, bare: true });
    matrix.canvas.setAttribute("aria-hidden", "true");
    const button = el("button", { type: "button", class: "head", onclick: () => app.select({ head }) },
      matrix.box, el("span", {}, `head ${head}`));
    app.updates.push(() => {
      const rows = trace.names.map((_, q) => trace.attention(app.layer, head, q));
      matrix.draw({
        rows: trace.count, columns: trace.count, colour: (r, c) => strength(rows[r][c]),
        hidden: (r, c) => !trace.visible(r)[c], selected: [app.query, null],
      });
      button.setAttribute("aria-pressed", head === app.head);
      const best = rows[app.query].indexOf(Math.max(...rows[app.query]));
      button.setAttribute("aria-label", `head ${head}: attends most to ${trace.names[best]}, ${percent(rows[app.query][best])}`);
    });
    return button;
  });
  const groups = [];
  for (let i = 0; i < buttons.length; i += trace.group) groups.push(buttons.slice(i, i + trace.group));
  return el("div", { class: "heads" }, groups.map((group, i) => trace.group === 1 ? group
    : el("div", { class: "group", role: "group", "aria-label": `key head ${i}` },
      el("span", { class: "label" }, `key head ${i}`), el("div", { class: "members" }, group))));
}

export function attention(app) {
  const { trace } = app;
  const table = numbers("What the selected token attends to, by head", () => ({
    head: ["token", ...trace.heads().map((head) => `head ${head}`)],
    rows: trace.names.map((name, key) => [`${key} ${name}`, ...trace.heads().map((head) =>
      trace.visible(app.query)[key] ? show(trace.attention(app.layer, head, app.query)[key]) : "hidden")]),
  }));
  const says = el("p", { class: "readout" });
  app.updates.push(() => {
    const key = app.attended();
    const isVisible = trace.visible(app.query)[key];
    const score = trace.scores(app.layer, app.head, app.query)[key];
    says.replaceChildren("head ", String(app.head), ": ", el("bdi", { class: "query" }, trace.names[app.query]), " → ",
      el("bdi", { class: "key" }, trace.names[key]), `: score ${show(score)}, `,
      isVisible ? `probability ${show(app.attention()[key])}` : "hidden by the mask");
    table.update();
  });
  const all = Array.from(trace.arrays.visible.data).every(Boolean);
  const mask = all ? "No mask is in force: every token sees all." : "Hatched is what the mask hides.";
  const shared = trace.group > 1 ? ` ${trace.group} heads share each key head.` : "";
  return section(app, {
    title: "Attention", level: 3, id: "attention",
    sources: ["scores", "mask", "softmax", ...(trace.group > 1 ? ["shared"] : []), "values"],
    text: `Rows are queries, columns keys. ${mask}${shared} Pick a cell, or move with the arrow keys.`,
  }, el("div", { class: "pair" },
    square(app, "scores: orange is below 0, blue above", "scores of the selected head", (q) => {
      const row = trace.scores(app.layer, app.head, q);
      const largest = magnitude(part(trace.arrays.scores, app.layer, app.head));
      return (c) => signed(row[c] / largest);
    }),
    square(app, "probabilities: each row sums to 1", "probabilities of the selected head", (q) => {
      const row = trace.attention(app.layer, app.head, q);
      return (c) => strength(row[c]);
    })), says, figure("all heads of this layer: pick one", headPictures(app)), table.box);
}

// SwiGLU

function gateCurve(points) {
  const widest = Math.max(4, ...points.map(({ gate }) => Math.abs(gate))) * 1.08;
  const x = (value) => 100 * value / widest, y = (value) => -70 * value / widest;
  const curve = Array.from({ length: 121 }, (_, i) => -widest + (2 * widest * i) / 120)
    .map((value) => `${x(value)},${y(silu(value))}`).join(" ");
  return svg("svg", { class: "curve", viewBox: "-104 -80 208 100", role: "img", "aria-label": "the curve of SiLU, with the gates of the strongest units on it" },
    svg("line", { x1: -100, x2: 100, class: "axis" }), svg("line", { y1: -76, y2: 16, class: "axis" }),
    svg("polyline", { points: curve, class: "line" }),
    points.map(({ gate, up, unit }) => svg("circle", {
      cx: x(gate), cy: y(silu(gate)), r: 2.2, class: up > 0 ? "plus" : "minus" }, svg("title", {}, `unit ${unit}`))));
}

export function feedForward(app) {
  const { trace } = app;
  const curve = el("div", {}), list = el("ol", { class: "units" }), says = el("p", { class: "readout" });
  const points = () => {
    const units = part(trace.arrays.units, app.layer, app.query);
    const values = part(trace.arrays.gates, app.layer, app.query);
    return Array.from(units, (unit, i) => ({ unit, gate: values[2 * i], up: values[2 * i + 1] }));
  };
  const table = numbers("Numbers of these units", () => ({
    head: ["unit", "gate w₁x", "silu(gate)", "up w₃x", "product"],
    rows: points().map(({ unit, gate, up }) => [String(unit), show(gate), show(silu(gate)), show(up), show(silu(gate) * up)]),
  }));
  app.updates.push(() => {
    const found = points();
    const largest = magnitude(found.map(({ gate, up }) => silu(gate) * up));
    curve.replaceChildren(gateCurve(found));
    list.replaceChildren(...found.map(({ unit, gate, up }) => {
      const product = silu(gate) * up;
      const share = 50 * Math.abs(product) / largest;
      return el("li", {}, el("span", { class: "name" }, `unit ${unit}`),
        svg("svg", { class: "track", viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" },
          svg("rect", { class: product > 0 ? "plus" : "minus", y: 1.5, height: 7, width: share, x: product > 0 ? 50 : 50 - share }),
          svg("line", { x1: 50, x2: 50, y1: 0, y2: 10, class: "axis" })),
        el("span", { class: "value" },
          el("span", { class: "detail" }, `${show(silu(gate))} · ${show(up)} = `), show(product)));
    }));
    says.replaceChildren(`Of the ${trace.config.hidden_dim} gates of `,
      el("bdi", { class: "query" }, trace.names[app.query]),
      `, ${percent(part(trace.arrays.open, app.layer, app.query)[0])} are open (above 0). These are the units with the largest product.`);
    table.update();
  });
  return section(app, {
    title: "SwiGLU: a gate for every unit", level: 3, id: "swiglu", sources: ["swiglu"],
    text: "SiLU lets a unit through where its gate is above 0, and nearly closes it below. What passes multiplies the unit's own value.",
  }, says, el("div", { class: "pair" },
    figure("gates on SiLU's curve: blue where up is above 0, orange below", curve),
    figure("silu(gate) · up", list)), table.box);
}

// The residual stream

function streamChart(app, stream) {
  const [places, count] = stream.shape;
  const values = Array.from(stream.data, (v) => Math.log10(Math.max(v, 1e-6)));
  const low = Math.min(...values), high = Math.max(...values, low + 0.1);
  const x = (i) => 40 + 550 * i / (places - 1), y = (v) => 186 - 170 * (v - low) / (high - low);
  const line = (t) => Array.from({ length: places }, (_, i) => `${x(i)},${y(values[i * count + t])}`).join(" ");
  const ticks = [];
  for (let power = Math.floor(low); power <= high; power++) {
    for (const lead of [1, 2, 5]) {
      const tick = power + Math.log10(lead);
      if (tick >= low && tick <= high) ticks.push([tick, lead * 10 ** power]);
    }
  }
  const shown = app.trace.layers[app.layer];
  return svg("svg", { class: "stream", viewBox: "0 0 600 215", role: "img", "aria-label": "length of the residual stream of every token, from the embedding to the last layer" },
    svg("rect", { class: "band", x: x(2 * shown), y: 10, width: x(2) - x(0), height: 180 }),
    ticks.map(([tick, value]) => [
      svg("line", { class: "axis", x1: 40, x2: 590, y1: y(tick), y2: y(tick) }),
      svg("text", { x: 36, y: y(tick) + 4, "text-anchor": "end" }, String(+value.toPrecision(1)))]).flat(),
    Array.from({ length: count }, (_, t) => svg("polyline", { points: line(t), class: "thread" })),
    svg("polyline", { points: line(app.query), class: "thread picked" }),
    Array.from({ length: (places - 1) / 2 }, (_, i) => places > 60 && i % 4 ? null
      : svg("text", { x: x(2 * i + 1), y: 208, "text-anchor": "middle" }, String(i))));
}

export function residual(app) {
  const { trace } = app;
  const chart = el("div", {});
  const { stream, added } = trace.arrays;
  const at = (array, place, token) => array.data[place * trace.count + token];
  const table = numbers("Lengths of the selected token's stream", () => ({
    head: ["layer", "before", "attention adds", "then", "feed-forward adds", "after"],
    rows: Array.from({ length: added.shape[0] / 2 }, (_, i) => [String(i), at(stream, 2 * i, app.query),
      at(added, 2 * i, app.query), at(stream, 2 * i + 1, app.query), at(added, 2 * i + 1, app.query),
      at(stream, 2 * i + 2, app.query)].map((v) => typeof v === "string" ? v : show(v))),
  }));
  app.updates.push(() => {
    chart.replaceChildren(streamChart(app, stream));
    table.update();
  });
  return section(app, {
    title: "Residual stream", id: "residual", sources: ["attention", "feed_forward"],
    text: "Each layer adds to the stream twice. A line is a token, from the embedding on the left through every layer; its height is the length of its vector, on a logarithmic scale. The strong line is the selected token, the band the selected layer.",
  }, figure("‖x‖ after the embedding, and after attention and feed-forward of each layer", chart), table.box);
}

