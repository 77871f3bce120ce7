"""LoRA adapters of PEFT, both ways: peft with transformers is the oracle."""

import json
from pathlib import Path

import pytest
import torch

from config import LlamaConfig
from llama import Llama, load_pretrained
from lora import apply_lora
from mini_llama.assignment.adapters import load_adapters, save_adapters
from mini_llama.assignment.options import Options
from mini_llama.checkpoints.adapters import read_adapters
from mini_llama.checkpoints.conversion import add_adapters, prepare
from tests.checkpoints.formats.test_huggingface import change, twin
from tests.helpers import assert_relative, random_llama, random_tokens, tiny_config

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
EVERY = [*ATTENTION, "gate_proj", "up_proj", "down_proj"]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    twin(tie_word_embeddings=False).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def peft_folder(base: Path, **settings: object) -> tuple[Path, object]:
    """A folder of PEFT whose every lora_B is random, and PEFT's model."""
    torch.manual_seed(1)
    model = transformers.LlamaForCausalLM.from_pretrained(base, dtype=torch.float32)
    options = {"r": 4, "lora_alpha": 8, "target_modules": ATTENTION} | settings
    model = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **options)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0.0, 0.3)
    folder = base.parent / "adapters"
    model.save_pretrained(folder)
    return folder, model


@torch.inference_mode()
def assert_same(llama: Llama, model) -> None:
    tokens = random_tokens(llama.config, 2, 17)
    assert_relative(llama(tokens, targets=tokens)[0], model(tokens).logits.double(), 1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"target_modules": EVERY, "r": 3, "lora_alpha": 5},
        {"use_rslora": True},
        {"target_modules": ["q_proj", "lm_head"]},
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.self_attn.k_proj": 3}},
        {"layers_to_transform": [1]},
        {"target_modules": "all-linear"},
    ],
    ids=str,
)
def test_adapters_of_peft_give_its_logits(base: Path, tmp_path, settings: dict):
    folder, model = peft_folder(base, **settings)
    llama = load_pretrained(base)
    load_adapters(llama, str(folder))
    assert_same(llama, model)
    plan = prepare(base, tmp_path / "merged", "huggingface")
    add_adapters(plan, folder)
    plan.write()
    assert_same(load_pretrained(tmp_path / "merged"), model)
    merged = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "merged", dtype="float32")
    assert_same(load_pretrained(tmp_path / "merged"), merged.eval())


@pytest.mark.parametrize("targets", [ATTENTION, EVERY], ids=len)
def test_there_and_back(base: Path, tmp_path, targets: list[str]):
    folder, model = peft_folder(base, target_modules=targets)
    plan = prepare(base, tmp_path / "a.adapters.pt", "adapters")
    add_adapters(plan, folder)
    plan.write()
    llama = load_pretrained(base)
    load_adapters(llama, str(tmp_path / "a.adapters.pt"))
    assert_same(llama, model)
    plan = prepare(base, tmp_path / "back", "peft")
    add_adapters(plan, tmp_path / "a.adapters.pt")
    plan.write()
    fresh = transformers.LlamaForCausalLM.from_pretrained(base, dtype=torch.float32)
    back = peft.PeftModel.from_pretrained(fresh, tmp_path / "back").eval()
    assert_same(llama, back)


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"use_dora": True}, "use_dora is True"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is ['lm_head']"),
        ({"lora_bias": True}, "lora_bias is True"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out is True"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices is [3]"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is 'pissa_niter_4'"),
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"r": 8}, "has rank 4, and adapter_config.json says rank 8"),
        ({"lora_alpha": "8"}, "alpha 8"),
        ({"something_new": 1}, "something_new is 1"),
    ],
    ids=str,
)
def test_what_is_not_supported_is_refused_by_name(base: Path, values: dict, part: str):
    folder, _ = peft_folder(base)
    change(folder / "adapter_config.json", **values)
    with pytest.raises(ValueError) as caught:
        load_adapters(load_pretrained(base), str(folder))
    assert part in str(caught.value) and "\n" not in str(caught.value)


def test_adapters_of_another_model(base: Path):
    folder, _ = peft_folder(base)
    other = LlamaConfig(vocab_size=96, dim=64, n_layers=2, n_heads=4, n_kv_heads=2, hidden_dim=56)
    with pytest.raises(ValueError, match=r"is for \(16, 32\), the model's is \(32, 64\)"):
        load_adapters(Llama(other), str(folder))
    shallow = LlamaConfig(vocab_size=96, dim=32, n_layers=1, n_heads=4, n_kv_heads=2)
    with pytest.raises(ValueError, match=r"holds .*layers\.1\..* which is no adapter"):
        read_adapters(folder, shallow)
    content = json.loads((folder / "adapter_config.json").read_text())
    assert content["r"] == 4


def test_adapters_know_their_base(tmp_path, capsys):
    """The same weights in another dtype's file or format are the same base; others are not."""
    config = tiny_config()
    model = apply_lora(random_llama(config), 2, 4.0, ["compute_query"])
    options = Options(lora_rank=2, lora_alpha=4.0, lora_targets=("compute_query",))
    save_adapters(tmp_path / "a.adapters.pt", model, options, {})
    load_adapters(random_llama(config), str(tmp_path / "a.adapters.pt"))
    assert "warning" not in capsys.readouterr().err
    load_adapters(random_llama(config, seed=1), str(tmp_path / "a.adapters.pt"))
    assert "was trained on another model, stories42M.pt" in capsys.readouterr().err
