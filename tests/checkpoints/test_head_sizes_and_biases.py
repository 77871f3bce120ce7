"""Head sizes other than dim / n_heads, and biases, as in the config.json of published models.

Forms: wide heads (Minitron's width-pruned Llama 3.1: 3072 and 32 heads of 128), narrow ones, biases
of attention alone (Qwen models saved as Llamas), or of both (Granite Code, Bielik).
"""

import dataclasses
from pathlib import Path

import pytest
import torch

from config import LlamaConfig, expected_shapes
from llama import Llama, load_pretrained
from lora import apply_lora, merge_lora_weights, merged_state_dict
from mini_llama.assignment.adapters import load_adapters
from mini_llama.checkpoints.conversion import TARGETS, add_adapters, prepare
from mini_llama.checkpoints.reading import read_checkpoint
from mini_llama.checkpoints.report import describe_checkpoint
from mini_llama.checkpoints.sizes import kv_cache_bytes, training_flops, weight_bytes
from mini_llama.inference.decoding import FastDecoder
from mini_llama.inference.generation import generate
from mini_llama.inference.sampling import Sampler
from mini_llama.resume import check_same_run
from tests.checkpoints.formats.test_huggingface import assert_same, change, refusal, twin
from tests.checkpoints.test_adapters import EVERY, peft_folder
from tests.gguf_files import arrays_of, write_gguf
from tests.helpers import assert_relative, numpy_weights, random_llama, random_tokens, tiny_config
from tests.oracle import forward

transformers = pytest.importorskip("transformers")
gguf = pytest.importorskip("gguf")

TRUE = {"norm": "rmsnorm", "attention": "causal"}
BOTH = {"attention_bias": True, "mlp_bias": True}
FORMS = {
    "wide heads": {"head_dim": 12},
    "narrow heads": {"head_dim": 2, "num_key_value_heads": 4},
    "attention biases": {"attention_bias": True},
    "feed-forward biases": {"mlp_bias": True, "tie_word_embeddings": True},
    "everything": {"head_dim": 20, **BOTH},
}


def biased_twin(**changes):
    """transformers' model; its biases are random as well."""
    model = twin(**changes)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".bias"):
                parameter.copy_(0.3 * torch.randn(parameter.shape))
    return model


def ours(**changes: object) -> Llama:
    return random_llama(tiny_config(**TRUE, **{"max_seq_len": 64, "hidden_dim": 96, **changes}))


@pytest.fixture(params=FORMS)
def pair(request, tmp_path):
    model = biased_twin(**FORMS[request.param])
    model.save_pretrained(tmp_path / "theirs")
    return tmp_path / "theirs", model


@torch.inference_mode()
def test_logits_and_greedy_tokens_are_those_of_transformers(pair):
    """Logits to 1e-5 of the largest; 64 tokens, of one sequence and of two at once, with the
    forward pass, a cache, and the fast step.
    """
    folder, model = pair
    llama = assert_same(folder, model)
    for rows in (1, 2):
        prompt = random_tokens(llama.config, rows, 5)
        theirs = model.generate(prompt, max_new_tokens=64, do_sample=False, eos_token_id=None)
        steps = {"use_cache": False}, {"decoder": FastDecoder(llama, rows)}
        for step in steps:
            assert torch.equal(generate(llama, prompt, 64, Sampler(0.0), **step), theirs)


def test_every_format_keeps_them(pair, tmp_path):
    """To the last bit, there and back; transformers reads what is written for it."""
    folder, model = pair
    state, source = load_pretrained(folder).state_dict(), folder
    for target in ("assignment", "gguf", "huggingface"):
        plan = prepare(source, tmp_path / target, target)
        plan.write()
        source = tmp_path / target
        again = load_pretrained(source)
        assert all(torch.equal(again.state_dict()[name], state[name]) for name in state)
        assert again.state_dict().keys() == state.keys()
    theirs = transformers.LlamaForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    assert_same(source, theirs)
    assert theirs.config.head_dim == model.config.head_dim


@pytest.mark.parametrize("target", ["llama2c", "llama2c-q80"])
@pytest.mark.parametrize(
    ("field", "value"), [("head_dim", 12), ("attention_bias", True), ("mlp_bias", True)]
)
def test_llama2c_has_neither(tmp_path, target: str, field: str, value: object):
    biased_twin(**{field: value}, rms_norm_eps=1e-5).save_pretrained(tmp_path / "a")
    plan = prepare(tmp_path / "a", tmp_path / "b.bin", target)
    with pytest.raises(ValueError, match=f"^{field} is {value}, and llama2.c computes with") as e:
        plan.write()
    assert "\n" not in str(e.value) and not (tmp_path / "b.bin").exists()
    assert {"llama2c", "llama2c-q80"} <= TARGETS.keys()


def test_gradients_are_those_of_transformers(tmp_path):
    model = biased_twin(head_dim=12, **BOTH, tie_word_embeddings=False)
    model.save_pretrained(tmp_path)
    llama = load_pretrained(tmp_path)
    tokens = random_tokens(llama.config, 2, 17)
    for network in (lambda: llama(tokens, targets=tokens)[0], lambda: model(tokens).logits):
        network().square().mean().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.grad)
    model.save_pretrained(tmp_path / "gradients")
    expected = load_pretrained(tmp_path / "gradients").state_dict()
    for name, parameter in llama.named_parameters():
        assert_relative(parameter.grad, expected[name], 1e-5)


@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm"])
@pytest.mark.parametrize("attention", ["bidirectional", "causal"])
def test_the_numpy_forward_in_every_arithmetic(norm: str, attention: str):
    """7 heads of 10 and a width of 32, which they do not divide."""
    shape = {"n_heads": 6, "n_kv_heads": 3, "head_dim": 10, **BOTH}
    llama = random_llama(tiny_config(norm=norm, attention=attention, **shape))
    tokens = random_tokens(llama.config, 2, 9)
    logits, hidden = llama(tokens, targets=tokens)
    arithmetic = {"n_heads": 6, "n_kv_heads": 3, "norm": norm, "attention": attention}
    expected = forward(numpy_weights(llama), tokens=tokens, **arithmetic)
    assert_relative(logits, expected[0], 1e-5)
    assert_relative(hidden, expected[1], 1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("quantize", ["int8", "nf4"])
def test_quantized_weights_keep_exact_biases(tmp_path, quantize: str):
    """The forward pass is that of the dequantized weights; the steps are the forward pass."""
    if quantize == "nf4":
        pytest.importorskip("bitsandbytes")
    biased_twin(head_dim=12, **BOTH, tie_word_embeddings=True).save_pretrained(tmp_path)
    llama, plain = load_pretrained(tmp_path, quantize=quantize), load_pretrained(tmp_path)
    for name, module in llama.named_modules():
        if hasattr(module, "product"):
            eye = torch.eye(module.in_features)
            exact = plain.get_submodule(name)
            assert (module.bias is None) == (name == "output")
            if module.bias is not None:
                assert torch.equal(module.bias, exact.bias)
            exact.weight = torch.nn.Parameter(module.product(eye).T.contiguous())
    tokens = random_tokens(llama.config, 2, 40)
    expected = plain(tokens, targets=tokens)[0]
    assert_relative(llama(tokens, targets=tokens)[0], expected, 0.03)
    without = load_pretrained(tmp_path)
    for module in without.modules():
        if getattr(module, "bias", None) is not None:
            module.bias.zero_()
    assert (without(tokens, targets=tokens)[0] - expected).abs().max() > 0.2 * expected.abs().max()
    decoder = FastDecoder(llama, 2)
    cache = decoder.make_cache(2, 40)
    llama(tokens[:, :1], cache=cache)
    steps = [decoder(tokens[:, i : i + 1], cache) for i in range(1, 40)]
    assert_relative(torch.stack(steps, dim=1), expected[:, 1:], 0.03)
    assert weight_bytes(llama.config, "float32", quantize) > 0


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
@torch.inference_mode()
def test_steps_in_every_precision(precision: str):
    llama = ours(head_dim=12, **BOTH)
    tokens = random_tokens(llama.config, 2, 30)
    decoder = FastDecoder(llama, 2, precision)
    cache = decoder.make_cache(2, 30)
    llama(tokens[:, :1], cache=cache)
    steps = [decoder(tokens[:, i : i + 1], cache) for i in range(1, 30)]
    expected = llama(tokens, targets=tokens)[0][:, 1:]
    tolerance = {"float32": 1e-5, "bfloat16": 0.05, "int8": 0.05}[precision]
    assert_relative(torch.stack(steps, dim=1), expected, tolerance)


def test_adapters_of_biased_layers(tmp_path):
    """PEFT's model is the oracle; biases stay frozen, and are as they were after merging."""
    base = tmp_path / "base"
    biased_twin(head_dim=12, **BOTH, tie_word_embeddings=False).save_pretrained(base)
    folder, model = peft_folder(base, target_modules=EVERY)
    llama = load_pretrained(base)
    biases = {k: v.clone() for k, v in llama.state_dict().items() if k.endswith(".bias")}
    assert len(biases) == 14
    load_adapters(llama, str(folder))
    tokens = random_tokens(llama.config, 2, 17)
    expected = model(tokens).logits.double()
    assert_relative(llama(tokens, targets=tokens)[0], expected, 1e-5)
    plan = prepare(base, tmp_path / "back", "peft")
    add_adapters(plan, folder)
    plan.write()
    import peft

    fresh = transformers.LlamaForCausalLM.from_pretrained(base, dtype=torch.float32)
    back = peft.PeftModel.from_pretrained(fresh, tmp_path / "back").eval()
    assert_relative(back(tokens).logits, expected, 1e-5)
    state = llama.state_dict()
    assert all(torch.equal(state[name], bias) for name, bias in biases.items())


def test_lora_leaves_biases_frozen_and_merges():
    llama = apply_lora(ours(head_dim=12, **BOTH), 2, 4.0, ["compute_query", "w2"])
    assert not any(p.requires_grad for k, p in llama.named_parameters() if k.endswith("bias"))
    with torch.no_grad():
        for name, parameter in llama.named_parameters():
            if name.endswith("lora_B"):
                parameter.normal_()
    tokens = random_tokens(llama.config, 2, 9)
    expected, state = llama(tokens, targets=tokens)[0], merged_state_dict(llama)
    merge_lora_weights(llama)
    assert_relative(llama(tokens, targets=tokens)[0], expected.detach(), 1e-5)
    assert state.keys() == llama.state_dict().keys() == dict(expected_shapes(llama.config)).keys()


def test_biases_that_no_layer_has_are_0_with_a_warning(tmp_path, capsys):
    """Qwen's models saved as Llamas: none for the output projection. One missing is an error."""
    model = biased_twin(attention_bias=True)
    state = model.state_dict()
    for name in [name for name in state if name.endswith("o_proj.bias")]:
        state.pop(name)
        model.get_parameter(name).data.zero_()
    model.config.save_pretrained(tmp_path)
    torch.save(state, tmp_path / "pytorch_model.bin")
    assert_same(tmp_path, model)
    assert "no layer has attention.compute_output.bias: taken for 0" in capsys.readouterr().err
    del state["model.layers.1.self_attn.k_proj.bias"]
    torch.save(state, tmp_path / "pytorch_model.bin")
    assert "missing layers.1.attention.compute_key.bias" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("form", "values", "part"),
    [
        ("attention biases", {"attention_bias": False}, "unexpected layers.0.attention"),
        ("attention biases", {"attention_bias": "yes"}, "attention_bias='yes'"),
        ("everything", {"mlp_bias": None}, "unexpected layers.0.feed_forward"),
        ("wide heads", {"head_dim": 16}, "wrong shape layers.0.attention.compute_query.weight"),
        ("wide heads", {"head_dim": None}, "wrong shape layers.0.attention.compute_query.weight"),
        ("wide heads", {"head_dim": 11}, "head_dim=11 is not allowed: it must be even"),
        ("wide heads", {"head_dim": 0}, "head_dim=0"),
        ("wide heads", {"head_dim": 12.0}, "head_dim=12.0"),
        ("wide heads", {"head_dim": 2**40}, "at most 16777216"),
    ],
)
def test_a_config_that_contradicts_its_tensors(tmp_path, form: str, values: dict, part: str):
    biased_twin(**FORMS[form]).save_pretrained(tmp_path)
    change(tmp_path / "config.json", **values)
    assert part in refusal(tmp_path)


# GGUF, by llama.cpp's own package


def set_heads(llama: Llama):
    def set_them(writer) -> None:
        writer.add_key_length(llama.config.head_dim)
        writer.add_value_length(llama.config.head_dim)

    return set_them


@pytest.mark.parametrize("changes", [{"head_dim": 24}, BOTH, {"head_dim": 40, **BOTH}], ids=str)
@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
def test_gguf_files_of_another_writer(tmp_path, changes: dict, kind: str):
    llama = ours(**{"dim": 64, **changes})
    loaded = load_pretrained(write_gguf(tmp_path / "m.gguf", llama, kind, set=set_heads(llama)))
    assert dataclasses.replace(loaded.config, multiple_of=8) == llama.config
    exact = {k: t for k, t in llama.state_dict().items() if kind == "F32" or t.ndim == 1}
    assert len(exact) > 4
    for name, tensor in exact.items():
        assert torch.equal(loaded.state_dict()[name], tensor)


def test_gguf_files_with_some_kinds_of_bias(tmp_path, capsys):
    """llama.cpp takes each kind as optional: query, key and value alone, in several parts."""
    llama = ours(attention_bias=True)
    with torch.no_grad():
        for layer in llama.layers:
            layer.attention.compute_output.bias.zero_()
    lacking = [name for name in arrays_of(llama) if name.endswith("attn_output.bias")]
    write_gguf(tmp_path / "m.gguf", llama, without=lacking, parts=9)
    loaded = load_pretrained(min(tmp_path.glob("m-*.gguf")))
    tokens = random_tokens(llama.config, 2, 9)
    assert torch.equal(loaded(tokens)[0], llama(tokens)[0])
    assert "warning" not in capsys.readouterr().err


@torch.inference_mode()
def test_int8_blocks_of_a_file_are_kept_beside_biases(tmp_path):
    """The forward pass and the step, after --quantize int8 of a Q8_0 file."""
    shape = {"dim": 64, "head_dim": 24, "hidden_dim": 192, "attention_bias": True}
    llama = ours(**shape)
    lacking = [name for name in arrays_of(llama) if name.endswith("attn_output.bias")]
    more = {"set": set_heads(llama), "without": lacking}
    path = write_gguf(tmp_path / "m.gguf", llama, "Q8_0", **more)
    assert read_checkpoint(path).tensors.read_blocks
    plain, quantized = load_pretrained(path), load_pretrained(path, quantize="int8")
    tokens = random_tokens(llama.config, 1, 30)
    expected = plain(tokens, targets=tokens)[0]
    assert_relative(quantized(tokens, targets=tokens)[0], expected, 0.03)
    decoder = FastDecoder(quantized)
    cache = decoder.make_cache(1, 30)
    quantized(tokens[:, :1], cache=cache)
    steps = [decoder(tokens[:, i : i + 1], cache) for i in range(1, 30)]
    assert_relative(torch.stack(steps, dim=1), expected[:, 1:], 0.03)


@pytest.mark.parametrize(
    ("method", "part"),
    [
        ("add_value_length", "value_length is 10, and only 12"),
        ("add_rope_dimension_count", "rope.dimension_count is 10, and only 12"),
    ],
)
def test_gguf_heads_of_two_sizes_are_refused(tmp_path, method: str, part: str):
    def set_it(writer) -> None:
        writer.add_key_length(12)
        writer.kv_data[0].pop("llama.rope.dimension_count")
        getattr(writer, method)(10)

    path = write_gguf(tmp_path / "m.gguf", ours(head_dim=12), set=set_it)
    assert part in refusal(path)


# What is counted, reported and recorded


def test_sizes_count_them():
    config = tiny_config(**TRUE, n_layers=1, head_dim=12, **BOTH)
    assert (config.query_dim, config.kv_dim) == (48, 24)
    model = Llama(config)
    assert {k: tuple(t.shape) for k, t in model.state_dict().items()} == dict(
        expected_shapes(config)
    )
    assert weight_bytes(config, "float32") == sum(p.nbytes for p in model.parameters())
    assert kv_cache_bytes(config, 10, "bfloat16") == 2 * 24 * 10 * 2
    narrow = dataclasses.replace(config, head_dim=8)
    scores = 6 * 1 * 100 * (48 - 32)
    weights = 6 * (2 * 32 * 16 + 2 * 32 * 8 + 16 + 2 * 8)
    assert training_flops(config, 100) - training_flops(narrow, 100) == scores + weights


def test_info_shows_them(tmp_path):
    biased_twin(**FORMS["everything"]).save_pretrained(tmp_path)
    shown = describe_checkpoint(read_checkpoint(tmp_path))
    assert "head_dim 20, attention_bias True, mlp_bias True" in " ".join(shown.split())
    rows = [line.split() for line in shown.splitlines()]
    assert ["bias", "80", "float32", "80"] in rows


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"dim": 30, "n_heads": 4}, "a multiple of n_heads=4, or head_dim given"),
        ({"head_dim": 7}, "head_dim=7 is not allowed: it must be even"),
        ({"head_dim": True}, "head_dim=True"),
        ({"mlp_bias": 1}, "mlp_bias=1 is not allowed: it must be true or false"),
        ({"attention_bias": None}, "attention_bias=None"),
    ],
)
def test_fields_out_of_bounds(values: dict, part: str):
    with pytest.raises(ValueError) as caught:
        LlamaConfig(**values)
    assert part in str(caught.value)


def test_a_run_of_an_earlier_version_can_be_resumed():
    """Its settings lack the fields; those of another shape are refused."""
    settings = dataclasses.asdict(tiny_config())
    earlier = {k: v for k, v in settings.items() if k not in ("head_dim", *BOTH)}
    check_same_run(Path("run"), {"settings": earlier}, {"settings"}, settings)
    with pytest.raises(ValueError, match="with head_dim 8, not 12"):
        other = settings | {"head_dim": 12}
        check_same_run(Path("run"), {"settings": earlier}, {"settings"}, other)


def test_fresh_biases_are_0():
    state = Llama(tiny_config(**TRUE, **BOTH)).state_dict()
    biases = [tensor for name, tensor in state.items() if name.endswith(".bias")]
    assert len(biases) == 14 and not any(tensor.any() for tensor in biases)
