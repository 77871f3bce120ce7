// Elements, matrices on a canvas, and the tables that stand behind every picture.
import { theme } from "./colours.mjs";

const SVG = "http://www.w3.org/2000/svg";

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.flat(Infinity).filter((child) => child != null));
  return element;
}

// An element; attributes that begin with "on" are listeners.
export function el(tag, attributes, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

export function svg(tag, attributes, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

// The numbers behind a picture, as a table that is made when it is opened.
export function numbers(title, make) {
  const box = el("details", { class: "numbers" }, el("summary", {}, title));
  const fill = () => {
    box.querySelector(".wide")?.remove();
    const { head, rows } = make();
    const cells = (tag, row) => row.map((cell, i) => el(i || tag === "th" ? tag : "th",
      { scope: tag === "th" ? "col" : i ? null : "row" }, cell));
    box.append(el("div", { class: "wide", tabindex: 0, role: "region", "aria-label": title },
      el("table", {}, el("thead", {}, el("tr", {}, cells("th", head))),
        el("tbody", {}, rows.map((row) => el("tr", {}, cells("td", row)))))));
  };
  box.addEventListener("toggle", () => box.open && fill());
  return { box, update: () => box.open && fill() };
}

let hatching = null;

function hatch(context) {
  const colour = theme().hatch;
  if (hatching?.colour !== colour) {
    const tile = el("canvas", { width: 6, height: 6 });
    const pen = tile.getContext("2d");
    pen.fillStyle = theme().hidden;
    pen.fillRect(0, 0, 6, 6);
    pen.strokeStyle = colour;
    pen.beginPath();
    for (const [x, y] of [[-1, 1], [-1, 7], [5, 7]]) {
      pen.moveTo(x, y);
      pen.lineTo(x + 8, y - 8);
    }
    pen.stroke();
    hatching = { colour, tile };
  }
  return context.createPattern(hatching.tile, "repeat");
}

// A canvas of cells. `draw` takes {rows, columns, colour(r, c), hidden(r, c), selected: [r, c],
// rowNames, columnNames}; `onpick(r, c)` is called by a click and by the arrow keys.
export class Matrix {
  constructor({ label, onpick, largest = 26, tallest = 26, bare = false }) {
    this.largest = largest;
    this.tallest = tallest;
    this.bare = bare;
    this.onpick = onpick;
    this.canvas = el("canvas", {
      role: "img", tabindex: onpick && !bare ? 0 : null, "aria-label": label,
      onclick: (event) => this.click(event), onkeydown: (event) => this.key(event),
    });
    this.box = el("div", { class: bare ? "matrix bare" : "matrix" }, this.canvas);
  }

  draw(content) {
    this.content = content;
    const { rows, columns, rowNames, columnNames } = content;
    const width = Math.max(this.bare ? this.largest * columns : this.box.clientWidth || 320, 40);
    this.left = rowNames ? Math.min(96, Math.round(width * 0.26)) : 0;
    const size = Math.max(Math.min((width - this.left - 1) / columns, this.largest), 1);
    this.cell = { width: size, height: Math.min(Math.max(size, rowNames ? 15 : 1), this.tallest) };
    if (this.bare) this.cell.height = size;
    this.top = columnNames && size >= 9 ? 64 : 0;
    const height = this.top + rows * this.cell.height + 1;
    const inner = Math.ceil(this.left + columns * size + 1 + (this.top ? 26 : 0));
    const dense = globalThis.devicePixelRatio || 1;
    this.canvas.width = Math.round(Math.min(inner, width) * dense);
    this.canvas.height = Math.round(height * dense);
    this.canvas.style.width = `${Math.min(inner, width)}px`;
    this.canvas.style.height = `${height}px`;
    const context = this.canvas.getContext("2d");
    context.scale(dense, dense);
    this.paint(context);
  }

  paint(context) {
    const { rows, columns, colour, hidden, selected, rowNames, columnNames } = this.content;
    const { width, height } = this.cell;
    const gap = width >= 8 && height >= 8 ? 1 : 0;
    const pattern = hidden && hatch(context);
    for (let r = 0; r < rows; r++) {
      for (let c = 0; c < columns; c++) {
        context.fillStyle = hidden?.(r, c) ? pattern : colour(r, c);
        context.fillRect(this.left + c * width, this.top + r * height, width - gap, height - gap);
      }
    }
    context.font = "12px system-ui, sans-serif";
    context.textBaseline = "middle";
    rowNames?.forEach((name, r) => {
      context.fillStyle = selected?.[0] === r ? theme().query : theme().faint;
      context.textAlign = "right";
      context.fillText(fit(context, name, this.left - 8), this.left - 6, this.top + (r + 0.5) * height);
    });
    if (this.top) {
      columnNames.forEach((name, c) => {
        context.save();
        context.translate(this.left + (c + 0.5) * width, this.top - 5);
        context.rotate(-1);
        context.textAlign = "left";
        context.fillStyle = selected?.[1] === c ? theme().key : theme().faint;
        context.fillText(fit(context, name, 66), 0, 0);
        context.restore();
      });
    }
    this.frame(context);
  }

  // The selected row, and in it the selected cell.
  frame(context) {
    const { columns, selected } = this.content;
    if (!selected) return;
    const { width, height } = this.cell;
    const [r, c] = selected;
    context.strokeStyle = theme().pick;
    context.lineWidth = this.bare ? 1 : 1.5;
    const y = this.top + r * height;
    context.strokeRect(this.left + 0.5, y + 0.5, columns * width - 1, height - 1);
    if (c != null && !this.bare) {
      context.lineWidth = 2.5;
      context.strokeRect(this.left + c * width + 0.5, y + 0.5, width - 1, height - 1);
    }
  }

  click(event) {
    if (!this.onpick) return;
    const box = this.canvas.getBoundingClientRect();
    const c = Math.floor((event.clientX - box.left - this.left) / this.cell.width);
    const r = Math.floor((event.clientY - box.top - this.top) / this.cell.height);
    this.pick(r, c);
  }

  key(event) {
    const move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    const step = move[event.key];
    if (!step || !this.onpick) return;
    event.preventDefault();
    const [r, c] = this.content.selected ?? [0, 0];
    this.pick(r + step[0], (c ?? 0) + step[1]);
  }

  pick(r, c) {
    const { rows, columns } = this.content;
    const within = (value, count) => Math.min(Math.max(value, 0), count - 1);
    this.onpick(within(r, rows), within(c, columns));
  }
}

function fit(context, text, width) {
  if (context.measureText(text).width <= width) return text;
  const signs = [...text];
  while (signs.length > 1 && context.measureText(`${signs.join("")}…`).width > width) signs.pop();
  return `${signs.join("")}…`;
}

// Horizontal bars, as a list that can be read: rows of {name, value, share, note, faded}.
export function bars(rows, colour) {
  return rows.map(({ name, value, share, ghost, note, faded }) =>
    el("li", { class: faded ? "bar faded" : "bar" },
      el("span", { class: "name" }, el("bdi", {}, name)),
      svg("svg", { class: "track", viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" },
        ghost != null && svg("rect", { class: "ghost", x: 0, y: 0, height: 10, width: Math.max(100 * ghost, 0.3) }) || null,
        share > 0 ? svg("rect", { x: 0, y: 1.5, height: 7, width: Math.max(100 * share, 0.3), fill: colour }) : null),
      el("span", { class: "value" }, value),
      note ? el("span", { class: "reason" }, note) : null));
}
