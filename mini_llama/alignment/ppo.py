"""PPO for language models (Llama 2, section 3.2.3): a run from prompts to a model.

An iteration samples an answer to each of a batch of prompts, scores the answers, and takes one
gradient step on each minibatch of them. The reward is eq. 4: the whitened score, minus β times the
KL divergence from the model that PPO began with. What the paper leaves open is as in OpenAI's
lm-human-preferences and TRL: a value head on the policy's own hidden states, zero at first; GAE
with γ = 1 and λ = 0.95; whitened advantages; a clipped value loss of weight 0.1; a score of -1 for
an answer that does not end.
"""

import copy
import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mini_llama.alignment.answers import Sampling, answer_of, completion_of
from mini_llama.alignment.policy import Policy, PpoLoss
from mini_llama.alignment.records import read_prompts
from mini_llama.alignment.rl_options import PpoOptions
from mini_llama.alignment.rollouts import (
    Answers,
    Collector,
    Question,
    contents_of_models,
    form_of,
    load_rewards,
    questions_of,
    seed_of,
)
from mini_llama.alignment.start import (
    MODEL,
    Start,
    check_model,
    content_of,
    export_model,
    load_start,
    recipe_of,
    remove_results,
    results_in,
    run_settings,
    save_model,
)
from mini_llama.alignment.supervised import EPS, split_records
from mini_llama.checkpoints.tensor_files import import_safetensors
from mini_llama.training.core import Part, TrainerCore, make_optimizer
from mini_llama.training.folder import PROGRESS, check_out, existing, new_folder
from mini_llama.training.log import TrainingLog
from mini_llama.training.loop import Steps, exit_status, report, run_loop
from mini_llama.training.order import Shares
from mini_llama.training.processes import Process, join_processes
from mini_llama.training.progress import load_progress, save_progress
from optimizer import AdamW
from utils import atomic_write, seed_everything

SAMPLES = "samples.jsonl"
FREE_TO_CHANGE = {"rows", "patience"}
HELD_OUT = 2**32  # in place of an iteration's number, in seeds
SMALLEST_SD = 1e-6
LABELS = {"title": "PPO", "step_name": "iteration", "loss_name": "score of the reward model"}
LABELS |= {"curves": "reward val_reward"}


def run(options: PpoOptions) -> int:
    """Train; the exit status. Raises OSError or ValueError, one line each."""
    import_safetensors()  # if missing, fail now, not at the end
    records = split_records(options, read_prompts)
    torch.set_float32_matmul_precision("high")
    with join_processes(options.use_gpu, options.tf32) as process:
        folder = Path(options.out)
        said = check_out(folder, options.resume, options.overwrite, partial(found_in, folder))
        if said:
            report(process, said)
        check_shares(options, process)
        seed_everything(options.seed)
        start = load_start(options, process.device, process.is_main)
        stop_dropout(start.llama)
        collector = make_collector(options, process, start)
        questions, held_out = (questions_of(part, start, options) for part in records)
        report(process, f"{len(questions):,} prompts, {len(held_out):,} held out")
        with new_folder(folder):
            status = Ppo(options, collector, start, questions, held_out).run()
        export_model(options, start, process)
        return status


def found_in(folder: Path) -> list[str]:
    """What a run would replace in its folder."""
    return [*results_in(folder), *existing(folder, [SAMPLES])]


def check_shares(options: PpoOptions, process: Process) -> None:
    """Raise ValueError unless minibatches can be divided among the processes."""
    if options.minibatch_size % process.world_size:
        raise ValueError(
            f"--minibatch_size {options.minibatch_size} cannot be divided among "
            f"{process.world_size} processes: give a multiple of it"
        )


def stop_dropout(module: nn.Module) -> None:
    """With dropout, old and new policy would differ by chance before the first step."""
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
        elif isinstance(getattr(part, "dropout", None), float):
            part.dropout = 0.0  # type: ignore[assignment]  # of llama.Attention


def make_collector(options: PpoOptions, process: Process, start: Start) -> Collector:
    """Policy, frozen reference and rewards. Raises OSError, ValueError."""
    reference = copy.deepcopy(start.llama).requires_grad_(False).eval()
    return Collector(
        options,
        process,
        Policy(start.llama).to(process.device),
        reference,
        load_rewards(options, start, process.device),
        Sampling(options.max_new_tokens, start.ends, options.temperature, options.rows),
    )


def make_policy_optimizer(policy: Policy, options: PpoOptions) -> AdamW:
    """The trainer's AdamW, with a learning rate of its own for the value head."""
    optimizer = make_optimizer(policy.llama, options.lr, options.weight_decay, EPS)
    head = {"params": list(policy.value_head.parameters()), "lr_scale": options.value_lr_scale}
    optimizer.add_param_group({**head, "weight_decay": 0.0})
    return optimizer


@dataclass
class RunState:
    """`base_mean` and `base_sd` are those of held-out scores before training, `best` the highest
    held-out reward so far, `waited` the evaluations since then.
    """

    base_mean: float = 0.0
    base_sd: float = 1.0
    best: float = -math.inf
    waited: int = 0


class Ppo:
    """One run: iterations, evaluations on held-out prompts, early stopping, what is saved."""

    def __init__(
        self,
        options: PpoOptions,
        collector: Collector,
        start: Start,
        questions: Sequence[Question],
        held_out: Sequence[Question],
    ) -> None:
        self.options, self.collector, self.start = options, collector, start
        self.questions, self.held_out = questions, held_out
        self.process, self.folder = collector.process, Path(options.out)
        policy = collector.policy
        self.updates = options.epochs * options.batch_size // options.minibatch_size
        recipe = recipe_of(options, options.iterations * self.updates)
        optimizer = partial(make_policy_optimizer, policy, options)
        loss, kept = PpoLoss(policy, options), self.folder / MODEL
        self.trainer = TrainerCore(recipe, self.process, policy, loss, optimizer, kept)
        self.settings = settings_of(options, start) | {"steps": recipe.steps, "decay_steps": None}
        self.state = RunState()

    @property
    def iteration(self) -> int:
        return self.trainer.step // self.updates

    def run(self) -> int:
        """All iterations; the exit status."""
        options, log = self.options, None
        self.begin()
        if self.process.is_main:
            log = TrainingLog(self.folder, options.tensorboard, self.iteration, **LABELS)
            keep_samples(self.folder / SAMPLES, self.iteration)
        if self.iteration == 0:
            values = self.check()
            if log is not None:
                log.write(0, **values)
        todo = Steps(self.iteration, options.iterations, options.eval_every, "iteration")
        stopped = run_loop(self.trainer, todo, self.batches(), self.take_step, self.check, log)
        self.save_progress()
        if log is not None:
            log.finish()
        return exit_status(self.process, stopped, self.iteration)

    def begin(self) -> None:
        """Load the progress that --resume goes on from, or drop what --overwrite replaces."""
        if self.options.resume and (self.folder / PROGRESS).exists():
            check_model(self.folder)
            names = {field.name for field in dataclasses.fields(RunState)}
            found = load_progress(self.trainer, self.folder, self.settings, names, self.options)
            self.state = RunState(**found)
            report(self.process, f"resume {self.folder / PROGRESS} at iteration {self.iteration}")
        elif self.options.overwrite and self.process.is_main:
            remove_results(self.folder)
            (self.folder / SAMPLES).unlink(missing_ok=True)

    def batches(self) -> Iterator[list[int]]:
        """This process's prompts of each iteration, until early stopping."""
        options, process = self.options, self.process
        share = options.batch_size // process.world_size
        first = self.iteration * options.batch_size + process.rank * share
        numbers = Shares(len(self.questions), first, share, options.batch_size, options.seed)
        for batch in numbers:
            if options.patience is not None and self.state.waited >= options.patience:
                report(process, f"stopped early: no better held-out reward in {self.state.waited}")
                return
            yield batch

    def take_step(self, numbers: list[int]) -> tuple[dict[str, float], int]:
        """One iteration: its numbers by name, and how many tokens it learnt from."""
        options, iteration = self.options, self.iteration
        seed = seed_of(options.seed, iteration, self.process.rank)
        questions = [self.questions[number] for number in numbers]
        minibatches, values = self.collector.collect(self.trainer, questions, seed)
        steps = []
        for epoch in range(options.epochs):
            # The same minibatches in another order: their rows stay together (see rollouts.py).
            rng = np.random.default_rng([options.seed, iteration, epoch])
            for i in rng.permutation(len(minibatches)):
                minibatch = minibatches[i]
                steps.append(self.trainer.update([Part(minibatch, minibatch.n_targets)]))
        values["grad_norm"] = sum(step.norm for step in steps) / len(steps)
        for name in steps[0].metrics:
            values[name] = sum(step.metrics[name] for step in steps) / len(steps)
        tokens = sum(minibatch.n_targets for minibatch in minibatches) * self.process.world_size
        return values, tokens

    def check(self) -> dict[str, float]:
        """Answer the held-out prompts; save the model if their reward is the best, and the
        progress. Every process does the same.
        """
        seed = seed_of(self.options.seed, HELD_OUT, 0)
        answers = self.collector.answer(self.held_out, seed)
        log_ratios = self.collector.log_ratios(self.trainer, answers.texts)
        numbers = answers.numbers() | {"kl": float(log_ratios.mean())}
        state = self.state
        if self.iteration == 0:
            state.base_mean = numbers["reward"]
            state.base_sd = max(numbers["reward_sd"], SMALLEST_SD)
        numbers["objective"] = self.objective(answers, numbers["kl"])
        is_best = numbers["objective"] > state.best
        state.waited = 0 if is_best else state.waited + 1
        if is_best:
            state.best = numbers["objective"]
            save_model(self.trainer, self.start, self.options, iteration=self.iteration)
        best = " (best so far)" if is_best else ""
        said = ", ".join(f"{name} {value:.3f}" for name, value in numbers.items())
        report(self.process, f"iteration {self.iteration}: held-out {said}{best}")
        if self.process.is_main:
            self.write_samples(answers, log_ratios)
        self.save_progress()
        return {f"val_{name}": value for name, value in numbers.items()}

    def objective(self, answers: Answers, kl: float) -> float:
        """Eq. 3 with eq. 4 on held-out prompts: scores in the units of those before training."""
        state, penalty = self.state, self.options.missing_eos_penalty
        gains = (answers.scores - state.base_mean) / state.base_sd
        gains = gains.masked_fill(~answers.has_end, -penalty)
        return float(gains.mean()) - self.options.beta * kl

    def save_progress(self) -> None:
        save_progress(self.trainer, self.folder, self.settings, **dataclasses.asdict(self.state))

    def write_samples(self, answers: Answers, log_ratios: torch.Tensor) -> None:
        """Append this evaluation's texts to samples.jsonl, which whoever has a judge can read."""
        decode, lines = self.start.tokenizer.decode, list[str]()
        rows = zip(self.held_out, answers.texts, answers.scores, log_ratios, strict=True)
        for question, text, score, log_ratio in rows:
            line = {"iteration": self.iteration, "prompt": form_of(question.record)}
            line |= {"completion": completion_of(text, decode), "tokens": len(answer_of(text))}
            line |= {"ended": text.ids[-1] in self.start.ends, "reward": score.item()}
            lines.append(json.dumps(line | {"log_ratio": log_ratio.item()}) + "\n")
        with open(self.folder / SAMPLES, "a", encoding="utf-8") as file:
            file.writelines(lines)


def keep_samples(path: Path, iteration: int) -> None:
    """Drop the samples of later iterations, and of a line that a crash cut short."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["iteration"] <= iteration:
                kept.append(line + "\n")
        except json.JSONDecodeError:
            break
    with atomic_write(path) as file:
        file.writelines(kept)


def settings_of(options: PpoOptions, start: Start) -> dict[str, Any]:
    """What a resumed run must share."""
    data = {name: [content_of(p) for p in getattr(options, name)] for name in ("data", "val_data")}
    settings = run_settings(options, start.llama.config, FREE_TO_CHANGE)
    return settings | data | contents_of_models(options)
