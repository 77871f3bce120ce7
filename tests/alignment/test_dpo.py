"""DPO's log probabilities and loss, beside transformers' model and the formula written out."""

import pytest
import torch
import torch.nn.functional as F
import transformers

from lora import apply_lora
from mini_llama.alignment.chat import Tokens
from mini_llama.alignment.data import Pair, collate
from mini_llama.alignment.dpo import (
    PreferenceLoss,
    answer_log_probs,
    answers_of,
    judged,
    part_of,
)
from mini_llama.alignment.options import DpoOptions
from mini_llama.training.model_folder import save_model_folder
from tests.helpers import random_llama, random_tokens, tiny_config

CONFIG = tiny_config(attention="causal", norm="rmsnorm", max_seq_len=32)
OPTIONS = DpoOptions(data=("pairs.jsonl",), batch_size=2)


def pairs() -> list[Pair]:
    """Three pairs of answers of 1 to 9 tokens after prompts of 2 to 4."""
    found = []
    for i, (prompt, chosen, rejected) in enumerate([(2, 9, 1), (4, 3, 5), (3, 2, 2)]):
        start, *answers = (
            random_tokens(CONFIG, length, seed=3 * i + n).tolist()
            for n, length in enumerate((prompt, chosen, rejected))
        )
        examples = (
            Tokens(start + answer, [False] * prompt + [True] * len(answer)) for answer in answers
        )
        found.append(Pair(*examples, grade=None))
    return found


def test_log_probs_are_transformers_whatever_the_padding(tmp_path):
    llama = random_llama(CONFIG)
    save_model_folder(tmp_path, CONFIG, llama.state_dict())
    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path).eval()
    batch = answers_of(pairs(), pad_id=3)
    with torch.no_grad():
        found = answer_log_probs(llama, batch)
        examples = [pair.chosen for pair in pairs()] + [pair.rejected for pair in pairs()]
        for ours, example in zip(found, examples, strict=True):
            logits = theirs(torch.tensor([example.ids])).logits[0]
            targets = torch.tensor(example.ids[1:])
            log_probs = F.log_softmax(logits[:-1], -1).gather(1, targets[:, None])[:, 0]
            expected = log_probs[torch.tensor(example.learns[1:])].sum()
            torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-5)
            alone = answer_log_probs(llama, collate([[example]], pad_id=3))
            torch.testing.assert_close(alone[0], ours, atol=1e-4, rtol=1e-5)


def test_loss_and_gradients_are_those_of_the_formula():
    llama, reference = random_llama(CONFIG), random_llama(CONFIG, seed=1)
    rows = judged(reference, OPTIONS, 3, pairs())
    loss, metrics = PreferenceLoss(llama, 0.3)(part_of(rows, 3, torch.device("cpu")).inputs)
    loss.backward()
    gradients = [p.grad.clone() for p in llama.parameters()]
    llama.zero_grad()
    batch = answers_of(pairs(), pad_id=3)
    with torch.no_grad():
        theirs = answer_log_probs(reference, batch)
    rewards = 0.3 * (answer_log_probs(llama, batch) - theirs)
    margins = rewards[:3] - rewards[3:]
    expected = -(1 / (1 + (-margins).exp())).log().mean()
    expected.backward()
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    for ours, parameter in zip(gradients, llama.parameters(), strict=True):
        torch.testing.assert_close(ours, parameter.grad, atol=1e-5, rtol=1e-4)
    assert metrics["margin"].item() == pytest.approx(margins.mean().item(), abs=1e-4)
    assert metrics["accuracy"].item() == pytest.approx((margins > 0).float().mean().item())


def test_the_reference_is_the_model_without_its_adapters():
    """What is computed before the first step with adapters at their start is the base model's."""
    base, adapted = random_llama(CONFIG), random_llama(CONFIG)
    apply_lora(adapted, 2, 4.0, ("compute_query", "output"))
    first, second = (judged(llama, OPTIONS, 3, pairs()) for llama in (base, adapted))
    for ours, theirs in zip(second, first, strict=True):
        assert ours.chosen == pytest.approx(theirs.chosen, abs=1e-4)
        assert ours.rejected == pytest.approx(theirs.rejected, abs=1e-4)
        assert ours.pair == theirs.pair, "in their order"
