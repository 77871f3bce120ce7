// A student's model beside the formulas: where the two begin to differ.
import { magnitude, part, unpack } from "./numbers.mjs";
import { inkOn, shareOfError, signed, strength } from "./colours.mjs";
import { Matrix, el } from "./pictures.mjs";
import { figure } from "./app.mjs";

const spell = (value) => (value == null ? "" : typeof value === "string" ? value
  : value === 0 ? "0" : value.toExponential(0).replaceAll("-", "−"));

// A column's name: attention.compute_query → query.
const short = (name) => name.replace("attention.compute_query_key_value_scores", "scores")
  .replace(/^attention\./, "").replace(/^compute_/, "").replaceAll("_", " ");

// Two matrices of what a component gave, on one scale.
function outputs(app, code, selected) {
  const kinds = ["theirs", "by the formula", "difference"];
  const matrices = kinds.map((kind) => new Matrix({ label: `${kind}; the errors are in the table above`, tallest: 20 }));
  const title = el("h3", {});
  const draw = () => {
    const pair = unpack(code.pictures[selected()]);
    const [, tokens, width] = pair.shape;
    const [theirs, ours] = [0, 1].map((i) => part(pair, i));
    const largest = magnitude(ours);
    const values = [theirs, ours, theirs.map((value, i) => value - ours[i])];
    title.textContent = `What ${selected()} gives`;
    matrices.forEach((matrix, i) => matrix.draw({
      rows: tokens, columns: width, rowNames: app.trace.names.slice(0, tokens),
      colour: (r, c) => signed(values[i][r * width + c] / largest), selected: [app.query, null],
    }));
  };
  app.updates.push(draw);
  return { box: el("div", {}, title, el("div", { class: "pair" }, kinds.map((kind, i) => figure(kind, matrices[i].box)))), draw };
}

export function student(app, code) {
  const names = Object.keys(code.pictures);
  const first = code.rows.flatMap((row) => Object.entries(row.cells).filter(([, cell]) => cell.isFirst)
    .map(([column]) => (column ? `${row.name}.${column}` : row.name)))[0];
  const nearest = names.find((name) => first?.startsWith(name) && name.includes(".", 7)) ?? names.find((name) => first?.startsWith(name)) ?? names[0];
  let selected = nearest;
  const shown = names.length ? outputs(app, code, () => selected) : null;
  const says = el("p", { class: "readout", role: "status" });
  const cell = (row, column) => {
    const found = row.cells[column];
    if (!found) return el("td", {});
    const name = column ? `${row.name}.${column}` : row.name;
    const value = found.alone ?? found.fromStart;
    const share = found.problem ? 1 : shareOfError(typeof value === "number" ? value : 1);
    const pick = () => {
      says.textContent = found.problem ? `${name}: ${found.problem}` : `${name}: as the formula has it, to ${spell(found.alone) || "–"}; from the start ${spell(found.fromStart) || "–"}`;
      if (code.pictures[name]) {
        selected = name;
        shown.draw();
      }
    };
    const button = el("button", { type: "button", onclick: pick, "aria-label": `${name}: ${spell(value)} ${found.problem}` },
      found.problem ? `${spell(value)} ✗` : spell(value));
    button.style.background = strength(share);
    button.style.color = inkOn(share);
    return el("td", { class: found.isFirst ? "first" : null }, button);
  };
  return el("section", { id: "code", "aria-label": "a student's code" },
    el("h2", {}, "Code of ", el("bdi", { class: "key" }, code.name), " beside the formulas"),
    code.verdict.map((line) => el("p", { class: "readout" }, line)),
    figure("Error of each place for the input that it received, relative to the largest magnitude; framed is the first that is wrong (✗)",
      el("div", { class: "wide heat", tabindex: 0, role: "region", "aria-label": "errors by place" },
        el("table", {}, el("thead", {}, el("tr", {}, ["", "", ...code.columns.map(short)].map((name) => el("th", { scope: "col" }, name)))),
          el("tbody", {}, code.rows.map((row) => el("tr", {}, el("th", { scope: "row" }, row.name), ["", ...code.columns].map((column) => cell(row, column)))))))),
    says, shown?.box);
}

