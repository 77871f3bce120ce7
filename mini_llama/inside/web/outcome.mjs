// What comes out: the logit lens, and the next token with what sampling cuts.
import { magnitude, part, percent, show } from "./numbers.mjs";
import { BY_EPSILON, BY_TEMPERATURE, BY_TOP_P, KEPT, sampling } from "./sampling.mjs";
import { inkOn, strength, theme } from "./colours.mjs";
import { bars, el, numbers, svg } from "./pictures.mjs";
import { section, stepper, tokenStrip } from "./app.mjs";

const SHOWN = 20;
const REASONS = {
  [BY_EPSILON]: "below epsilon", [BY_TOP_P]: "beyond top-p", [BY_TEMPERATURE]: "not the most probable",
};

export function lens(app) {
  const { trace } = app;
  const [places, tokens, count] = trace.arrays.lensIds.shape;
  const says = el("ol", { class: "bars" }), title = el("p", { class: "readout" });
  let picked = [places - 1, null];
  const cells = Array.from({ length: places }, (_, place) => Array.from({ length: tokens }, (_, token) => {
    const id = part(trace.arrays.lensIds, place, token)[0];
    const p = part(trace.arrays.lens, place, token)[0];
    const button = el("button", { type: "button", onclick: () => { picked = [place, token]; app.select({ query: token }); } },
      el("bdi", {}, trace.piece(id)));
    button.setAttribute("aria-label", `${trace.piece(id)}, ${percent(p)}`);
    return { button, p, cell: el("td", {}, button) };
  }));
  const name = (place) => (place ? `layer ${place - 1}` : "embedding");
  const head = el("tr", {}, el("th", { scope: "col" }, "after"),
    trace.tokens.map((token) => el("th", { scope: "col" }, el("bdi", {}, token.text))));
  const body = cells.map((row, place) => el("tr", {}, el("th", { scope: "row" }, name(place)), row.map(({ cell }) => cell)));
  app.updates.push(() => {
    cells.forEach((row, place) => row.forEach(({ button, p }, token) => {
      button.style.background = strength(p);
      button.style.color = inkOn(p);
      button.classList.toggle("picked", token === app.query);
      if (place === places - 1) head.children[token + 1].classList.toggle("query", token === app.query);
    }));
    const place = picked[1] === app.query ? picked[0] : places - 1;
    const ids = part(trace.arrays.lensIds, place, app.query), shares = part(trace.arrays.lens, place, app.query);
    title.replaceChildren(`After ${name(place)}, `, el("bdi", { class: "query" }, trace.names[app.query]), " would go on with:");
    says.replaceChildren(...bars(Array.from({ length: count }, (_, i) => ({
      name: trace.piece(ids[i]), value: percent(shares[i]), share: shares[i] / shares[0] })), theme().query));
  });
  return section(app, {
    title: "Logit lens", id: "lens", sources: ["lens"],
    text: "What each position would predict if the model ended after that layer: the final norm and the output matrix, applied to every layer's stream. The last row is the model's own prediction.",
  }, el("div", { class: "wide lens", tabindex: 0, role: "region", "aria-label": "logit lens" },
    el("table", {}, el("thead", {}, head), el("tbody", {}, body))), title, says);
}

function slider(app, { label, name, low, high, step, spell = show }) {
  const input = el("input", { type: "range", min: low, max: high, step,
    oninput: () => app.select({ [name]: Number(input.value) }) });
  const output = el("output", {});
  app.updates.push(() => {
    input.value = app[name];
    output.textContent = spell(app[name]);
    input.setAttribute("aria-valuetext", output.textContent);
  });
  return el("label", { class: "slider" }, el("span", {}, label), input, output);
}

// Sliders of the three, and a button for each way that the editions sample.
function sliders(app) {
  const { editions } = app.trace;
  const kinds = new Map();
  for (const [name, { epsilon, topP }] of Object.entries(editions)) {
    const key = `${epsilon} ${topP}`;
    kinds.set(key, { epsilon, topP, names: [...(kinds.get(key)?.names ?? []), name] });
  }
  const buttons = [...kinds.values()].map(({ epsilon, topP, names }) =>
    el("button", { type: "button", onclick: () => app.select({ epsilon, topP }) }, names.join(", ")));
  app.updates.push(() => [...kinds.values()].forEach(({ epsilon, topP }, i) =>
    buttons[i].setAttribute("aria-pressed", epsilon === app.epsilon && topP === app.topP)));
  return el("div", { class: "sliders" },
    slider(app, { label: "temperature", name: "temperature", low: 0, high: 3, step: 0.05 }),
    slider(app, { label: "epsilon", name: "epsilon", low: 0, high: 0.3, step: 0.005 }),
    slider(app, { label: "top-p", name: "topP", low: 0.01, high: 1, step: 0.01 }),
    el("div", { class: "presets", role: "group", "aria-label": "as an edition samples" },
      el("span", { class: "label" }, "as in"), buttons));
}

// The distribution of one step: {rows, kept, lost} of the most probable tokens.
export function outcomes(trace, step, settings) {
  const { logits, ids, top } = trace.steps[step];
  let values = logits.data;
  const at = (id) => (ids ? ids.data.indexOf(id) : id);
  if (trace.excluded != null && at(trace.excluded) >= 0) {
    values = Float32Array.from(values);
    values[at(trace.excluded)] = -Infinity;
  }
  const { before, after, cut } = sampling(values, settings);
  let kept = 0, lost = 0;
  for (let i = 0; i < cut.length; i++) {
    if (after[i] > 0) kept += 1;
    else lost += before[i];
  }
  const rows = top.slice(0, SHOWN).map((id) => {
    const i = at(id);
    return { id, logit: values[i], before: before[i], after: after[i], cut: after[i] > 0 ? KEPT : cut[i] };
  });
  return { rows, kept, lost, count: values.length };
}

function story(app) {
  const { trace } = app;
  const ids = trace.steps.map((step) => step.chosen);
  const tokens = [...trace.tokens, ...ids.map((id) => ({ id, text: trace.piece(id), kind: "text" }))];
  const strip = tokenStrip(tokens, "the text so far, and the token that follows",
    (i) => app.select(i < trace.count ? { query: i } : { step: i - trace.count }));
  const names = trace.steps.map((step, i) => `${i + 1} of ${trace.steps.length}: ${trace.piece(step.chosen)}`);
  const steps = stepper("step", names, () => app.step, (i) => app.select({ step: i }));
  app.updates.push(() => {
    const length = trace.count + app.step;
    const { attention } = trace.steps[app.step];
    const shares = Array.from({ length: tokens.length }, (_, i) =>
      i < length ? part(attention, app.layer, app.head)[i] : null);
    strip.update(length, shares, "attended");
    [...strip.box.children].forEach((button, i) => {
      button.classList.toggle("chosen", i === length);
      button.classList.toggle("later", i > length);
    });
    steps.update();
  });
  return el("div", {}, el("div", { class: "controls" }, steps.box), strip.box);
}

export function nextToken(app) {
  const { trace } = app;
  const list = el("ol", { class: "bars outcome" }), says = el("p", { class: "readout", role: "status" });
  const settings = () => ({ temperature: app.temperature, epsilon: app.epsilon, topP: app.topP });
  const table = numbers("Numbers of these tokens", () => ({
    head: ["token", "id", "logit", "before", "drawn with", ""],
    rows: outcomes(trace, app.step, settings()).rows.map((row) => [trace.piece(row.id), String(row.id),
      show(row.logit), show(row.before), show(row.after), row.cut === KEPT ? "" : REASONS[row.cut]]),
  }));
  app.updates.push(() => {
    const found = outcomes(trace, app.step, settings());
    const widest = Math.max(...found.rows.map((row) => Math.max(row.before, row.after)));
    list.replaceChildren(...bars(found.rows.map((row) => ({
      name: trace.piece(row.id), value: row.cut === KEPT ? percent(row.after) : percent(row.before), share: row.after / widest,
      ghost: row.before / widest, note: row.cut === KEPT ? (row.id === trace.steps[app.step].chosen ? "chosen here" : "") : REASONS[row.cut],
      faded: row.cut !== KEPT })), theme().query));
    says.textContent = `${found.kept} of ${found.count} tokens can be drawn; the others' ${percent(found.lost)} is shared among them.`;
    table.update();
  });
  const many = trace.steps.length > 1;
  return section(app, {
    title: many ? "Next token, step by step" : "Next token", id: "next", sources: ["temperature", "epsilon", "top_p"],
    text: "The last column's logits become probabilities, and what sampling cuts is shared among the rest. The outline is before the cut, the bar after it." +
      (many ? " Step through the text: its tokens are shaded by how much the last column attends to them, in the selected layer and head." : ""),
  }, many ? story(app) : null, sliders(app), says, list, table.box);
}


// A classifier's answer, and the tokens that it rests on.

function sums(value, largest) {
  return svg("svg", { class: "track", viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" },
    Number.isNaN(value) ? null : svg("rect", { class: value > 0 ? "plus" : "minus", y: 1.5, height: 7,
      width: 50 * Math.abs(value) / largest, x: value > 0 ? 50 : 50 - 50 * Math.abs(value) / largest }),
    svg("line", { x1: 50, x2: 50, y1: 0, y2: 10, class: "axis" }));
}

export function label(app) {
  const { trace } = app;
  const { names, probabilities, gradient, leftOut, kind } = trace.label;
  const chosen = names[trace.label.label];
  const known = (values) => magnitude(Array.from(values).filter((value) => !Number.isNaN(value)));
  const sizes = [known(gradient), known(leftOut)];
  const list = el("ol", { class: "bars outcome" });
  const rows = trace.tokens.map((token, i) => el("li", { class: "rest" },
    el("button", { type: "button", class: `token ${token.kind}`, onclick: () => app.select({ query: i }) }, el("bdi", {}, token.text)),
    sums(gradient[i], sizes[0]), el("span", { class: "value" }, show(gradient[i])),
    sums(leftOut[i], sizes[1]), el("span", { class: "value" }, show(leftOut[i]))));
  app.updates.push(() => {
    list.replaceChildren(...bars(names.map((name, i) => ({
      name, value: percent(probabilities[i]), share: probabilities[i], note: i === trace.label.label ? "predicted" : "" })), theme().query));
    rows.forEach((row, i) => row.classList.toggle("picked", i === app.query));
  });
  const how = kind === "trained" ? "A linear layer on the hidden state of the column that is read gives the labels' probabilities."
    : "The text is followed by a question, and each label word is scored by its probability as the next word.";
  return section(app, { title: "Label", id: "label", text: how },
    list, el("p", { class: "readout" }, "What ", el("b", {}, chosen), " rests on: blue speaks for it, orange against it."),
    el("ol", { class: "rests" }, el("li", { class: "rest head", "aria-hidden": "true" }, el("span", {}, "token"),
      el("span", { class: "wide2" }, "gradient × input"), el("span", { class: "wide2" }, "left out: log p with it − without it")), rows));
}

export function worst(examples, onpick) {
  return el("section", { id: "worst", "aria-label": "worst examples" }, el("h2", {}, "Worst examples"),
    el("p", { class: "about" }, `Misclassified dev examples, the most confident first.${onpick ? " Pick one to look at it." : " The first is what this page shows, unless another text was given."}`),
    el("div", { class: "wide", tabindex: 0, role: "region", "aria-label": "worst examples" }, el("table", { class: "worst" },
      el("thead", {}, el("tr", {}, ["predicted", "with", "right", "text"].map((name) => el("th", { scope: "col" }, name)))),
      el("tbody", {}, examples.map((example) => el("tr", {}, el("td", {}, example.predicted), el("td", {}, percent(example.confidence)),
        el("td", {}, example.gold), el("td", { class: "said" }, onpick
          ? el("button", { type: "button", onclick: () => onpick(example.text) }, el("bdi", {}, example.text)) : el("bdi", {}, example.text))))))));
}
