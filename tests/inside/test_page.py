"""The page: small, self-contained, without a request; its formulas are the product's."""

import base64
import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from config import EDITIONS, PRESETS, LlamaConfig
from mini_llama.inference.sampling import Sampler, logits_to_probs
from mini_llama.inside import page, page_data
from mini_llama.inside.budget import MAX_BYTES, estimate, plan
from mini_llama.inside.pieces import Piece, read_piece, read_pieces
from mini_llama.inside.sources import find_source, formulas
from mini_llama.inside.trace import trace_generation
from mini_llama.places import DATA
from mini_llama.tokenization.find import load_tokenizer
from rope import config_tables, rotate
from tests.helpers import ROOT, random_llama, random_tokens, tiny_config
from tests.inside.browser import evaluate, open_page

EVIL = "</script><script>alert(1)</script><!--&amp;\u202e\u2066\x00\x1b"


def made(text: str = "word", **changes) -> tuple[dict, object]:
    """The data of a page of a tiny model, whose every token has this text; and its trace."""
    llama = random_llama(tiny_config(**changes))
    steps = trace_generation(llama, random_tokens(llama.config, 6), 3, Sampler(0.0))
    budget = plan(llama.config, 6, 3)
    sampling = {"temperature": 0.0, "epsilon": 0.05, "topP": 1.0}
    subject = page_data.Subject(text, {"fact": text}, llama.config, sampling)
    trace = steps[0].trace
    read = lambda i: Piece(i, text, "text")  # noqa: E731
    data = page_data.page_data(subject, trace, steps, budget, read)
    return {"version": 1, "traces": [data]}, trace


def unpacked(packed: dict) -> np.ndarray:
    array = np.frombuffer(base64.b64decode(packed["data"]), page_data.FORMATS[packed["type"]])
    return array.reshape(packed["shape"])


# What a page holds


@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm"])
@pytest.mark.parametrize("attention", ["bidirectional", "causal"])
def test_numbers_in_the_page_are_the_traces(norm: str, attention: str):
    data, trace = made(norm=norm, attention=attention)
    arrays = json.loads(re.search('id="data">(.*)</script>', page.render("t", data))[1])
    arrays = arrays["traces"][0]["arrays"]
    for i, layer in enumerate(trace.layers):
        for name in ("residual", "attention_norm", "query", "key", "scores"):
            np.testing.assert_array_equal(unpacked(arrays[name])[i], getattr(layer, name).numpy())
    np.testing.assert_array_equal(unpacked(arrays["visible"]).astype(bool), trace.visible.numpy())
    np.testing.assert_array_equal(unpacked(arrays["lensIds"]), trace.lens.ids.numpy())
    step = data["traces"][0]["steps"][0]
    np.testing.assert_array_equal(unpacked(step["logits"]), trace.logits[-1].numpy())
    rows = torch.stack([layer.probabilities[:, -1] for layer in trace.layers])
    np.testing.assert_array_equal(unpacked(step["attention"]), rows.numpy())


def test_the_page_is_one_file_with_a_strict_policy():
    text = page.render("title", made()[0])
    policy = re.search('Policy" content="([^"]*)"', text)[1]
    assert policy.startswith("default-src 'none'; ") and "unsafe" not in policy
    for tag in ("style", "script type=.module."):
        content = re.search(f"<{tag}>(.*?)</{tag.split()[0]}>", text, re.DOTALL)[1]
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    script = page.bundle()
    assert not re.search(r"^\s*(import|export)\b", script, re.MULTILINE)
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)
    assert "connect-src" not in policy  # so that the form of a live page, too, could ask nothing
    assert not re.search(r"\b(XMLHttpRequest|WebSocket|innerHTML|eval)\b", script)


def test_hostile_texts_are_inert():
    text = page.render(EVIL, made(EVIL)[0])
    assert text.count("<script") == 2 and text.count("</script>") == 2
    assert not re.search("[\x00\x1b\u202e\u2066]", text.partition("<body>")[2])


def test_pieces_show_every_sign():
    tokenizer = load_tokenizer(DATA / "demo" / "demo.model")
    ids = tokenizer.encode("Once  upon\n\u202ea \x00", bos=True, eos=True)
    pieces = [read_piece(tokenizer, i) for i in ids]
    assert pieces[0] == Piece(tokenizer.bos_id, "BOS", "control")
    assert pieces[-1] == Piece(tokenizer.eos_id, "EOS", "control")
    assert pieces[1].text == "▁Once"
    assert all(piece.text.isprintable() and piece.text for piece in pieces)
    assert "<0xE2>" in [piece.text for piece in pieces]
    padded = read_pieces(tokenizer, [5, 6, 0, 0], 2)
    assert [piece.kind for piece in padded] == ["text", "text", "padding", "padding"]
    assert read_piece(tokenizer, 10**6).text == "no. 1000000"


@pytest.mark.parametrize("edition", EDITIONS)
def test_every_formula_is_found_in_its_line(edition: str):
    config = LlamaConfig(norm=EDITIONS[edition].norm, attention=EDITIONS[edition].attention)
    for formula in formulas(config).values():
        source = find_source(formula)
        line = (ROOT / source.file).read_text(encoding="utf-8").splitlines()[source.line - 1]
        assert formula.fragment in line and line.strip() == source.code


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("length", [1, 20, 10_000])
@pytest.mark.parametrize("steps", [1, 32])
@pytest.mark.parametrize("sides", [1, 2])
def test_every_model_and_text_fits(preset: str, length: int, steps: int, sides: int):
    config = LlamaConfig(**PRESETS[preset])
    budget = plan(config, length, steps, sides)
    numbers = estimate(config, budget.tokens, budget.layers, budget.heads, budget.bytes, steps)
    each = 1 if budget.logits == config.vocab_size else 2  # with its id
    assert (numbers + steps * budget.logits * 4 * each) * sides * 4 / 3 <= MAX_BYTES
    assert 1 <= budget.tokens <= length
    assert {0, config.n_layers - 1} <= set(budget.layers)
    assert budget.heads % (config.n_heads // config.n_kv_heads) == 0
    assert bool(budget.notes) >= (budget.tokens < length)
    if preset in ("260k", "15m", "42m") and length <= 20 and steps == sides == 1:
        assert not budget.notes


def test_the_estimate_is_that_of_the_page():
    config = tiny_config(dim=128, n_layers=6, vocab_size=4096, max_seq_len=64)
    llama = random_llama(config)
    steps = trace_generation(llama, random_tokens(config, 40), 8, Sampler(0.0))
    budget = plan(config, 40, 8)
    subject = page_data.Subject("t", {}, config, {})
    data = page_data.page_data(
        subject, steps[0].trace, steps, budget, lambda i: Piece(i, "word", "text")
    )
    size = len(page.as_json({"traces": [data]}))
    assert size < MAX_BYTES


# What its functions compute


def random_logits(seed: int) -> torch.Tensor:
    return 3 * torch.randn(50, generator=torch.Generator().manual_seed(seed))


SETTINGS = [
    (temperature, epsilon, top_p)
    for temperature in (0.0, 0.3, 1.0, 2.5)
    for epsilon in (0.0, 0.05, 0.9)
    for top_p in (0.001, 0.4, 0.9, 1.0)
]


def test_the_sliders_are_sampling_py():
    logits = [random_logits(seed) for seed in range(3)] + [torch.zeros(7)]
    calls = [[row.tolist(), *setting] for row in logits for setting in SETTINGS]
    found = evaluate(f"""
import {{ sampling }} from "WEB/sampling.mjs";
const result = {json.dumps(calls)}.map(([logits, temperature, epsilon, topP]) =>
  [...sampling(logits, {{ temperature, epsilon, topP }}).after]);""")
    for (row, temperature, epsilon, top_p), after in zip(calls, found, strict=True):
        if temperature == 0:
            expected = torch.zeros(len(row))
            expected[torch.tensor(row).argmax()] = 1
        else:
            expected = logits_to_probs(torch.tensor([row]), temperature, epsilon, top_p)[0]
        np.testing.assert_allclose(after, expected.numpy(), rtol=1e-5, atol=1e-6)


def test_what_is_cut_has_its_reason():
    [cut] = evaluate("""
import { sampling } from "WEB/sampling.mjs";
const logits = [0.5, 0.3, 0.12, 0.05, 0.03].map(Math.log);
const result = [[...sampling(logits, { temperature: 1, epsilon: 0.04, topP: 0.8 }).cut]];""")
    assert cut == [0, 0, 2, 2, 1]


def test_rope_and_softmax_in_the_page_are_ours():
    config = tiny_config()
    query, key = torch.randn(2, 9, config.head_dim, generator=torch.Generator().manual_seed(0))
    tables = config_tables(config, 0, 9, "cpu")
    turned = [rotate(x[None, :, None], *tables)[0, :, 0] for x in (query, key)]
    expected = turned[0] @ turned[1].T / config.head_dim**0.5
    data, _ = made()
    frequencies = unpacked(data["traces"][0]["arrays"]["frequencies"]).tolist()
    given = json.dumps([x.tolist() for x in (query, key, torch.tensor(frequencies), expected)])
    products, shares = evaluate(f"""
import {{ maskedSoftmax, pairProducts }} from "WEB/numbers.mjs";
const [query, key, frequencies, scores] = {given};
const sum = (values) => values.reduce((a, b) => a + b);
const result = [
  query.map((q, m) => key.map((k, n) => sum(pairProducts(q, k, [m, n], frequencies)))),
  scores.map((row, m) => [...maskedSoftmax(row, row.map((_, n) => n <= m))])];""")
    np.testing.assert_allclose(products, expected, rtol=0, atol=1e-5)
    hidden = expected.masked_fill(torch.ones(9, 9).triu(1).bool(), -torch.inf)
    np.testing.assert_allclose(shares, hidden.softmax(-1), rtol=0, atol=1e-6)


def test_half_precision_is_read_as_numpy_reads_it():
    values = np.array([0, 1, -2.5, 65504, 6e-8, -1e-5, np.inf, 0.1], np.float16)
    packed = page_data.pack(torch.tensor(values), "f2")
    shown = evaluate(f"""
import {{ unpack }} from "WEB/numbers.mjs";
const result = [...unpack({json.dumps(packed)}).data].map(String);""")
    assert [float(value.replace("Infinity", "inf")) for value in shown] == values.tolist()


# In a browser


def test_the_browsers_messages_and_requests_are_seen(tmp_path: Path):
    """Otherwise the tests below could not fail."""
    path = tmp_path / "page.html"
    path.write_text(
        "<img src='http://127.0.0.1:9/image'><script>console.log('said'); undefinedName();</script>"
    )
    _, messages, requests = open_page(path, tmp_path)
    assert any("said" in message for message in messages)
    assert any("undefinedName" in message for message in messages)
    assert requests and set(requests) == {"http://127.0.0.1:9/image"}


def test_the_page_opens_from_a_file_without_a_request(tmp_path: Path):
    data, trace = made(n_kv_heads=4)  # the other tests' heads share keys
    path = tmp_path / "page.html"
    path.write_text(page.render("Inside", data), encoding="utf-8")
    dom, messages, requests = open_page(path, tmp_path)
    assert messages == [] and requests == []
    for heading in ("Tokens", "Embedding", "Attention", "Residual stream", "Logit lens"):
        assert f">{heading}</h" in dom
    shown = dom.partition('id="page"')[2].partition("<script")[0]
    assert shown.count("<canvas") >= 8 and "[object" not in shown and "NaN" not in shown
    best = float(trace.layers[1].probabilities[0, -1].max())
    assert f"{100 * best:.0f} % of its attention" in dom.replace("</bdi>", "")


# What a user does, without a mouse; what is then on the page goes to the end of it, as JSON.
USE = """
const said = () => document.querySelector(".says").textContent;
const press = (key) => document.activeElement.dispatchEvent(
  new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
const drawn = () => document.querySelectorAll(".outcome .bar:not(.faded)").length;
const found = { start: said() };
document.querySelector(".token[tabindex='0']").focus();
press("ArrowLeft");
found.left = said();
press("Home");
found.home = said();
document.querySelector(".pair canvas[tabindex='0'][aria-label^='probabilities']").focus();
press("ArrowDown");
found.down = said();
document.querySelector(".stepper button:last-of-type").click();
found.layer = document.querySelector(".layer h2").textContent;
const slider = document.querySelectorAll("input[type=range]");
const slide = (i, value) => {
  slider[i].value = value;
  slider[i].dispatchEvent(new Event("input", { bubbles: true }));
  return drawn();
};
found.drawn = [slide(1, 0), slide(2, 0.3), slide(2, 1), slide(0, 0)];
const box = document.querySelector("#attention details");
box.open = true;
setTimeout(() => {
  const cells = [...box.querySelectorAll("tbody tr")].map((row) => row.children[1].textContent);
  document.body.append("FOUND", JSON.stringify({ ...found, cells }), "END");
});
"""


def test_the_keyboard_and_the_sliders_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    own = page.bundle()
    monkeypatch.setattr(page, "bundle", lambda: f"{own}\n{{{USE}}}")
    data, trace = made()
    path = tmp_path / "page.html"
    path.write_text(page.render("Inside", data), encoding="utf-8")
    dom, messages, _ = open_page(path, tmp_path)
    assert messages == []
    found = json.loads(re.search("FOUND({.*?})END", dom.rpartition("</script>")[2])[1])
    places = [
        re.search(r"\(position (\d+)\)", found[k])[1] for k in ("start", "left", "home", "down")
    ]
    assert places == ["5", "4", "0", "1"]
    assert found["layer"] == "Layer 1 of 0 to 1"
    most = min(20, len(trace.logits[-1]))
    kept = (logits_to_probs(trace.logits[-1:], 1.0, 0.0, 0.3) > 0).sum()
    assert found["drawn"] == [most, min(int(kept), most), most, 1]
    last = trace.layers[1].probabilities[0, 1]
    rows = [float(cell) for cell in found["cells"]]
    np.testing.assert_allclose(rows, last.numpy(), atol=6e-4)
    assert abs(sum(rows) - 1) < 3e-3


def test_hostile_texts_are_text_in_a_browser(tmp_path: Path):
    path = tmp_path / "page.html"
    path.write_text(page.render(EVIL, made(EVIL)[0]), encoding="utf-8")
    dom, messages, requests = open_page(path, tmp_path)
    assert messages == [] and requests == []
    assert ">Logit lens</h" in dom and "</script><script>alert(1)" in dom
