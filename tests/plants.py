"""Every known mistake as an edit of our own files, by its id, written apart from the variants."""

import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mini_llama.diagnosis.diagnosis import diagnose
from mini_llama.diagnosis.findings import Finding
from mini_llama.diagnosis.registry import MISTAKES, Mistake
from tests.helpers import ROOT

# What the components are made of; the rest of the project is not examined.
MODULES = "base_llama classifier config llama lora optimizer rope tokenizer utils".split()


Edit = tuple[str, str, str]  # file, old text, new text; the old one stands exactly once in the file


@dataclass(frozen=True)
class Plant:
    """Edits that make the mistake, which shows in the edition."""

    mistake: Mistake
    edits: tuple[Edit, ...]
    edition: str = "mmia"


def apply_edits(folder: Path, *edits: Edit) -> None:
    """Edit files of the folder. Raises ValueError for an edit that no longer fits."""
    for file, old, new in edits:
        path = folder / file
        text = path.read_text(encoding="utf-8")
        if text.count(old) != 1:
            raise ValueError(f"{file} holds this {text.count(old)} times, not once: {old}")
        path.write_text(text.replace(old, new), encoding="utf-8")


def planted_copy(folder: Path, plants: Iterable[Plant]) -> Path:
    """A new folder of our modules with the mistakes in them."""
    folder.mkdir()
    for name in MODULES:
        shutil.copy2(ROOT / f"{name}.py", folder)
    shutil.copytree(
        ROOT / "mini_llama", folder / "mini_llama", ignore=shutil.ignore_patterns("__pycache__")
    )
    apply_edits(folder, *(edit for one in plants for edit in one.edits))
    return folder


def diagnose_planted(
    folder: Path, plantings: Sequence[tuple[Sequence[Plant], str]]
) -> Iterator[tuple[Sequence[Plant], list[Finding]]]:
    """For each set of mistakes, planted together and diagnosed in an edition, what is found."""
    for edition in dict.fromkeys(edition for _, edition in plantings):
        chosen = [plants for plants, its in plantings if its == edition]
        copies = [planted_copy(folder / f"{edition}-{i}", p) for i, p in enumerate(chosen)]
        yield from zip(chosen, diagnose(copies, edition), strict=True)


def edit(component: str, name: str, old: str, new: str, **options: str) -> Plant:
    """One edit of the file that the component is in."""
    file = options.pop("file", FILES[component])
    return Plant(MISTAKES[f"{component}: {name}"], ((file, old, new),), **options)


def edits(component: str, name: str, *pairs: tuple[str, str]) -> Plant:
    edits = tuple((FILES[component], old, new) for old, new in pairs)
    return Plant(MISTAKES[f"{component}: {name}"], edits)


FILES = {
    "rope": "rope.py",
    "norm": "llama.py",
    "attention": "llama.py",
    "feed_forward": "llama.py",
    "layer": "llama.py",
    "generate": "mini_llama/inference/sampling.py",
    "lora": "lora.py",
    "optimizer": "optimizer.py",
    "classifier": "classifier.py",
}

EXPONENTS = "torch.arange(0, head_dim, 2, device=device).float() / head_dim"
ROTATED = "return rotate(query, cos, sin), rotate(key, cos, sin)"
ROPE = [
    edits(
        "rope",
        "split halves",
        (
            "x.float().contiguous().unflatten(-1, (-1, 2))",
            "x.float().unflatten(-1, (2, -1)).transpose(-2, -1).contiguous()",
        ),
        ("rotated.flatten(-2)", "rotated.transpose(-2, -1).flatten(-2)"),
    ),
    edit(
        "rope",
        "pairs written back as halves",
        "rotated.flatten(-2)",
        "rotated.transpose(-2, -1).flatten(-2)",
    ),
    edit("rope", "wrong sign", "torch.complex(cos, sin)", "torch.complex(cos, -sin)"),
    edit(
        "rope", "positions from 1", "arange(start, end, device", "arange(start + 1, end + 1, device"
    ),
    edit(
        "rope",
        "exponent without the 2",
        EXPONENTS,
        "torch.arange(head_dim // 2, device=device).float() / head_dim",
    ),
    edit(
        "rope",
        "exponent without head_dim",
        EXPONENTS,
        "torch.arange(0, head_dim, 2, device=device).float()",
    ),
    edit("rope", "query only", ROTATED, "return rotate(query, cos, sin), key"),
    edit("rope", "key only", ROTATED, "return query, rotate(key, cos, sin)"),
    edits(
        "rope",
        "not in float32",
        ("pairs = x.float().contiguous()", "pairs = x.contiguous()"),
        ("if torch.compiler.is_compiling()", "if x.dtype == torch.bfloat16"),
        (
            "cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)",
            "cos, sin = cos.unsqueeze(-2).to(x.dtype), sin.unsqueeze(-2).to(x.dtype)",
        ),
    ),
    edit(
        "rope",
        "not in float32",
        "return angles.cos(), angles.sin()",
        "return angles.half().cos().float(), angles.half().sin().float()",
    ),
]

LAYERNORM = "return F.layer_norm(x_float, shape, weight, bias, self.eps).type_as(x)"
CENTRED = "return (x_float - x_float.mean(-1, keepdim=True)) / "
NORM = [
    edit(
        "norm",
        "unbiased variance",
        LAYERNORM,
        f"{CENTRED}(x_float.var(-1, keepdim=True) + self.eps).sqrt() * weight + bias",
    ),
    edit(
        "norm",
        "eps outside the root",
        LAYERNORM,
        f"{CENTRED}(x_float.std(-1, keepdim=True, correction=0) + self.eps) * weight + bias",
    ),
    edit("norm", "eps left out", LAYERNORM, LAYERNORM.replace("self.eps", "0.0")),
    edit("norm", "no gain", LAYERNORM, LAYERNORM.replace("weight", "None")),
    edit("norm", "no bias", LAYERNORM, LAYERNORM.replace("bias", "None")),
    edit(
        "norm", "RMSNorm in place of LayerNorm", '{"layernorm": LayerNorm', '{"layernorm": RMSNorm'
    ),
    edit(
        "norm",
        "RMSNorm in place of LayerNorm",
        LAYERNORM,
        "return x / (x.square().mean(-1, keepdim=True) + self.eps).sqrt() * weight + bias",
    ),
    edit(
        "norm",
        "LayerNorm in place of RMSNorm",
        '"rmsnorm": RMSNorm}',
        '"rmsnorm": LayerNorm}',
        edition="fall2024",
    ),
    edit(
        "norm",
        "wrong axis",
        LAYERNORM,
        "mean, var = x.mean(1, keepdim=True), x.var(1, keepdim=True, correction=0)\n"
        "        return (x - mean) / (var + self.eps).sqrt() * weight + bias",
    ),
]

ENABLE_GQA = "enable_gqa=key.shape[1] != query.shape[1],"
BLOCKWISE = "        return F.scaled_dot_product_attention(\n            query,"
HEADS = """        key, value = (
            t.repeat_interleave(query.shape[1] // t.shape[1], dim=1) for t in (key, value)
        )
        scores = query @ key.transpose(-2, -1) / math.sqrt(self.head_dim)
"""
IS_CAUSAL = "is_causal = self.is_causal and mask is None and length > 1"
DROPOUT = "self.dropout if self.training else 0.0"
ATTENTION = [
    edit("attention", "no scale", ENABLE_GQA, f"{ENABLE_GQA} scale=1.0"),
    edit("attention", "scaled by d", ENABLE_GQA, f"{ENABLE_GQA} scale=1 / self.head_dim"),
    edit(
        "attention",
        "softmax on the wrong axis",
        BLOCKWISE,
        f"{HEADS}        return F.dropout(scores.softmax(-2), dropout) @ value\n{BLOCKWISE}",
    ),
    edit(
        "attention",
        "softmax on the wrong axis",
        BLOCKWISE,
        f"{HEADS}        return F.dropout(scores.softmax(1), dropout) @ value\n{BLOCKWISE}",
    ),
    edit(
        "attention",
        "causal where the edition is not",
        IS_CAUSAL,
        "is_causal = mask is None and length > 1",
    ),
    edit(
        "attention",
        "not causal where the edition is",
        IS_CAUSAL,
        "is_causal = False",
        edition="spring2026",
    ),
    edit(
        "attention",
        "mask after softmax",
        BLOCKWISE,
        f"{HEADS}        return F.dropout(scores.softmax(-1).tril(), dropout) @ value\n{BLOCKWISE}",
    ),
    edit("attention", "no dropout", DROPOUT, "0.0"),
    edit(
        "attention",
        "no dropout",
        BLOCKWISE,
        f"{HEADS}        return F.dropout(scores, dropout).softmax(-1) @ value\n{BLOCKWISE}",
    ),
    edit(
        "attention",
        "GQA heads tiled instead of repeated",
        "        if is_faster_by_hand(query):",
        "        repeats = query.shape[1] // key.shape[1]\n"
        "        key, value = (t.repeat(1, repeats, 1, 1) for t in (key, value))\n"
        "        if is_faster_by_hand(query):",
    ),
    edit(
        "attention",
        "RoPE is not applied",
        "        query, key = rotate(query, *query_tables), rotate(key, cos, sin)\n",
        "",
    ),
]

SWIGLU = "return F.silu(self.w1(x)) * self.w3(x)"
ATTEND = """\
        attended = self.attention(self.attention_norm(x), tables, mask, cache, self.layer_id, last)
        h = (x if last is None else column(x, last)) + attended
"""
FEED = "        return h + self.feed_forward(self.ffn_norm(h))"
REST = ", tables, mask, cache, self.layer_id)"


def layer(name: str, *lines: str) -> Plant:
    return edit("layer", name, ATTEND + FEED, "\n".join(" " * 8 + line for line in lines))


LAYER = [
    edit("feed_forward", "w1 and w3 swapped", SWIGLU, "return F.silu(self.w3(x)) * self.w1(x)"),
    edit(
        "feed_forward",
        "sigmoid in place of silu",
        SWIGLU,
        "return F.sigmoid(self.w1(x)) * self.w3(x)",
    ),
    layer(
        "post-norm",
        f"h = self.attention_norm(x + self.attention(x{REST})",
        "return self.ffn_norm(h + self.feed_forward(h))",
    ),
    layer(
        "post-norm",
        f"h = x + self.attention_norm(self.attention(x{REST})",
        "return h + self.ffn_norm(self.feed_forward(h))",
    ),
    layer(
        "missing residual",
        f"h = self.attention(self.attention_norm(x){REST}",
        "return h + self.feed_forward(self.ffn_norm(h))",
    ),
    layer(
        "missing residual",
        f"h = x + self.attention(self.attention_norm(x){REST}",
        "return self.feed_forward(self.ffn_norm(h))",
    ),
    layer(
        "residual from the normalised input",
        "x = self.attention_norm(x)",
        f"h = x + self.attention(x{REST}",
        "return h + self.feed_forward(self.ffn_norm(h))",
    ),
    layer(
        "residual from the normalised input",
        "x = self.attention_norm(x)",
        f"h = self.ffn_norm(x + self.attention(x{REST})",
        "return h + self.feed_forward(h)",
    ),
    layer(
        "residual from the layer's input twice",
        f"h = x + self.attention(self.attention_norm(x){REST}",
        "return x + self.feed_forward(self.ffn_norm(h))",
    ),
    layer(
        "ffn_norm on the wrong tensor",
        f"h = x + self.attention(self.attention_norm(x){REST}",
        "return h + self.feed_forward(self.ffn_norm(x))",
    ),
    layer(
        "ffn_norm on the wrong tensor",
        f"attended = self.attention(self.attention_norm(x){REST}",
        "return x + attended + self.feed_forward(self.ffn_norm(attended))",
    ),
]

TEMPERED = "logits = (logits - logits.max(dim=-1, keepdim=True).values) / temperature"
NONE_LEFT = "    kept = torch.where(kept.sum(-1, keepdim=True) > 0, kept, best)\n"
ARGMAX = "return logits.argmax(dim=-1, keepdim=True)"
GENERATE = [
    edit("generate", "multiplied by temperature", TEMPERED, TEMPERED.replace("/ temp", "* temp")),
    edit("generate", "temperature ignored", TEMPERED, "pass"),
    edits(
        "generate",
        "epsilon before temperature",
        (TEMPERED, "pass"),
        ("    return probs\n", "    return torch.softmax(probs.log() / temperature, dim=-1)\n"),
    ),
    edit("generate", "no filter", "if epsilon > 0:", "if epsilon > 1:"),
    edit(
        "generate",
        "no renormalisation",
        f"{NONE_LEFT}    return kept / kept.sum(-1, keepdim=True)",
        f"{NONE_LEFT}    return kept",
    ),
    edit("generate", "> against ≥", "torch.where(probs < epsilon", "torch.where(probs <= epsilon"),
    edit("generate", "nothing left is not handled", NONE_LEFT, ""),
    edit("generate", "argmax of the wrong axis", ARGMAX, "return logits.argmax(0, keepdim=True)"),
    edit("generate", "argmax of the wrong axis", ARGMAX, "return logits.argmax(0).unsqueeze(1)"),
    edit(
        "generate",
        "sampling ties",
        ARGMAX,
        "return (logits == logits.amax(-1, keepdim=True)).float().multinomial(1)",
    ),
]

DRAWN_A = "weight.new_empty(rank, weight.shape[1]).normal_(0.0, INIT_STD)"
ZERO_B = "weight.new_zeros(weight.shape[0], rank)"
DRAWN_B = "weight.new_empty(weight.shape[0], rank).normal_(0.0, INIT_STD)"
LORA = [
    edit("lora", "no scaling", "self.scaling = alpha / rank", "self.scaling = 1.0"),
    edit(
        "lora", "no scaling", "low = self.scaling * (x @ self.lora_A.T)", "low = x @ self.lora_A.T"
    ),
    edit("lora", "alpha instead of alpha/rank", "= alpha / rank", "= alpha"),
    edits(
        "lora",
        "A and B swapped",
        ("self.lora_A = nn.Parameter", "self.lora_C = nn.Parameter"),
        ("self.lora_B = nn.Parameter", "self.lora_A = nn.Parameter"),
        ("self.lora_C = nn.Parameter", "self.lora_B = nn.Parameter"),
        ("(x @ self.lora_A.T)", "(x @ self.lora_B.T)"),
        ("low.flatten(0, -2), self.lora_B.T)", "low.flatten(0, -2), self.lora_A.T)"),
        ("(self.lora_B @ self.lora_A)", "(self.lora_A @ self.lora_B)"),
    ),
    edit("lora", "W is not frozen", "original_layer.requires_grad_(False)", "original_layer"),
    edit("lora", "B is not 0 at the start", ZERO_B, DRAWN_B),
    edits(
        "lora",
        "B is not 0 at the start",
        (ZERO_B, DRAWN_B),
        (DRAWN_A, "weight.new_zeros(rank, weight.shape[1])"),
    ),
    edit("lora", "A is 0 at the start", DRAWN_A, "weight.new_zeros(rank, weight.shape[1])"),
]

SCALED = "            gradient = gradient * scale\n"
SHRINK = 'parameter.mul_(1 - lr * group["weight_decay"])'
DECAY = f'        if group["weight_decay"] > 0:\n            {SHRINK}'
STEP = 'parameter.addcdiv_(m, v.sqrt().add_(group["eps"]), value=-step_size)'
OPTIMIZER = [
    edits(
        "optimizer",
        "coupled decay",
        (SCALED, f'{SCALED}        gradient = gradient + group["weight_decay"] * parameter\n'),
        (SHRINK, "pass"),
    ),
    edit(
        "optimizer", "decay before the step", f"        {STEP}\n{DECAY}", f"{DECAY}\n        {STEP}"
    ),
    edit("optimizer", "decay without lr", SHRINK, SHRINK.replace("lr * ", "")),
    edit("optimizer", "no decay", SHRINK, "pass"),
    edit("optimizer", "second moment not corrected", "lr * math.sqrt(1 - beta2**t) /", "lr /"),
    edit("optimizer", "no bias correction", 'if group["correct_bias"]:', "if False:"),
    edit("optimizer", "correct_bias ignored", 'if group["correct_bias"]:', "if True:"),
    edit(
        "optimizer",
        "plain instead of efficient form",
        "step_size = lr * math.sqrt(1 - beta2**t) / (1 - beta1**t)",
        "m, v = m / (1 - beta1**t), v / (1 - beta2**t)",
    ),
    edit(
        "optimizer",
        "eps inside the root",
        'v.sqrt().add_(group["eps"])',
        '(v + group["eps"]).sqrt()',
    ),
    edit(
        "optimizer",
        "clipping after the moments, or none",
        'clip_scale([p.grad for p in parameters], group["max_grad_norm"])',
        "None",
    ),
    edits(
        "optimizer",
        "clipping after the moments, or none",
        (SCALED, "            pass\n"),
        (STEP, STEP.replace("(m,", "(m if scale is None else m * scale,")),
    ),
    edit(
        "optimizer",
        "each parameter clipped by itself",
        "self._update(parameter, group, scale)",
        'self._update(parameter, group, clip_scale([parameter.grad], group["max_grad_norm"]))',
    ),
]

READ = "self.llama.last_hidden_state(input_ids, lengths)[:, 0]"
HEAD = "F.log_softmax(self.classifier_head(self.dropout(last)).float(), dim=-1)"
CLASSIFIER = [
    edit("classifier", "mean pooling", READ, "self.llama(input_ids)[1].mean(1)"),
    edit("classifier", "first token", READ, "self.llama(input_ids)[1][:, 0]"),
    edit("classifier", "no dropout", "self.dropout(last)", "last"),
    edit(
        "classifier",
        "dropout in evaluation",
        "self.dropout(last)",
        "F.dropout(last, self.dropout.p)",
    ),
    edit("classifier", "softmax for log-softmax", HEAD, HEAD.replace("log_softmax", "softmax")),
    edit("classifier", "no log-softmax", HEAD, "self.classifier_head(self.dropout(last))"),
    edit("classifier", "logits of all positions", READ, "self.llama(input_ids)[1]"),
    edit(
        "classifier",
        "logits of all positions",
        "self.output(last_column(h, lengths))",
        "self.output(h)",
        file="llama.py",
    ),
]

PLANTS = ROPE + NORM + ATTENTION + LAYER + GENERATE + LORA + OPTIMIZER + CLASSIFIER
