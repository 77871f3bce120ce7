"""Mistakes in public solutions, which must be named, and correct code in many styles."""

import importlib.util
import shutil
from pathlib import Path

import pytest

from mini_llama.diagnosis.diagnosis import components_of, diagnose, required_output
from mini_llama.diagnosis.findings import PASSES, Finding
from tests.helpers import ROOT
from tests.plants import STUDENT, apply_edits

SHARED = ROOT.parent / "shared" / "students" / "plants.py"
Findings = dict[str, Finding]

# By the first word of the id: the verdict, and texts that the report must contain.
WANTED = {
    "O1": (PASSES, "correct_bias ignored; plain instead of efficient form"),
    "O2": (PASSES, "decay by the corrected step size"),
    "O3": (PASSES, "decay before the step; plain instead of efficient form"),
    "O6": (
        PASSES,
        "differs with correct_bias=False: AttributeError",
        "right: plain, a large eps, weight decay, clipping",
    ),
    "C1": ("wrong", "padding tested as id 0"),
    "C2": ("wrong", "logits taken for hidden states"),
    "C3": ("correct",),
    "C4": ("correct",),
    "R1": (
        "wrong",
        "imaginary taken for real in the second line",
        "the course's rope_test does not see it",
    ),
    "R4": ("wrong", "the key takes the query's number of heads", "right where query and key have"),
    "R5": ("correct within float drift", "the angles are in float32"),
    "R7": ("wrong", "theta is ignored"),
    "N1": ("wrong", "statistics over all axes"),
    "N2": ("wrong", "unbiased variance; eps outside the root"),
    "N4": ("wrong", "unbiased variance; wrong axis"),
    "A1": ("NaN", "0 times infinity in the mask"),
    "A2": ("wrong", "dropout on the output as well"),
    "A4": ("exception", "an argument that the assignment does not have: mask", "right: scores"),
    "L1": ("wrong", "ffn_norm is computed, and its result is not used"),
    "L3": ("wrong", "the norm's gain and bias are skipped"),
    "G1": ("correct", "a batch fails"),
    "G3": ("correct", "a batch fails"),
    "G5": ("correct", "nothing left: drawn from all tokens"),
    "LO1": ("wrong", "B A without the transposes", "it runs on square layers only"),
    "F1": ("wrong", "logits of all positions"),
}


def edited(folder: Path, *edits: tuple[str, str, str]) -> Path:
    shutil.copytree(STUDENT, folder)
    apply_edits(folder, *edits)
    return folder


def diagnosed(folders: list[Path], edition: str = "mmia") -> list[Findings]:
    return [{f.component: f for f in found} for found in diagnose(folders, edition)]


def test_shared_plants_have_the_wanted_verdicts(tmp_path):
    if not SHARED.exists():
        pytest.skip("no ../shared/students/plants.py is here")
    spec = importlib.util.spec_from_file_location("shared_plants", SHARED)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    ids = [id.split()[0] for id, *_ in module.PLANTS]
    edits = [(file, old, new) for _, file, old, new, *_ in module.PLANTS]
    folders = [edited(tmp_path / id, one) for id, one in zip(ids, edits, strict=True)]
    components = [component for *_, component, _ in module.PLANTS]
    missed = {}
    for id, component, findings in zip(ids, components, diagnosed(folders), strict=True):
        verdict, *texts = WANTED[id]
        finding, report = findings.pop(component), ""
        report = str(finding)
        is_so = finding.verdict == verdict or (verdict == "correct" and finding.is_correct)
        others = [str(other) for other in findings.values() if not other.is_correct]
        if not is_so or not all(text in report for text in texts) or others:
            missed[id] = [report, *others]
    assert not missed
    assert WANTED.keys() == set(ids)


# --- correct code in other styles: no mistake, no failure ---

LLAMA, ROPE, OPTIMIZER, CLASSIFIER, LORA = (
    f"{name}.py" for name in ("llama", "rope", "optimizer", "classifier", "lora")
)
NORM_LINES = """        mean = torch.mean(x, -1, keepdim=True)
        var = torch.mean((x - mean) ** 2, -1, keepdim=True)
        return (x - mean) / torch.sqrt(var + self.eps)
"""
DOT_LINE = (
    "        weights = torch.matmul(query, key.transpose(2, 3)) * (1.0 / math.sqrt(self.head_dim))"
)
SCORES_LINES = f"""{DOT_LINE}
        weights = self.attn_dropout(torch.softmax(weights, dim=-1))
        return torch.matmul(weights, value)
"""
TURN_LINES = """        real = x.float()[..., 0::2]
        imaginary = x.float()[..., 1::2]
        out = torch.empty_like(x, dtype=torch.float32)
        out[..., 0::2] = real * cos - imaginary * sin
        out[..., 1::2] = real * sin + imaginary * cos
        return out
"""
SAMPLE_LINES = """                probs = torch.softmax(logits / temperature, dim=-1)
                kept = probs * (probs >= epsilon)
                total = kept.sum(dim=-1, keepdim=True)
                best = nn.functional.one_hot(probs.argmax(-1), probs.shape[-1]).float()
                kept = torch.where(total > 0, kept / total, best)
                chosen = torch.multinomial(kept, num_samples=1)
"""
LAYER_LINES = """        x = x + self.attention(self.attention_norm(x))
        return x + self.feed_forward(self.ffn_norm(x))
"""
STEP_LINES = """                size = group["lr"]
                if group["correct_bias"]:
                    size *= math.sqrt(1 - beta2 ** state["step"]) / (1 - beta1 ** state["step"])
                p.data -= size * state["m"] / (state["v"].sqrt() + group["eps"])
                p.data -= group["lr"] * group["weight_decay"] * p.data
"""
READ_LINES = """        _, hidden = self.llama(input_ids)
        logits = self.classifier_head(self.dropout(hidden[:, -1, :]))
"""
HEAD_LINE = "        self.num_labels = config.num_labels\n"
LORA_LINES = """        low = torch.matmul(x, self.lora_A.t())
        return self.original_layer(x) + torch.matmul(low, self.lora_B.t()) * self.scaling
"""
RIGHT = {
    "layer_norm of torch": (
        LLAMA,
        NORM_LINES,
        "        return nn.functional.layer_norm(x, x.shape[-1:], eps=self.eps)\n",
    ),
    "variance by two means": (
        LLAMA,
        NORM_LINES,
        """        mean = x.mean(-1, keepdim=True)
        var = x.pow(2).mean(-1, keepdim=True) - mean.pow(2)
        return (x - mean) * torch.rsqrt(var + self.eps)
""",
    ),
    "norm with a parameter of its own that starts at 0": (
        LLAMA,
        "        return self.weight * self._norm(x.float()).type_as(x) + self.bias\n",
        """        return (self.weight + self.more) * self._norm(x.float()).type_as(x) + self.bias

    @property
    def more(self):
        if not hasattr(self, "extra_gain"):
            self.extra_gain = nn.Parameter(torch.zeros_like(self.weight))
        return self.extra_gain
""",
    ),
    "attention by einsum": (
        LLAMA,
        SCORES_LINES,
        """        found = torch.einsum("bhid,bhjd->bhij", query, key) / self.head_dim**0.5
        found = self.attn_dropout(nn.functional.softmax(found, dim=-1))
        return torch.einsum("bhij,bhjd->bhid", found, value)
""",
    ),
    "attention of torch": (
        LLAMA,
        SCORES_LINES,
        """        drop = self.attn_dropout.p if self.training else 0.0
        return nn.functional.scaled_dot_product_attention(query, key, value, dropout_p=drop)
""",
    ),
    "scores by bmm of flattened heads": (
        LLAMA,
        SCORES_LINES,
        """        b, h, t, d = query.shape
        q, k, v = (part.reshape(b * h, -1, d) for part in (query, key, value))
        chances = torch.softmax(torch.bmm(q, k.mT) / d**0.5, dim=2)
        return torch.bmm(self.attn_dropout(chances), v).reshape(b, h, t, d)
""",
    ),
    "scores with a mask that may be left out": (
        LLAMA,
        "def compute_query_key_value_scores(self, query, key, value):\n",
        "def compute_query_key_value_scores(self, query, key, value, mask=None, *, causal=False):\n"
        "        assert mask is None and not causal\n",
    ),
    "layer that adds in place": (
        LLAMA,
        LAYER_LINES,
        """        shortcut, y = x, self.attention_norm(x)
        y = self.attention(y)
        y += shortcut
        out = self.feed_forward(self.ffn_norm(y))
        out += y
        return out
""",
    ),
    "silu of torch": (
        LLAMA,
        "self.w2(gate * torch.sigmoid(gate) * self.w3(x))",
        "self.w2(torch.nn.SiLU()(gate).mul(self.w3(x)))",
    ),
    "complex rotation": (
        ROPE,
        TURN_LINES,
        """        pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
        turned = pairs * torch.polar(torch.ones_like(angle), angle)[None, :, None, :]
        return torch.view_as_real(turned).flatten(-2).type_as(x)
""",
    ),
    "rotation by a matrix": (
        ROPE,
        TURN_LINES,
        """        x2 = x.float().unflatten(-1, (-1, 2)).unsqueeze(-1)
        c, s = cos.unsqueeze(-1), sin.unsqueeze(-1)
        turn_by = torch.stack((torch.cat((c, -s), -1), torch.cat((s, c), -1)), dim=-2)
        return torch.matmul(turn_by, x2).squeeze(-1).flatten(-2)
""",
    ),
    "rotation whose products are cast": (
        ROPE,
        TURN_LINES,
        """        a, b = x.float()[..., 0::2], x.float()[..., 1::2]
        first = (a * cos).to(x.dtype) - (b * sin).to(x.dtype)
        second = (a * sin).to(x.dtype) + (b * cos).to(x.dtype)
        return torch.stack((first, second), dim=-1).reshape(x.shape)
""",
    ),
    "rotation without an argument theta": (
        ROPE,
        "max_seq_len, theta=10000.0):\n",
        "max_seq_len, start=0):\n    theta = 1e4\n",
    ),
    "greedy for one sequence": (
        LLAMA,
        "chosen = torch.argmax(logits, dim=-1, keepdim=True)",
        "chosen = torch.tensor([[logits[0].argmax().item()]])",
    ),
    "sampling of one row of probabilities": (
        LLAMA,
        SAMPLE_LINES,
        """                probs = (logits / temperature).softmax(-1)[0]
                probs[probs < epsilon] = 0
                if probs.sum() == 0:
                    probs[logits[0].argmax()] = 1
                chosen = torch.multinomial(probs / probs.sum(), 1).view(1, 1)
""",
    ),
    "sampling from logits set to minus infinity": (
        LLAMA,
        SAMPLE_LINES,
        """                logits = logits / temperature
                low = torch.softmax(logits, dim=-1) < epsilon
                low.scatter_(-1, logits.argmax(-1, keepdim=True), False)
                logits = logits.masked_fill(low, float("-inf"))
                chosen = torch.multinomial(logits.softmax(dim=-1), num_samples=1)
""",
    ),
    "sampling by a distribution": (
        LLAMA,
        "chosen = torch.multinomial(kept, num_samples=1)",
        "chosen = torch.distributions.Categorical(probs=kept).sample().unsqueeze(-1)",
    ),
    "sampling by numpy": (
        LLAMA,
        "chosen = torch.multinomial(kept, num_samples=1)",
        """p = kept[0].double().numpy()
                chosen = __import__("numpy").random.choice(len(p), p=p / p.sum())
                chosen = torch.tensor([[int(chosen)]])""",
    ),
    "AdamW in place": (
        OPTIMIZER,
        STEP_LINES,
        """                t, rate = state["step"], group["lr"]
                if group["correct_bias"]:
                    rate = rate * (1 - beta2**t) ** 0.5 / (1 - beta1**t)
                p.data.addcdiv_(state["m"], state["v"].sqrt().add_(group["eps"]), value=-rate)
                if group["weight_decay"] != 0:
                    p.data.add_(p.data, alpha=-group["lr"] * group["weight_decay"])
""",
    ),
    "AdamW whose clipping is its own": (
        OPTIMIZER,
        'torch.nn.utils.clip_grad_norm_(group["params"], group["max_grad_norm"])',
        """norm = sum(p.grad.pow(2).sum() for p in group["params"]).sqrt()
                if norm > group["max_grad_norm"]:
                    for p in group["params"]:
                        p.grad.mul_(group["max_grad_norm"] / (norm + 1e-6))""",
    ),
    "classifier from the backbone's parts": (
        CLASSIFIER,
        READ_LINES,
        """        state = self.llama.dropout(self.llama.tok_embeddings(input_ids))
        for layer in self.llama.layers:
            state = layer(state)
        state = self.llama.norm(state)[:, -1]
        logits = self.classifier_head(self.dropout(state))
""",
    ),
    "classifier by index": (
        CLASSIFIER,
        READ_LINES,
        """        found = self.llama.forward(input_ids)[1]
        logits = self.classifier_head(self.dropout(found.select(1, input_ids.size(1) - 1)))
""",
    ),
    "classifier that makes a Tokenizer": (
        CLASSIFIER,
        HEAD_LINE,
        f"""{HEAD_LINE}
        from tokenizer import Tokenizer
        self.pad = Tokenizer().pad_id
""",
    ),
    "dropout as a function": (
        CLASSIFIER,
        "self.dropout(hidden[:, -1, :])",
        "torch.nn.functional.dropout(hidden[:, -1, :], self.dropout.p, self.training)",
    ),
    "LoRA by linear": (
        LORA,
        LORA_LINES,
        """        base = self.original_layer(x)
        low = nn.functional.linear(x, self.lora_A)
        base += self.scaling * nn.functional.linear(low, self.lora_B)
        return base
""",
    ),
    "LoRA by one product": (
        LORA,
        LORA_LINES,
        """        update = x @ (self.lora_B @ self.lora_A).transpose(0, 1)
        return update.mul(self.scaling) + self.original_layer(x)
""",
    ),
    "LoRA of other argument names": (
        LORA,
        "def apply_lora(model, rank=4, alpha=1.0):\n",
        "def apply_lora(model, r=4, lora_alpha=1.0):\n    rank, alpha = r, lora_alpha\n",
    ),
    "classifier that reads other options, and looks for the checkpoint": (
        CLASSIFIER,
        HEAD_LINE,
        f"""{HEAD_LINE}        import os
        assert os.path.exists(config.pretrained_model_path)
        self.how = config.lr, config.epochs, config.seed, dict(vars(config))
""",
    ),
    "LoRA that changes the model and returns nothing": (
        LORA,
        "            apply_lora(child, rank, alpha)\n    return model\n",
        "            apply_lora(child, rank, alpha)\n",
    ),
    "sampling among the indices that are left": (
        LLAMA,
        SAMPLE_LINES,
        """                probs = torch.softmax(logits[0] / temperature, dim=-1)
                left = torch.nonzero(probs >= epsilon).flatten()
                left = left if len(left) else probs.argmax().view(1)
                chosen = left[torch.multinomial(probs[left] / probs[left].sum(), 1)][None]
""",
    ),
    "softmax in float32": (
        LLAMA,
        "torch.softmax(weights, dim=-1)",
        "nn.functional.softmax(weights.float(), dim=-1).type_as(query)",
    ),
    "packages that are not installed": (
        LLAMA,
        "from utils import *\n",
        """from utils import *
import no_such_logger as log
from no_such_types import Float, checked
try:
    import no_such_attention
    HAS_IT = True
except ImportError:
    HAS_IT = False
assert not HAS_IT
log.init(project="x")


@checked
def shape_of(x: Float["b t"]):
    return x.shape
""",
    ),
}


def test_correct_code_in_other_styles_is_correct(tmp_path):
    folders = [edited(tmp_path / f"{i}", one) for i, one in enumerate(RIGHT.values())]
    alarms = {}
    for name, findings in zip(RIGHT, diagnosed(folders), strict=True):
        found = [str(finding) for finding in findings.values() if not finding.is_correct]
        if found:
            alarms[name] = found
    assert not alarms


TOP_P = """                probs, order = probs.sort(dim=-1, descending=True)
                after = probs.cumsum(dim=-1)
                probs[{outside}] = 0.0
                probs = probs / probs.sum(dim=-1, keepdim=True)
                chosen = order.gather(-1, torch.multinomial(probs, num_samples=1))
"""
TEMPERED = "                probs = torch.softmax(logits / temperature, dim=-1)\n"


def test_top_p_of_the_spring_editions(tmp_path):
    """The token that reaches top_p belongs to the nucleus; spring 2025's text leaves it open."""
    signature = (LLAMA, "epsilon=0.05):", "top_p=0.9):")
    first = "torch.zeros_like(probs).index_fill(-1, torch.tensor([0]), 1.0).bool()"
    folders = [
        edited(
            tmp_path / name, signature, (LLAMA, SAMPLE_LINES, TEMPERED + TOP_P.format(outside=o))
        )
        for name, o in (
            ("right", "after - probs >= top_p"),
            ("at the sum", "after - probs > top_p"),
            ("left out", f"(after > top_p) & ~{first}"),
        )
    ]
    later, earlier = (
        [found["generate"] for found in diagnosed(folders, edition)]
        for edition in ("spring2026", "spring2025")
    )
    assert [finding.verdict for finding in later] == ["correct", "correct", "wrong"]
    assert [finding.is_correct for finding in earlier] == [True, True, True]
    assert later[1].remarks[0].startswith("> against ≥ in top-p: this makes a difference")
    assert later[2].mistake == "the token that reaches top_p is left out"
    assert earlier[2].remarks == (
        "the token that reaches top_p is left out: this edition's text allows this reading",
    )


GIVEN = ("base_llama", "config", "tokenizer", "utils")


def without(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).unlink()
    return folder


def test_components_that_an_edition_does_not_require_may_be_missing(tmp_path):
    all_positions = (LLAMA, "h if targets is not None else h[:, [-1], :]", "h")
    folders = [
        without(edited(tmp_path / "no lora"), LORA),
        without(edited(tmp_path / "neither"), LORA, CLASSIFIER),
        without(edited(tmp_path / "logits", all_positions), LORA, CLASSIFIER),
    ]
    assert required_output("lora", {"missing": "lora.py"}, "fall2024") is None
    no_lora, neither, logits = diagnosed(folders)
    assert no_lora["lora"].verdict == "missing"
    assert neither["classifier"].verdict == "missing"
    assert logits["classifier"].mistake == "logits of all positions"
    assert "classifier.py" in logits["classifier"].detail
    _, neither, logits = diagnosed(folders, "spring2026")
    assert "lora" not in neither and neither["classifier"].verdict == "correct"
    # Llama.forward is examined even without a classifier
    assert logits["classifier"].mistake == "logits of all positions"


def test_the_three_functions_of_the_addition_task(tmp_path):
    """One edition requires them; the course's addition_lib.py need not be submitted."""
    names = ("addition_data", "train_one_epoch", "evaluate_loss")
    folders = [
        edited(tmp_path / "right"),
        without(edited(tmp_path / "without"), "addition_run.py"),
        edited(
            tmp_path / "wrong",
            ("addition_run.py", "(y != -1)", "(y > 0)"),
            ("addition_data_generation.py", "pair = sorted(", "pair = list("),
            ("addition_data_generation.py", "            random.shuffle(pair)\n", ""),
        ),
    ]
    right, none, wrong = diagnosed(folders, "spring2026")
    assert [right[name].verdict for name in names] == ["correct"] * 3
    assert [none[name].detail for name in names[1:]] == ["addition_run.py"] * 2
    assert [wrong[name].mistake for name in names] == [
        "a pair comes in both orders",
        "the answer's end carries no loss",
        "the answer's end carries no loss",
    ]
    assert not {*components_of("mmia")} & {*names}


def without_given(folder: Path, *kept: str) -> Path:
    edited(folder)
    return without(folder, *(f"{name}.py" for name in GIVEN if name not in kept))


def as_package(folder: Path) -> Path:
    """Its modules import each other by relative names."""
    for path in edited(folder).glob("*.py"):
        text = path.read_text(encoding="utf-8")
        for name in ("base_llama", "config", "llama", "rope", "utils"):
            text = text.replace(f"from {name} import", f"from .{name} import")
        path.write_text(text, encoding="utf-8")
    return folder


def test_missing_files_and_packages(tmp_path):
    """Ours replace the course's missing files; a missing package matters only to the component that
    uses it.
    """
    *right, lacking = diagnosed(
        [
            without_given(tmp_path / "none"),
            without_given(tmp_path / "config", "config"),
            without_given(tmp_path / "two", "utils", "base_llama"),
            as_package(tmp_path / "me" / "src"),
            edited(
                tmp_path / "lacking",
                (LLAMA, "from utils import *\n", "from utils import *\nfrom no_such import mix\n"),
                (LLAMA, "        gate = self.w1(x)\n", "        gate = mix(self.w1(x))\n"),
            ),
        ]
    )
    for findings in right:
        assert [str(f) for f in findings.values() if not f.is_correct] == []
    finding = lacking.pop("feed_forward")
    assert finding.verdict == "not examined"
    assert "No module named 'no_such' is installed here" in finding.detail
    assert all(other.is_correct for other in lacking.values())
