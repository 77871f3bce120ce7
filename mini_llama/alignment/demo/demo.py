"""The demonstration: SFT, reward models, rejection sampling, PPO and DPO on the bundled model."""

import json
import os
from functools import partial
from pathlib import Path
from typing import Any

from mini_llama.alignment.demo import data
from mini_llama.alignment.demo.measures import examine
from mini_llama.alignment.demo.page import render_page
from mini_llama.alignment.demo.stages import DATA, MODEL, Progress, Runs, commands
from mini_llama.alignment.rl_options import DemoOptions
from mini_llama.bundled import CHECKPOINT
from mini_llama.checkpoints.own_tokenizer import find_own_tokenizer
from mini_llama.tokenization.find import load_tokenizer
from utils import atomic_write, raise_on_sigterm

RESULTS, PAGE = "results.json", "demo.html"


def run(options: DemoOptions) -> int:
    """All stages, then the measurements; the exit status. Raises OSError or ValueError."""
    raise_on_sigterm()
    folder = Path(options.out)
    settings = {name: getattr(options, name) for name in ("seed", "iterations", "epochs", "scale")}
    progress = Progress.load(folder, settings, options.resume)
    (folder / DATA).mkdir(parents=True, exist_ok=True)
    sizes = data.Sizes().scaled(options.scale, options.iterations)
    tokenizer = load_tokenizer(find_own_tokenizer(CHECKPOINT))
    seed, files = options.seed, folder / DATA
    found = commands(folder, seed, options.iterations, options.epochs)
    progress.forget_lost(
        {"data": [files / name for name in data.WRITTEN_FIRST]}
        | {"comparisons": [files / name for name in data.WRITTEN_THEN]}
        | {command.name: command.results(folder) for command in found}
    )
    runs = Runs(folder, progress, options.workers or os.cpu_count() or 1)
    work: dict[str, Any] = {
        "data": ((), partial(data.write_prompts_and_reviews, files, tokenizer, sizes, seed)),
        "comparisons": (
            ("sft",),
            partial(data.write_comparisons, files, folder / "sft" / MODEL, sizes, seed),
        ),
    }
    runs.run(work | {c.name: (c.needs, partial(runs.command, c)) for c in found})
    results = {"seed": seed, "seconds": progress.done, **examine(folder)}
    with atomic_write(folder / RESULTS) as file:
        json.dump(results, file, indent=2)
    with atomic_write(folder / PAGE) as file:
        file.write(render_page(results))
    print("\n".join(summary(results)))
    print(f"{folder / PAGE} shows more, {folder / RESULTS} has all numbers")
    return 0


def summary(results: dict[str, Any]) -> list[str]:
    """A line a policy: value, readable, distinct, KL divergence, wins, spoilers."""
    lines = []
    for name, numbers in results["policies"].items():
        lines.append(
            f"{name:11} value {numbers['value']:+.2f}, readable {numbers['valid']:.3f}, distinct "
            f"{numbers['distinct']:.3f}, KL {numbers['kl']:.1f}, wins {numbers['win_rate']:.3f}, "
            f"spoilers {numbers['spoilers']:.3f}"
        )
    best = results["best_of"]["8"]
    return [*lines, f"best of 8   value {best['value']:+.2f}, readable {best['valid']:.3f}"]
