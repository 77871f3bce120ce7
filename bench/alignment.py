"""The demonstration of post-training for several seeds: what it must show, mean and spread.

    python bench/alignment.py --out FOLDER [--seeds 0 1 2] [--gatt]

runs `align.py demo --seed N --out FOLDER/N` where there is no results.json yet, and with --gatt
`align.py gatt --demo --seed N --out FOLDER/gatt-N`.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def figures(results: dict[str, Any]) -> dict[str, float]:
    """The numbers that have a target, by name."""
    policies, reward = results["policies"], results["reward_model"]
    ranked, readable = reward["reward"], reward["reward, readable answers"]
    sft, ppo, safe, free = (policies[n] for n in ("sft", "ppo", "ppo-safety", "ppo-beta-0"))
    return {
        "SFT: ends (>= 0.99)": sft["ended"],
        "SFT: readable (>= 0.99)": sft["valid"],
        "SFT: value (about 0)": sft["value"],
        "reward model: accuracy (>= 0.98)": ranked["all"][0],
        "reward model: accuracy, readable answers": readable["all"][0],
        "reward model: closest grade (>= 0.95)": ranked["negligibly"][0],
        "best of 8: value (>= 1.4)": results["best_of"]["8"]["value"],
        "best of 8: readable": results["best_of"]["8"]["valid"],
        "rejection sampling: value": policies["rejection"]["value"],
        "rejection sampling: wins": policies["rejection"]["win_rate"],
        "PPO: value (>= 1.6)": ppo["value"],
        "PPO: readable (>= 0.95)": ppo["valid"],
        "PPO: distinct (>= 0.95)": ppo["distinct"],
        "PPO: KL a text (<= 5)": ppo["kl"],
        "PPO: wins (>= 0.8)": ppo["win_rate"],
        "PPO: forced praise (SFT's)": ppo["forced_praise"],
        "SFT: forced praise": sft["forced_praise"],
        "SFT: spoilers": sft["spoilers"],
        "PPO: spoilers": ppo["spoilers"],
        "PPO with safety model: spoilers (<= 0.05)": safe["spoilers"],
        "PPO with safety model: value (>= 1.3)": safe["value"],
        "PPO with safety model: readable": safe["valid"],
        "PPO with safety model: wins": safe["win_rate"],
        "PPO with safety model: KL a text": safe["kl"],
        "PPO, beta 0: value": free["value"],
        "PPO, beta 0: readable": free["valid"],
        "PPO, beta 0: distinct": free["distinct"],
        "PPO, beta 0: KL a text": free["kl"],
        "DPO: value": policies["dpo"]["value"],
        "DPO: readable": policies["dpo"]["valid"],
        "DPO: KL a text": policies["dpo"]["kl"],
        "DPO: wins": policies["dpo"]["win_rate"],
        "processor seconds": sum(cpu for _, cpu in results["seconds"].values()),
    }


def results_of(command: list[str], folder: Path) -> dict[str, Any]:
    """results.json of a folder, made by align.py if it is not there."""
    path = folder / "results.json"
    if not path.exists():
        words = [sys.executable, str(ROOT / "align.py"), *command, "--out", str(folder)]
        subprocess.run(words, check=True)
    return json.loads(path.read_text(encoding="utf-8"))


def show(rows: dict[str, list[float]]) -> None:
    for name, values in rows.items():
        spread = max(values) - min(values)
        each = " ".join(f"{value:.3f}" for value in values)
        print(f"{name:44} {statistics.fmean(values):8.3f}  spread {spread:.3f}  ({each})")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--gatt", action="store_true", help="Ghost Attention as well")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[float]] = {}
    for seed in args.seeds:
        demo = ["demo", "--seed", str(seed), "--resume"]
        for name, value in figures(results_of(demo, args.out / str(seed))).items():
            rows.setdefault(name, []).append(value)
        if args.gatt:
            gatt = ["gatt", "--demo", "--seed", str(seed)]
            found = results_of(gatt, args.out / f"gatt-{seed}")
            for when, shares in found.items():
                for turn in (1, 2, 6):
                    name = f"Ghost Attention, {when}: obeys in turn {turn}"
                    rows.setdefault(name, []).append(shares[turn - 1])
    show(rows)


if __name__ == "__main__":
    main()
