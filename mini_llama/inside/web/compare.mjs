// Two traces of the same tokens: where they begin to differ, and by how much.
import { part, show, unpack } from "./numbers.mjs";
import { inkOn, shareOfError, strength, theme } from "./colours.mjs";
import { bars, el } from "./pictures.mjs";
import { figure } from "./app.mjs";

const TOLERANCE = 1e-5; // as in comparison.py

function heatTable(label, head, rows, onpick, first) {
  const cells = (row, r) => Array.from(row.values, (value, c) => {
    const share = shareOfError(value);
    const text = Number.isNaN(value) ? "–" : value === 0 ? "0" : Number.isFinite(value) ? value.toExponential(0).replaceAll("-", "−") : "shape";
    const isFirst = first?.[0] === r && first[1] === c;
    const cell = el("td", { class: isFirst ? "first" : null, title: isFirst ? "the first difference" : null }, text);
    cell.style.background = strength(share);
    cell.style.color = inkOn(share);
    return cell;
  });
  return el("div", { class: "wide heat", tabindex: 0, role: "region", "aria-label": label },
    el("table", {}, el("thead", {}, el("tr", {}, head.map((name) => el("th", { scope: "col" }, name)))),
      el("tbody", {}, rows.map((row, r) => el("tr", {},
        el("th", { scope: "row" }, onpick && row.layer != null
          ? el("button", { type: "button", onclick: () => onpick(row.layer) }, row.name) : row.name),
        cells(row, r))))));
}

function firstOf(rows) {
  for (const [r, row] of rows.entries()) {
    const c = row.values.findIndex((value) => !(value <= TOLERANCE));
    if (c >= 0) return [r, c];
  }
  return null;
}

export function comparison(apps, difference) {
  const [app, other] = apps;
  const errors = unpack(difference.errors), weights = unpack(difference.weights);
  const layers = errors.shape[0];
  const pick = (layer) => {
    const index = app.trace.layers.indexOf(layer);
    if (index >= 0) app.select({ layer: index });
  };
  const rows = Array.from({ length: layers }, (_, i) => ({ name: `layer ${i}`, layer: i, values: [...part(errors, i)] }));
  const ends = unpack(difference.ends).data;
  const content = [figure("Largest difference at each place, relative to the largest magnitude there; framed is the first",
    heatTable("differences by place", ["", ...difference.places], rows, pick, firstOf(rows)))];
  const changed = weights.data.some((value) => value > 0);
  if (changed) {
    const changes = Array.from({ length: weights.shape[0] }, (_, i) => ({ name: `layer ${i}`, layer: i, values: [...part(weights, i)] }));
    content.push(figure("How much each matrix was changed: ‖ΔW‖ / ‖W‖",
      heatTable("changes of the weights", ["", ...difference.matrices], changes, pick)));
  }
  const divergence = unpack(difference.divergence).data;
  const largest = Math.max(...divergence, 1e-9);
  const list = el("ol", { class: "bars" });
  app.updates.push(() => list.replaceChildren(...bars(Array.from(divergence, (value, i) => ({
    name: app.trace.names[i], value: show(value), share: value / largest })), theme().key)));
  content.push(figure("How far the next token's probabilities are apart after each token: KL divergence, in nats", list));
  return el("section", { id: "compare", "aria-label": "comparison" },
    el("h2", {}, "Compared: ", el("bdi", { class: "query" }, app.trace.title), " and ", el("bdi", { class: "key" }, other.trace.title)),
    el("p", { class: "readout" }, difference.sentence,
      ` The embedding differs by ${show(unpack(difference.embedding).data[0])}, the final norm by ${show(ends[0])}, the logits by ${show(ends[1])}.`),
    ...content);
}
