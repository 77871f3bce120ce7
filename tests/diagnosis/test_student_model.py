"""sanity_check.py --code: students' models of every course's shape, their faults at their place."""

import sys
from pathlib import Path

import pytest
import torch

import sanity_check
from config import EDITIONS
from mini_llama.diagnosis import student_model
from mini_llama.diagnosis.registry import MISTAKES
from tests.helpers import numpy_weights, random_llama, tiny_config
from tests.submissions.student_shapes import COURSES, student_files
from tests.test_sanity_check import write_reference

ARGS = dict(dim=32, n_layers=2, n_heads=4, n_kv_heads=2, multiple_of=8, max_seq_len=16)
ARGS |= dict(vocab_size=18000)
MATCHES = "Your Llama implementation is correct!"
NO_DIFFERENCE = "No difference: every place agrees with its formula."


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A checkpoint in the courses' form, and its weights."""
    folder = tmp_path_factory.mktemp("files")
    model = random_llama(tiny_config(vocab_size=18000, norm="rmsnorm"))
    torch.save({"model": model.state_dict(), "model_args": ARGS}, folder / "stories42M.pt")
    return folder, numpy_weights(model)


@pytest.fixture
def examine(files, tmp_path, monkeypatch, capsys):
    """What is printed of a student's folder, its lines, with the exit status."""

    def run(sources: dict[str, str], edition: str = "mmia", noise: float = 0.0) -> tuple:
        folder, weights = files
        code = tmp_path / "code"
        code.mkdir()
        for name, text in sources.items():
            (code / name).write_text(text, encoding="utf-8")
        reference = write_reference(tmp_path / "r.data", weights, edition, noise)
        arguments = ["--checkpoint", folder / "stories42M.pt", "--reference", reference]
        arguments += ["--explain", "--code", code]
        monkeypatch.setattr(sys, "argv", ["sanity_check.py", *map(str, arguments)])
        status: int | str | None = 0
        try:
            sanity_check.main()
        except SystemExit as stop:
            status = stop.code
        printed = capsys.readouterr()
        is_message = isinstance(status, str)  # Python prints it and exits with 1
        errors = printed.err + (f"{status}\n" if is_message else "")
        return 1 if is_message else status, printed.out.splitlines(), errors

    return run


@pytest.mark.parametrize("edition", COURSES)
def test_right_models_of_every_course(examine, edition):
    status, lines, _ = examine(student_files(edition), edition)
    assert status == 0 and NO_DIFFERENCE in lines and lines[-1] == MATCHES
    norm, attention = EDITIONS[edition].norm, EDITIONS[edition].attention
    assert lines[0].startswith(f"Formulas: {norm}, {attention} attention (")
    places = [line.split()[0] for line in lines[2 : lines.index(NO_DIFFERENCE)]]
    assert len(places) == 5 + 2 * (6 + 5)
    assert "layers.1.attention.apply_rotary_emb" in places


# What a student may write in another way: every one is right.
CALLS = "self.attention(self.attention_norm(x))"
HABITS = {
    "forward is called directly": ("llama.py", CALLS, CALLS.replace("n(", "n.forward(", 1)),
    "attention takes and gives more": (
        "llama.py",
        CALLS,
        "self.attention(None, x=self.attention_norm(x))[0]",
    ),
    "a projection is bypassed": (
        "llama.py",
        "self.compute_query(x)",
        "nn.functional.linear(x, self.compute_query.weight)",
    ),
    "the output layer is bypassed": (
        "llama.py",
        "self.output(h if targets is not None else h[:, [-1], :])",
        "h[:, [-1], :] @ self.tok_embeddings.weight.T",
    ),
    "a norm is bypassed": (
        "llama.py",
        "self.feed_forward(self.ffn_norm(x))",
        "self.feed_forward(nn.functional.layer_norm("
        "x, x.shape[-1:], self.ffn_norm.weight, None, self.ffn_norm.eps))",
    ),
    "rope by another name": (
        "llama.py",
        "from rope import apply_rotary_emb",
        "from rope import apply_rotary_emb as turn\n\n\n"
        "def apply_rotary_emb(*args):\n    return turn(*args)",
    ),
    "config without kwargs": ("config.py", "**others,", ""),
    "prints": (
        "rope.py",
        "import torch",
        "import os\nimport torch\n\nos.write(1, b'{}')\nprint(7)",
    ),
}


@pytest.mark.parametrize("habit", HABITS)
def test_habits_are_no_faults(examine, habit):
    name, old, new = HABITS[habit]
    sources = student_files("mmia")
    assert old in sources[name]
    sources[name] = sources[name].replace(old, new)
    if "config" in habit:
        sources["config.py"] = sources["config.py"].replace("__(**others)", "__()")
    if "more" in habit:
        text = sources["llama.py"].replace(
            "forward(self, x):\n        batch", "forward(self, m, x):\n        batch"
        )
        sources["llama.py"] = text.replace(
            "return self.resid_dropout(self.compute_output(mixed.reshape(batch, seq_len, dim)))",
            "return self.compute_output(mixed.reshape(batch, seq_len, dim)), mixed",
        )
    status, lines, _ = examine(sources)
    assert status == 0 and NO_DIFFERENCE in lines and lines[-1] == MATCHES, lines


FAULTS = [  # file, old text, new text, place, part of the problem, known mistake
    (
        *("llama.py", "(1.0 / math.sqrt(self.head_dim))", "1.0"),
        "layers.0.attention.compute_query_key_value_scores",
        *("without 1/sqrt(head_dim)", "attention: no scale"),
    ),
    (
        *("rope.py", "return turn(query), turn(key)", "return query, key"),
        "layers.0.attention.apply_rotary_emb",
        *("its query differs", "attention: RoPE is not applied"),
    ),
    (
        *("rope.py", "angle = position", "angle = -position"),
        "layers.0.attention.apply_rotary_emb",
        *("in the other direction", "rope: wrong sign"),
    ),
    (
        *("llama.py", "self.max_seq_len)\n", "self.max_seq_len)[0], key\n"),
        "layers.0.attention.compute_query_key_value_scores",
        *("what it reads as key (rotated)", "attention: RoPE is not applied"),
    ),
    (
        *(
            "llama.py",
            "torch.repeat_interleave(value, self.copies, dim=2)",
            "value.repeat(1, 1, 2, 1)",
        ),
        "layers.0.attention.compute_query_key_value_scores",
        *("what it reads as value (compute_value's output)", None),
    ),
    (
        *("llama.py", "value = self.compute_value(x)", "value = self.compute_key(x)"),
        "layers.0.attention.compute_query_key_value_scores",
        *("what it reads as value", None),
    ),
    (
        *("llama.py", "self.compute_output(mixed.reshape", "(mixed.reshape"),
        *("layers.0.attention", "without compute_output"),
        "attention: compute_output left out",
    ),
    (
        *("llama.py", "gate * torch.sigmoid(gate) *", "gate *"),
        *("layers.0.feed_forward", "without silu", "feed_forward: silu left out"),
    ),
    (
        *(
            "llama.py",
            "eps=config.layer_norm_eps)\n        self.ffn_norm",
            ")\n        self.ffn_norm",
        ),
        *("layers.0.attention_norm", "eps 1e-06", "norm: another eps"),
    ),
    (
        *("llama.py", "x = x + self.attention(", "x = self.attention("),
        *("layers.0: residual (attention)", "attention's output alone", "layer: missing residual"),
    ),
    (
        *("llama.py", "h = self.norm(h)", "h = h"),
        *("norm", "it is never called as a module", None),
    ),
    (
        *(
            "llama.py",
            'saved["model"], strict',
            '{k.replace("query", "q"): v for k, v in saved["model"].items()}, strict',
        ),
        *("weights", "compute_query.weight is not what the checkpoint holds (and 1 more)", None),
    ),
]


@pytest.mark.parametrize("fault", FAULTS, ids=[f"{f[3]}-{f[4]}" for f in FAULTS])
def test_planted_faults_are_named_at_their_place(examine, fault):
    name, old, new, place, problem, mistake = fault
    sources = student_files("mmia")
    assert old in sources[name]
    sources[name] = sources[name].replace(old, new)
    status, lines, _ = examine(sources)
    first = next(line for line in lines if line.startswith("First difference: "))
    assert status != 0 and first.startswith(f"First difference: {place}: ") and problem in first
    remedy = [line for line in lines if line.startswith("Fix: ")]
    assert remedy == ([f"Fix: {MISTAKES[mistake].remedy}"] if mistake else [])


def test_a_fault_beside_another_is_seen_alone(examine):
    """The places before and after it are judged by what they read."""
    sources = student_files("spring2026")
    sources["llama.py"] = sources["llama.py"].replace("gate * torch.sigmoid(gate)", "gate.relu()")
    _, lines, _ = examine(sources, "spring2026")
    alone = {line[:50].strip(): line.split()[-2] for line in lines if line.startswith("layers.")}
    wrong = [name for name, error in alone.items() if error[0].isdigit() and float(error) > 1e-5]
    assert [name for name in wrong if "feed_forward" not in name] == []


def test_the_nearest_edition_is_the_yardstick(examine):
    sources = student_files("fall2024")
    sources["llama.py"] = sources["llama.py"].replace("(1.0 / math.sqrt(self.head_dim))", "1.0")
    status, lines, _ = examine(sources, "fall2024", noise=1e-3)
    assert status != 0 and lines[0].startswith("Formulas: rmsnorm, bidirectional attention (")
    assert any("without 1/sqrt(head_dim)" in line for line in lines)
    said = "The reference data fits no edition within 1e-05: the formulas are of the nearest, fall"
    assert any(line.startswith(said) for line in lines)


FAILING = {
    "import sys\nsys.exit(0)": "the model fails in load_pretrained: SystemExit: 0",
    "import os\nos._exit(0)": "its model's process gave no answer",
    "import time\ntime.sleep(99)": "its model did not end within 5 seconds",
    "raise ValueError('a\\n\\x1b[31mb')": "fails in load_pretrained: ValueError: a\\n\\x1b[31mb",
    "import os\nos.write(1, b'[]\\n' * 9)\nos._exit(0)": "its model's process gave no answer",
    "x = bytes(5 * 1024 ** 3)": "the model fails in load_pretrained: MemoryError",
    "import nothing_like_it\ndef load_pretrained(path):\n    nothing_like_it.load(path)": (
        "No module named 'nothing_like_it' is installed here, and line 3 of llama.py uses its load"
    ),
}


@pytest.mark.parametrize("text", FAILING, ids=FAILING.values())
def test_failures_are_one_line(examine, monkeypatch, text):
    seconds = 5.0 if "sleep" in text else 60.0
    monkeypatch.setattr(student_model, "SECONDS", seconds)
    status, _, errors = examine(student_files("mmia", llama=text))
    assert status == 1 and errors.count("\n") == 1
    assert errors.startswith("sanity_check.py: error: ") and FAILING[text] in errors


def test_a_model_that_fails_in_a_component(examine):
    sources = student_files("mmia")
    text = sources["llama.py"].replace("gate = self.w1(x)", "raise NotImplementedError")
    status, _, errors = examine(sources | {"llama.py": text})
    assert status == 1 and "the model fails in layers.0.feed_forward: NotImplementedError" in errors


HOSTILE = """
import builtins, hashlib, torch
torch.allclose = lambda *_, **__: True
torch.equal = lambda *_: True
import numpy
numpy.allclose = lambda *_, **__: True
"""


def test_hostile_code_cannot_change_the_comparison(examine):
    text = student_files("mmia")["llama.py"].replace("gate * torch.sigmoid(gate)", "gate")
    status, lines, _ = examine(student_files("mmia", llama=HOSTILE + text))
    assert status != 0 and any("First difference: layers.0.feed_forward" in x for x in lines)


@pytest.mark.parametrize(
    "shape", ["(10 ** 9,)", "(2, 1)", "(-1, 8, 32)", "('a',)", "(2, 8, 32) * 9"]
)
def test_false_shapes_are_refused(examine, shape):
    text = f"import os\nimport json\nheader = {{'arrays': [['norm input', {shape}]]}}\n"
    text += "import sys\nfor fd in range(3, 20):\n    try:\n"
    text += "        os.write(fd, json.dumps(header).encode() + b'\\n')\n"
    text += "    except OSError:\n        pass\nos._exit(0)\n"
    status, _, errors = examine(student_files("mmia", llama=text))
    assert status == 1 and errors.count("\n") == 1, errors


def test_the_folder_is_left_as_it_is(examine, tmp_path):
    text = "open('new.txt', 'w').close()\nraise ValueError(__file__)\n"
    _, _, errors = examine(student_files("mmia", llama=text))
    assert (
        not (tmp_path / "code/new.txt").exists() and str(tmp_path / "code/llama.py") not in errors
    )


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_no_folder(files, tmp_path, monkeypatch, capsys, name):
    (tmp_path / "empty").mkdir()
    reference = write_reference(tmp_path / "r.data", files[1], "mmia")
    arguments = ["--checkpoint", str(files[0] / "stories42M.pt"), "--reference", str(reference)]
    arguments += ["--code", str(tmp_path / name)]
    monkeypatch.setattr(sys, "argv", ["sanity_check.py", *arguments])
    with pytest.raises(SystemExit) as stop:
        sanity_check.main()
    assert isinstance(stop.value.code, str) and "\n" not in stop.value.code
    assert capsys.readouterr().err == ""


def test_files_of_the_students_folder_are_found(files, tmp_path, monkeypatch, capsys):
    for name, text in student_files("mmia").items():
        (tmp_path / name).write_text(text)
    write_reference(tmp_path / "sanity_check.data", files[1], "mmia")
    (tmp_path / "stories42M.pt").write_bytes((files[0] / "stories42M.pt").read_bytes())
    Path(tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setattr(sys, "argv", ["sanity_check.py", "--code", str(tmp_path)])
    sanity_check.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == MATCHES and not any(line.startswith("place") for line in lines)
