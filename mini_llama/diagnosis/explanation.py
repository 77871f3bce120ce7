"""Find the first place in a model whose arithmetic differs from the assignment's formulas.

Each component's formula is applied, in float64, to the input that the component actually received.
So each is judged on its own, and one fault shows in one place. The model may be anyone's: its
modules are found by the assignment's names.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from config import ATTENTIONS, EDITIONS, NORMS
from mini_llama.checkpoints.reading import read_checkpoint
from mini_llama.checkpoints.record import fit_tensors
from mini_llama.diagnosis.formulas import Form, Formulas
from mini_llama.diagnosis.inside_attention import InsideAttention
from mini_llama.diagnosis.numpy_llama import Array, linear
from mini_llama.diagnosis.recording import COMPONENTS, NeverCalledError, Run, record_run, to_numpy
from mini_llama.diagnosis.registry import MISTAKES, Mistake

# Relative to the largest magnitude. In float32 a single component is off by 1e-7 to 2e-6: one
# rounding is 6e-8, and a sum of a thousand terms accumulates them. The smallest common fault, eps
# 1e-6 instead of 1e-5, is 4.5e-6 over the input's variance: above this at the first norm.
TOLERANCE = 1e-5
RESULT_TOLERANCE = 1e-4  # for the model's output, after all layers
MISSING, NORMED = "layer: missing residual", "layer: residual from the normalised input"
INPUT_TWICE, POST_NORM = "layer: residual from the layer's input twice", "layer: post-norm"
LEFT_OUT, UNUSED = "layer: half of the layer left out", "layer: norm not used"
NO_FINAL_NORM = "network: final norm left out"
NEVER_CALLED = "it is never called as a module"


class Check(NamedTuple):
    """An actual and an expected array, and the forms of known mistakes that it may have instead."""

    what: str
    actual: Array
    expected: Array
    forms: Iterable[Form] = ()


class Place(NamedTuple):
    """One place of a model and its error, relative to the largest magnitude there.

    `alone` is the error for the input that the place actually received, `from_start` that for the
    correct input; None if unknown. `problem` describes what is wrong, empty if nothing is;
    `mistake` is the known mistake with the same result, if there is one.
    """

    name: str
    alone: float | None
    from_start: float | None
    problem: str
    mistake: Mistake | None = None


def difference(actual: Array, expected: Array) -> float:
    """The largest difference, relative to the largest expected magnitude; inf if shapes differ."""
    if actual.shape != expected.shape:
        return math.inf
    return float(np.abs(actual - expected).max() / (np.abs(expected).max() or 1.0))


def agrees(actual: Array, expected: Array) -> bool:
    return difference(actual, expected) <= TOLERANCE  # False for NaN


def describe(check: Check) -> tuple[str, Mistake | None]:
    """Describe a failed check, with the known mistake that has the same result, if any."""
    what, actual, expected, forms = check
    if actual.shape != expected.shape:
        return f"{what} has shape {list(actual.shape)}, not {list(expected.shape)}", None
    if not np.isfinite(actual).all():
        return f"{what} holds numbers that are not finite", None
    size = f"{what} differs by {difference(actual, expected):.2g} of its largest magnitude"
    for form in forms:
        if agrees(actual, form.values):
            return f"{size}; it is {form.what}", MISTAKES[form.mistake]
    return size, None


class Examination:
    """A recorded run on tokens (B, T), compared with the formulas."""

    def __init__(self, run: Run, tokens: Array, formulas: Formulas) -> None:
        self.run, self.calls, self.tokens, self.formulas = run, run.calls, tokens, formulas
        self.layers = [f"layers.{i}" for i in range(formulas.config.n_layers)]
        self.logits, _, self.record = formulas.forward(tokens)

    def places(self) -> Iterator[Place]:
        """Every place, in the order of the computation."""
        before = self.record["embedding"]
        yield self._judge("tok_embeddings", self._embedding(), before)
        for layer, following in zip(self.layers, [*self.layers[1:], None], strict=True):
            norm, attention, ffn_norm, feed_forward = (f"{layer}.{c}" for c in COMPONENTS)
            h, before = before + self.record[attention], self.record[layer]
            yield self._judge(norm, self._component(norm), self.record[norm])
            yield from self._inside(attention, self.record[norm])
            yield self._judge(attention, self._component(attention), self.record[attention])
            yield self._judge(f"{layer}: residual (attention)", self._first_residual(layer), h)
            yield self._judge(ffn_norm, self._component(ffn_norm), self.record[ffn_norm])
            fed = self.record[feed_forward]
            yield self._judge(feed_forward, self._component(feed_forward), fed)
            second = self._second_residual(layer, following)
            yield self._judge(f"{layer}: residual (feed_forward)", second, before)
        yield self._judge("norm", self._final_norm(), self.record["norm"])
        yield self._judge("output", self._output(), self._like_output(self.logits))
        yield self._judge("forward", self._returned(), self.record["norm"])

    def _judge(self, name: str, checks: Iterator[Check], from_start: Array) -> Place:
        """The largest error of the checks, and the first failure as the problem. The array of the
        last check is the place's result.
        """
        alone, problem, mistake, result = None, "", None, None
        try:
            for check in checks:
                error = difference(check.actual, check.expected)
                alone = error if alone is None or not error <= alone else alone
                if not error <= TOLERANCE and not problem:
                    problem, mistake = describe(check)
                result = check.actual
        except NeverCalledError as missing:
            if str(missing) != name.partition(":")[0]:
                return Place(name, alone, None, problem, mistake)
            return Place(name, None, None, NEVER_CALLED)
        assert result is not None  # every place has a check
        return Place(name, alone, difference(result, from_start), problem, mistake)

    def _inside(self, attention: str, normed: Array) -> Iterator[Place]:
        """The steps of an attention; `normed` is its correct input."""
        call = self.calls.get(attention)
        if not self.run.inside or call is None:
            return
        steps = InsideAttention(self.formulas, attention, self.run.inside, call.input).steps()
        for place, inner in itertools.groupby(steps, key=lambda inner: inner.place):
            checks = [Check(i.what, i.actual, i.expected, i.forms) for i in inner]
            judged = self._judge(f"{attention}.{place}", iter(checks), checks[-1].expected)
            yield judged._replace(from_start=None)

    def _embedding(self) -> Iterator[Check]:
        call, table = self.calls["tok_embeddings"], self.formulas.weights["tok_embeddings.weight"]
        yield Check("what it reads (the token ids)", call.input, self.tokens)
        yield Check("its output", call.output, table[self.tokens])
        yield Check("what layers.0 reads (its output)", self.calls["layers.0"].input, call.output)

    def _component(self, name: str) -> Iterator[Check]:
        x, output = self.calls[name]
        if x.shape != self.record["embedding"].shape:
            expected = list(self.record["embedding"].shape)
            raise ValueError(f"{name} reads shape {list(x.shape)}, not (B, T, C) = {expected}")
        forms = self.formulas.forms(name, x)
        yield Check("its output", output, self.formulas.component(name, x), forms)

    def _first_residual(self, layer: str) -> Iterator[Check]:
        x = self.calls[layer].input
        norm, attention, ffn_norm, _ = (self.calls[f"{layer}.{c}"] for c in COMPONENTS)
        h = x + attention.output
        others = [
            Form(MISSING, "attention's output alone: nothing is added to it", attention.output),
            Form(NORMED, "the sum with the normed input", norm.output + attention.output),
            Form(LEFT_OUT, "the layer's input alone: attention is left out", x),
        ]
        post_norm = [Form(POST_NORM, "the sum: a norm behind it instead of before attention", h)]
        own_input = [Form(UNUSED, "the layer's input, without the norm", x)]
        yield Check("what attention_norm reads (the layer's input)", norm.input, x, post_norm)
        yield Check(
            "what attention reads (attention_norm's output)", attention[0], norm[1], own_input
        )
        yield Check("what ffn_norm reads (layer input + attention)", ffn_norm.input, h, others)

    def _second_residual(self, layer: str, following: str | None) -> Iterator[Check]:
        output = self.calls[layer].output
        ffn_norm, feed_forward = (self.calls[f"{layer}.{c}"] for c in COMPONENTS[2:])
        h, fed = ffn_norm.input, feed_forward.output
        from_input = self.calls[layer].input + fed
        others = [
            Form(MISSING, "feed_forward's output alone: nothing is added to it", fed),
            Form(NORMED, "the sum with the normed h", ffn_norm.output + fed),
            Form(INPUT_TWICE, "the sum with the layer's input instead of h", from_input),
            Form(LEFT_OUT, "h alone: feed_forward is left out", h),
        ]
        own_input = [Form(UNUSED, "h, without the norm", h)]
        what = "what feed_forward reads (ffn_norm's output)"
        yield Check(what, feed_forward.input, ffn_norm.output, own_input)
        yield Check("the layer's output (h + feed_forward)", output, h + fed, others)
        if following:
            read = self.calls[following].input
            yield Check(f"what {following} reads (the layer's output)", read, output)

    def _final_norm(self) -> Iterator[Check]:
        x, last = self.calls["norm"].input, self.calls.get(self.layers[-1])
        if last is not None:
            yield Check("what it reads (the last layer's output)", x, last.output)
        yield from self._component("norm")

    def _output(self) -> Iterator[Check]:
        x, logits = self.calls["output"]
        hidden = self._like_output(self.calls["norm"].output)
        unnormed = [
            Form(NO_FINAL_NORM, "what norm reads", self._like_output(self.calls["norm"].input))
        ]
        yield Check("what it reads (the output of norm)", x, hidden, unnormed)
        yield Check("its output", logits, linear(x, self.formulas.weights["output.weight"]))

    def _like_output(self, x: Array) -> Array:
        """The last column of x (B, T, …) if the output layer reads only that."""
        call = self.calls.get("output")
        return x[:, -1:] if call is not None and call.input.shape[1] == 1 else x

    def _returned(self) -> Iterator[Check]:
        logits = self.calls["output"].output[:, -1:]
        yield Check("what it returns as logits (the last column)", self.run.logits, logits)
        hidden_states = self.calls["norm"].output
        yield Check(
            "what it returns as hidden_states (the output of norm)",
            self.run.hidden_states,
            hidden_states,
        )


def judge_weights(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> Place:
    """Check that the model's parameters equal the checkpoint's tensors bit for bit."""
    found, worst, problems = model.state_dict(), 0.0, []
    for name, tensor in tensors.items():
        actual = found.get(name)
        if not tensor.isfinite().all():
            problems.append(f"{name} of the checkpoint holds numbers that are not finite")
        elif actual is None:
            if not name.endswith("norm.bias") or tensor.count_nonzero():
                problems.append(f"{name} of the checkpoint is no parameter of the model")
        elif not torch.equal(actual.cpu().float(), tensor):
            worst = max(worst, difference(to_numpy(actual), to_numpy(tensor)))
            problems.append(f"{name} is not what the checkpoint holds")
    for name, parameter in model.named_parameters():
        if name not in tensors and parameter.count_nonzero():
            problems.append(f"the checkpoint has no {name}, and the model's is not 0")
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return Place("weights", worst, None, problems[0] + more if problems else "")


class Explanation(NamedTuple):
    """The places and, if one differs, the (norm, attention) pairs with which none would."""

    places: list[Place]
    follows: list[tuple[str, str]]

    @property
    def first(self) -> Place | None:
        """The first place that differs."""
        return next((place for place in self.places if place.problem), None)

    def lines(self) -> Iterator[str]:
        width = max(len(place.name) for place in self.places)
        yield f"{'place':<{width}} {'alone':>9} {'from start':>11}"
        for place in self.places:
            mark = "  <- first difference" if place is self.first else ""
            alone, from_start = (
                "-" if error is None else f"{error:.1e}"
                for error in (place.alone, place.from_start)
            )
            yield f"{place.name:<{width}} {alone:>9} {from_start:>11}{mark}"

    def verdict(self) -> Iterator[str]:
        """The first place that differs, and the remedy if the mistake is known."""
        first = self.first
        if first is None:
            yield "No difference: every place agrees with its formula."
            return
        text = f"First difference: {first.name}: {first.problem}."
        if first.name == "weights":
            text += " Load with strict=True: it names what does not fit."
        for norm, attention in self.follows:
            editions = ", ".join(editions_of(norm, attention))
            text += f" The model follows {norm}, {attention} attention: {editions}."
        yield text
        if first.mistake is not None:
            yield f"Fix: {first.mistake.remedy}"


def forgive_unseen(places: list[Place], examination: Examination) -> list[Place]:
    """Clear the problem "never called" of components, unless it may explain a wrong result."""
    is_right = (
        difference(examination.run.logits, examination.logits[:, -1:]) <= RESULT_TOLERANCE
        and difference(examination.run.hidden_states, examination.record["norm"])
        <= RESULT_TOLERANCE
    )
    if is_right or any(place.problem not in ("", NEVER_CALLED) for place in places):
        return [p._replace(problem="") if p.problem == NEVER_CALLED else p for p in places]
    return places


def editions_of(norm: str, attention: str) -> list[str]:
    return [k for k, e in EDITIONS.items() if (e.norm, e.attention) == (norm, attention)]


@np.errstate(all="ignore")  # values that are not finite are reported
def explain(
    model: nn.Module, tokens: torch.Tensor, formulas: Formulas, tensors: Mapping[str, torch.Tensor]
) -> Explanation:
    """Examine a model with a checkpoint's tensors, in evaluation mode, on tokens (B, T).

    Raises ValueError as `record_run` does.
    """
    run = record_run(model.cpu().eval(), tokens, formulas.config.n_layers)
    return explain_run(run, judge_weights(model, tensors), tokens, formulas)


@np.errstate(all="ignore")
def explain_run(
    run: Run, weights: Place, tokens: torch.Tensor, formulas: Formulas, strict: bool = True
) -> Explanation:
    """Examine a recorded run on tokens (B, T).

    Unless `strict`, a component that is never called is a fault only if there is no other fault and
    the model's output is wrong: a student may compute it in another way.
    """

    def examine(norm: str, attention: str) -> list[Place]:
        changed = formulas.changed(norm=norm, attention=attention)
        examination = Examination(run, tokens.numpy(), changed)
        places = [weights, *examination.places()]
        return places if strict else forgive_unseen(places, examination)

    places = examine(formulas.config.norm, formulas.config.attention)
    others = itertools.product(NORMS, ATTENTIONS) if any(place.problem for place in places) else ()
    follows = [other for other in others if not any(place.problem for place in examine(*other))]
    return Explanation(places, follows)


def read_formulas(path: str | Path) -> tuple[Formulas, dict[str, torch.Tensor], dict[str, str]]:
    """The formulas with a checkpoint's weights, its tensors, and its recorded norm and attention.

    Raises OSError or ValueError.
    """
    content = read_checkpoint(path)
    config = content.make_config(norm="layernorm")  # RMSNorm's formula ignores the biases
    if config.rope_scaling is not None:
        raise ValueError(f"{path} has scaled RoPE, which the float64 formulas do not know")
    if config.attention_bias or config.mlp_bias:
        raise ValueError(f"{path} has projections with biases, which the explanation does not know")
    tensors = fit_tensors(content, config)
    arrays = {name: tensor.double().numpy() for name, tensor in tensors.items()}
    return Formulas(arrays, config), tensors, content.recorded
