"""The demonstration as one HTML page, from templates/alignment.html, with plots in SVG."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from mini_llama import svg
from mini_llama.html_page import render

CURVES = {
    "reward": "score of the reward model",
    "value": "value, by the judge",
    "kl": "KL divergence a text",
    "valid": "readable",
    "distinct": "distinct",
    "tokens": "tokens an answer",
    "win_rate": "wins over the beginning",
    "spoilers": "spoilers",
}
COLUMNS = {
    "value": "value",
    "best": "of value 2",
    "reward": "reward",
    "ended": "ends",
    "valid": "readable",
    "distinct": "distinct",
    "tokens": "tokens",
    "kl": "KL",
    "win_rate": "wins",
    "spoilers": "spoilers",
    "forced_praise": "forced praise",
}
ABOUT = (
    "Llama 2's post-training (arXiv 2307.09288, section 3) on the bundled model. Spoilers are "
    'texts that mention the ending; forced praise is "I wanted to hate …, and …" where "but" '
    "belongs."
)


@dataclass(frozen=True)
class Grid:
    """A table whose first `left` columns are text and the others numbers."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: int = 1


def render_page(results: dict[str, Any]) -> str:
    """The whole document, of results.json's content."""
    return render(
        "alignment.html",
        title=f"Post-training of the bundled model, seed {results['seed']}",
        about=ABOUT,
        policies=policies(results),
        accuracy=accuracy(results),
        reward_plots=reward_plots(results),
        collapse=collapse(results),
        curves=curves(results),
        texts=texts(results),
        times=times(results),
    )


def policies(results: dict[str, Any]) -> Grid:
    rows = [
        (name, *(number(numbers.get(key)) for key in COLUMNS))
        for name, numbers in [
            *results["policies"].items(),
            *((f"best of {n}", results["best_of"][n]) for n in ("2", "4", "8")),
        ]
    ]
    return Grid(("model", *COLUMNS.values()), rows)


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}".rstrip("0").rstrip(".")


def accuracy(results: dict[str, Any]) -> Grid:
    grades = list(dict.fromkeys(g for found in results["reward_model"].values() for g in found))
    rows = []
    for name, found in results["reward_model"].items():
        cells = [f"{found[g][0]:.3f} ({found[g][1]})" if g in found else "" for g in grades]
        rows.append((name, *cells))
    return Grid(("reward model", *grades), rows)


def reward_plots(results: dict[str, Any]) -> list[tuple[str, Markup]]:
    best = results["best_of"]
    over = {
        name: [(n + 1.0, score) for n, score in enumerate(best["curves"][name])]
        for name in ("max", "median")
    }
    values = {
        "mean value of the best": [(float(n), best[n]["value"]) for n in ("1", "2", "4", "8")]
    }
    groups = {f"value {v}": scores for v, scores in results["histogram"].items() if scores}
    return [
        ("scores by true value", svg.histogram(groups, "score")),
        ("scores of N answers (figure 7)", svg.lines(over, "N")),
        ("best of N", svg.lines(values, "N")),
    ]


def curves(results: dict[str, Any]) -> list[tuple[str, Markup]]:
    found = []
    for key, title in CURVES.items():
        series = {
            name: [(record["iteration"], record[key]) for record in records]
            for name, records in results["iterations"].items()
        }
        found.append((title, svg.lines(series, "iteration")))
    return found


def collapse(results: dict[str, Any]) -> str:
    """What a run without the KL penalty did, in numbers."""
    held, free = (results["iterations"][name][-1] for name in ("ppo", "ppo-beta-0"))
    return (
        f"its score ends at {free['reward']:.1f} and its KL divergence at {free['kl']:.1f} "
        f"(with the penalty {held['reward']:.1f} and {held['kl']:.1f}), and "
        f"{free['valid']:.1%} of its texts can be read ({held['valid']:.1%}), "
        f"{free['distinct']:.1%} are distinct ({held['distinct']:.1%})."
    )


def texts(results: dict[str, Any]) -> Grid:
    """Ten prompts, answered by the SFT model and by PPO's."""
    shown = [results["texts"][name] for name in ("sft", "ppo", "ppo-beta-0")]
    rows = []
    for group in zip(*shown, strict=True):
        cells = [(text, "-" if value is None else str(value)) for text, value in group]
        rows.append([cell for pair in cells for cell in pair])
    return Grid(("SFT", "value", "PPO", "value", "PPO without KL", "value"), rows, 6)


def times(results: dict[str, Any]) -> Grid:
    rows = [(name, f"{w:.0f}", f"{cpu:.0f}") for name, (w, cpu) in results["seconds"].items()]
    total = sum(cpu for _, cpu in results["seconds"].values())
    return Grid(("stage", "seconds", "of processor time"), [*rows, ("sum", "", f"{total:.0f}")])
