// One trace with what is selected of it, and the bar at the top that selects.
import { indexOfMax, maskedSoftmax, part, percent, unpack } from "./numbers.mjs";
import { inkOn, strength } from "./colours.mjs";
import { el } from "./pictures.mjs";

// A trace as the pictures read it: arrays unpacked, pieces by id.
export class Trace {
  constructor(data) {
    const { heads, ...rest } = data;
    Object.assign(this, rest);
    this.arrays = {};
    for (const [name, value] of Object.entries(data.arrays)) {
      this.arrays[name] = typeof value === "number" ? value : unpack(value);
    }
    this.steps = data.steps.map((step) => {
      const unpacked = {};
      for (const name of ["attention", "lensIds", "lens", "logits", "ids"]) {
        if (step[name]) unpacked[name] = unpack(step[name]);
      }
      return { ...step, ...unpacked };
    });
    if (data.label) {
      this.label = { ...data.label, gradient: unpack(data.label.gradient).data, leftOut: unpack(data.label.leftOut).data };
    }
    this.count = data.tokens.length;
    this.names = data.tokens.map((token) => token.text);
    this.group = data.config.n_heads / data.config.n_kv_heads;
  }

  piece(id) {
    return this.pieces[id] ?? `no. ${id}`;
  }

  visible(query) {
    return part(this.arrays.visible, query);
  }

  scores(layer, head, query) {
    return part(this.arrays.scores, layer, head, query);
  }

  // What `query` attends to, in a shown layer and head.
  attention(layer, head, query) {
    return maskedSoftmax(this.scores(layer, head, query), this.visible(query));
  }

  heads() {
    return Array.from({ length: this.arrays.scores.shape[1] }, (_, h) => h);
  }
}

// What is selected; sections redraw when it changes.
export class App {
  constructor(trace) {
    this.trace = trace;
    this.query = trace.last;
    this.key = null;
    this.layer = Math.floor(trace.layers.length / 2);
    this.head = 0;
    this.step = 0;
    Object.assign(this, trace.sampling);
    if (this.temperature === 0) this.temperature = 1;
    this.updates = [];
    this.peers = []; // that show the same place of another trace
  }

  select(changes) {
    for (const app of [this, ...this.peers]) app.take(changes);
  }

  take(changes) {
    Object.assign(this, changes);
    if ("query" in changes && !("key" in changes)) this.key = null;
    this.layer = Math.min(this.layer, this.trace.layers.length - 1);
    this.head = Math.min(this.head, this.trace.arrays.scores.shape[1] - 1);
    this.step = Math.min(this.step, this.trace.steps.length - 1);
    this.update();
  }

  update() {
    for (const update of this.updates) update();
  }

  attention() {
    return this.trace.attention(this.layer, this.head, this.query);
  }

  // The attended token that is looked at: the one that was picked, else the strongest.
  attended() {
    return this.key ?? indexOfMax(this.attention());
  }
}

// A select between two buttons; `names` by index.
export function stepper(label, names, current, onpick) {
  const menu = el("select", { "aria-label": label, onchange: () => onpick(menu.selectedIndex) },
    names.map((name, i) => el("option", { value: i }, name)));
  const move = (step) => onpick(Math.min(Math.max(current() + step, 0), names.length - 1));
  const back = el("button", { type: "button", "aria-label": `previous ${label}`, onclick: () => move(-1) }, "◀");
  const on = el("button", { type: "button", "aria-label": `next ${label}`, onclick: () => move(1) }, "▶");
  const update = () => {
    menu.selectedIndex = current();
    back.disabled = current() === 0;
    on.disabled = current() === names.length - 1;
  };
  return { box: el("span", { class: "stepper" }, el("span", { class: "label" }, label), back, menu, on), update };
}

// Tokens as buttons in a row: arrow keys move along it.
export function tokenStrip(tokens, label, onpick) {
  const buttons = tokens.map((token, i) => el("button", {
    type: "button", class: `token ${token.kind}`, tabindex: -1, onclick: () => onpick(i),
  }, el("bdi", {}, token.text)));
  const row = el("div", { class: "strip", role: "toolbar", "aria-label": label }, buttons);
  row.addEventListener("keydown", (event) => {
    const at = buttons.indexOf(document.activeElement);
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: buttons.length - 1 }[event.key];
    if (at < 0 || to === undefined || !buttons[to]) return;
    event.preventDefault();
    buttons[to].focus();
    onpick(to);
  });
  const reveal = (button) => {
    const over = button.offsetLeft + button.offsetWidth - row.clientWidth;
    const under = button.offsetLeft;
    if (under < row.scrollLeft || over > row.scrollLeft) row.scrollLeft = Math.max(over + 60, 0);
  };
  const update = (picked, shares, what) => buttons.forEach((button, i) => {
    if (i === picked) reveal(button);
    const share = shares?.[i];
    button.tabIndex = i === picked ? 0 : -1;
    button.setAttribute("aria-pressed", i === picked);
    button.style.background = share == null ? "" : strength(share);
    button.style.color = share == null ? "" : inkOn(share);
    button.title = share == null ? "" : `${what} ${percent(share)}`;
    button.setAttribute("aria-label",
      `${tokens[i].text}, position ${i}${share == null ? "" : `, ${what} ${percent(share)}`}`);
  });
  return { box: row, update };
}

// The bar that stays in sight.
export function topBar(app) {
  const { trace } = app;
  const strip = tokenStrip(trace.tokens, "tokens: pick one to see what it attends to",
    (query) => app.select({ query }));
  const layer = stepper("layer", trace.layers.map(String), () => app.layer, (i) => app.select({ layer: i }));
  const names = trace.heads().map((head) =>
    trace.group > 1 ? `${head} (key ${Math.floor(head / trace.group)})` : String(head));
  const head = stepper("head", names, () => app.head, (i) => app.select({ head: i }));
  const says = el("p", { class: "says", role: "status" });
  app.updates.push(() => {
    strip.update(app.query, app.attention(), "attended");
    layer.update();
    head.update();
    const best = app.attended();
    says.replaceChildren(
      el("bdi", { class: "query" }, trace.names[app.query]), ` (position ${app.query}) gives `,
      percent(app.attention()[best]), " of its attention to ",
      el("bdi", { class: "key" }, trace.names[best]), ` (position ${best})`);
  });
  return el("div", { class: "bar-top" }, strip.box,
    el("div", { class: "controls" }, layer.box, head.box, says));
}

// A section: heading, formulas with the lines that compute them, what it is about, pictures.
export function section(app, { title, level = 2, sources = [], text, id }, ...content) {
  const lines = sources.map((name) => app.trace.sources[name]).filter(Boolean).map(({ formula, source }) =>
    el("li", {}, el("span", { class: "formula" }, formula),
      source ? el("span", { class: "source" }, `${source.file}:${source.line}`) : null,
      source?.code ? el("code", {}, source.code) : null));
  return el("section", { id: app.peers.length && app.side ? null : id, "aria-label": title },
    level === 2 ? sideOf(app) : null,
    el(`h${level}`, {}, title),
    text ? el("p", { class: "about" }, text) : null,
    lines.length ? el("ul", { class: "lines" }, lines) : null,
    ...content);
}

// Which of two traces a section is of.
export function sideOf(app) {
  return app.peers.length ? el("p", { class: `side ${app.side ? "key" : "query"}` }, el("bdi", {}, app.trace.title)) : null;
}

export function figure(caption, ...content) {
  return el("figure", {}, el("figcaption", {}, caption), ...content);
}
