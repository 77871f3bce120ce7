"""sanity_check.py finds the edition that reference data was made with, or says that none is it."""

import re
import subprocess
import sys

import numpy as np
import pytest
import torch

import llama
import sanity_check
from config import EDITIONS
from mini_llama.checkpoints.formats.torch_file import save_checkpoint
from tests import oracle
from tests.helpers import ROOT, numpy_weights, random_llama, tiny_config


@pytest.fixture
def model_file(tmp_path):
    """A small model with the assignment's vocabulary, in a file that records no arithmetic."""
    model = random_llama(tiny_config(vocab_size=18000, norm="rmsnorm"))
    args = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "multiple_of": 8}
    args |= {"vocab_size": 18000, "max_seq_len": 16}
    torch.save({"model": model.state_dict(), "model_args": args}, tmp_path / "m.pt")
    return tmp_path / "m.pt", numpy_weights(model)


def write_reference(path, weights: dict, edition: str, noise: float = 0.0):
    """The reference file of an edition, computed by the float64 oracle."""
    logits, hidden_states = oracle.forward(
        weights,
        n_heads=4,
        n_kv_heads=2,
        norm=EDITIONS[edition].norm,
        attention=EDITIONS[edition].attention,
        tokens=sanity_check.TOKENS.numpy(),
    )
    hidden_states[0, 0, 0] += noise
    arrays = {"logits": logits[:, -1:], "hidden_states": hidden_states}
    torch.save({k: torch.from_numpy(v).float() for k, v in arrays.items()}, path)
    return path


def run(monkeypatch, *args: object) -> int | str:
    monkeypatch.setattr(sys, "argv", ["sanity_check.py", *map(str, args)])
    try:
        sanity_check.main()
    except SystemExit as stop:
        return stop.code
    return 0


@pytest.mark.parametrize(
    ("edition", "same"),
    [
        ("mmia", ["mmia", "fall2025"]),
        ("fall2024", ["fall2024", "spring2025"]),
        ("spring2026", ["spring2026"]),
        ("llama2", ["llama2"]),
    ],
)
def test_names_the_edition(tmp_path, monkeypatch, capsys, model_file, edition, same):
    checkpoint, weights = model_file
    reference = write_reference(tmp_path / "r.data", weights, edition)
    code = run(monkeypatch, "--checkpoint", checkpoint, "--reference", reference)
    output = capsys.readouterr().out
    assert code == 0 and "Your Llama implementation is correct!" in output
    matching = [line.split()[0] for line in output.splitlines() if line.endswith("  matches")]
    assert matching == same
    errors = {line.split()[0]: float(line.split()[1]) for line in output.splitlines()[1:6]}
    assert all(error < 1e-5 for name, error in errors.items() if name in same)
    assert all(error > 1e-2 for name, error in errors.items() if name not in same)


def test_biases_rule_out_only_the_editions_without(tmp_path, monkeypatch, capsys):
    model = random_llama(tiny_config(vocab_size=18000, norm="layernorm"))
    save_checkpoint(tmp_path / "m.pt", model.config, model.state_dict())
    reference = write_reference(tmp_path / "r.data", numpy_weights(model), "mmia")
    code = run(monkeypatch, "--checkpoint", tmp_path / "m.pt", "--reference", reference)
    assert code == 0
    lines = capsys.readouterr().out.splitlines()[1 : 1 + len(EDITIONS)]
    rows = {line.split()[0]: line for line in lines}
    assert rows["mmia"].endswith("matches") and "inf" in rows["llama2"]


def test_fails_when_none_matches(tmp_path, monkeypatch, capsys, model_file):
    checkpoint, weights = model_file
    reference = write_reference(tmp_path / "r.data", weights, "mmia", noise=3e-2)
    code = run(monkeypatch, "--checkpoint", checkpoint, "--reference", reference)
    assert "no edition's arithmetic" in str(code)
    assert "correct" not in capsys.readouterr().out


def test_missing_files(tmp_path, monkeypatch, capsys):
    code = run(monkeypatch, "--checkpoint", tmp_path / "nothere.pt")
    assert "nothere.pt does not exist" in str(code) and "setup.sh" in str(code)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("content", [{"logits": 3}, [1]])
def test_bad_reference(tmp_path, monkeypatch, model_file, content):
    torch.save(content, tmp_path / "r.data")
    code = run(monkeypatch, "--checkpoint", model_file[0], "--reference", tmp_path / "r.data")
    assert str(code).startswith("sanity_check.py: error: ") and "\n" not in str(code)


def test_other_shapes(tmp_path, monkeypatch, model_file):
    reference = {"logits": torch.zeros(2, 1, 9), "hidden_states": torch.zeros(2, 8, 32)}
    torch.save(reference, tmp_path / "r.data")
    code = run(monkeypatch, "--checkpoint", model_file[0], "--reference", tmp_path / "r.data")
    assert "shape [2, 1, 18000]" in str(code)


@pytest.mark.parametrize("edition", ["fall2024", "fall2025", "spring2026"])
def test_reads_the_real_references(shared, edition: str):
    path = shared / "reference" / f"sanity_check-{edition}.data"
    reference = sanity_check.load_reference(path)
    assert reference["logits"].shape == (2, 1, 32000)
    assert reference["hidden_states"].shape == (2, 8, 512)
    assert all(np.isfinite(t.numpy()).all() for t in reference.values())


def test_products_are_torchs_and_the_fast_ones_are_reported(
    tmp_path, monkeypatch, capsys, model_file
):
    """A fast product that is wrong costs no student the check, and is seen all the same."""
    checkpoint, weights = model_file
    reference = write_reference(tmp_path / "r.data", weights, "mmia")
    monkeypatch.setattr("mini_llama.layers.linear.has_onednn", lambda: True)
    monkeypatch.setattr("mini_llama.layers.linear._product", lambda x, w: 1.01 * (x @ w.T))
    assert run(monkeypatch, "--checkpoint", checkpoint, "--reference", reference) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("By the"))
    beyond, by_torch = re.findall(r"mmia: .* (\d+) of 36512 .* and (\d+) by F\.linear", line)[0]
    assert int(beyond) > 1000 and by_torch == "0"
    monkeypatch.setattr("mini_llama.layers.linear.has_onednn", lambda: False)
    assert run(monkeypatch, "--checkpoint", checkpoint, "--reference", reference) == 0
    assert "By the" not in capsys.readouterr().out  # there is no other product


# --explain


def explained(monkeypatch, capsys, *args: object) -> tuple[int | str, str]:
    code = run(monkeypatch, "--explain", *args)
    return code, capsys.readouterr().out


def test_explain_the_bundled_model(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, output = explained(monkeypatch, capsys)
    lines = output.splitlines()
    assert code == 0 and lines[-1] == "Your Llama implementation is correct!"
    assert lines[0] == "Formulas: rmsnorm, causal attention (llama2)."
    assert [line.split()[0] for line in lines[2:4]] == ["weights", "tok_embeddings"]
    assert lines.index("No difference: every place agrees with its formula.") == 1 + 5 + 5 * 6 + 1
    assert "first difference" not in output


@pytest.mark.parametrize("edition", ["mmia", "fall2024", "spring2026", "llama2"])
def test_explain_takes_the_formulas_of_the_reference(
    tmp_path, monkeypatch, capsys, model_file, edition
):
    """A fault is named whatever the edition, and no other is tried in the model's place."""
    checkpoint, weights = model_file
    reference = write_reference(tmp_path / "r.data", weights, edition)
    monkeypatch.setattr(
        llama.LlamaLayer,
        "forward",
        lambda self, x, *rest: x + self.attention(self.attention_norm(x)),
    )
    code, output = explained(
        monkeypatch, capsys, "--checkpoint", checkpoint, "--reference", reference
    )
    chosen = EDITIONS[edition]
    assert "no edition's arithmetic" in str(code)
    assert output.startswith(f"Formulas: {chosen.norm}, {chosen.attention} attention (")
    assert "First difference: layers.0.ffn_norm: it is never called" in output
    assert output.count("<- first difference") == 1 and "The model follows" not in output


def test_explain_a_loader_that_knows_no_edition(tmp_path, monkeypatch, capsys, model_file):
    """The courses' load_pretrained takes a path only; this one has the mask of another edition."""
    checkpoint, weights = model_file
    monkeypatch.setattr(
        sanity_check, "load_pretrained", lambda path: llama.load_pretrained(path, "spring2026")
    )
    files = ["--checkpoint", checkpoint, "--reference", tmp_path / "r.data"]
    write_reference(tmp_path / "r.data", weights, "mmia")
    code, output = explained(monkeypatch, capsys, *files)
    assert "no edition's arithmetic" in str(code)
    assert "First difference: layers.0.attention: its output differs by" in output
    assert "; it is what causal attention gives." in output
    assert "The model follows layernorm, causal attention: spring2026." in output
    assert output.splitlines()[-1].startswith("your model ")
    write_reference(tmp_path / "r.data", weights, "spring2026")
    code, output = explained(monkeypatch, capsys, *files)
    assert code == 0 and "No difference" in output and "is correct!" in output


def test_explain_says_where_strict_false_left_weights(tmp_path, monkeypatch, capsys, model_file):
    checkpoint, weights = model_file
    reference = write_reference(tmp_path / "r.data", weights, "mmia")

    def load_loosely(path: str, edition: str) -> llama.Llama:
        model = llama.load_pretrained(path, edition)
        torch.nn.init.normal_(model.layers[1].attention.compute_query.weight)
        return model

    monkeypatch.setattr(sanity_check, "load_pretrained", load_loosely)
    _, output = explained(monkeypatch, capsys, "--checkpoint", checkpoint, "--reference", reference)
    assert (
        "First difference: weights: layers.1.attention.compute_query.weight is not what the "
        "checkpoint holds. Load with strict=True" in output
    )


def test_explain_a_reference_of_other_weights(tmp_path, monkeypatch, capsys, model_file):
    checkpoint, weights = model_file
    reference = write_reference(tmp_path / "r.data", weights, "fall2024", noise=3e-2)
    code, output = explained(
        monkeypatch, capsys, "--checkpoint", checkpoint, "--reference", reference
    )
    assert "no edition's arithmetic" in str(code) and "No difference: every place" in output
    assert "in any edition: it is of other weights. Nearest: fall2024, 0.0" in output


def test_explain_a_model_that_fails(tmp_path, monkeypatch, model_file):
    checkpoint, weights = model_file
    reference = write_reference(tmp_path / "r.data", weights, "mmia")
    monkeypatch.setattr(llama.FeedForward, "forward", lambda self, x: self.w1(self.w1(x)))
    code = run(monkeypatch, "--explain", "--checkpoint", checkpoint, "--reference", reference)
    assert "the model fails in layers.0.feed_forward: RuntimeError" in str(code)
    assert "\n" not in str(code)


def test_explain_does_not_know_scaled_rope(tmp_path, monkeypatch, model_file):
    checkpoint, weights = model_file
    reference = write_reference(tmp_path / "r.data", weights, "mmia")
    content = torch.load(checkpoint, weights_only=True)
    content["model_args"]["rope_scaling"] = {"rope_type": "linear", "factor": 2.0}
    torch.save(content, checkpoint)
    code = run(monkeypatch, "--explain", "--checkpoint", checkpoint, "--reference", reference)
    assert "has scaled RoPE, which the float64 formulas do not know" in str(code)
    content["model_args"] |= {"rope_scaling": None, "mlp_bias": True}
    torch.save(content, checkpoint)
    code = run(monkeypatch, "--explain", "--checkpoint", checkpoint, "--reference", reference)
    assert "has projections with biases, which the explanation does not know" in str(code)


def test_explain_a_reference_that_is_not_finite(tmp_path, monkeypatch, capsys, model_file):
    checkpoint, weights = model_file
    reference = write_reference(tmp_path / "r.data", weights, "mmia", noise=np.nan)
    code = run(monkeypatch, "--explain", "--checkpoint", checkpoint, "--reference", reference)
    assert "hidden_states" in str(code) and "not finite" in str(code)


# The course's scripts, reduced to their import lines and what they call.
COURSE_SCRIPT = """
from base_llama import LlamaPreTrainedModel, LlamaConfig
from classifier import LlamaZeroShotClassifier, LlamaEmbeddingClassifier
from config import LlamaConfig
from llama import Attention, FeedForward, LayerNorm, Llama, LlamaLayer, RMSNorm, load_pretrained
from lora import (
    LoRALayer, apply_lora, count_lora_parameters, get_lora_optimizer_params, merge_lora_weights
)
from optimizer import AdamW
from rope import apply_rotary_emb
from tokenizer import Tokenizer
from utils import *

import torch
model = load_pretrained("m.pt")
with torch.no_grad():
    logits, hidden_states = model(torch.tensor([[101, 7592, 2088, 102, 0, 0, 0, 0]]))
assert logits.shape == (1, 1, 18000) and hidden_states.shape == (1, 8, 32)
model.generate(torch.tensor([[1]]), 3, temperature=1.0, epsilon=0.05)
"""


def test_the_courses_import_lines(tmp_path, model_file):
    done = subprocess.run(
        [sys.executable, "-c", COURSE_SCRIPT],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
