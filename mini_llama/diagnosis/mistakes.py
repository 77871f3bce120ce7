"""The known mistakes: what each is, which line of the assignment it breaks, and how to mend it.

A mistake is written as one or more variants of our own code: functions that take the place of
ours for a while. Whoever's output a variant's equals has made that mistake. The file knows
neither inputs nor how outputs are compared.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F

import llama
import lora
import optimizer
import rope
from mini_llama.inference import sampling

Variant = dict[str, Any]  # "module.name" → what stands there instead


@dataclass(frozen=True)
class Mistake:
    """`rule` is the assignment's line, `remedy` says how to mend it; `variants` are its forms."""

    component: str
    name: str
    rule: str
    remedy: str
    variants: tuple[Variant, ...]


@contextmanager
def made(variant: Variant) -> Iterator[None]:
    """Our own modules make the mistake for a while."""
    with ExitStack() as stack:
        for target, replacement in variant.items():
            stack.enter_context(patch(target, replacement))
        yield


# --- RoPE ---

ROPE = "rope.rotate"
TABLES = "rope.rotary_tables"
ROTATE, ROTARY_TABLES = rope.rotate, rope.rotary_tables


def rotate_halves(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, first * sin + second * cos), -1).type_as(x)


def rotate_into_halves(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    return ROTATE(x, cos, sin).unflatten(-1, (-1, 2)).transpose(-2, -1).flatten(-2)


def rotate_in_own_type(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    cos, sin = cos.unsqueeze(1).to(x.dtype), sin.unsqueeze(1).to(x.dtype)
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


def rotate_only(query: bool, key: bool) -> Callable:
    apply = rope.apply_rotary_emb

    def rotate_one(q: torch.Tensor, k: torch.Tensor, *sizes: Any) -> tuple:
        rotated = apply(q, k, *sizes)
        return rotated[0] if query else q, rotated[1] if key else k

    return rotate_one


def tables(
    exponents: Callable[[int], torch.Tensor] = lambda dim: torch.arange(0, dim, 2) / dim,
    first: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Callable:
    def rotary_tables(
        head_dim: int, length: int, theta: float, device: object, scaling: None = None
    ) -> tuple:
        angles = torch.arange(first, first + length).outer(theta ** -exponents(head_dim).float())
        return angles.to(dtype).cos().float(), angles.to(dtype).sin().float()

    return rotary_tables


PAIRS = "RoPE: the pairs (2i, 2i+1) of each head are rotated, interleaved, not split halves"
ANGLE = "RoPE: angle = position · theta^(-2i/head_dim), positions from 0, in float32"
ROPE_MISTAKES = (
    Mistake(
        "rope",
        "split halves",
        PAIRS,
        "Pair feature 2i with 2i+1: reshape(..., -1, 2).unbind(-1).",
        ({ROPE: rotate_halves},),
    ),
    Mistake(
        "rope",
        "pairs written back as halves",
        PAIRS,
        "Put the two results side by side again: torch.stack((real, imag), -1).flatten(-2).",
        ({ROPE: rotate_into_halves},),
    ),
    Mistake(
        "rope",
        "wrong sign",
        "RoPE: (even, odd) becomes (even·cos - odd·sin, even·sin + odd·cos)",
        "Exchange the two signs before sin.",
        ({ROPE: lambda x, cos, sin: ROTATE(x, cos, -sin)},),
    ),
    Mistake(
        "rope",
        "positions from 1",
        ANGLE,
        "Count positions with torch.arange(seqlen), so that the first is 0.",
        ({TABLES: tables(first=1)},),
    ),
    Mistake(
        "rope",
        "exponent without the 2",
        ANGLE,
        "Use torch.arange(0, head_dim, 2) / head_dim as exponents.",
        ({TABLES: tables(lambda dim: torch.arange(dim // 2) / dim)},),
    ),
    Mistake(
        "rope",
        "exponent without head_dim",
        ANGLE,
        "Divide the exponents by head_dim: torch.arange(0, head_dim, 2) / head_dim.",
        ({TABLES: tables(lambda dim: torch.arange(0, dim, 2))},),
    ),
    Mistake(
        "rope",
        "query only",
        "RoPE: query and key are both rotated",
        "Rotate the key as well.",
        ({"rope.apply_rotary_emb": rotate_only(query=True, key=False)},),
    ),
    Mistake(
        "rope",
        "key only",
        "RoPE: query and key are both rotated",
        "Rotate the query as well.",
        ({"rope.apply_rotary_emb": rotate_only(query=False, key=True)},),
    ),
    Mistake(
        "rope",
        "not in float32",
        ANGLE,
        "Call .float() on query and key, and keep positions and angles in float32.",
        (
            {ROPE: rotate_in_own_type},
            {TABLES: tables(dtype=torch.bfloat16)},
            {TABLES: tables(dtype=torch.float16)},
        ),
    ),
)

# --- norm ---


def normalise(
    is_centred: bool | None = None,
    correction: int = 0,
    eps: str = "inside",
    gain: bool = True,
    bias: bool = True,
    dim: int = -1,
) -> Variant:
    """LayerNorm where there is a bias, else RMSNorm, unless `is_centred` says which."""

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        subtracts = hasattr(self, "bias") if is_centred is None else is_centred
        if subtracts:
            x = x - x.mean(dim, keepdim=True)
        square = x.square().sum(dim, keepdim=True) / (x.shape[dim] - correction)
        inside, outside = {"inside": (self.eps, 0), "outside": (0, self.eps), "": (0, 0)}[eps]
        x = x / ((square + inside).sqrt() + outside)
        x = x * self.weight if gain else x
        return x + self.bias if bias and hasattr(self, "bias") else x

    return {"llama.LayerNorm.forward": forward, "llama.RMSNorm.forward": forward}


LAYERNORM = "LayerNorm: (x - mean) / sqrt(var + eps) · weight + bias over the features, biased var"
RMSNORM = "RMSNorm: x / sqrt(mean(x²) + eps) · weight over the features"
NORM = "norm: the root is of (variance or mean square + eps), over the features; then the weight"
NORM_MISTAKES = (
    Mistake(
        "norm",
        "unbiased variance",
        LAYERNORM,
        "Divide by the number of features: x.var(-1, keepdim=True, unbiased=False).",
        (normalise(correction=1),),
    ),
    Mistake(
        "norm",
        "eps outside the root",
        NORM,
        "Add self.eps before the root is taken.",
        (normalise(eps="outside"),),
    ),
    Mistake(
        "norm",
        "eps left out",
        NORM,
        "Add self.eps, config.layer_norm_eps, before the root is taken.",
        (normalise(eps=""),),
    ),
    Mistake("norm", "no gain", NORM, "Multiply by self.weight.", (normalise(gain=False),)),
    Mistake("norm", "no bias", LAYERNORM, "Add self.bias.", (normalise(bias=False),)),
    Mistake(
        "norm",
        "RMSNorm in place of LayerNorm",
        LAYERNORM,
        "This edition's norm is LayerNorm: subtract the mean, and add the bias.",
        ({"llama.LayerNorm": llama.RMSNorm}, normalise(is_centred=False)),
    ),
    Mistake(
        "norm",
        "LayerNorm in place of RMSNorm",
        RMSNORM,
        "This edition's norm is RMSNorm: no mean is subtracted, and there is no bias.",
        ({"llama.RMSNorm": llama.LayerNorm}, normalise(is_centred=True)),
    ),
    Mistake(
        "norm",
        "wrong axis",
        NORM,
        "Take mean and variance over the last dimension: dim=-1, keepdim=True.",
        (normalise(dim=-2), normalise(dim=0)),
    ),
)

# --- attention ---


def attend(
    scale: Callable[[int], float] = math.sqrt,
    dim: int = -1,
    is_causal: bool | None = None,
    masks_late: bool = False,
    drops: str = "probabilities",
    is_tiled: bool = False,
) -> Variant:
    def scores_of(
        self: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: object = None
    ) -> torch.Tensor:
        repeats = query.shape[1] // key.shape[1]
        if is_tiled:
            key, value = (heads.repeat(1, repeats, 1, 1) for heads in (key, value))
        else:
            key, value = (heads.repeat_interleave(repeats, dim=1) for heads in (key, value))
        scores = query @ key.transpose(-2, -1) / scale(query.shape[-1])
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
        causal = self.is_causal if is_causal is None else is_causal
        if causal and not masks_late:
            scores = scores.masked_fill(~seen, -math.inf)
        if drops == "scores":
            scores = F.dropout(scores, self.dropout, self.training)
        probabilities = scores.softmax(dim)
        if masks_late:
            probabilities = probabilities * seen
        if drops == "probabilities":
            probabilities = F.dropout(probabilities, self.dropout, self.training)
        return probabilities @ value

    return {"llama.Attention.compute_query_key_value_scores": scores_of}


ATTENTION = "attention: softmax(QKᵀ / sqrt(head_dim)) V, dropout on the probabilities"
MASK = "editions: every position sees every position in mmia, fall2025 and fall2024; "
MASK += "attention is causal in spring2026 and llama2"
ATTENTION_MISTAKES = (
    Mistake(
        "attention",
        "no scale",
        ATTENTION,
        "Divide the scores by math.sqrt(head_dim) before the softmax.",
        (attend(scale=lambda dim: 1),),
    ),
    Mistake(
        "attention",
        "scaled by d",
        ATTENTION,
        "Divide the scores by the square root of head_dim, not by head_dim.",
        (attend(scale=lambda dim: dim),),
    ),
    Mistake(
        "attention",
        "softmax on the wrong axis",
        ATTENTION,
        "Take the softmax over the keys: the last dimension of the scores.",
        (attend(dim=-2), attend(dim=1), attend(dim=0)),
    ),
    Mistake(
        "attention",
        "causal where the edition is not",
        MASK,
        "Apply no mask, or name the edition that has one with --edition.",
        (attend(is_causal=True),),
    ),
    Mistake(
        "attention",
        "not causal where the edition is",
        MASK,
        "Set the scores of later positions to -inf before the softmax, or name another --edition.",
        (attend(is_causal=False),),
    ),
    Mistake(
        "attention",
        "mask after softmax",
        MASK,
        "A mask sets scores to -inf before the softmax, so that the rest still sums to 1.",
        (attend(masks_late=True),),
    ),
    Mistake(
        "attention",
        "no dropout",
        ATTENTION,
        "Pass the probabilities through self.attn_dropout before they meet the values.",
        (attend(drops=""), attend(drops="scores")),
    ),
    Mistake(
        "attention",
        "GQA heads tiled instead of repeated",
        "GQA: each key/value head is repeated n_heads/n_kv_heads times; neighbours share",
        "Use torch.repeat_interleave, not repeat, on the head dimension.",
        (attend(is_tiled=True),),
    ),
    Mistake(
        "attention",
        "RoPE is not applied",
        "RoPE: query and key are both rotated",
        "Call apply_rotary_emb on query and key before the heads become a batch dimension.",
        ({"mini_llama.diagnosis.probes.ROPE_MARK": 1.0},),
    ),
)

# --- feed-forward and layer ---

SWIGLU = "FeedForward: w2(silu(w1 x) · w3 x)"
FEED_FORWARD_MISTAKES = (
    Mistake(
        "feed_forward",
        "w1 and w3 swapped",
        SWIGLU,
        "silu is of w1, and w3 is the plain factor.",
        ({"llama.FeedForward.SwiGLU": lambda self, x: F.silu(self.w3(x)) * self.w1(x)},),
    ),
    Mistake(
        "feed_forward",
        "sigmoid in place of silu",
        SWIGLU,
        "silu(x) is x · sigmoid(x): F.silu.",
        ({"llama.FeedForward.SwiGLU": lambda self, x: self.w1(x).sigmoid() * self.w3(x)},),
    ),
)
LAYER = "layer: h = x + attention(attention_norm(x)); out = h + feed_forward(ffn_norm(h))"
BLOCK = "llama.LlamaLayer.forward"


def block(formula: Callable[..., torch.Tensor]) -> Variant:
    """The formula's arguments are x, attention, feed_forward and their norms."""

    def forward(self: Any, x: torch.Tensor, *_: object) -> torch.Tensor:
        return formula(x, self.attention, self.feed_forward, self.attention_norm, self.ffn_norm)

    return {BLOCK: forward}


def apply_twice(step: Callable, x: torch.Tensor, *pairs: tuple[Callable, Callable]) -> torch.Tensor:
    for function, norm in pairs:
        x = step(x, function, norm)
    return x


def steps(step: Callable[..., torch.Tensor]) -> Variant:
    """Attention, then feed-forward, each by step(x, function, its norm)."""
    return block(lambda x, a, f, an, fn: apply_twice(step, x, (a, an), (f, fn)))


LAYER_MISTAKES = (
    Mistake(
        "layer",
        "post-norm",
        LAYER,
        "Normalise what goes into attention and feed-forward, not what comes out.",
        (
            steps(lambda x, function, norm: norm(x + function(x))),
            steps(lambda x, function, norm: x + norm(function(x))),
        ),
    ),
    Mistake(
        "layer",
        "missing residual",
        LAYER,
        "Add the input of each half to its result: x + ..., then h + ....",
        (
            block(lambda x, a, f, an, fn: a(an(x)) + f(fn(a(an(x))))),
            block(lambda x, a, f, an, fn: f(fn(x + a(an(x))))),
            block(lambda x, a, f, an, fn: f(fn(a(an(x))))),
        ),
    ),
    Mistake(
        "layer",
        "residual from the normalised input",
        LAYER,
        "Add x itself, not attention_norm(x); and h itself, not ffn_norm(h).",
        (
            steps(lambda x, function, norm: norm(x) + function(norm(x))),
            block(lambda x, a, f, an, fn: (h := an(x) + a(an(x))) + f(fn(h))),
            block(lambda x, a, f, an, fn: fn(h := x + a(an(x))) + f(fn(h))),
        ),
    ),
    Mistake(
        "layer",
        "residual from the layer's input twice",
        LAYER,
        "The second residual is h, the sum after attention, not x.",
        (block(lambda x, a, f, an, fn: x + f(fn(x + a(an(x))))),),
    ),
    Mistake(
        "layer",
        "ffn_norm on the wrong tensor",
        LAYER,
        "ffn_norm takes h, the sum of x and attention's result.",
        (
            block(lambda x, a, f, an, fn: x + a(an(x)) + f(fn(x))),
            block(lambda x, a, f, an, fn: x + a(an(x)) + f(fn(a(an(x))))),
        ),
    ),
)

# --- generate ---

PROBS = "mini_llama.inference.sampling.logits_to_probs"
LOGITS_TO_PROBS = sampling.logits_to_probs


def keep(probs: torch.Tensor, epsilon: float, top_p: float) -> torch.Tensor:
    if epsilon > 0:
        probs = sampling.epsilon_filter(probs, epsilon)
    return sampling.top_p_filter(probs, top_p) if top_p < 1 else probs


def filtered_first(logits: Any, temperature: float, epsilon: float = 0, top_p: float = 1) -> Any:
    return keep(logits.softmax(-1), epsilon, top_p).log().div(temperature).softmax(-1)


def not_renormalised(if_none_left: float) -> Variant:
    """`if_none_left` is what the most probable token then gets, as a share of 1."""

    def probs_of(logits: Any, temperature: float, epsilon: float = 0, top_p: float = 1) -> Any:
        probs = (logits / temperature).softmax(-1)
        kept = torch.where(keep(probs, epsilon, top_p) > 0, probs, 0.0)
        return torch.where(kept < epsilon, kept.sign() * if_none_left, kept)

    return {PROBS: probs_of}


def tempered(rule: Callable[[torch.Tensor, float], torch.Tensor]) -> Variant:
    def probs(logits: Any, temperature: float, epsilon: float = 0, top_p: float = 1) -> Any:
        return keep(rule(logits, temperature).softmax(-1), epsilon, top_p)

    return {PROBS: probs}


def drop(keeps: Callable[..., torch.Tensor]) -> Variant:
    """Where nothing is left, the quotient is not a number."""

    def epsilon_filter(probs: torch.Tensor, epsilon: float) -> torch.Tensor:
        kept = torch.where(keeps(probs, epsilon), probs, 0.0)
        return kept / kept.sum(-1, keepdim=True)

    return {"mini_llama.inference.sampling.epsilon_filter": epsilon_filter}


def drop_at_epsilon(probs: torch.Tensor, epsilon: float) -> torch.Tensor:
    return EPSILON_FILTER(probs, epsilon * (1 + 1e-6))


EPSILON_FILTER = sampling.epsilon_filter


def greedy(pick: Callable[[torch.Tensor], torch.Tensor]) -> Variant:
    sample = sampling.Sampler.__call__

    def call(self: Any, logits: torch.Tensor) -> torch.Tensor:
        return pick(logits) if self.temperature == 0 else sample(self, logits)

    return {"mini_llama.inference.sampling.Sampler.__call__": call}


def draw_among_best(logits: torch.Tensor) -> torch.Tensor:
    return (logits == logits.amax(-1, keepdim=True)).float().multinomial(1)


TEMPERATURE = "sampling: temperature first (logits / temperature), then softmax"
EPSILON = (
    "epsilon sampling: tokens with p < epsilon are dropped, the rest renormalised; if none is "
)
EPSILON += "left, the argmax"
GREEDY = "sampling: temperature 0 is the argmax over the vocabulary"
GENERATE_MISTAKES = (
    Mistake(
        "generate",
        "multiplied by temperature",
        TEMPERATURE,
        "Divide the logits by the temperature.",
        (tempered(lambda logits, temperature: logits * temperature),),
    ),
    Mistake(
        "generate",
        "temperature ignored",
        TEMPERATURE,
        "Divide the logits by the temperature before the softmax.",
        (tempered(lambda logits, temperature: logits),),
    ),
    Mistake(
        "generate",
        "epsilon before temperature",
        TEMPERATURE,
        "Divide by the temperature and take the softmax first; only then drop tokens.",
        ({PROBS: filtered_first},),
    ),
    Mistake(
        "generate",
        "no filter",
        EPSILON,
        "Drop the improbable tokens: p < epsilon, or in spring2026 what lies behind top_p.",
        ({PROBS: lambda logits, temperature, *_, **__: LOGITS_TO_PROBS(logits, temperature)},),
    ),
    Mistake(
        "generate",
        "no renormalisation",
        EPSILON,
        "Divide what is kept by its sum.",
        (not_renormalised(1.0), not_renormalised(0.0)),
    ),
    Mistake(
        "generate",
        "> against ≥",
        EPSILON,
        "Keep a token whose probability equals epsilon: probs >= epsilon.",
        ({"mini_llama.inference.sampling.epsilon_filter": drop_at_epsilon}, drop(torch.gt)),
    ),
    Mistake(
        "generate",
        "nothing left is not handled",
        EPSILON,
        "Where every token is below epsilon, keep the most probable one.",
        (drop(torch.ge),),
    ),
    Mistake(
        "generate",
        "argmax of the wrong axis",
        GREEDY,
        "Take logits.argmax(dim=-1, keepdim=True) of logits (batch, vocabulary).",
        (
            greedy(lambda logits: logits.argmax(dim=0)[:, None]),
            greedy(lambda logits: logits.argmax(dim=0, keepdim=True)),
        ),
    ),
    Mistake(
        "generate",
        "sampling ties",
        GREEDY,
        "Of equal logits take the first, as torch.argmax does; draw nothing at temperature 0.",
        (greedy(draw_among_best),),
    ),
)

# --- LoRA ---

LORA_INIT = lora.LoRALayer.__init__


def changed_lora(change: Callable[[Any], None]) -> Variant:
    def init(self: Any, original_layer: Any, rank: int = 4, alpha: float = 1.0) -> None:
        LORA_INIT(self, original_layer, rank, alpha)
        with torch.no_grad():
            change(self)

    return {"lora.LoRALayer.__init__": init}


def scaled(scale: Callable[[Any], float]) -> tuple[Variant, Variant]:
    """The factor is wrong everywhere, or in forward only."""

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        return self.original_layer(x) + scale(self) * (x @ self.lora_A.T @ self.lora_B.T)

    everywhere = changed_lora(lambda layer: setattr(layer, "scaling", scale(layer)))
    return everywhere, {"lora.LoRALayer.forward": forward}


def swap(layer: Any) -> None:
    layer.lora_A, layer.lora_B = layer.lora_B, layer.lora_A


SWAPPED = changed_lora(swap) | {
    "lora.LoRALayer.forward": lambda self, x: (
        self.original_layer(x) + self.scaling * (x @ self.lora_B.T @ self.lora_A.T)
    ),
    "lora.LoRALayer.merged_weight": lambda self: (
        self.original_layer.weight + self.scaling * (self.lora_A @ self.lora_B)
    ),
}
LORA = "LoRA: y = W x + (alpha/rank)·B(A x), A (rank, in) ~ N(0, 0.02), B (out, rank) = 0, W frozen"
LORA_MISTAKES = (
    Mistake(
        "lora",
        "no scaling",
        LORA,
        "Multiply the low-rank term by alpha / rank.",
        scaled(lambda layer: 1.0),
    ),
    Mistake(
        "lora",
        "alpha instead of alpha/rank",
        LORA,
        "Divide alpha by the rank.",
        scaled(lambda layer: layer.alpha),
    ),
    Mistake(
        "lora",
        "A and B swapped",
        LORA,
        "lora_A (rank, in) reads the input and lora_B (out, rank) writes the output.",
        (SWAPPED,),
    ),
    Mistake(
        "lora",
        "W is not frozen",
        LORA,
        "Set requires_grad to False on all parameters of the original layer.",
        (changed_lora(lambda layer: layer.original_layer.requires_grad_(True)),),
    ),
    Mistake(
        "lora",
        "B is not 0 at the start",
        LORA,
        "Start lora_B with zeros and lora_A with random numbers.",
        (
            changed_lora(lambda layer: layer.lora_B.normal_(0.0, lora.INIT_STD)),
            changed_lora(lambda layer: (layer.lora_B.normal_(0.0, 0.02), layer.lora_A.zero_())),
        ),
    ),
    Mistake(
        "lora",
        "A is 0 at the start",
        LORA,
        "Draw lora_A from N(0, 0.02): with A and B both 0 nothing is ever learned.",
        (changed_lora(lambda layer: layer.lora_A.zero_()),),
    ),
)

# --- AdamW ---


def update(
    decay: str = "after",
    coupled: bool = False,
    correction: str = "as asked",
    eps: str = "efficient",
    clip: Callable[..., torch.Tensor] = lambda gradient, scale: (
        gradient * (1 if scale is None else scale)
    ),
    clips_step: bool = False,
) -> Variant:
    def _update(self: Any, p: torch.Tensor, group: dict, scale: torch.Tensor | None) -> None:
        lr, weight_decay, (beta1, beta2) = group["lr"], group["weight_decay"], group["betas"]
        g = p.grad if clips_step else clip(p.grad, scale)
        g = g + weight_decay * p if coupled else g
        state = self.state[p]
        t = state["step"] = state.get("step", 0) + 1
        m = state["m"] = beta1 * state.get("m", 0) + (1 - beta1) * g
        v = state["v"] = beta2 * state.get("v", 0) + (1 - beta2) * g**2
        corrects = {"never": False, "always": True}.get(correction, group["correct_bias"])
        first, second = (1 - beta1**t, 1 - beta2**t) if corrects else (1, 1)
        second = 1 if correction == "first alone" else second
        shrink = {"without lr": weight_decay, "never": 0}.get(decay, lr * weight_decay)
        if decay == "before":
            p.mul_(1 - shrink)
        if eps == "plain":
            step = lr * (m / first) / ((v / second).sqrt() + group["eps"])
        elif eps == "inside":
            step = lr * math.sqrt(second) / first * m / (v + group["eps"]).sqrt()
        elif eps == "plain inside":
            step = lr * (m / first) / (v / second + group["eps"]).sqrt()
        else:
            step = lr * math.sqrt(second) / first * m / (v.sqrt() + group["eps"])
        p.sub_(clip(step, scale) if clips_step else step)
        if decay != "before" and not coupled:
            p.mul_(1 - shrink)

    return {"optimizer.AdamW._update": _update}


def clip_alone(gradient: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
    return gradient if scale is None else gradient * optimizer.clip_scale([gradient], 0.9)


STEP = "AdamW: p -= lr·sqrt(1-β2^t)/(1-β1^t) · m/(sqrt(v)+eps)"
DECAY = "AdamW: after the step p -= lr·weight_decay·p"
CLIPPING = "AdamW: clipping is by the norm over the group's gradients, before the moments"
OPTIMIZER_MISTAKES = (
    Mistake(
        "optimizer",
        "coupled decay",
        DECAY,
        "Leave the gradient alone: shrink the weight itself, after the step.",
        (update(coupled=True),),
    ),
    Mistake(
        "optimizer",
        "decay before the step",
        DECAY,
        "Shrink the weight after the gradient step has moved it.",
        (update(decay="before"),),
    ),
    Mistake(
        "optimizer",
        "decay without lr",
        DECAY,
        "Multiply the decay by the learning rate.",
        (update(decay="without lr"),),
    ),
    Mistake(
        "optimizer",
        "no decay",
        DECAY,
        "Shrink the weight by lr·weight_decay of itself, after the step.",
        (update(decay="never"),),
    ),
    Mistake(
        "optimizer",
        "second moment not corrected",
        STEP,
        "The step has sqrt(1-β2^t) in its numerator, besides 1-β1^t in its denominator.",
        (update(correction="first alone"),),
    ),
    Mistake(
        "optimizer",
        "no bias correction",
        STEP,
        "With correct_bias the step is lr·sqrt(1-β2^t)/(1-β1^t); t counts from 1.",
        (update(correction="never"),),
    ),
    Mistake(
        "optimizer",
        "correct_bias ignored",
        STEP,
        "Without correct_bias the step is lr.",
        (update(correction="always"),),
    ),
    Mistake(
        "optimizer",
        "plain instead of efficient form",
        STEP,
        "Add eps to sqrt(v) as it is, and put both corrections into the step size.",
        (update(eps="plain"),),
    ),
    Mistake(
        "optimizer",
        "eps inside the root",
        STEP,
        "Add eps to sqrt(v), not to v.",
        (update(eps="inside"), update(eps="plain inside")),
    ),
    Mistake(
        "optimizer",
        "clipping after the moments, or none",
        CLIPPING,
        "Scale the gradients to max_grad_norm before m and v see them.",
        ({"optimizer.clip_scale": lambda gradients, max_norm: None}, update(clips_step=True)),
    ),
    Mistake(
        "optimizer",
        "each parameter clipped by itself",
        CLIPPING,
        "Take one norm over all gradients of the group.",
        (update(clip=clip_alone),),
    ),
)

# --- classifier ---


def classify(
    pool: Callable[[torch.Tensor], torch.Tensor] = lambda hidden: hidden[:, -1],
    drops: str = "train",
    finish: Callable = F.log_softmax,
) -> Variant:
    def forward(self: Any, input_ids: torch.Tensor) -> torch.Tensor:
        hidden = pool(self.llama(input_ids)[1])
        if drops != "never":
            hidden = F.dropout(hidden, self.dropout.p, self.training or drops == "always")
        return finish(self.classifier_head(hidden), dim=-1)

    return {"classifier.LlamaEmbeddingClassifier.forward": forward}


def all_logits(self: Any, tokens: torch.Tensor, *_: object, **__: object) -> tuple:
    hidden = self.hidden_states(tokens)
    return self.output(hidden), hidden


HEAD = "classifier: hidden state of the last column, dropout, linear head, log-softmax"
CLASSIFIER_MISTAKES = (
    Mistake(
        "classifier",
        "mean pooling",
        HEAD,
        "Read the last column of the hidden states: hidden[:, -1].",
        (classify(pool=lambda hidden: hidden.mean(1)),),
    ),
    Mistake(
        "classifier",
        "first token",
        HEAD,
        "Read the last column of the hidden states, not the first.",
        (classify(pool=lambda hidden: hidden[:, 0]),),
    ),
    Mistake(
        "classifier",
        "no dropout",
        HEAD,
        "Pass the hidden state through self.dropout before the head.",
        (classify(drops="never"),),
    ),
    Mistake(
        "classifier",
        "dropout in evaluation",
        HEAD,
        "Use self.dropout, which model.eval() turns off, or F.dropout with self.training.",
        (classify(drops="always"),),
    ),
    Mistake(
        "classifier",
        "softmax for log-softmax",
        HEAD,
        "Return F.log_softmax(logits, dim=-1).",
        (classify(finish=F.softmax),),
    ),
    Mistake(
        "classifier",
        "no log-softmax",
        HEAD,
        "Return F.log_softmax(logits, dim=-1), not the logits.",
        (classify(finish=lambda logits, dim: logits),),
    ),
    Mistake(
        "classifier",
        "logits of all positions",
        "Llama.forward: logits are (B, 1, V), of the last column, without targets; "
        "the classifier's are (B, labels)",
        "Keep the last position only: h[:, [-1], :] in Llama.forward, hidden[:, -1] here.",
        (classify(pool=lambda hidden: hidden), {"llama.Llama.forward": all_logits}),
    ),
)

MISTAKES = (
    *ROPE_MISTAKES,
    *NORM_MISTAKES,
    *ATTENTION_MISTAKES,
    *FEED_FORWARD_MISTAKES,
    *LAYER_MISTAKES,
    *GENERATE_MISTAKES,
    *LORA_MISTAKES,
    *OPTIMIZER_MISTAKES,
    *CLASSIFIER_MISTAKES,
)
