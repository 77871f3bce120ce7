"""Small plots as inline SVG: lines and histograms, for pages without files beside them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

COLOURS = ("#2a5caa", "#c4561e", "#2e7d4f", "#7a4fa3", "#8a6d1d", "#57606a")
WIDTH, HEIGHT = 330, 200
LEFT, RIGHT, TOP, BOTTOM = 44, 8, 8, 30  # margins
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Frame:
    """The ranges of both axes, and where a value stands in the picture."""

    x: tuple[float, float]
    y: tuple[float, float]

    @classmethod
    def around(cls, points: Points) -> "Frame":
        columns = [[point[i] for point in points] or [0.0] for i in (0, 1)]
        (x0, x1), (y0, y1) = ((min(column), max(column)) for column in columns)
        margin = 0.05 * (y1 - y0) or 0.5
        return cls((x0, x1 if x1 > x0 else x0 + 1), (y0 - margin, y1 + margin))

    def place(self, x: float, y: float) -> tuple[float, float]:
        across = (x - self.x[0]) / (self.x[1] - self.x[0])
        up = (y - self.y[0]) / (self.y[1] - self.y[0])
        width, height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
        return round(LEFT + across * width, 1), round(HEIGHT - BOTTOM - up * height, 1)

    def axes(self, x_label: str) -> str:
        """Lines and numbers at a quarter's steps of y and a half's of x."""
        parts = []
        for i in range(5):
            value = self.y[0] + (self.y[1] - self.y[0]) * i / 4
            x, y = self.place(self.x[0], value)
            parts.append(f'<path d="M{x} {y}H{WIDTH - RIGHT}" stroke="#e4e8ec"/>')
            parts.append(f'<text x="{x - 4}" y="{y + 3}" text-anchor="end">{short(value)}</text>')
        for i in range(3):
            value = self.x[0] + (self.x[1] - self.x[0]) * i / 2
            x, y = self.place(value, self.y[0])
            anchor = ("start", "middle", "end")[i]
            parts.append(f'<text x="{x}" y="{y + 13}" text-anchor="{anchor}">{short(value)}</text>')
        middle, bottom = (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 3
        label = f'<text x="{middle}" y="{bottom}" text-anchor="middle">{escape(x_label)}</text>'
        return "".join([*parts, label])


def short(value: float) -> str:
    """At most three digits that count."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def lines(series: Mapping[str, Points], x_label: str) -> Markup:
    """A line for each series, all in one frame, with their names in a legend below."""
    frame = Frame.around([point for points in series.values() for point in points])
    parts = [frame.axes(x_label)]
    for colour, points in zip(COLOURS, series.values(), strict=False):
        path = " ".join(f"{x},{y}" for x, y in (frame.place(*point) for point in points))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
    return picture(parts, list(series))


def histogram(values: Mapping[str, Sequence[float]], x_label: str, bins: int = 40) -> Markup:
    """Outlined histograms of several groups, with a common scale."""
    every = [value for group in values.values() for value in group] or [0.0, 1.0]
    low, high = min(every), max(every)
    step = (high - low) / bins or 1.0
    counts = {
        name: [sum(i == min(bins - 1, int((v - low) / step)) for v in group) for i in range(bins)]
        for name, group in values.items()
    }
    most = max(max(row) for row in counts.values())
    frame = Frame((low, low + step * bins), (0.0, 1.05 * most))
    parts = [frame.axes(x_label)]
    for colour, row in zip(COLOURS, counts.values(), strict=False):
        corners = [(low, 0.0)]
        for i, count in enumerate(row):
            corners += [(low + i * step, count), (low + (i + 1) * step, count)]
        corners.append((low + bins * step, 0.0))
        path = " ".join(f"{x},{y}" for x, y in (frame.place(*corner) for corner in corners))
        parts.append(f'<polygon points="{path}" fill="{colour}" fill-opacity=".35"/>')
    return picture(parts, list(values))


def picture(parts: Sequence[str], names: Sequence[str]) -> Markup:
    """An SVG element with a legend after it."""
    size = f'viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" font-size="10"'
    items = " ".join(
        f'<span style="color:{colour}">■</span> {escape(name)}'
        for colour, name in zip(COLOURS, names, strict=False)
    )
    body = "".join(parts)
    return Markup(f'<svg role="img" {size}>{body}</svg><p class="note">{items}</p>')
