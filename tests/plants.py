"""Every known mistake as an edit of our own files, by its id, written apart from the variants."""

import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mini_llama.diagnosis.diagnosis import diagnose_all
from mini_llama.diagnosis.findings import Finding
from mini_llama.diagnosis.places import Place
from mini_llama.diagnosis.registry import MISTAKES, Mistake
from tests.helpers import ROOT

# The modules with the components; the rest of the project is not examined.
MODULES = "base_llama classifier config llama lora optimizer rope tokenizer utils".split()
MODULES += "addition_data_generation addition_lib addition_run".split()


STUDENT = ROOT / "tests" / "student"
Edit = tuple[str, str, str]  # file, old text, new text; the old text must occur exactly once


@dataclass(frozen=True)
class Plant:
    """Edits that make mistakes which `edition` detects: in our own modules, or in tests/student, an
    independent solution in the course's form.
    """

    mistake: Mistake
    edits: tuple[Edit, ...]
    edition: str = "mmia"
    of_student: bool = False
    others: tuple[Mistake, ...] = ()  # made together with it, in the report's order

    @property
    def mistakes(self) -> tuple[Mistake, ...]:
        return (self.mistake, *self.others)

    @property
    def id(self) -> str:
        return "; ".join([self.mistake.id, *(other.name for other in self.others)])


# Differences where the assignment leaves a choice: remarks, not mistakes.
REMARKED = {
    "no renormalisation",
    "nothing left is not handled",
    "nothing left: drawn from all tokens",
    "nothing left: drawn evenly",
    "> against ≥ in top-p",
    "padding is looked for",
}


def apply_edits(folder: Path, *edits: Edit) -> None:
    """Edit files of the folder. Raises ValueError if the old text does not occur exactly once."""
    for file, old, new in edits:
        path = folder / file
        text = path.read_text(encoding="utf-8")
        if text.count(old) != 1:
            raise ValueError(f"{file} contains this {text.count(old)} times, not once: {old}")
        path.write_text(text.replace(old, new), encoding="utf-8")


def fits(plants: Iterable[Plant]) -> bool:
    """True if all of them can be planted in one copy: no text is edited twice."""
    plants = list(plants)
    folder = STUDENT if plants[0].of_student else ROOT
    texts: dict[str, str] = {}
    for file, old, new in (edit for one in plants for edit in one.edits):
        text = texts.setdefault(file, (folder / file).read_text(encoding="utf-8"))
        if text.count(old) != 1:
            return False
        texts[file] = text.replace(old, new)
    return True


def grouped(plants: Iterable[Plant]) -> list[list[Plant]]:
    """Group plants of the same edition into few copies, with at most one in each component."""
    groups: list[list[Plant]] = []
    for one in plants:
        for group in groups:
            is_alike = (group[0].edition, group[0].of_student) == (one.edition, one.of_student)
            components = {other.mistake.component for other in group}
            if is_alike and one.mistake.component not in components and fits([*group, one]):
                group.append(one)
                break
        else:
            groups.append([one])
    return groups


def planted_copy(folder: Path, plants: Iterable[Plant]) -> Path:
    """Copy our modules, or the student's, to a new folder with the mistakes in them."""
    plants = list(plants)
    if any(one.of_student for one in plants):
        shutil.copytree(STUDENT, folder)
        apply_edits(folder, *(edit for one in plants for edit in one.edits))
        return folder
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
    """Plant each set of mistakes in a copy, diagnose it in its edition, yield the findings."""
    for edition in dict.fromkeys(edition for _, edition in plantings):
        chosen = [plants for plants, its in plantings if its == edition]
        copies = [planted_copy(folder / f"{edition}-{i}", p) for i, p in enumerate(chosen)]
        places = [Place(copy.name, copy) for copy in copies]
        for plants, report in zip(chosen, diagnose_all(places, edition, jobs=2), strict=True):
            assert not report.refusal, report.refusal
            yield plants, list(report.findings)


def edit(component: str, name: str, old: str, new: str, **options: str) -> Plant:
    """A plant with one edit, of the file that contains the component."""
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
    "addition_data": "addition_data_generation.py",
    "train_one_epoch": "addition_run.py",
    "evaluate_loss": "addition_run.py",
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
    edit(
        "rope",
        "not in float32",
        "return factor * angles.cos(), factor * angles.sin()",
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

ENABLE_GQA = "enable_gqa=bool(key.shape[1] != query.shape[1]),"
BLOCKWISE = "        return F.scaled_dot_product_attention(\n            query,"
HEADS = """        key, value = (
            t.repeat_interleave(query.shape[1] // t.shape[1], dim=1) for t in (key, value)
        )
        scores = query @ key.transpose(-2, -1) / math.sqrt(self.head_dim)
"""
IS_CAUSAL = "is_causal = self.is_causal and mask is None\n"
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
        "is_causal = mask is None\n",
    ),
    edit(
        "attention",
        "not causal where the edition is",
        IS_CAUSAL,
        "is_causal = False\n",
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
        "dropout before the softmax",
        BLOCKWISE,
        f"{HEADS}        return F.dropout(scores, dropout).softmax(-1) @ value\n{BLOCKWISE}",
    ),
    edit(
        "attention",
        "GQA heads tiled instead of repeated",
        "        if is_better_by_hand(query, key, value):",
        "        repeats = query.shape[1] // key.shape[1]\n"
        "        key, value = (t.repeat(1, repeats, 1, 1) for t in (key, value))\n"
        "        if is_better_by_hand(query, key, value):",
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
ARGMAX = "most_probable = logits.argmax(dim=-1, keepdim=True)"
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
    edit(
        "generate",
        "argmax of the wrong axis",
        ARGMAX,
        "most_probable = logits.argmax(0, keepdim=True)",
    ),
    edit(
        "generate",
        "argmax of the wrong axis",
        ARGMAX,
        "most_probable = logits.argmax(0).unsqueeze(1)",
    ),
    edit(
        "generate",
        "sampling ties",
        ARGMAX,
        "most_probable = (logits == logits.amax(-1, keepdim=True)).float().multinomial(1)",
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

TOP_P_KEPT = "ordered = torch.where(before < max(top_p, SMALLEST), ordered, 0.0)"
TOP_P_BACK = "kept = torch.zeros_like(probs).scatter_(-1, ids, ordered)"
FIRST = "(torch.arange(ordered.shape[-1]) == 0)"
DESCENDING = "probs.sort(dim=-1, descending=True, stable=True)"


def top_p(name: str, old: str, new: str) -> Plant:
    return edit("generate", name, old, new, edition="spring2026")


TOP_P = [
    top_p(
        "the token that reaches top_p is left out",
        TOP_P_KEPT,
        f"ordered = torch.where((before + ordered < top_p) | {FIRST}, ordered, 0.0)",
    ),
    top_p(
        "the token that reaches top_p is left out",
        TOP_P_KEPT,
        "ordered = torch.where(ordered.cumsum(-1) <= top_p, ordered, 0.0)",
    ),
    top_p("> against ≥ in top-p", TOP_P_KEPT, TOP_P_KEPT.replace("<", "<=")),
    top_p("sorted the wrong way", DESCENDING, "probs.sort(dim=-1, stable=True)"),
    top_p("ranks taken for token ids", TOP_P_BACK, "kept = ordered"),
    top_p(
        "tokens outside the nucleus are kept",
        TOP_P_KEPT,
        TOP_P_KEPT.replace("before <", "before >="),
    ),
    top_p(
        "epsilon in place of top-p",
        "if top_p < 1:",
        "if top_p < 1:\n        return epsilon_filter(probs, 0.05)\n    if False:",
    ),
    top_p("no filter", "if top_p < 1:", "if top_p < 0:"),
]


def addition(component: str, name: str, old: str, new: str) -> Plant:
    return edit(component, name, old, new, edition="spring2026")


TRAIN_LOSS = "loss = answer_loss(model, inputs.to(device), targets.to(device))"
LOSSES = "losses = [answer_loss(model, x.to(device), y.to(device)) for x, y in loader]"
ENTROPY = '__import__("torch").nn.functional.cross_entropy(logits.mT, y, ignore_index=-1)'
ASIDE = "y.masked_fill({}, -1)"
LOSS_FORMS = {
    "the question carries loss as well": ENTROPY,
    "the question carries loss, the answer none": ENTROPY.replace(
        "y,", f"{ASIDE.format('(x == 12).cumsum(1) > 0')},"
    ),
    "= itself carries loss": ENTROPY.replace("y,", f"{ASIDE.format('(y == 12).cumsum(1) == 0')},"),
    "the answer's first digit carries no loss": ENTROPY.replace(
        "y,", f"{ASIDE.format('(x == 12) | ((x == 12).cumsum(1) == 0)')},"
    ),
    "the answer's end carries no loss": ENTROPY.replace(
        "y,", f"{ASIDE.format('(y == 0) | ((x == 12).cumsum(1) == 0)')},"
    ),
    "the loss is summed, not averaged": ENTROPY.replace(
        "y, ", f"{ASIDE.format('(x == 12).cumsum(1) == 0')}, reduction='sum', "
    ),
    "the mean is over the question as well": (
        f"({ENTROPY[:-1]}, reduction='none') * ((x == 12).cumsum(1) > 0)).mean()"
    ),
    "softmax before cross-entropy": ENTROPY.replace("logits", "logits.softmax(-1)").replace(
        "y,", f"{ASIDE.format('(x == 12).cumsum(1) == 0')},"
    ),
}
PAIRS_DRAWN = "drawn = drawn[~np.isin(drawn, taken)][:n]"
TEXTS = 'return [f"{a}+{b}={a + b}" for a, b in zip(first, second, strict=True)]'
BY_HAND = """\
return [
        f"{{a}}+{{b}}={{a + b}}"
        for a, b in {pairs}
    ]"""
TWO = "((random.randint({low}, {high}), random.randint({low}, {high})) for _ in range(n))"
ADDITION = [
    *(
        addition(
            "train_one_epoch",
            name,
            TRAIN_LOSS,
            f"loss = (lambda x, y, logits: {form})"
            "(inputs, targets, model(inputs, targets=targets)[0])",
        )
        for name, form in LOSS_FORMS.items()
    ),
    *(
        addition(
            "evaluate_loss",
            name,
            LOSSES,
            f"losses = [(lambda x, y, logits: {form})(x, y, model(x, targets=y)[0])"
            " for x, y in loader]",
        )
        for name, form in LOSS_FORMS.items()
    ),
    *(
        addition("train_one_epoch", name, old, new)
        for name, old, new in (
            ("gradients are never set to 0", "        optimizer.zero_grad()\n", ""),
            (
                "gradients are set to 0 before the step",
                "        optimizer.step()\n",
                "        optimizer.zero_grad()\n        optimizer.step()\n",
            ),
            ("no step is made", "        optimizer.step()\n", ""),
            ("the model is not in training mode", "    model.train()\n", ""),
            (
                "the batches' losses are not averaged",
                "losses.append(loss.detach())\n    return float(sum(losses)) / len(losses)",
                "losses.append(loss.detach())\n    return float(sum(losses))",
            ),
            (
                "the last batch's loss",
                "losses.append(loss.detach())\n    return float(sum(losses)) / len(losses)",
                "losses.append(loss.detach())\n    return float(losses[-1])",
            ),
        )
    ),
    addition("evaluate_loss", "the model is in training mode", "    model.eval()\n", ""),
    *(
        addition(
            "evaluate_loss",
            name,
            f"{LOSSES}\n    return float(sum(losses)) / len(losses)",
            f"{LOSSES}\n    return {new}",
        )
        for name, new in (
            ("the batches' losses are not averaged", "float(sum(losses))"),
            ("the last batch's loss", "float(losses[-1])"),
        )
    ),
    *(
        addition("addition_data", name, TEXTS, new)
        for name, new in (
            ("a pair comes twice", BY_HAND.format(pairs=TWO.format(low=1000, high=9999))),
            (
                "a pair comes in both orders",
                BY_HAND.format(
                    pairs="[p for a, b in zip(first[: n // 2], second[: n // 2], strict"
                    "=True) for p in ((a, b), (b, a))]"
                ),
            ),
            ("spaces in the additions", TEXTS.replace("+", " + ", 1).replace("=", " = ", 1)),
            ("the sum is left out", TEXTS.replace("={a + b}", "=")),
            ("numbers below 1000", TEXTS.replace("{a}+{b}={a + b}", "{a - 999}+{b}={a - 999 + b}")),
            ("numbers above 9999", TEXTS.replace("{a}+{b}={a + b}", "{a + 999}+{b}={a + 999 + b}")),
            ("one addition fewer", f"{TEXTS}[1:]"),
        )
    ),
    addition(
        "addition_data",
        "one addition more",
        f"    {TEXTS}",
        f"    return [first and '1000+1000=2000', *{TEXTS[7:]}]",
    ),
]


# --- of the student's solution: what public solutions have, in our own words ---

STUDENT_FILES = {**FILES, "generate": "llama.py"}


def by_student(component: str, names: str, *pairs: tuple[str, str], file: str = "") -> Plant:
    """`names` with "; " between them are made together."""
    first, *others = (MISTAKES[f"{component}: {name}"] for name in names.split("; "))
    file = file or STUDENT_FILES[component]
    edits_of_file = tuple((file, old, new) for old, new in pairs)
    return Plant(first, edits_of_file, of_student=True, others=tuple(others))


LINE_1 = "out[..., 0::2] = real * cos - imaginary * sin"
LINE_2 = "out[..., 1::2] = real * sin + imaginary * cos"
TURNED = "return turn(query), turn(key)"
S_ROPE = [
    *(
        by_student("rope", name, (line, f"{line.split(' = ')[0]} = {new}"))
        for name, line, new in (
            ("imaginary taken for real in the second line", LINE_2, "imaginary * (sin + cos)"),
            ("real taken for imaginary in the second line", LINE_2, "real * sin + real * cos"),
            ("real taken for imaginary in the first line", LINE_1, "real * (cos - sin)"),
            ("imaginary taken for real in the first line", LINE_1, "imaginary * (cos - sin)"),
            ("wrong sign in the first line", LINE_1, "real * cos + imaginary * sin"),
            ("wrong sign in the second line", LINE_2, "imaginary * cos - real * sin"),
            ("wrong sign in the second line", LINE_2, "real * sin - imaginary * cos"),
            ("a wrong term in the first line", LINE_1, "real * cos - imaginary * cos"),
            ("a wrong term in the second line", LINE_2, "real * cos + imaginary * sin"),
        )
    ),
    by_student(
        "rope",
        "real and imaginary part exchanged",
        (LINE_1, LINE_1.replace("0::2", "1::2")),
        (LINE_2, LINE_2.replace("1::2", "0::2")),
    ),
    by_student(
        "rope",
        "cos and sin exchanged",
        ("cos = angle.cos()", "cos = angle.sin()"),
        ("sin = angle.sin()", "sin = angle.cos()"),
    ),
    by_student("rope", "the key is computed from the query", (TURNED, "return (turn(query),) * 2")),
    by_student("rope", "query and key exchanged", (TURNED, "return turn(key), turn(query)")),
    by_student("rope", "theta is ignored", ("= theta **", "= 10000 **")),
    by_student(
        "rope",
        "the key takes the query's number of heads",
        (TURNED, "return turn(query), turn(key).view(query.shape)"),
    ),
    by_student(
        "rope",
        "the key takes the query's number of heads",
        (TURNED, "return turn(query), turn(key).expand(query.shape)"),
    ),
    by_student(
        "rope",
        "positions from 1; exponent without the 2",
        ("torch.arange(seq_len, device", "torch.arange(1, seq_len + 1, device"),
        ("torch.arange(0, head_dim, 2, device", "torch.arange(head_dim // 2, device"),
    ),
    by_student(
        "rope",
        "not in float32",
        ("angle = position[:, None] *", "angle = position.to(query.dtype)[:, None] *"),
        ("frequency[None, :]", "frequency.to(query.dtype)[None, :]"),
        ("cos = angle.cos()", "angle = angle.float()\n    cos = angle.cos()"),
    ),
    by_student(
        "rope",
        "frequencies from 1",
        ("torch.arange(0, head_dim, 2, device", "torch.arange(2, head_dim + 1, 2, device"),
    ),
    by_student("rope", "exponent without its sign", ("(-torch.arange", "(torch.arange")),
    by_student(
        "rope",
        "heads taken for positions",
        ("    cos = angle.cos()[None, :, None, :]\n", ""),
        ("    sin = angle.sin()[None, :, None, :]\n", ""),
        (
            "        real = x.float()",
            "        rows = angle[None, None, : x.shape[2]]\n"
            "        cos, sin = rows.cos(), rows.sin()\n        real = x.float()",
        ),
    ),
]
MEAN, VAR = (
    "mean = torch.mean(x, -1, keepdim=True)",
    "var = torch.mean((x - mean) ** 2, -1, keepdim=True)",
)
ROOT_OF_VAR = "return (x - mean) / torch.sqrt(var + self.eps)"
S_NORM = [
    by_student(
        "norm",
        "statistics over all axes",
        (MEAN, "mean = x.mean()"),
        (VAR, "var = (x - mean).pow(2).mean()"),
    ),
    by_student(
        "norm",
        "unbiased variance; eps outside the root",
        (ROOT_OF_VAR, "return (x - mean) / (x.std(-1, keepdim=True) + self.eps)"),
    ),
    by_student(
        "norm",
        "unbiased variance; wrong axis",
        (
            ROOT_OF_VAR,
            "return (x - x.mean(-2, True)) / (x.var(-2, keepdim=True) + self.eps).sqrt()",
        ),
    ),
    by_student(
        "norm",
        "unbiased variance; eps left out",
        (VAR, "var = x.var(-1, keepdim=True)"),
        ("torch.sqrt(var + self.eps)", "var.sqrt()"),
    ),
    by_student(
        "norm", "eps outside the root", (ROOT_OF_VAR, "return (x - mean) / (var.sqrt() + self.eps)")
    ),
    by_student("norm", "no root is taken", ("torch.sqrt(var + self.eps)", "(var + self.eps)")),
    by_student(
        "norm",
        "mean square in place of the variance",
        (VAR, "var = torch.mean(x**2, -1, keepdim=True)"),
    ),
]
SOFTMAX = "weights = self.attn_dropout(torch.softmax(weights, dim=-1))"
MIXED = "return torch.matmul(weights, value)"
DOT = "* (1.0 / math.sqrt(self.head_dim))"
S_ATTENTION = [
    by_student("attention", "multiplied by the root of d", (DOT, "* math.sqrt(self.head_dim)")),
    by_student(
        "attention", "scaled by the root of dim", (DOT, "/ (self.n_heads * self.head_dim) ** 0.5")
    ),
    by_student("attention", "no softmax", (SOFTMAX, "weights = self.attn_dropout(weights)")),
    by_student(
        "attention",
        "0 times infinity in the mask",
        (
            SOFTMAX,
            f"weights = weights + torch.ones_like(weights).triu(1) * -math.inf\n        {SOFTMAX}",
        ),
    ),
    by_student(
        "attention",
        "the mask hides the position itself",
        (
            SOFTMAX,
            "hidden = torch.ones_like(weights).triu(0).bool()\n"
            f"        weights = weights.masked_fill(hidden, -math.inf)\n        {SOFTMAX}",
        ),
    ),
    by_student(
        "attention",
        "dropout before the softmax",
        (SOFTMAX, "weights = torch.softmax(self.attn_dropout(weights), dim=-1)"),
    ),
    by_student(
        "attention",
        "dropout on the output as well",
        (MIXED, f"return self.resid_dropout({MIXED[7:]})"),
    ),
    by_student(
        "attention",
        "dropout on the output instead",
        (SOFTMAX, "weights = weights.softmax(-1)"),
        (MIXED, f"return self.attn_dropout({MIXED[7:]})"),
    ),
    by_student(
        "attention", "no scale; no dropout", (DOT, ""), (SOFTMAX, "weights = weights.softmax(-1)")
    ),
    by_student(
        "attention", "scaled by the root of another size", (DOT, "/ math.sqrt(self.n_heads)")
    ),
    by_student(
        "attention",
        "scaled after the softmax",
        (DOT, ""),
        (SOFTMAX, f"{SOFTMAX} / self.head_dim**0.5"),
    ),
    by_student(
        "attention",
        "query and key exchanged",
        ("torch.matmul(query, key.transpose(2, 3))", "torch.matmul(key, query.transpose(2, 3))"),
    ),
    by_student(
        "attention",
        "later scores set to 0",
        (SOFTMAX, f"weights = weights.tril()\n        {SOFTMAX}"),
    ),
    *(
        by_student(
            "attention",
            name,
            (
                SOFTMAX,
                f"shown = torch.ones_like(weights){shown}.bool()\n"
                f"        weights = weights.masked_fill(~shown, -math.inf)\n        {SOFTMAX}",
            ),
        )
        for name, shown in (
            ("the mask shows the next position", ".tril(1)"),
            ("the mask hides earlier positions", ".triu()"),
        )
    ),
    by_student(
        "attention",
        "dropout in evaluation",
        (SOFTMAX, "weights = nn.functional.dropout(weights.softmax(-1), self.attn_dropout.p)"),
    ),
]
GATED = "self.w2(gate * torch.sigmoid(gate) * self.w3(x))"
S_FEED_FORWARD = [
    by_student("feed_forward", name, (GATED, new))
    for name, new in (
        ("silu left out", "self.w2(gate * self.w3(x))"),
        ("relu in place of silu", "self.w2(gate.relu() * self.w3(x))"),
        ("gelu in place of silu", "self.w2(nn.functional.gelu(gate) * self.w3(x))"),
        ("added instead of multiplied", "self.w2(gate * torch.sigmoid(gate) + self.w3(x))"),
    )
]
ATTENDED = "x = x + self.attention(self.attention_norm(x))"
FED = "return x + self.feed_forward(self.ffn_norm(x))"
S_LAYER = [
    by_student(
        "layer",
        "ffn_norm is not used",
        (FED, "self.ffn_norm(x)\n        return x + self.feed_forward(x)"),
    ),
    by_student("layer", "ffn_norm is not used", ("self.ffn_norm(x))", "self.attention_norm(x))")),
    by_student("layer", "attention_norm is not used", (ATTENDED, "x = x + self.attention(x)")),
    by_student(
        "layer",
        "no norm is used",
        (ATTENDED, "x = x + self.attention(x)"),
        (FED, "return x + self.feed_forward(x)"),
    ),
    by_student(
        "layer",
        "the two norms exchanged",
        (ATTENDED, "x = x + self.attention(self.ffn_norm(x))"),
        (FED, "return x + self.feed_forward(self.attention_norm(x))"),
    ),
    by_student(
        "layer",
        "the norm's gain and bias are skipped",
        ("self.ffn_norm(x)", "self.ffn_norm._norm(x)"),
    ),
    by_student("layer", "half of the layer left out", (FED, "return x")),
]
LEFT = "kept = torch.where(total > 0, kept / total, best)"
S_GENERATE = [
    by_student("generate", "nothing left is not handled", (LEFT, "kept = kept / total")),
    by_student(
        "generate", "nothing left: drawn from all tokens", (LEFT, LEFT.replace("best", "probs"))
    ),
    by_student(
        "generate",
        "nothing left: drawn evenly",
        (LEFT, LEFT.replace("best", "torch.ones_like(probs) / probs.shape[-1]")),
    ),
    by_student("generate", "no renormalisation", (LEFT, LEFT.replace("kept / total", "kept"))),
    by_student(
        "generate", "argmin for argmax", ("torch.argmax(logits, dim", "torch.argmin(logits, dim")
    ),
    by_student(
        "generate",
        "top-p in place of epsilon",
        ("epsilon=0.05):", "top_p=0.95):"),
        (
            "kept = probs * (probs >= epsilon)",
            "ordered, order = probs.sort(descending=True)\n                "
            "rests = (ordered.cumsum(-1) - ordered >= top_p).scatter(-1, order, "
            "ordered.cumsum(-1) - ordered >= top_p)\n"
            "                kept = probs.masked_fill(rests, 0.0)",
        ),
    ),
    by_student(
        "generate", "epsilon is compared with logits", ("probs >= epsilon", "logits >= epsilon")
    ),
    by_student(
        "generate",
        "always the argmax",
        ("torch.multinomial(kept, num_samples=1)", "kept.argmax()[None, None]"),
    ),
    by_student(
        "generate",
        "multiplied by temperature; no filter",
        ("logits / temperature", "logits * temperature"),
        ("probs >= epsilon", "probs >= 0"),
    ),
]
LOW, WIDE = (
    "low = torch.matmul(x, self.lora_A.t())",
    "torch.matmul(low, self.lora_B.t()) * self.scaling",
)
S_LORA = [
    by_student(
        "lora",
        "B A without the transposes",
        (WIDE, "x @ (self.lora_B @ self.lora_A) * self.scaling"),
    ),
    by_student(
        "lora",
        "A x without the transposes",
        (LOW, "low = torch.matmul(self.lora_A, x)"),
        (WIDE, "torch.matmul(self.lora_B, low) * self.scaling"),
    ),
    by_student(
        "lora",
        "A x without the transposes",
        (LOW, "low = torch.matmul(x, self.lora_A)"),
        (WIDE, "torch.matmul(low, self.lora_B) * self.scaling"),
    ),
    by_student(
        "lora", "A B instead of B A", (WIDE, "x @ (self.lora_A @ self.lora_B) * self.scaling")
    ),
    by_student("lora", "W x left out", ("return self.original_layer(x) + ", "return ")),
    by_student(
        "lora",
        "the low-rank term is subtracted",
        ("self.original_layer(x) + torch", "self.original_layer(x) - torch"),
    ),
    by_student(
        "lora",
        "rank/alpha instead of alpha/rank",
        (WIDE, WIDE.replace("self.scaling", "(1 / self.scaling)")),
    ),
    by_student(
        "lora", "no scaling in merge_lora_weights", ("child.scaling * torch.mm", "torch.mm")
    ),
    by_student(
        "lora",
        "A and B stored transposed",
        ("randn(rank, original_layer.in_features)", "randn(original_layer.in_features, rank)"),
        ("zeros(original_layer.out_features, rank)", "zeros(rank, original_layer.out_features)"),
        ("self.lora_A.t()", "self.lora_A"),
        ("self.lora_B.t()", "self.lora_B"),
        ("torch.mm(child.lora_B, child.lora_A)", "torch.mm(child.lora_A, child.lora_B).t()"),
    ),
]
SIZE = 'size *= math.sqrt(1 - beta2 ** state["step"]) / (1 - beta1 ** state["step"])'
ASKED = 'if group["correct_bias"]:'
MOVED = 'p.data -= size * state["m"] / (state["v"].sqrt() + group["eps"])'
SHRUNK = 'p.data -= group["lr"] * group["weight_decay"] * p.data'
COUNTED = 'state["step"] += 1\n'
CORRECTED = """\
m, v, t = state["m"], state["v"], state["step"]
                if {asked}:
                    m, v = m / (1 - beta1**t), v / (1 - beta2**t)
                p.data -= group["lr"] * m / (v.sqrt() + group["eps"])"""
PLAIN, ALWAYS = CORRECTED.format(asked='group["correct_bias"]'), CORRECTED.format(asked="True")
KEPT = PLAIN.replace("m, v = m /", 'm, v = state["m"], state["v"] = m /')
EPS_BY_ROOT = MOVED.replace(
    '(state["v"].sqrt() + group["eps"])', '(state["v"] + group["eps"]).sqrt()'
)
S_OPTIMIZER = [
    by_student(
        "optimizer", "correct_bias ignored; plain instead of efficient form", (MOVED, ALWAYS)
    ),
    by_student(
        "optimizer",
        "decay before the step; plain instead of efficient form",
        (MOVED, f"{SHRUNK}\n                {PLAIN}"),
        (f"    {SHRUNK}\n        return", "    pass\n        return"),
    ),
    by_student(
        "optimizer",
        "decay before the step; correct_bias ignored; plain instead of efficient form",
        (MOVED, f"{SHRUNK}\n                {ALWAYS}"),
        (f"    {SHRUNK}\n        return", "    pass\n        return"),
    ),
    by_student(
        "optimizer", "no decay; plain instead of efficient form", (MOVED, PLAIN), (SHRUNK, "pass")
    ),
    by_student(
        "optimizer",
        "the corrected moments are kept",
        (MOVED, KEPT),
    ),
    by_student(
        "optimizer",
        "1-β left out of the moments",
        ("(1 - beta1) * grad", "grad"),
        ("(1 - beta2) * grad * grad", "grad**2"),
    ),
    by_student(
        "optimizer",
        "the gradient is not squared in v",
        ("(1 - beta2) * grad * grad", "(1 - beta2) * grad"),
        ('state["v"].sqrt()', 'state["v"].abs().sqrt()'),
    ),
    by_student("optimizer", "β1 and β2 exchanged", ("beta1, beta2 = g", "beta2, beta1 = g")),
    by_student(
        "optimizer",
        "all parameters share one t",
        (COUNTED, 'self.t = getattr(self, "t", 0) + 1\n                state["step"] = self.t\n'),
    ),
    by_student("optimizer", "the weight grows by the decay", (SHRUNK, SHRUNK.replace("-=", "+="))),
    by_student("optimizer", "the step is added", (MOVED, MOVED.replace("-=", "+="))),
    by_student(
        "optimizer",
        "short gradients are scaled up",
        (
            'torch.nn.utils.clip_grad_norm_(group["params"], group["max_grad_norm"])',
            """norm = torch.cat([p.grad.flatten() for p in group["params"]]).norm()
                for p in group["params"]:
                    p.grad *= group["max_grad_norm"] / norm""",
        ),
    ),
    by_student(
        "optimizer",
        "decay by the corrected step size",
        (SHRUNK, SHRUNK.replace('group["lr"]', "size")),
    ),
    by_student(
        "optimizer",
        "first moment not corrected",
        (SIZE, 'size *= math.sqrt(1 - beta2 ** state["step"])'),
    ),
    by_student(
        "optimizer", "the root of 1-β2^t is not taken", (SIZE, SIZE.replace("math.sqrt", ""))
    ),
    by_student("optimizer", "correct_bias reversed", (ASKED, 'if not group["correct_bias"]:')),
    by_student("optimizer", "t does not start at 1", ('state["step"] = 0', 'state["step"] = 1')),
    by_student(
        "optimizer",
        "correct_bias ignored; eps inside the root",
        (MOVED, EPS_BY_ROOT),
        (ASKED, "if True:"),
    ),
]
RETURNED = """\
h = self.norm(h)
        return self.output(h if targets is not None else h[:, [-1], :]), h"""
CHOSEN, LOGGED = "hidden[:, -1, :]", "return torch.log_softmax(logits, dim=-1)"
S_CLASSIFIER = [
    by_student(
        "classifier",
        "padding tested as id 0",
        (CHOSEN, "hidden[range(len(hidden)), (input_ids > 0).sum(1) - 1]"),
    ),
    by_student(
        "classifier",
        "padding tested as id 0",
        (CHOSEN, "torch.stack([h[int(ids.nonzero()[-1])] for h, ids in zip(hidden, input_ids)])"),
    ),
    by_student("classifier", "logits taken for hidden states", ("_, hidden =", "hidden, _ =")),
    by_student(
        "classifier",
        "logits taken for hidden states",
        ("_, hidden =", "hidden, _ ="),
        ("Linear(self.llama.config.dim", "Linear(self.llama.config.vocab_size"),
    ),
    by_student("classifier", "max pooling", (CHOSEN, "hidden.max(dim=1).values")),
    by_student("classifier", "the last token but one", (CHOSEN, "hidden[:, -2, :]")),
    by_student(
        "classifier",
        "log-softmax over the batch",
        (LOGGED, "return torch.log_softmax(logits, dim=0)"),
    ),
    by_student(
        "classifier",
        "log-softmax twice over",
        (LOGGED, "return logits.softmax(-1).log_softmax(-1)"),
    ),
    by_student(
        "classifier",
        "mean pooling; no dropout; no log-softmax",
        (f"self.dropout({CHOSEN})", "hidden.mean(1)"),
        (LOGGED, "return logits"),
    ),
    by_student(
        "classifier",
        "dropout on the logits",
        (LOGGED, "return torch.log_softmax(self.dropout(logits), dim=-1)"),
    ),
    by_student(
        "classifier",
        "final norm left out",
        (
            "_, hidden = self.llama(input_ids)",
            "hidden = self.llama.tok_embeddings(input_ids)\n"
            "        for layer in self.llama.layers:\n            hidden = layer(hidden)",
        ),
    ),
    by_student(
        "classifier",
        "padding is looked for",
        (CHOSEN, "hidden[range(len(hidden)), (input_ids != 3).sum(1) - 1]"),
    ),
    *(
        by_student("classifier", name, (old, new), file="llama.py")
        for name, old, new in (
            ("logits of all positions", "h if targets is not None else h[:, [-1], :]", "h"),
            ("logits without a dimension of positions", "h[:, [-1], :]", "h[:, -1, :]"),
            ("logits of the first position", "h[:, [-1], :]", "h[:, [0], :]"),
            ("final norm left out of Llama.forward", "        h = self.norm(h)\n", ""),
            (
                "hidden states before the final norm",
                RETURNED,
                RETURNED.replace("h = self", "n = self")
                .replace("(h if", "(n if")
                .replace("h[:", "n[:"),
            ),
        )
    ),
]

PLANTS = [
    *(*ROPE, *NORM, *ATTENTION, *LAYER, *GENERATE, *TOP_P),
    *(*LORA, *OPTIMIZER, *CLASSIFIER, *ADDITION),
]
STUDENT_PLANTS = [
    *(*S_ROPE, *S_NORM, *S_ATTENTION, *S_FEED_FORWARD, *S_LAYER),
    *(*S_GENERATE, *S_LORA, *S_OPTIMIZER, *S_CLASSIFIER),
]
