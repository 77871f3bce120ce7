"""Task heads: transformers' logits, losses and gradients, and folders that both read."""

import json
import math
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from llama import load_pretrained
from lora import apply_lora, count_lora_parameters, get_lora_optimizer_params
from mini_llama import task_heads
from mini_llama.checkpoints.formats import huggingface
from mini_llama.task_heads import (
    LlamaForQuestionAnswering,
    LlamaForSequenceClassification,
    LlamaForTokenClassification,
    TaskHead,
    load_task_head,
    save_task_head,
)
from tests.helpers import ROOT, assert_relative, random_llama, random_tokens, tiny_config

transformers = pytest.importorskip("transformers")

PAD = 0  # random_tokens draws ids from 3
KINDS = list(task_heads.KINDS)
SEQUENCE, TOKEN, QUESTION = KINDS
SHAPE = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": PAD,
}


def twin(kind: str, **changes):
    """transformers' model, all of whose weights matter."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SHAPE | changes)
    model = getattr(transformers, kind)(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape)
            is_gain = name.endswith("norm.weight")
            parameter.copy_(1 + 0.3 * noise if is_gain else 0.2 * noise)
    return model


def saved(folder: Path, kind: str, **changes):
    model = twin(kind, **changes)
    model.save_pretrained(folder)
    return model


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Four right-padded rows (4, 11), and their lengths."""
    tokens, lengths = random_tokens(tiny_config(), 4, 11), torch.tensor([11, 1, 7, 4])
    return tokens.masked_fill(torch.arange(11) >= lengths[:, None], PAD), lengths


def real(lengths: torch.Tensor, length: int) -> torch.Tensor:
    return torch.arange(length) < lengths[:, None]


def their_outputs(model, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Logits (B, N) or (B, T, N); N = 2, start and end, of answers."""
    out = model(tokens, attention_mask=real(lengths, tokens.shape[1]).long())
    return out.logits if "logits" in out else torch.stack((out.start_logits, out.end_logits), -1)


def our_outputs(model: TaskHead, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    out = model(tokens, lengths)
    return torch.stack(out, -1) if isinstance(out, tuple) else out


@torch.inference_mode()
def assert_same(model: TaskHead, theirs, tolerance: float = 1e-5) -> None:
    """Equal logits of every real token in a padded batch, and of every row by itself."""
    tokens, lengths = batch()
    ours, expected = our_outputs(model, tokens, lengths), their_outputs(theirs, tokens, lengths)
    if ours.ndim == 3:
        is_real = real(lengths, tokens.shape[1])
        ours, expected = ours[is_real], expected[is_real]
    assert_relative(ours, expected, tolerance)
    for row, length in zip(tokens, lengths, strict=True):
        alone, length = row[None, :length], length[None]
        expected = their_outputs(theirs, alone, length)
        assert_relative(our_outputs(model, alone, length), expected, tolerance)
        assert_relative(our_outputs(model, alone, None), expected, tolerance)


# Equal outputs


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_kv_heads", [1, 2, 4])
@pytest.mark.parametrize("tied", [True, False])
def test_what_transformers_saved_gives_its_logits(tmp_path, kind: str, n_kv_heads: int, tied: bool):
    theirs = saved(tmp_path, kind, num_key_value_heads=n_kv_heads, tie_word_embeddings=tied)
    model = load_task_head(tmp_path)
    assert type(model).__name__ == kind and not model.training
    assert model.llama.config.tie_word_embeddings is tied
    assert model.pad_token_id == PAD
    assert sum(p.numel() for p in model.parameters()) == theirs.num_parameters()
    assert_same(model, theirs)


@pytest.mark.parametrize("kind", [SEQUENCE, TOKEN])
@pytest.mark.parametrize("num_labels", [1, 2, 5])
def test_numbers_of_labels(tmp_path, kind: str, num_labels: int):
    theirs = saved(tmp_path, kind, num_labels=num_labels)
    model = load_task_head(tmp_path)
    assert model.labels == tuple(f"LABEL_{i}" for i in range(num_labels))
    assert_same(model, theirs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_dtypes_are_read_exactly(tmp_path, kind: str, dtype: torch.dtype):
    twin(kind).to(dtype).save_pretrained(tmp_path)
    theirs = getattr(transformers, kind).from_pretrained(tmp_path, dtype=torch.float32)
    model = load_task_head(tmp_path)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert_same(model, theirs.eval())


@pytest.mark.parametrize("kind", KINDS)
def test_shards_and_torch_files(tmp_path, kind: str):
    theirs = twin(kind)
    theirs.save_pretrained(tmp_path / "shards", max_shard_size="8KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    assert_same(load_task_head(tmp_path / "shards"), theirs)
    theirs.config.architectures = [kind]
    theirs.config.save_pretrained(tmp_path / "bin")
    torch.save(theirs.state_dict(), tmp_path / "bin" / "pytorch_model.bin")
    assert_same(load_task_head(tmp_path / "bin"), theirs)


@torch.inference_mode()
def test_left_padding_there_is_right_padding_here(tmp_path):
    theirs = saved(tmp_path, SEQUENCE, num_labels=3)
    tokens, lengths = batch()
    shifts = (tokens.shape[1] - lengths).tolist()
    left = torch.stack([row.roll(n) for row, n in zip(tokens, shifts, strict=True)])
    mask = (left != PAD).long()
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    expected = theirs(left, attention_mask=mask, position_ids=positions).logits
    assert_relative(load_task_head(tmp_path)(tokens, lengths), expected, 1e-5)


@torch.inference_mode()
def test_a_text_that_ends_in_the_padding_id_is_read_to_its_end(tmp_path):
    """transformers goes by the id alone, and reads such a text short."""
    theirs = saved(tmp_path, SEQUENCE)
    tokens = F.pad(random_tokens(tiny_config(), 1, 5), (0, 1), value=PAD)
    ours = load_task_head(tmp_path)(tokens, torch.tensor([6]))
    assert not torch.allclose(ours, theirs(tokens, torch.ones_like(tokens)).logits, atol=0.1)
    theirs.config.pad_token_id = None
    assert_relative(ours, theirs(tokens).logits, 1e-5)
    with pytest.raises(ValueError, match="batch sizes > 1"):
        theirs(tokens.expand(2, -1))


@torch.inference_mode()
@pytest.mark.parametrize("kind", KINDS)
def test_padding_cannot_matter(tmp_path, kind: str):
    saved(tmp_path, kind)
    model, (tokens, lengths) = load_task_head(tmp_path), batch()
    is_real = real(lengths, tokens.shape[1])
    other = tokens.where(is_real, random_tokens(tiny_config(), *tokens.shape, seed=1))
    one, two = (our_outputs(model, x, lengths) for x in (tokens, other))
    assert torch.equal(one, two) if kind == SEQUENCE else torch.equal(one[is_real], two[is_real])
    if kind == QUESTION:
        assert (one[~is_real] == -math.inf).all()


# Losses and gradients


def assert_same_gradients(model: TaskHead, theirs) -> None:
    """Of every tensor, 1e-4 of its largest; except of PAD's row, whose gradient is 0 there."""
    config, kind = model.llama.config, type(model).__name__
    ours = {n.removeprefix("llama."): p.grad for n, p in model.named_parameters()}
    ours["tok_embeddings.weight"][PAD] = 0
    ours = huggingface.export_tensors(ours, config, kind)
    expected = {name: p.grad for name, p in theirs.named_parameters()}
    assert ours.keys() == expected.keys()
    for name, gradient in expected.items():
        if name == "qa_outputs.bias":  # it shifts all positions' logits: no loss sees it
            assert max(ours[name].abs().max(), gradient.abs().max()) < 1e-6
        else:
            assert_relative(ours[name], gradient, 1e-4)


@pytest.mark.parametrize(
    ("num_labels", "labels", "problem_type"),
    [
        (1, torch.tensor([0.5, -1.0, 2.0, 0.0]), None),
        (2, torch.tensor([0, 1, 1, 0]), None),
        (5, torch.tensor([4, 0, 2, 2]), "single_label_classification"),
        (5, torch.tensor([4, -100, 2, 2]), None),
        (5, torch.eye(5)[:4], None),
        (3, torch.arange(12.0).view(4, 3), "regression"),
    ],
)
def test_sequence_loss(tmp_path, num_labels: int, labels: torch.Tensor, problem_type: str | None):
    theirs = saved(tmp_path, SEQUENCE, num_labels=num_labels, problem_type=problem_type)
    model, (tokens, lengths) = load_task_head(tmp_path), batch()
    mask = real(lengths, tokens.shape[1]).long()
    expected, loss = theirs(tokens, mask, labels=labels).loss, model.loss(tokens, labels, lengths)
    assert_relative(loss, expected, 1e-5)
    expected.backward()
    loss.backward()
    assert_same_gradients(model, theirs)


def test_token_loss(tmp_path):
    theirs = saved(tmp_path, TOKEN, num_labels=5)
    model, (tokens, lengths) = load_task_head(tmp_path), batch()
    labels = random_tokens(tiny_config(), *tokens.shape) % 5
    labels[0, 3] = -100
    is_real = real(lengths, tokens.shape[1])
    expected = theirs(tokens, is_real.long(), labels=labels.where(is_real, -100)).loss
    loss = model.loss(tokens, labels, lengths)
    assert_relative(loss, expected, 1e-5)
    expected.backward()
    loss.backward()
    assert_same_gradients(model, theirs)


def test_question_loss(tmp_path):
    """Unpadded: positions behind the end are left out, those below 0 are 0."""
    theirs = saved(tmp_path, QUESTION)
    model, tokens = load_task_head(tmp_path), random_tokens(tiny_config(), 4, 11)
    starts, ends = torch.tensor([3, 11, 0, -4]), torch.tensor([5, 2, 99, 10])
    expected = theirs(tokens, start_positions=starts, end_positions=ends).loss
    loss = model.loss(tokens, starts, ends)
    assert_relative(loss, expected, 1e-5)
    expected.backward()
    loss.backward()
    assert_same_gradients(model, theirs)


def test_question_loss_of_a_padded_batch_is_that_of_its_rows(tmp_path):
    theirs = saved(tmp_path, QUESTION)
    model, (tokens, lengths) = load_task_head(tmp_path), batch()
    starts, ends = torch.tensor([3, 0, 2, 1]), torch.tensor([5, 0, 6, 3])
    expected = 0
    for row, length, start, end in zip(tokens, lengths, starts, ends, strict=True):
        alone = {"start_positions": start[None], "end_positions": end[None]}
        expected += theirs(row[None, :length], **alone).loss / 4
    loss = model.loss(tokens, starts, ends, lengths)
    assert_relative(loss, expected, 1e-5)
    expected.backward()
    loss.backward()
    assert_same_gradients(model, theirs)
    in_padding = model.loss(tokens, torch.tensor([3, 0, 2, 4]), ends, lengths)
    starts_of_three, ends_of_all = model(tokens[:3], lengths[:3])[0], model(tokens, lengths)[1]
    parts = F.cross_entropy(starts_of_three, starts[:3]) + F.cross_entropy(ends_of_all, ends)
    assert_relative(in_padding, parts / 2, 1e-6)


# Folders


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [True, False])
def test_there_and_back_is_bit_exact(tmp_path, kind: str, tied: bool):
    names = {"id2label": {0: "no", 1: "ja"}, "label2id": {"no": 0, "ja": 1}}
    theirs = saved(tmp_path / "theirs", kind, tie_word_embeddings=tied, **names)
    save_task_head(tmp_path / "ours", load_task_head(tmp_path / "theirs"))
    back, report = getattr(transformers, kind).from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert not any(report.values()), report
    expected, state = theirs.state_dict(), back.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    first, last = theirs.config.to_dict(), back.config.to_dict()
    same = ["architectures", "pad_token_id", "tie_word_embeddings", "problem_type"]
    for name in same if kind == QUESTION else [*same, "id2label", "label2id"]:
        assert first.get(name) == last.get(name), name


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (LlamaForSequenceClassification, {"labels": ["bad", "so so", "good"]}),
        (LlamaForSequenceClassification, {"labels": ["stars"], "problem_type": "regression"}),
        (LlamaForTokenClassification, {"labels": ["B", "I", "O"], "dropout": 0.3}),
        (LlamaForQuestionAnswering, {}),
    ],
)
def test_what_is_saved_here_loads_there(tmp_path, kind: type, arguments: dict):
    torch.manual_seed(0)
    config = tiny_config(norm="rmsnorm", attention="causal", tie_word_embeddings=False)
    model = kind(random_llama(config), pad_token_id=PAD, **arguments).eval()
    save_task_head(tmp_path, model)
    theirs, report = getattr(transformers, kind.__name__).from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(report.values()), report
    assert_same(model, theirs.eval())
    labels = dict(enumerate(arguments.get("labels", ["LABEL_0", "LABEL_1"])))
    assert theirs.config.id2label == labels
    assert theirs.config.label2id == {name: i for i, name in labels.items()}
    assert theirs.config.problem_type == arguments.get("problem_type")
    assert getattr(theirs.config, "classifier_dropout", None) == arguments.get("dropout")
    again = load_task_head(tmp_path)
    assert again.fields() == model.fields()
    expected = model.state_dict()
    assert all(torch.equal(tensor, expected[n]) for n, tensor in again.state_dict().items())


def test_a_new_head_is_small_and_random():
    torch.manual_seed(0)
    llama = random_llama(tiny_config(dim=512, n_heads=8))
    model = LlamaForTokenClassification(llama, [str(i) for i in range(50)])
    assert model.score.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert not model.score.bias.any() and llama.output is None


def test_no_folder_for_another_arithmetic(tmp_path):
    model = LlamaForQuestionAnswering(random_llama(tiny_config()))
    with pytest.raises(ValueError, match="has RMSNorm and causal attention"):
        save_task_head(tmp_path / "new", model)
    assert not (tmp_path / "new").exists()


def test_stale_shards_are_not_left_beside_new_weights(tmp_path):
    twin(SEQUENCE).save_pretrained(tmp_path, max_shard_size="8KB")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"index\.json names shards.*give another folder"):
        save_task_head(tmp_path, load_task_head(tmp_path))
    assert sorted(tmp_path.iterdir()) == before


# LoRA


@pytest.mark.parametrize("kind", KINDS)
def test_lora_trains_adapters_and_head_alone(tmp_path, kind: str):
    saved(tmp_path / "theirs", kind)
    model, (tokens, lengths) = load_task_head(tmp_path / "theirs"), batch()
    torch.manual_seed(0)
    apply_lora(model.llama, rank=2)
    labels = [tokens[:, 0] % 2] if kind != QUESTION else [lengths - 1, lengths - 1]
    labels = [tokens % 2] if kind == TOKEN else labels
    lora, trainable, _ = count_lora_parameters(model)
    head = [p for n, p in model.named_parameters() if not n.startswith("llama.")]
    assert trainable - lora == sum(p.numel() for p in head)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=0.1)
    for _ in range(2):  # lora_A has a gradient only once lora_B has left 0
        optimizer.zero_grad()
        model.loss(tokens, *labels, lengths).backward()
        optimizer.step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    lora_names = {name for name in before if "lora_" in name}
    assert len(lora_names) == len(get_lora_optimizer_params(model))
    head_names = {name for name in before if not name.startswith("llama.")}
    assert moved | {"qa_outputs.bias"} == lora_names | head_names | {"qa_outputs.bias"}
    save_task_head(tmp_path / "merged", model)
    theirs = getattr(transformers, kind).from_pretrained(tmp_path / "merged")
    assert_same(model, theirs.eval(), 1e-4)


# What is wrong with a folder


def change(folder: Path, **values) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def put(folder: Path, changes: dict) -> None:
    """Change tensors; None removes one."""
    safetensors = pytest.importorskip("safetensors.torch")
    path = folder / "model.safetensors"
    tensors = safetensors.load_file(path) | changes
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    path.write_bytes(safetensors.save(kept))


def refusal(folder: Path, load=load_task_head) -> str:
    with pytest.raises(ValueError) as caught:
        load(folder)
    message = str(caught.value)
    assert "\n" not in message and str(folder) in message
    return message


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"id2label": {"0": "a", "1": "b"}}, "2 labels, and score.weight has 3 rows"),
        ({"id2label": None}, "2 labels, and score.weight has 3 rows"),
        ({"id2label": None, "num_labels": 10**15}, "1000000000000000 labels, and score.weight"),
        ({"num_labels": 4}, "4 labels, and score.weight has 3 rows"),
        ({"num_labels": [3]}, "[3] labels, and score.weight has 3 rows"),
        ({"id2label": {"0": "a", "1": "b", "3": "c"}}, "just the labels 0 to 2"),
        ({"id2label": ["a", "b", "c"]}, "id2label is no JSON object of names"),
        ({"id2label": {"0": 1, "1": 2, "2": 3}}, "id2label is no JSON object of names"),
        ({"problem_type": "guessing"}, "problem_type='guessing' is not allowed"),
        ({"pad_token_id": 96}, "pad_token_id=96 is not allowed: it must be an integer below"),
        ({"pad_token_id": "0"}, "pad_token_id='0' is not allowed"),
        ({"architectures": "Llama"}, "architectures is 'Llama'"),
        ({"architectures": [QUESTION]}, f"weight, which is not supported in a '{QUESTION}'"),
        ({"architectures": [TOKEN]}, f"is a {TOKEN}, and lacks its head's score.bias"),
        ({"architectures": None}, "score.weight, which is not supported in a 'LlamaForCausalLM'"),
        ({"architectures": ["LlamaForChess"]}, "not supported in a 'LlamaForChess'"),
        ({"model_type": "mistral"}, "'mistral'"),
        ({"num_hidden_layers": 3}, "missing layers.2."),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    ],
)
def test_a_config_that_contradicts_its_tensors_or_us(tmp_path, values: dict, part: str):
    saved(tmp_path, SEQUENCE, num_labels=3)
    change(tmp_path, **values)
    assert part in refusal(tmp_path)


@pytest.mark.parametrize("value", ["0.5", 1.5, -1, float("nan")])
def test_dropout_out_of_bounds(tmp_path, value: object):
    saved(tmp_path, TOKEN)
    change(tmp_path, classifier_dropout=value)
    assert "classifier_dropout" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("kind", "changes", "part"),
    [
        (SEQUENCE, {"score.weight": None}, "is a LlamaForSequenceClassification, and lacks"),
        (QUESTION, {"qa_outputs.bias": None}, "lacks its head's qa_outputs.bias"),
        (QUESTION, {"qa_outputs.weight": torch.ones(3, 32)}, "[3, 32] instead of [2, 32]"),
        (SEQUENCE, {"score.weight": torch.ones(2, 31)}, "score.weight [2, 31] instead of [2, 32]"),
        (SEQUENCE, {"score.weight": torch.tensor(1.0)}, "score.weight has 0 rows"),
        (
            SEQUENCE,
            {"score.weight": torch.ones(2, 32).int()},
            "score.weight has dtype I32, which is none of",
        ),
        (SEQUENCE, {"score.bias": torch.ones(2)}, "score.bias, which is not supported"),
        (SEQUENCE, {"lm_head.weight": torch.ones(96, 32)}, "lm_head.weight, which is not"),
        (SEQUENCE, {"model.norm.weight": None}, "missing norm.weight"),
        (QUESTION, {"transformer.norm.weight": torch.ones(9)}, "wrong shape norm.weight"),
    ],
)
def test_tensors_that_do_not_fit(tmp_path, kind: str, changes: dict, part: str):
    saved(tmp_path, kind)
    put(tmp_path, changes)
    assert part in refusal(tmp_path)


def test_damaged_and_missing(tmp_path):
    saved(tmp_path, SEQUENCE)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    assert "is damaged" in refusal(tmp_path)
    weights.unlink()
    assert "none of model.safetensors" in refusal(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(IsADirectoryError, match=r"without config\.json"):
        load_task_head(tmp_path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_task_head(tmp_path / "nowhere")


def test_models_without_a_head(tmp_path, tiny_folder: Path):
    for kind in ("LlamaForCausalLM", "LlamaModel"):
        saved(tmp_path / kind, kind)
        message = refusal(tmp_path / kind)
        assert "has no task head, neither score.weight nor qa_outputs.weight" in message
    assert "has no task head" in refusal(tiny_folder / "model.pt")


@pytest.mark.parametrize("kind", [*KINDS, "LlamaModel"])
def test_a_head_does_not_generate(tmp_path, kind: str):
    saved(tmp_path, kind)
    assert f"is a {kind}: it has no output layer" in refusal(tmp_path, load_pretrained)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ({"labels": []}, "at least one name"),
        ({"labels": ["a"], "problem_type": "single_label_classification"}, "single label"),
        ({"labels": ["a"], "pad_token_id": 96}, "vocab_size=96"),
    ],
)
def test_bounds(arguments: dict, part: str):
    with pytest.raises(ValueError, match=part):
        LlamaForSequenceClassification(random_llama(tiny_config()), **arguments)


def test_the_documents_example(tmp_path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch):
    text = (ROOT / "docs" / "checkpoints-and-tokenizers.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    # The document's own ids and labels are too few to compare: ours take their place.
    example, count = re.subn(r"^(tokens|lengths|labels) = .*\n", "", example, flags=re.MULTILINE)
    assert count == 3
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "demo").mkdir(parents=True)
    (tmp_path / "data" / "demo" / "demo.pt").write_bytes((tiny_folder / "model.pt").read_bytes())
    tokens, lengths = batch()
    names = {"tokens": tokens, "lengths": lengths, "labels": torch.tensor([0, 1, 1, 0])}
    exec(example, names)
    theirs = getattr(transformers, SEQUENCE).from_pretrained(tmp_path / "reviews")
    assert_same(load_task_head(tmp_path / "reviews"), theirs.eval())
    assert names["logits"].shape == (4, 2)
