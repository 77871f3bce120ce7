// The page: sections in the order of llama.py.
import { App, Trace, section, sideOf, stepper, topBar } from "./app.mjs";
import { watchTheme } from "./colours.mjs";
import { attention, embedding, feedForward, norms, residual, rope } from "./layer.mjs";
import { label, lens, nextToken, worst } from "./outcome.mjs";
import { comparison } from "./compare.mjs";
import { liveForm } from "./live.mjs";
import { student } from "./student.mjs";
import { el, numbers } from "./pictures.mjs";

function header({ trace, side, peers }) {
  const notes = side ? trace.notes.filter((note) => !peers[0].trace.notes.includes(note)) : trace.notes;
  return el("header", {}, el(side ? "h2" : "h1", {}, "Inside ", el("bdi", {}, trace.title)),
    el("dl", {}, Object.entries(trace.facts).map(([name, value]) =>
      el("div", {}, el("dt", {}, name), el("dd", {}, value)))),
    notes.length ? el("ul", { class: "notes" }, notes.map((note) => el("li", {}, note))) : null);
}

function tokens(app) {
  const { trace } = app;
  const isPadding = trace.tokens[trace.last].kind === "padding";
  const padded = trace.tokens.some((token) => token.kind === "padding");
  const reads = isPadding
    ? "The assignment reads the last column, which is padding here."
    : padded ? "The padding is masked, and the last real token is read." : "The last column (▲) is the one that is read.";
  const chips = trace.tokens.map((token, i) => el("li", { class: token.kind },
    el("span", { class: "place" }, String(i)), el("bdi", { class: "piece" }, token.text),
    el("span", { class: "id" }, String(token.id)), i === trace.last ? el("span", { class: "last" }, "▲ read") : null));
  const table = numbers("Tokens as a table", () => ({
    head: ["position", "token", "id", "kind"],
    rows: trace.tokens.map((token, i) => [String(i), token.text, String(token.id), i === trace.last ? `${token.kind}, read` : token.kind]),
  }));
  return section(app, {
    title: "Tokens", id: "tokens",
    text: `The text is ${trace.length} tokens, each with its position above and its id below; ▁ is a space. ${reads}`,
  }, el("ol", { class: "chips", start: 0 }, chips), table.box);
}

function layerPart(app) {
  const { trace } = app;
  const pick = stepper("layer", trace.layers.map(String), () => app.layer, (i) => app.select({ layer: i }));
  const title = el("h2", {});
  app.updates.push(() => {
    pick.update();
    title.textContent = `Layer ${trace.layers[app.layer]} of 0 to ${trace.config.n_layers - 1}`;
  });
  return el("section", { class: "layer", id: app.side ? null : "layer", "aria-label": "one layer" },
    sideOf(app),
    el("div", { class: "controls" }, title, pick.box),
    norms(app, "attention"), rope(app), attention(app), norms(app, "ffn"), feedForward(app));
}

const PLACES = [["tokens", "tokens"], ["embedding", "embedding"], ["layer", "layer"], ["rope", "RoPE"],
  ["attention", "attention"], ["swiglu", "SwiGLU"], ["residual", "residual"], ["lens", "logit lens"], ["next", "next token"]];

const SECTIONS = [
  tokens, embedding, layerPart, residual, lens,
  (app) => (app.trace.label?.kind === "trained" ? null : nextToken(app)),
];
const EXTRA = [["worst", "worst examples"], ["compare", "compared"], ["code", "student's code"], ["label", "label"]];
let current = []; // the Apps on the page

function build(data) {
  const apps = data.traces.map((trace) => new App(new Trace(trace)));
  apps.forEach((app, side) => {
    app.side = side;
    app.peers = apps.filter((other) => other !== app);
  });
  const [app] = apps;
  const has = { worst: data.worst, compare: data.difference, code: data.code, label: data.traces.some((trace) => trace.label) };
  const places = [...EXTRA.filter(([id]) => has[id]), ...PLACES.filter(([id]) => id !== "next" || app.trace.label?.kind !== "trained")];
  const links = el("nav", { "aria-label": "sections" },
    places.map(([id, name]) => el("a", { href: `#${id}` }, name)));
  const labelled = apps.some(({ trace }) => trace.label);
  const sections = labelled ? [(one) => (one.trace.label ? label(one) : null), ...SECTIONS] : SECTIONS;
  const rows = sections.map((make) => apps.map(make));
  const form = data.live ? liveForm(data.live, build) : null;
  document.getElementById("page").replaceChildren(...apps.map((one) => header(one)),
    ...(form ? [form.box] : []), links, topBar(app),
    el("main", { class: apps.length > 1 ? "two" : null },
      data.worst ? worst(data.worst, form?.ask) : null,
      data.code ? student(app, data.code) : null,
      data.difference ? comparison(apps, data.difference) : null,
      apps.length > 1 ? rows.map((pair) => el("div", { class: "row" }, pair)) : rows));
  document.body.classList.toggle("compared", apps.length > 1);
  apps.forEach((one) => one.update());
  current = apps;
  if (location.hash) document.getElementById(location.hash.slice(1))?.scrollIntoView();
}

if (globalThis.document) {
  let width = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth !== width) current.forEach((app) => app.update());
    width = innerWidth;
  });
  watchTheme(() => current.forEach((app) => app.update()));
  build(JSON.parse(document.getElementById("data").textContent));
}
