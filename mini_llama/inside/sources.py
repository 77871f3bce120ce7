"""The formula of each step, and the line of llama.py, rope.py or sampling.py that computes it."""

import inspect
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from types import ModuleType

import llama
import rope
from config import LlamaConfig
from mini_llama.inference import sampling
from mini_llama.places import ROOT


@dataclass(frozen=True)
class Source:
    """A line of code, by its file and number; an empty `code` is the whole function's."""

    file: str
    line: int
    code: str


@dataclass(frozen=True)
class Formula:
    """A formula, and where it is computed: the line of `name` in `module` that has `fragment`."""

    text: str
    module: ModuleType
    name: str
    fragment: str


def formulas(config: LlamaConfig) -> dict[str, Formula]:
    """By the part of the page that shows the step."""
    norm, text = "RMSNorm", "x̂ = x / √(mean(x²) + ε) · w"
    if config.norm == "layernorm":
        norm, text = "LayerNorm", "x̂ = (x − mean) / √(var + ε) · w + b"
    by_hand = "attention_by_hand"
    turned = "(a, b) → (a·cos α − b·sin α, a·sin α + b·cos α),  α = m·θᵢ"
    return {
        "embedding": Formula("h₀ = E[id]", llama, "Llama.hidden_states", "tok_embeddings"),
        "norm": Formula(text, llama, f"{norm}._norm", "torch.rsqrt"),
        "angle": Formula(
            f"θᵢ = {config.rope_theta:g}^(−2i/D)",
            *(rope, "inverse_frequencies", "frequencies = 1 / theta**exponents"),
        ),
        "rope": Formula(turned, rope, "rotate", "even * cos - odd * sin"),
        "scores": Formula("S = Q·Kᵀ / √D", llama, by_hand, "math.sqrt(query.shape"),
        "mask": Formula("Sₘₙ = −∞ where hidden", llama, by_hand, "masked_fill(~mask"),
        "softmax": Formula("P = softmax(S)", llama, by_hand, "scores.softmax"),
        "shared": Formula(
            f"head h reads key head ⌊h / {config.n_heads // config.n_kv_heads}⌋",
            *(llama, by_hand, "key.repeat_interleave"),
        ),
        "values": Formula("O = P·V", llama, by_hand, "probabilities @ value"),
        "swiglu": Formula("w₂(silu(w₁x) ⊙ w₃x)", llama, "FeedForward.SwiGLU", "F.silu(self.w1(x))"),
        "attention": Formula(
            "h = x + attention(norm(x))", llama, "LlamaLayer.forward", "+ attended"
        ),
        "feed_forward": Formula(
            "x′ = h + feed_forward(norm(h))", llama, "LlamaLayer.forward", "h + self.feed_forward"
        ),
        "lens": Formula("z = W·norm(x)", llama, "Llama.forward", "self.output(last_column"),
        "temperature": Formula(
            "p = softmax(z / temperature)", sampling, "logits_to_probs", "probs = torch.softmax"
        ),
        "epsilon": Formula("drop p < ε", sampling, "epsilon_filter", "probs < epsilon"),
        "top_p": Formula(
            "keep the fewest that reach top-p", sampling, "top_p_filter", "before < max(top_p"
        ),
    }


def find_source(formula: Formula) -> Source | None:
    """Where a formula is computed; None where a student's file has no such function."""
    try:
        found = reduce(getattr, formula.name.split("."), formula.module)
        lines, start = inspect.getsourcelines(found)
        path = Path(inspect.getsourcefile(found) or "")
    except (AttributeError, TypeError, OSError):
        return None
    file = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name
    for offset, line in enumerate(lines):
        if formula.fragment in line:
            return Source(file, start + offset, line.strip())
    return Source(file, start, "")
