
"use strict";
// Sort the table by the column whose head is clicked, again: the other way; words after numbers.
const heads = document.querySelectorAll("thead tr:last-child th");
const body = document.querySelector("tbody");
const valueOf = (row, place) => {
  const cell = row.cells[place];
  if (!cell || cell.colSpan > 1) return { rank: 2, value: 0 };
  const text = cell.textContent.trim();
  const number = place === 0 ? NaN : parseFloat(text.replace(/,/g, ""));
  return Number.isNaN(number) ? { rank: 1, value: text } : { rank: 0, value: number };
};
const compare = (a, b, sign) => {
  if (a.rank !== b.rank) return a.rank - b.rank;
  if (a.rank !== 1) return sign * (a.value - b.value);
  return sign * a.value.localeCompare(b.value, undefined, { numeric: true });
};
const sortBy = (place) => {
  const isUp = heads[place].getAttribute("aria-sort") !== "ascending";
  for (const head of heads) head.removeAttribute("aria-sort");
  heads[place].setAttribute("aria-sort", isUp ? "ascending" : "descending");
  const keyed = Array.from(body.rows, (row) => [valueOf(row, place), row]);
  keyed.sort((a, b) => compare(a[0], b[0], isUp ? 1 : -1));
  for (const [, row] of keyed) body.append(row);
};
heads.forEach((head, place) => {
  head.tabIndex = 0;
  head.addEventListener("click", () => sortBy(place));
  head.addEventListener("keydown", (event) => { if (event.key === "Enter") sortBy(place); });
});
