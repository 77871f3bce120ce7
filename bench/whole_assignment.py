#!/usr/bin/env python
"""Wall time of the eight graded commands: ours as the contract says, ours with --mask_padding
--dtype bfloat16, and transformers doing the same work.

python bench/whole_assignment.py --data FOLDER --tokenizer FILE [--model FILE] [--batches 8]
                                 [--quick] [--out FOLDER] [--resume]

Hours of work are estimated from a sample: of each command's training steps, and of its evaluation
batches, --batches are timed, drawn from as many strata of like size, and a line of seconds against
padded tokens gives the time of all; its standard error is printed. The sides take turns, step by
step, each in a process of its own that waits for its turn. Tokenising is timed whole, saving and
reading back as often as --repeats says, the start of each command as a process of its own that
ends before the first step. Saving counts every epoch as the best. transformers has no
--mask_padding: its batches are the contract's. Without --model random weights of the 42M shape are
written. The folder of --out gets results.json, which --resume goes on with, and results.md.
"""

import argparse
import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from estimates import Estimate, Line, fit, markdown, of_repeats, ratio, stratified, total

from mini_llama.assignment.options import TRAINING
from mini_llama.reproduction.runs import Run, Settings, make_runs
from mini_llama.threads import choose_threads
from utils import atomic_write

CONTRACT, FAST, PEER = SIDES = ("ours, contract", "ours, fast", "transformers")
TARGETS = {CONTRACT: 0.4, FAST: 0.12}
STARTS = {CONTRACT: "ours", FAST: "ours", PEER: "theirs"}
EPOCH_PARTS, FINAL_PARTS = ("train", "dev"), ("dev", "test")
Parts = dict[str, dict[str, Estimate]]  # part → side → its time


def timed(work: Callable[[], Any]) -> float:
    """Seconds; what it prints is not shown."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        start = time.perf_counter()
        work()
        return time.perf_counter() - start


class Command:
    """One command on all sides; every method times a part of it, the sides taking turns.

    Each side works in a process of its own, with the threads and the memory that it would have,
    and waits while another one works.
    """

    def __init__(self, args: argparse.Namespace, runs: Mapping[str, Run]) -> None:
        self.args, self.runs, self.name = args, runs, runs[CONTRACT].name
        self.workers: dict[str, Worker] = {}
        self.steps: dict[str, Any] = {}
        for side, run in runs.items():
            self.workers[side] = worker = Worker(args, run, STARTS[side])
            # One after the other: ours looks for cores that are free when it starts.
            self.steps[side] = worker.answer()
        self.lines: dict[str, dict[str, Line]] = {}

    def close(self) -> None:
        for worker in self.workers.values():
            worker.close()

    def starts(self) -> dict[str, Estimate]:
        return self.repeated("start", 1, lambda s: start_of(self.args, self.runs[s], STARTS[s]))

    def calls(self, what: str, times: int) -> dict[str, Estimate]:
        return self.repeated(what, times, lambda side: self.workers[side].time(what))

    def repeated(self, what: str, times: int, work: Callable[[str], float]) -> dict[str, Estimate]:
        """`times` of what takes work(side) seconds."""
        seconds: dict[str, list[float]] = {side: [] for side in SIDES}
        for _ in range(self.args.repeats):
            for side in SIDES:
                seconds[side].append(work(side))
        return {
            side: of_repeats(found, times, f"{self.name} {what} {side}")
            for side, found in seconds.items()
        }

    def sampled(self, what: str, splits: Sequence[str]) -> dict[str, Line]:
        """Of each side the line through its sampled steps, which are timed once."""
        if what in self.lines:
            return self.lines[what]
        drawn: dict[str, list[tuple[str, int, int]]] = {}
        for side, steps in self.steps.items():
            places = [(split, i, size) for split in splits for i, size in enumerate(steps[split])]
            chosen = stratified([size for *_, size in places], self.args.batches, self.args.seed)
            drawn[side] = [places[i] for i in chosen]
        seconds: dict[str, list[float]] = {side: [] for side in SIDES}
        for side, worker in self.workers.items():  # the smallest one warms up
            split, index, _ = min(drawn[side], key=lambda place: place[-1])
            worker.time(what, split, index)
        for number in range(max(map(len, drawn.values()))):
            for turn in range(len(SIDES)):
                side = SIDES[(number + turn) % len(SIDES)]
                if number < len(drawn[side]):
                    split, index, _ = drawn[side][number]
                    seconds[side].append(self.workers[side].time(what, split, index))
        lines = {}
        for side, found in seconds.items():
            lines[side] = fit([size for *_, size in drawn[side]], found)
        means = ", ".join(f"{side} {line.mean:.2f} s" for side, line in lines.items())
        print(f"  {self.name}, {what}: a step of {means}", flush=True)
        self.lines[what] = lines
        return lines

    def training(self) -> dict[str, Estimate]:
        lines = self.sampled("train", ["epochs"])
        return {
            side: line.sum(self.steps[side]["epochs"], f"{self.name} training {side}")
            for side, line in lines.items()
        }

    def evaluation(self, what: str, splits: Sequence[str], passes: int) -> Parts:
        lines = self.sampled(what, splits)
        return {
            "train accuracy" if split == "train" else split: {
                side: line.sum(passes * self.steps[side][split], f"{self.name} {what} {side}")
                for side, line in lines.items()
            }
            for split in splits
        }

    def parts(self) -> Parts:
        """All parts of the command."""
        found: Parts = {"start": self.starts()}
        options = self.runs[CONTRACT].options
        if options.option == "generate":
            for worker in self.workers.values():
                worker.time("generate")
            return found | {"generation": self.calls("generate", 1)}
        found["tokenising"] = self.calls("tokenise", 1)
        if options.option in TRAINING:
            found["training"] = self.training()
            found |= self.evaluation("evaluate", EPOCH_PARTS, options.epochs)
            saving, reading = self.calls("save", options.epochs), self.calls("read_back", 1)
            found["saving"] = {side: saving[side].plus(reading[side]) for side in SIDES}
        # Only with LoRA the model is another one at the end: its adapters are merged.
        last = "evaluate" if options.option == "finetune" else "evaluate_last"
        for name, times in self.evaluation(last, FINAL_PARTS, 1).items():
            known = found.get(name, {side: Estimate(0.0) for side in SIDES})
            found[name] = {side: known[side].plus(times[side]) for side in SIDES}
        return found


class Worker:
    """A process that has one side of one command, and does a piece of it when it is asked."""

    def __init__(self, args: argparse.Namespace, run: Run, side: str) -> None:
        self.process = subprocess.Popen(
            own_command(args, run, side, "--work"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"a process stopped: {self.process.args}")
        return json.loads(line)

    def time(self, *what: str | int) -> float:
        """Seconds that it takes, by its own clock."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()
        return self.answer()

    def close(self) -> None:
        self.process.communicate()


def work(args: argparse.Namespace) -> None:
    """Say the sizes of all steps, then do what standard input asks for; answer with the seconds."""
    answers, sys.stdout = sys.stdout, io.StringIO()
    side = side_of(args)
    print(json.dumps(side.sizes()), file=answers, flush=True)
    for line in sys.stdin:
        what, *where = json.loads(line)
        print(
            timed(lambda what=what, where=where: getattr(side, what)(*where)),
            file=answers,
            flush=True,
        )


def side_of(args: argparse.Namespace) -> Any:
    """The side of --side, with the options of the run named --run."""
    (run,) = [run for run in runs_of(args, args.fast) if run.name == args.run]
    run.folder.mkdir(parents=True, exist_ok=True)
    if args.side == "ours":
        choose_threads()
        from assignment_sides import Ours

        return Ours(run.options)
    from assignment_peer import Theirs

    return Theirs(run.options, args.out / "peer")


def start_of(args: argparse.Namespace, run: Run, side: str) -> float:
    """Seconds of a process that does what comes before the first step, and ends."""
    start = time.perf_counter()
    subprocess.run(own_command(args, run, side, "--begin"), check=True, capture_output=True)
    return time.perf_counter() - start


def own_command(args: argparse.Namespace, run: Run, side: str, what: str) -> list[str]:
    """This script with one side of one run."""
    places = {"data": args.data, "tokenizer": args.tokenizer, "model": args.model, "out": args.out}
    words = [word for name, path in places.items() for word in (f"--{name}", str(path))]
    words += ["--side", side, "--run", run.name, what]
    is_fast = run.options.dtype != "float32"
    return [sys.executable, __file__, *words, *["--fast"] * is_fast]


def runs_of(args: argparse.Namespace, fast: bool) -> list[Run]:
    flags: dict[str, Any] = {"mask_padding": True, "dtype": "bfloat16"} if fast else {}
    return make_runs(
        Settings(
            out=args.out / ("fast" if fast else "contract"),
            data=[str(args.data)],
            pretrained_model_path=str(args.model),
            tokenizer=str(args.tokenizer),
            **flags,
        )
    )


def write_model(path: Path) -> None:
    """Random weights of the 42M shape, with the arithmetic of the default edition."""
    import torch

    from config import DEFAULT_EDITION, EDITIONS, PRESETS, LlamaConfig
    from llama import Llama
    from mini_llama.checkpoints.formats.torch_file import save_checkpoint

    torch.manual_seed(0)
    arithmetic = EDITIONS[DEFAULT_EDITION]
    shape = PRESETS["42m"] | {"norm": arithmetic.norm, "attention": arithmetic.attention}
    config = LlamaConfig(**shape | {"vocab_size": 32_000})
    save_checkpoint(path, config, Llama(config).state_dict())


def report(results: Mapping[str, Parts], machine: str) -> str:
    """The two tables, and the ratios beside their targets."""
    commands = {
        name: {side: total([row[side] for row in parts.values()]) for side in SIDES}
        for name, parts in results.items()
    }
    commands["all"] = {side: total([row[side] for row in commands.values()]) for side in SIDES}
    names = dict.fromkeys(part for parts in results.values() for part in parts)
    by_part = {
        name: {
            side: total([parts[name][side] for parts in results.values() if name in parts])
            for side in SIDES
        }
        for name in names
    }
    lines = [machine, "", markdown(commands, SIDES, "command"), ""]
    lines += [markdown(by_part, SIDES, "part"), ""]
    for side, target in TARGETS.items():
        value, error = ratio(commands["all"][side], commands["all"][PEER])
        lines.append(f"{side}: {value:.3f} ± {error:.3f} of transformers (target {target})")
    return "\n".join(lines)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--tokenizer", type=Path, default=Path("tokenizer.model"))
    parser.add_argument("--model", type=Path)
    parser.add_argument("--out", type=Path, help="a temporary folder, if not given")
    parser.add_argument("--only", nargs="+", help="names of commands, such as sst-prompt")
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="3 batches, one repeat")
    parser.add_argument("--resume", action="store_true")
    for name in ("--side", "--run"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    for name in ("--fast", "--begin", "--work"):
        parser.add_argument(name, action="store_true", help=argparse.SUPPRESS)
    return parser


def machine_line() -> str:
    import torch
    import transformers

    from mini_llama.threads import describe_threads

    return (
        f"torch {torch.__version__}, transformers {transformers.__version__}, "
        f"{describe_threads()}, {os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}"
    )


def measure(args: argparse.Namespace) -> None:
    place = args.out / "results.json"
    results = read_results(place) if args.resume and place.exists() else {}
    machine = machine_line()
    print(machine, flush=True)
    begun = time.perf_counter()
    for contract, fast in zip(runs_of(args, False), runs_of(args, True), strict=True):
        if contract.name in results or (args.only and contract.name not in args.only):
            continue
        command = Command(args, {CONTRACT: contract, FAST: fast, PEER: contract})
        results[contract.name] = command.parts()
        command.close()
        with atomic_write(place) as file:
            json.dump(results, file, indent=1)
        one = {contract.name: results[contract.name]}
        print(report(one, f"after {time.perf_counter() - begun:.0f} s"), flush=True)
    text = report(results, machine)
    print(text)
    with atomic_write(args.out / "results.md") as file:
        file.write(text + "\n")


def set_up(args: argparse.Namespace) -> None:
    """Write the files that all sides read."""
    import torch
    from assignment_peer import save_folder

    args.out.mkdir(parents=True, exist_ok=True)
    if args.model is None:
        args.model = args.out / "random.pt"
        write_model(args.model)
    torch.manual_seed(args.seed)
    save_folder(args.out / "peer", str(args.model), args.tokenizer)


def read_results(place: Path) -> dict[str, Parts]:
    content = json.loads(place.read_text(encoding="utf-8"))
    return {
        name: {
            part: {side: Estimate(*found) for side, found in row.items()}
            for part, row in parts.items()
        }
        for name, parts in content.items()
    }


def main() -> None:
    args = make_parser().parse_args()
    if args.quick:
        args.batches, args.repeats = 3, 1
    if args.work:
        work(args)
    elif args.begin:
        side_of(args)
    else:
        with contextlib.ExitStack() as stack:
            if args.out is None:
                args.out = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            set_up(args)
            measure(args)


if __name__ == "__main__":
    main()
