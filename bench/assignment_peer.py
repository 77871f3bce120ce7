"""The work of one graded command in transformers, with torch.optim.AdamW, and PEFT for LoRA.

Its batches are the assignment's; padding is masked, since it reads the last real token.
"""

import json
import warnings
from pathlib import Path
from typing import Any

import peft
import torch
import torch.nn.functional as F
import transformers
from assignment_sides import Steps, texts_of
from peers import transformers_config

from llama import load_pretrained
from mini_llama.assignment import completion
from mini_llama.assignment.batches import Batch, EncodedExamples, make_batches
from mini_llama.assignment.options import Options
from mini_llama.assignment.task import prepare

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj"]
PAD_ID = 3


class Theirs:
    """As assignment_sides.Ours, from a folder that save_folder wrote."""

    def __init__(self, options: Options, folder: Path) -> None:
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        warnings.simplefilter("ignore", FutureWarning)
        self.options, self.folder = options, folder / f"trained-{options.option}"
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        self.task = None if options.option == "generate" else prepare(options)
        if self.task is None or options.option == "prompt":
            self.model: Any = transformers.LlamaForCausalLM.from_pretrained(folder).eval()
            return
        kind = transformers.LlamaForSequenceClassification
        self.model = kind.from_pretrained(folder, num_labels=self.task.num_labels)
        if options.option == "lora":
            rank, alpha = options.lora_rank, int(options.lora_alpha)
            adapters = peft.LoraConfig(
                peft.TaskType.SEQ_CLS, r=rank, lora_alpha=alpha, target_modules=PROJECTIONS
            )
            self.model = peft.get_peft_model(self.model, adapters)
        self.last = self.model
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=options.lr)

    def sizes(self) -> dict[str, list[int]]:
        if self.task is None:
            return {}
        self.texts = texts_of(self.options, self.task)
        self.steps = Steps(self.options, self.texts, self.task.tokenizer)
        return self.steps.sizes()

    def tokenise(self) -> None:
        for examples in self.texts.values():
            self.tokenizer([example.sentence for example in examples])

    def train(self, _: str, index: int) -> None:
        batch = self.steps.batches[index]
        self.model.train()
        output = self.model(batch.tokens, attention_mask=_mask(batch), labels=batch.labels)
        self.optimizer.zero_grad()
        output.loss.backward()
        self.optimizer.step()
        output.loss.item()

    def evaluate(self, split: str, index: int) -> None:
        self._predict(self.model, self.steps.parts[split][index])

    def evaluate_last(self, split: str, index: int) -> None:
        model = self.model if self.options.option == "prompt" else self.last
        self._predict(model, self.steps.parts[split][index])

    @torch.inference_mode()
    def _predict(self, model: Any, part: EncodedExamples) -> None:
        (batch,) = make_batches(part, len(part.rows))
        if self.options.option == "prompt":
            tokens, mask = _at_the_right(batch)
            logits = model(tokens, attention_mask=mask, logits_to_keep=1).logits[:, 0]
            F.log_softmax(logits, dim=-1).argmax(dim=-1).tolist()
            return
        model.eval()
        model(batch.tokens, attention_mask=_mask(batch)).logits.argmax(dim=-1).tolist()

    def save(self) -> None:
        """The best model, and what training would go on with, as ours."""
        self.model.save_pretrained(self.folder)
        torch.save(self.optimizer.state_dict(), self.folder / "optimizer.pt")

    def read_back(self) -> None:
        if self.options.option == "lora":
            self.last = self.model.merge_and_unload()
            return
        kind = transformers.LlamaForSequenceClassification
        self.last = kind.from_pretrained(self.folder)

    def generate(self) -> None:
        ids = self.tokenizer(completion.prompt_of(self.options), return_tensors="pt")
        count = self.options.max_new_tokens
        common = {"max_new_tokens": count, "min_new_tokens": count, "pad_token_id": PAD_ID}
        for how in ({"do_sample": False}, {"do_sample": True, "epsilon_cutoff": 0.05, "top_k": 0}):
            tokens = self.model.generate(**ids, **common, **how)
            self.tokenizer.decode(tokens[0], skip_special_tokens=True)


def _mask(batch: Batch) -> torch.Tensor:
    return (torch.arange(batch.tokens.shape[1]) < batch.lengths[:, None]).long()


def _at_the_right(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """The batch's tokens with their padding on the left, and the mask of them."""
    columns = batch.tokens.shape[1]
    places = torch.arange(columns) - (columns - batch.lengths)[:, None]
    return batch.tokens.gather(1, places % columns), (places >= 0).long()


def save_folder(folder: Path, checkpoint: str, tokenizer: Path) -> None:
    """Make transformers' model of the checkpoint's shape, with random weights, and its tokenizer.

    It adds BOS, as ours does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = transformers_config(load_pretrained(checkpoint).config, pad_token_id=PAD_ID)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    (folder / "tokenizer.model").write_bytes(tokenizer.read_bytes())
    transformers.LlamaTokenizer.from_pretrained(folder).save_pretrained(folder)
    (folder / "tokenizer.model").unlink()
    settings = folder / "tokenizer_config.json"
    content = json.loads(settings.read_text(encoding="utf-8")) | {"add_bos_token": True}
    settings.write_text(json.dumps(content), encoding="utf-8")
