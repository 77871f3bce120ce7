#!/usr/bin/env python
"""The assignment on a real model: prompt, finetune and lora with SmolLM2 on SST and CFIMDB.

python bench/smollm2_assignment.py [--work FOLDER] [--only NAME …]

Trains on a part of the training data (drawn by --seeds), and scores on dev, or a part of it;
prompting, and with --test training, on SST's test data as well (CFIMDB's have no labels). Beside
it: TF-IDF with logistic regression, by scikit-learn. Every run is a command of run_llama.py in a
process of its own; time is its own, user and system, memory the most that it had resident
(ru_maxrss). FOLDER gets results.json and results.md; what is in results.json is not run again. Get
the model with python download.py --smollm2.
"""

import argparse
import json
import os
import random
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from utils import atomic_write

ENDINGS = {"prompt": "prompting", "finetune": "finetuning", "lora": "lora"}
SCORE = re.compile(r"^(dev|test) (acc|macro F1) :: ([\d.]+)$", re.MULTILINE)
SHARE = re.compile(r"trains ([\d,]+) of ([\d,]+) parameters")


class Run(NamedTuple):
    """One command; `flags` are added to what every command has."""

    name: str
    option: str
    data: str
    flags: tuple[str, ...]


def planned(args: argparse.Namespace) -> list[Run]:
    """All runs; those of a seed have its training data."""
    prompts = [
        Run(f"prompt {data}{' default' * is_default}", "prompt", data, () if is_default else MASKED)
        for data in ("sst", "cfimdb")
        for is_default in (False, True)
    ]
    trained = []
    for seed in args.seeds:
        for data, batch, epochs in (
            ("sst", args.sst_batch_size, args.sst_epochs),
            ("cfimdb", args.cfimdb_batch_size, args.cfimdb_epochs),
        ):
            for option, lr in (("finetune", args.lr), ("lora", args.lora_lr)):
                flags = ("--lr", lr, "--batch_size", batch, "--epochs", epochs, "--seed", seed)
                name = f"{option} {data} {seed}"
                trained.append(Run(name, option, data, (*MASKED, *map(str, flags))))
    return prompts + trained + memory_runs(args.memory_batches)


MASKED = ("--mask_padding",)


def memory_runs(batches: int) -> list[Run]:
    """The assignment's defaults, a few batches: of the longest texts, and of others."""
    runs = []
    for data, size in (("sst", 80), ("cfimdb", 10)):
        flags = ("--epochs", "1", "--batch_size", str(size))
        for option in ("finetune", "lora"):
            for way in ((), ("--checkpoint_activations",)):
                name = f"memory {option} {data}{' checkpointed' * bool(way)}"
                runs.append(Run(name, option, f"{data}-longest-{batches * size}", (*flags, *way)))
    return runs


def write_part(args: argparse.Namespace, run: Run) -> Path:
    """The training data of a run: NAME-train.txt in a folder of its own."""
    data, _, longest = run.data.partition("-longest-")
    lines = (args.data / f"{data}-train.txt").read_text(encoding="utf-8").splitlines()
    if longest:
        half = int(longest) // 2
        by_length = sorted(lines, key=lambda line: -len(line))
        chosen = by_length[:half] + random.Random(0).sample(by_length[half:], half)
    else:
        count = args.sst_count if data == "sst" else args.cfimdb_count
        seed = int(run.flags[run.flags.index("--seed") + 1])
        chosen = random.Random(seed).sample(lines, min(count, len(lines)))
    folder = args.work / run.name.replace(" ", "-")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{data}-train.txt"
    path.write_text("\n".join(chosen) + "\n", encoding="utf-8")
    return path


def command(args: argparse.Namespace, run: Run) -> list[str]:
    """The arguments of run_llama.py."""
    data, is_memory = run.data.partition("-")[0], run.name.startswith("memory")
    folder, ending = args.work / run.name.replace(" ", "-"), f"{ENDINGS[run.option]}-output.txt"
    folder.mkdir(parents=True, exist_ok=True)
    trains = run.option != "prompt"
    has_test = data == "sst" and not is_memory and (args.test or not trains)
    count = 10 if is_memory else vars(args)[f"{data}_dev_count"] if trains else None
    dev = folder / f"{data}-dev.txt"
    lines = (args.data / dev.name).read_text(encoding="utf-8").splitlines()
    drawn = lines if count is None else random.Random(0).sample(lines, min(count, len(lines)))
    dev.write_text("\n".join(drawn) + "\n", encoding="utf-8")
    line = ["--option", run.option, "--pretrained-model-path", args.model]
    line += [
        "--dev",
        str(dev),
        "--test",
        str(args.data / f"{data}-test.txt") if has_test else "none",
    ]
    line += ["--label-names", str(args.data / f"{data}-label-mapping.json")]
    line += ["--dev_out", str(folder / f"{data}-dev-{ending}")]
    line += ["--test_out", str(folder / f"{data}-test-{ending}")]
    if not trains:
        return [*line, "--batch_size", "10", "--dtype", args.dtype, *run.flags]
    line += args.flags.split()
    line += ["--train", str(write_part(args, run)), "--checkpoint_out", str(folder / "model.pt")]
    return [*line, "--dtype", "float32" if is_memory else args.dtype, *run.flags]


def measure(args: argparse.Namespace, run: Run) -> dict[str, Any]:
    """Run it; its scores, seconds and bytes. Raises SystemExit if it fails."""
    flags = command(args, run)
    line = [sys.executable, str(ROOT / "run_llama.py"), *flags]
    log = args.work / run.name.replace(" ", "-") / "log.txt"
    start, load = time.perf_counter(), os.getloadavg()[0]
    with log.open("w", encoding="utf-8") as file:
        actions = [(os.POSIX_SPAWN_DUP2, file.fileno(), 1), (os.POSIX_SPAWN_DUP2, file.fileno(), 2)]
        child = os.posix_spawn(line[0], line, os.environ, file_actions=actions)
        _, status, usage = os.wait4(child, 0)
    printed = log.read_text(encoding="utf-8")
    if status:
        raise SystemExit(f"{run.name} failed, see {log}: {printed.splitlines()[-1:]}")
    for saved in log.parent.glob("*.pt"):
        saved.unlink()
    scores = {f"{split} {what}": float(value) for split, what, value in SCORE.findall(printed)}
    share = SHARE.search(printed)
    return {
        "option": run.option,
        "data": run.data,
        "command": " ".join(flags),
        **scores,
        "trained parameters": int(share[1].replace(",", "")) if share else None,
        "seconds": round(time.perf_counter() - start, 1),
        "cpu seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "most memory": usage.ru_maxrss * 1024,
        "load": [round(load, 1), round(os.getloadavg()[0], 1)],
        "threads": os.environ.get("OMP_NUM_THREADS"),
    }


def read(path: Path) -> tuple[list[str], list[str]]:
    """Labels and texts of a file of the assignment."""
    pairs = [line.split(" ||| ", 1) for line in path.read_text(encoding="utf-8").splitlines()]
    return [label for label, _ in pairs], [text for _, text in pairs]


def tf_idf(args: argparse.Namespace, data: str, train: Path) -> dict[str, Any]:
    """Words and pairs of words, weighted by TF-IDF, and scikit-learn's logistic regression."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import accuracy_score
    from sklearn.pipeline import make_pipeline

    start = time.process_time()
    labels, texts = read(train)
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\S+")
    model = make_pipeline(words, LogisticRegression(C=10, max_iter=1000)).fit(texts, labels)
    found: dict[str, Any] = {"option": "tf-idf", "data": data, "texts": len(texts)}
    for split in ("dev", "test") if data == "sst" else ("dev",):
        labels, texts = read(args.data / f"{data}-{split}.txt")
        found[f"{split} acc"] = round(accuracy_score(labels, model.predict(texts)), 3)
    return found | {"cpu seconds": round(time.process_time() - start, 1)}


def add_peers(args: argparse.Namespace, results: dict[str, Any]) -> None:
    """TF-IDF, on each seed's part of the training data and on all of it."""
    for data in ("sst", "cfimdb"):
        every = {f"tf-idf {data} all": args.data / f"{data}-train.txt"}
        for seed in args.seeds:
            run = Run(f"tf-idf {data} {seed}", "", data, ("--seed", str(seed)))
            every[run.name] = write_part(args, run)
        results |= {k: tf_idf(args, data, v) for k, v in every.items() if k not in results}


def table(results: dict[str, Any]) -> str:
    """Markdown, one row a run."""
    head = ("run", "dev acc", "test acc", "seconds of CPU", "minutes", "memory", "load")
    rows = [head, ("---",) * len(head)]
    for name, result in results.items():
        minutes, memory = result.get("seconds"), result.get("most memory")
        rows.append(
            (
                name,
                f"{result['dev acc']:.3f}" if "dev acc" in result else "",
                f"{result['test acc']:.3f}" if "test acc" in result else "",
                f"{result['cpu seconds']:.0f}",
                f"{minutes / 60:.1f}" if minutes else "",
                f"{memory / 1e9:.2f} GB" if memory else "",
                " to ".join(map(str, result.get("load", []))),
            )
        )
    return "\n".join(f"| {line} |" for line in (" | ".join(row) for row in rows)) + "\n"


def keep(work: Path, results: dict[str, Any]) -> None:
    with atomic_write(work / "results.json") as file:
        json.dump(results, file, indent=1)
    with atomic_write(work / "results.md") as file:
        file.write(table(results))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("smollm2-assignment"))
    parser.add_argument("--data", type=Path, default=ROOT / "data")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--dtype", default="bfloat16", help="of prompting and training")
    parser.add_argument("--only", nargs="+", help="runs whose name begins so", default=[""])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1337])
    parser.add_argument("--lr", default="2e-5", help="of finetune")
    parser.add_argument("--lora_lr", default="1e-3")
    parser.add_argument("--test", action="store_true", help="score it after training, too")
    parser.add_argument("--flags", default="", help="of training, such as '--flags=--use_gpu'")
    parser.add_argument("--memory_batches", type=int, default=4)
    for data, count, epochs, size in (("sst", 1000, 3, 16), ("cfimdb", 200, 2, 5)):
        parser.add_argument(f"--{data}_count", type=int, default=count, help="training texts")
        parser.add_argument(f"--{data}_dev_count", type=int, help="dev texts of training; all")
        parser.add_argument(f"--{data}_epochs", type=int, default=epochs)
        parser.add_argument(f"--{data}_batch_size", type=int, default=size)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    args.work.mkdir(parents=True, exist_ok=True)
    kept = args.work / "results.json"
    results = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    add_peers(args, results)
    keep(args.work, results)
    for run in planned(args):
        if run.name in results or not run.name.startswith(tuple(args.only)):
            continue
        print(f"{run.name} …", flush=True)
        results[run.name] = measure(args, run)
        keep(args.work, results)
    print(table(results))


if __name__ == "__main__":
    main()
