"""Option generate, end to end: the two texts, the files, and the arithmetic they were made with."""

import contextlib
import dataclasses
import io
import re
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from sentencepiece import SentencePieceProcessor

import run_llama
from config import LlamaConfig
from llama import Llama, load_pretrained
from mini_llama.assignment import completion
from mini_llama.checkpoints import memory as memory_plan
from mini_llama.checkpoints import report as checkpoint_report
from mini_llama.checkpoints.formats.torch_file import save_checkpoint
from tests.helpers import random_llama, tiny_config

FRANKENSTEIN = (
    "Victor Frankenstein, a young scientist obsessed with uncovering the secrets of life, "
    "succeeds in animating a creature assembled from"
)
THRILLER = (
    "I have wanted to see this thriller for a while, and it didn't disappoint. "
    "Keanu Reeves, playing the hero John Wick, is"
)
LILY = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. "
    "One day, she saw a big, red ball. She wanted to play with it, but it was too high.\n"
    "Lily's mom said, \"Lily, let's go to the park.\" Lily was sad and didn't know what to do. "
    'She said, "I want to play with your ball, but I can\'t find it."\n'
    "Lily was sad and didn't know what to do. "
    "She said, \"I'm sorry, Lily. I didn't know what to do.\"\n"
    "Lily didn't want to help her mom, so she"
)
RULE = "\n---------------\n"
LOW, HIGH = "generated-sentence-temp-0.txt", "generated-sentence-temp-1.txt"
PROMPT = "good bad film but"
NEW_TOKENS = 20


@pytest.fixture(autouse=True)
def _leave_the_process_as_it_was() -> Iterator[None]:
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


# Untied, so that greedy text is more than the last token again and again. No norm has a bias, so
# that every edition can load it, as it can stories42M.pt.
CONFIG = tiny_config(
    vocab_size=300, max_seq_len=256, norm="rmsnorm", tie_word_embeddings=False, attention="causal"
)


def peaked_llama() -> Llama:
    """CONFIG's model; a token or a few have most of the probability, as in a trained one."""
    llama = random_llama(CONFIG)
    with torch.no_grad():
        llama.output.weight.mul_(3)
    return llama


@pytest.fixture
def folder(tokenizer_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: model.pt, which records its arithmetic (RMSNorm, causal), plain.pt, the
    same without the record, and tokenizer.model.
    """
    tensors = peaked_llama().state_dict()
    save_checkpoint(tmp_path / "model.pt", CONFIG, tensors)
    arithmetic = ("norm", "attention")
    args = {k: v for k, v in dataclasses.asdict(CONFIG).items() if k not in arithmetic}
    save_checkpoint(tmp_path / "plain.pt", args, tensors)
    shutil.copy(tokenizer_model, tmp_path / "tokenizer.model")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read_text(name: str) -> str:
    """A file's text without translated line ends."""
    return Path(name).read_bytes().decode("utf-8")


def on_terminal(text: str) -> str:
    """Characters that would move the cursor, change colours or turn the text round are spelt out;
    line ends and tabs stay.
    """
    kept = {"\n", "\t"}
    return "".join(
        c if c.isprintable() or c in kept else c.encode("unicode_escape").decode() for c in text
    )


def generate(*arguments: str, checkpoint: str = "model.pt") -> str:
    """Run option generate; what it prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        run_llama.main(["--pretrained-model-path", checkpoint, *arguments])
    return printed.getvalue()


def short(*arguments: str, checkpoint: str = "model.pt") -> tuple[str, str]:
    """Both texts of a run with a short prompt and few tokens."""
    generate("--prompt_text", PROMPT, "--max_new_tokens", str(NEW_TOKENS), *arguments,
             checkpoint=checkpoint)  # fmt: skip
    return read_text(LOW), read_text(HIGH)


def greedy_ids(llama: Llama, ids: list[int], count: int) -> list[int]:
    """The most probable token again and again, each time from the whole text."""
    ids = list(ids)
    with torch.no_grad():
        for _ in range(count):
            logits, _ = llama(torch.tensor([ids]))
            ids.append(int(logits[0, -1].argmax()))
    return ids


def greedy_text(config: LlamaConfig, prompt: str, count: int) -> str:
    """What a model of this arithmetic, with the weights of model.pt, writes at temperature 0."""
    llama = Llama(config)
    missing, unexpected = llama.load_state_dict(peaked_llama().state_dict(), strict=False)
    assert not unexpected and all(name.endswith("norm.bias") for name in missing)
    pieces = SentencePieceProcessor(model_file="tokenizer.model")
    ids = [pieces.bos_id(), *pieces.encode(prompt)]
    return pieces.decode(greedy_ids(llama.eval(), ids, count))


# What is written and what is printed


@pytest.mark.parametrize("seed", ["1337", "7"])
def test_the_files_hold_the_texts_as_they_are_printed(seed: str, folder: Path) -> None:
    printed = generate("--seed", seed)
    low, high = read_text(LOW), read_text(HIGH)
    head, *blocks = re.split(r"^Temperature is (.*)\n", printed, flags=re.MULTILINE)
    assert re.fullmatch(r"args: \{.*\}\nload model from model\.pt: .*\n", head)
    assert blocks == [
        "0.0",
        f"{on_terminal(low)}{RULE}Wrote generated sentence to {LOW}.\n",
        "1.0",
        f"{on_terminal(high)}{RULE}Wrote generated sentence to {HIGH}.\n",
    ]
    for text in (low, high):
        assert text.startswith(FRANKENSTEIN)
        assert len(text) > len(FRANKENSTEIN)
        assert "<s>" not in text
        assert not text.endswith("\n")
    assert low != high


def test_padding_is_never_written(folder: Path) -> None:
    """Also where it is the most probable token by far: files and terminal hold no NUL."""
    llama = peaked_llama()
    padding = SentencePieceProcessor(model_file="tokenizer.model").piece_to_id("<0x00>")
    with torch.no_grad():
        # Opposite rows: whatever the hidden state is, one of the two is the most probable.
        llama.output.weight[padding] = 50 * llama.output.weight[padding - 1]
        llama.output.weight[padding + 1] = -llama.output.weight[padding]
    save_checkpoint(folder / "padding.pt", CONFIG, llama.state_dict())
    ids = [1, *range(20, 40)]
    assert padding in greedy_ids(llama.eval(), ids, NEW_TOKENS)[len(ids) :]
    printed = generate("--prompt_text", PROMPT, checkpoint="padding.pt")
    assert "\0" not in read_text(LOW) + read_text(HIGH) + printed
    assert "\\x00" not in printed


def test_a_text_cannot_command_the_terminal(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file has the text as it is."""
    text = "red \x1b[31m, back \r, right to left \u202e\n\tend"
    monkeypatch.setattr(completion.Writer, "texts", lambda *_: [text])
    printed = generate()
    assert read_text(LOW) == text
    assert "red \\x1b[31m, back \\r, right to left \\u202e\n\tend\n" in printed


def test_the_files_can_be_named_and_nothing_else_is_written(folder: Path) -> None:
    before = {path.name for path in folder.iterdir()}
    (folder / "texts").mkdir()
    names = ["texts/low.txt", "texts/high.txt"]
    arguments = ["--generated_sentence_low_temp_out", names[0]]
    arguments += ["--generated_sentence_high_temp_out", names[1]]
    printed = generate(*arguments, "--max_new_tokens", "3")
    assert [f"Wrote generated sentence to {name}." in printed for name in names] == [True, True]
    assert {path.name for path in folder.iterdir()} == before | {"texts"}
    assert sorted(path.name for path in (folder / "texts").iterdir()) == ["high.txt", "low.txt"]


def test_a_terminal_that_cannot_show_the_text_does_not_lose_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = short("--prompt_text", "café")
    for name in (LOW, HIGH):
        (folder / name).unlink()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    arguments = ["--pretrained-model-path", "model.pt", "--prompt_text", "café"]
    run_llama.main([*arguments, "--max_new_tokens", str(NEW_TOKENS)])
    assert (read_text(LOW), read_text(HIGH)) == expected


# Temperature 0


ARITHMETICS = [(n, a) for n in ("layernorm", "rmsnorm") for a in ("bidirectional", "causal")]


@pytest.mark.parametrize(("norm", "attention"), ARITHMETICS)
def test_temperature_0_is_the_argmax_over_the_whole_text(
    norm: str, attention: str, folder: Path
) -> None:
    arguments = ("--norm", norm, "--attention", attention)
    low, _ = short(*arguments)
    config = dataclasses.replace(CONFIG, norm=norm, attention=attention)
    assert low == greedy_text(config, PROMPT, NEW_TOKENS)
    assert short(*arguments, "--seed", "99")[0] == low


def test_the_default_is_75_tokens(folder: Path) -> None:
    generate("--prompt_text", PROMPT)
    assert read_text(LOW) == greedy_text(CONFIG, PROMPT, 75)


def test_the_arithmetics_write_different_texts(folder: Path) -> None:
    """Else the tests here could not tell which one was used."""
    configs = [dataclasses.replace(CONFIG, norm=n, attention=a) for n, a in ARITHMETICS]
    assert len({greedy_text(config, PROMPT, NEW_TOKENS) for config in configs}) == 4


@pytest.mark.parametrize("arguments", ["--temperature 0", "--epsilon 1", "--top_p 0.0000001"])
def test_sampling_that_leaves_one_token_is_the_argmax(arguments: str, folder: Path) -> None:
    low, high = short(*arguments.split())
    assert high == low


def test_max_sentence_len_cuts_the_prompt_and_bos_is_not_counted(folder: Path) -> None:
    low, _ = short("--max_sentence_len", "2")
    pieces = SentencePieceProcessor(model_file="tokenizer.model")
    assert pieces.encode(PROMPT)[:2] == pieces.encode("good bad")
    assert low == greedy_text(CONFIG, "good bad", NEW_TOKENS)


# Sampling


def test_the_seed_decides_the_sampled_text_whatever_ran_before(folder: Path) -> None:
    first = short("--edition", "llama2")
    torch.rand(5)
    assert short("--edition", "llama2") == first
    assert short("--edition", "llama2", "--seed", "1337") == first
    low, high = short("--edition", "llama2", "--seed", "1338")
    assert low == first[0]
    assert high != first[1]


# norm, attention, epsilon, top_p and prompt of each edition, from the contract's table
EDITIONS = {
    "mmia": ("layernorm", "bidirectional", "0.05", "1", FRANKENSTEIN),
    "fall2025": ("layernorm", "bidirectional", "0.05", "1", THRILLER),
    "fall2024": ("rmsnorm", "bidirectional", "0", "1", THRILLER),
    "spring2025": ("rmsnorm", "bidirectional", "0", "0.9", THRILLER),
    "spring2026": ("layernorm", "causal", "0", "0.95", THRILLER),
    "llama2": ("rmsnorm", "causal", "0", "1", FRANKENSTEIN),
}


@pytest.mark.parametrize(("edition", "settings"), EDITIONS.items())
def test_an_edition_is_the_sum_of_its_settings(
    edition: str, settings: tuple[str, ...], folder: Path
) -> None:
    generate("--edition", edition)
    texts = read_text(LOW), read_text(HIGH)
    flags = ("--norm", "--attention", "--epsilon", "--top_p", "--prompt_text")
    pairs = [word for pair in zip(flags, settings, strict=True) for word in pair]
    generate("--edition", "mmia" if edition == "llama2" else "llama2", *pairs)
    assert (read_text(LOW), read_text(HIGH)) == texts
    assert all(text.startswith(settings[-1]) for text in texts)


@pytest.mark.parametrize("rule", ["--epsilon 0.05", "--top_p 0.5", "--temperature 0.5"])
def test_every_rule_of_sampling_changes_the_text(rule: str, folder: Path) -> None:
    low, plain = short("--edition", "llama2")
    low_with_rule, high_with_rule = short("--edition", "llama2", *rule.split())
    assert low_with_rule == low
    assert high_with_rule != plain


def test_samples_share_the_file_between_rules(folder: Path) -> None:
    printed = generate("--prompt_text", PROMPT, "--edition", "llama2", "--num_samples", "3")
    low, high = read_text(LOW), read_text(HIGH)
    texts = high.split(RULE)
    assert len(set(texts)) == 3
    assert all(text.startswith(PROMPT) and len(text) > len(PROMPT) for text in texts)
    assert RULE not in low
    assert not high.endswith("\n")
    assert (
        f"Temperature is 1.0\n{on_terminal(high)}{RULE}Wrote generated sentence to {HIGH}.\n"
        in printed
    )


# Which arithmetic is used: (checkpoint, flags, norm, attention)

PRECEDENCE = [
    ("plain.pt", "", "layernorm", "bidirectional"),  # nothing said: the default edition, mmia
    ("plain.pt", "--edition llama2", "rmsnorm", "causal"),
    ("plain.pt", "--edition fall2024", "rmsnorm", "bidirectional"),
    ("plain.pt", "--norm rmsnorm", "rmsnorm", "bidirectional"),
    ("plain.pt", "--attention causal", "layernorm", "causal"),
    ("model.pt", "", "rmsnorm", "causal"),  # recorded: wins over the default edition
    ("model.pt", "--edition mmia", "layernorm", "bidirectional"),  # explicit: wins over both
    ("model.pt", "--edition spring2026", "layernorm", "causal"),
    ("model.pt", "--norm layernorm", "layernorm", "causal"),
    ("model.pt", "--attention bidirectional", "rmsnorm", "bidirectional"),
    ("model.pt", "--edition mmia --norm rmsnorm", "rmsnorm", "bidirectional"),
    ("model.pt", "--edition mmia --attention causal", "layernorm", "causal"),
]


@pytest.mark.parametrize(("checkpoint", "flags", "norm", "attention"), PRECEDENCE)
def test_flags_win_over_the_checkpoint_which_wins_over_the_default_edition(
    checkpoint: str, flags: str, norm: str, attention: str, folder: Path
) -> None:
    arguments = ["--prompt_text", PROMPT, "--max_new_tokens", str(NEW_TOKENS), *flags.split()]
    printed = generate(*arguments, checkpoint=checkpoint)
    line = next(line for line in printed.splitlines() if line.startswith("load model from "))
    assert line.startswith(f"load model from {checkpoint}: ")
    words = set(re.findall(r"\b(layernorm|rmsnorm|bidirectional|causal)\b", line))
    assert words == {norm, attention}
    config = dataclasses.replace(CONFIG, norm=norm, attention=attention)
    assert read_text(LOW) == greedy_text(config, PROMPT, NEW_TOKENS)


# The end of a text


@pytest.mark.parametrize("arguments", [(), ("--edition", "fall2025")], ids=["bos", "edition"])
def test_an_empty_prompt_is_bos_alone(arguments: tuple[str, ...], folder: Path) -> None:
    generate("--norm", "rmsnorm", "--attention", "causal", "--prompt_text", "", *arguments)
    assert read_text(LOW) == greedy_text(CONFIG, "", 75)


@pytest.fixture
def eos_folder(folder: Path) -> Path:
    """folder, whose model.pt writes EOS after a few tokens, and goes on."""
    llama = peaked_llama()
    pieces = SentencePieceProcessor(model_file="tokenizer.model")
    prompt = [pieces.bos_id(), *pieces.encode(PROMPT)]
    ids = greedy_ids(llama, prompt, NEW_TOKENS)
    with torch.no_grad():
        hidden = llama(torch.tensor([ids]))[1][0, len(prompt) - 1 :]
        # What tells the sixth place from the others makes EOS likely there and nowhere else.
        llama.output.weight[pieces.eos_id()] = 1.5 * (hidden[5] - hidden.mean(dim=0))
    save_checkpoint(folder / "model.pt", CONFIG, llama.state_dict())
    return folder


def eos_texts(folder: Path) -> tuple[str, str]:
    """What the model of eos_folder writes up to EOS, and what with all NEW_TOKENS tokens."""
    llama = random_llama(CONFIG)
    saved = torch.load(folder / "model.pt", weights_only=True)["model"]
    llama.load_state_dict(saved)
    pieces = SentencePieceProcessor(model_file="tokenizer.model")
    prompt = [pieces.bos_id(), *pieces.encode(PROMPT)]
    ids = greedy_ids(llama, prompt, NEW_TOKENS)
    end = ids.index(pieces.eos_id())
    assert len(prompt) < end < len(ids) - 1
    assert ids[-1] != pieces.eos_id()
    return pieces.decode(ids[:end]), pieces.decode(ids)


def test_eos_stops_nothing_unless_asked(eos_folder: Path) -> None:
    until_eos, whole = eos_texts(eos_folder)
    assert until_eos != whole
    assert short()[0] == whole
    assert short("--stop_at_eos")[0] == until_eos


def test_each_sample_ends_at_its_own_eos(eos_folder: Path) -> None:
    pieces = SentencePieceProcessor(model_file="tokenizer.model")
    arguments = ("--epsilon", "0", "--num_samples", "12", "--temperature", "0.7")
    whole = short(*arguments)[1].split(RULE)
    stopped = short(*arguments, "--stop_at_eos")[1].split(RULE)
    assert len(whole) == len(stopped) == 12
    assert all(long.startswith(text) for long, text in zip(whole, stopped, strict=True))
    lengths = {len(pieces.encode(text)) for text in stopped}
    assert len(lengths) > 1
    assert any(long != text for long, text in zip(whole, stopped, strict=True))


# The real thing


@pytest.mark.parametrize("name", ["stories260K.bin", "stories260K.pt", "stories260K-cmu.pt"])
def test_stories260k_tells_the_story_of_the_contract(
    name: str, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ("--edition", "llama2", "--prompt_text", "", "--max_new_tokens", "200")
    generate(*arguments, checkpoint=str(shared / "checkpoints" / name))
    assert read_text(LOW) == LILY
    assert read_text(HIGH).startswith("Once upon a time")


# Precision of the weights


def test_quantized_weights_write_their_own_text(folder: Path) -> None:
    """Prompt and all, the most probable tokens of a model that is loaded with quantized weights."""
    prompt = torch.tensor([SentencePieceProcessor(model_file="tokenizer.model").encode(PROMPT)])
    prompt = torch.cat((torch.tensor([[1]]), prompt), dim=1)
    for flags, form in (
        (["--quantize", "int8"], {"quantize": "int8"}),
        (["--dtype", "bfloat16"], {"dtype": "bfloat16"}),
        (["--dtype", "bfloat16", "--quantize", "int8"], {"quantize": "int8", "dtype": "bfloat16"}),
    ):
        tokens = load_pretrained("model.pt", **form).generate(prompt, NEW_TOKENS, 0.0)
        pieces = SentencePieceProcessor(model_file="tokenizer.model")
        assert short(*flags)[0] == pieces.decode(tokens[0].tolist())


@pytest.mark.parametrize("flags", ["--dtype bfloat16", "--quantize int8"])
def test_other_weights_serve_bidirectional_attention_as_well(flags: str, folder: Path) -> None:
    low, _ = short(*flags.split(), "--edition", "fall2024")
    assert low.startswith(PROMPT) and len(low) > len(PROMPT)


# What fits


def test_a_plan_reads_headers_alone_and_writes_nothing(folder: Path, monkeypatch) -> None:
    monkeypatch.setattr(memory_plan, "available_bytes", lambda device: 10**6)
    monkeypatch.setattr(checkpoint_report, "available_bytes", lambda device: 10**6)
    monkeypatch.setattr(completion, "load_pretrained", None)
    before = sorted(folder.iterdir())
    printed = generate("--plan").splitlines()
    count = sum(p.numel() for p in peaked_llama().parameters())
    assert printed[1] == f"parameters         {count:,}"
    cache = 2 * 2 * 2 * 8 * 256 * 4 / 1e6
    assert f"key/value cache    {cache:.2f} MB float32" in printed[3]
    assert printed[5].startswith("fits: float32, --dtype bfloat16, --quantize int8, ")
    assert sorted(folder.iterdir()) == before


def test_a_model_that_cannot_fit_is_refused_in_one_line(folder: Path, monkeypatch) -> None:
    """In bfloat16 all of it is converted; in float32 it stays mapped, and that always works."""
    monkeypatch.setattr(memory_plan, "available_bytes", lambda: 10**5)
    with pytest.raises(SystemExit) as stop:
        short("--dtype", "bfloat16")
    assert re.fullmatch(
        r"run_llama\.py: error: model\.pt needs 0\.\d\d MB of memory as --dtype bfloat16, and "
        r"0\.10 MB are free: it fits with float32, .*",
        stop.value.code,
    )
    assert not Path(LOW).exists()
    assert short()[0].startswith(PROMPT)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--option", "lora", "--quantize", "int8"], "quantized weights cannot be trained"),
        (["--option", "finetune", "--quantize", "nf4"], "quantized weights cannot be trained"),
        (["--option", "prompt", "--plan"], "it must be left out, but for --option generate"),
        (["--quantize", "nf4", "--compile"], "--quantize nf4 is not allowed: it must be int8 with"),
        (["--quantize", "int4"], "invalid choice: 'int4' (choose from int8, nf4)"),
    ],
)
def test_what_cannot_be_asked_for_is_one_line(arguments: list, part: str, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        run_llama.main(arguments)
    message = capsys.readouterr().err if stop.value.code == 2 else stop.value.code
    assert part.replace("'", "") in message.replace("'", "") and message.strip().count("\n") == 0
