// Colours that the colour-blind can tell apart: blue against orange, light against dark.

const THEMES = {
  light: {
    paper: [255, 255, 255], ink: "#1a2028", faint: "#667080", line: "#c9d0d9", hidden: "#dde2e8",
    hatch: "#b3bcc7", pick: "#1a2028", query: "#0b62a8", key: "#b85c00", gone: "#9aa4b0",
    positive: [[255, 255, 255], [158, 202, 225], [33, 113, 181], [8, 38, 92]],
    negative: [[255, 255, 255], [253, 190, 120], [214, 104, 8], [112, 44, 0]],
    much: [[255, 255, 255], [190, 215, 240], [66, 133, 200], [10, 40, 110]],
  },
  dark: {
    paper: [20, 25, 33], ink: "#e8ecf1", faint: "#9aa5b4", line: "#39424f", hidden: "#2a323d",
    hatch: "#475261", pick: "#ffffff", query: "#6bb8ff", key: "#ffa94d", gone: "#5b6675",
    positive: [[20, 25, 33], [24, 84, 140], [73, 160, 230], [205, 233, 255]],
    negative: [[20, 25, 33], [140, 74, 12], [240, 150, 50], [255, 232, 200]],
    much: [[20, 25, 33], [26, 78, 138], [82, 160, 226], [235, 246, 255]],
  },
};

let printing = false;
const darkness = globalThis.matchMedia?.("(prefers-color-scheme: dark)");

export function theme() {
  return THEMES[!printing && darkness?.matches ? "dark" : "light"];
}

// Calls `redraw` when the colours change: another scheme, or paper.
export function watchTheme(redraw) {
  darkness?.addEventListener("change", redraw);
  addEventListener("beforeprint", () => { printing = true; redraw(); });
  addEventListener("afterprint", () => { printing = false; redraw(); });
}

function blend(stops, share) {
  const place = Math.min(Math.max(share, 0), 1) * (stops.length - 1);
  const low = Math.min(Math.floor(place), stops.length - 2);
  return stops[low].map((x, i) => Math.round(x + (stops[low + 1][i] - x) * (place - low)));
}

const css = (rgb) => `rgb(${rgb.join(" ")})`;

// 0 is the paper's colour, 1 the strongest.
export function strength(share) {
  return css(blend(theme().much, Math.sqrt(Math.max(share, 0))));
}

// -1 is orange, 1 is blue.
export function signed(share) {
  return css(blend(share < 0 ? theme().negative : theme().positive, Math.abs(share)));
}

// Of an error: 1e-7 and less is nothing, 1 and more is all.
export function shareOfError(error) {
  return Math.min(Math.max((Math.log10(Math.max(error, 1e-12)) + 7) / 7, 0), 1) ** 2;
}

// A text's colour that can be read on `strength(share)`.
export function inkOn(share) {
  const [r, g, b] = blend(theme().much, Math.sqrt(Math.max(share, 0)));
  return 0.3 * r + 0.59 * g + 0.11 * b > 140 ? "#10151c" : "#ffffff";
}
