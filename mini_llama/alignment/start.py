"""What a stage starts from and leaves: a model that is trained, with its tokenizer and template."""

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from config import LlamaConfig, resolve_arithmetic
from llama import Llama, load_pretrained
from lora import LoRALayer, apply_lora, count_lora_parameters, merged_state_dict
from mini_llama.alignment.data import Encoder
from mini_llama.alignment.options import StageOptions
from mini_llama.assignment.adapters import check_rank, save_adapters
from mini_llama.bounds import UsageError, as_usage
from mini_llama.chatting import choose_template
from mini_llama.checkpoints.conversion import TRUE_LLAMA
from mini_llama.checkpoints.formats.huggingface_tokenizer import copy_file
from mini_llama.checkpoints.formats.torch_file import save_checkpoint
from mini_llama.checkpoints.own_tokenizer import find_own_tokenizer
from mini_llama.checkpoints.reading import read_checkpoint
from mini_llama.checkpoints.record import check_is_pretrained
from mini_llama.checkpoints.tensor_files import load_plain
from mini_llama.inference.own_template import OwnTemplate
from mini_llama.resume import digest
from mini_llama.tokenization.base import BaseTokenizer
from mini_llama.tokenization.find import check_vocabulary, load_tokenizer
from mini_llama.tokenization.stop_ids import stop_ids
from mini_llama.training.core import Recipe, TrainerCore
from mini_llama.training.folder import CURVE, METRICS, PROGRESS, existing, remove_files
from mini_llama.training.model_folder import MODEL_COMPANIONS, MODEL_FILES, save_model_folder
from mini_llama.training.processes import Process
from mini_llama.training.progress import full_state
from tokenizer import Tokenizer

MODEL, ADAPTERS, FOLDER, TOKENIZER = "model.pt", "model.adapters.pt", "model", "tokenizer.model"
RESULTS = (MODEL, ADAPTERS, PROGRESS, CURVE, METRICS)


@dataclass(frozen=True)
class Start:
    """A causal model, on its device and wrapped with LoRA if that is asked for, its tokenizer, the
    template of conversations, and the tokens at which its generation stops, EOS first.
    """

    llama: Llama
    tokenizer: BaseTokenizer
    template: str | OwnTemplate
    ends: tuple[int, ...]

    def encoder(self, max_length: int | None = None) -> Encoder:
        """Raises UsageError for more tokens than the model's context."""
        context = self.llama.config.max_seq_len
        if max_length is not None and max_length > context:
            raise UsageError(
                f"--max_length {max_length} is not allowed: it must be at most {context}, the "
                "model's context"
            )
        return Encoder(self.tokenizer, self.template, self.ends, max_length or context)


def load_start(options: StageOptions, device: torch.device, says: bool = True) -> Start:
    """Load what --pretrained-model-path names, to be trained, and, if it `says` so, print what it
    is on standard error. Raises OSError, ValueError.
    """
    llama, note = load_causal(options.pretrained_model_path, options.norm, options.attention)
    tokenizer, template, ends = load_language(options, llama.config)
    lines = [f"start from {options.pretrained_model_path}: {note}"]
    llama.requires_grad_(True)
    llama.checkpoint_activations = options.checkpoint_activations
    if options.lora_rank:
        check_rank(llama, options.lora_rank, options.lora_targets)
        torch.manual_seed(options.seed)
        with as_usage():
            apply_lora(llama, options.lora_rank, options.lora_alpha, options.lora_targets)
        trained, every = count_lora_parameters(llama)[0], sum(p.numel() for p in llama.parameters())
        share = f"{trained:,} of {every:,} parameters ({100 * trained / every:.1f} %)"
        lines.append(f"LoRA: trains {share}")
    if says:
        print(*lines, sep="\n", file=sys.stderr)
    return Start(llama.to(device), tokenizer, template, ends)


def load_causal(
    path: str | Path, norm: str | None = None, attention: str | None = None
) -> tuple[Llama, str]:
    """A model and a line on its arithmetic; what it does not record is taken for a true Llama's.

    Raises OSError; ValueError as load_pretrained does, and for bidirectional attention, with which
    every position would read its own answer.
    """
    checkpoint = read_checkpoint(path)
    check_is_pretrained(checkpoint)
    assumed = TRUE_LLAMA | {"norm": "layernorm" if checkpoint.has_biases else TRUE_LLAMA["norm"]}
    chosen = resolve_arithmetic(assumed | checkpoint.recorded, None, norm, attention)
    if chosen.attention != "causal":
        raise ValueError(
            f"{path} has {chosen.attention} attention, with which each position reads its own "
            "answer: post-training needs a causal model (--attention causal, if it was trained so)"
        )
    return load_pretrained(path, None, chosen.norm, chosen.attention), (
        f"{chosen.norm}, {chosen.attention} attention"
    )


def load_language(
    options: StageOptions, config: LlamaConfig
) -> tuple[BaseTokenizer, str | OwnTemplate, tuple[int, ...]]:
    """Tokenizer, template and stop tokens. Raises OSError; ValueError for a tokenizer that is not
    the model's, or has no EOS.
    """
    path = options.pretrained_model_path
    tokenizer = load_tokenizer(find_own_tokenizer(path, options.tokenizer))
    check_vocabulary(tokenizer, config.vocab_size, path)
    template, _, _ = choose_template(options.template, path, tokenizer)
    own = template.check(tokenizer) if isinstance(template, OwnTemplate) else ()
    ends = dict.fromkeys((*stop_ids(path, tokenizer), *own, *tokenizer.eos_ids))
    if not ends:
        raise ValueError(
            f"tokenizer {tokenizer.model_path} has no EOS, so no answer could learn to end: give "
            "another with --tokenizer"
        )
    return tokenizer, template, tuple(ends)


def recipe_of(options: StageOptions, steps: int) -> Recipe:
    """The options' learning rates and precision, over so many optimizer steps."""
    names = {field.name for field in dataclasses.fields(Recipe)}
    given = {name: value for name, value in vars(options).items() if name in names}
    return Recipe(**given | {"steps": steps})


def run_settings(options: StageOptions, config: LlamaConfig, free: set[str]) -> dict[str, Any]:
    """What a resumed run must share: all options but the `free` ones, the model's configuration,
    and the content of its files.
    """
    unchecked = {"out", "use_gpu", "shard", "tensorboard", "resume", "overwrite"}
    unchecked |= {"checkpoint_activations", "tf32"} | free
    settings = dataclasses.asdict(options) | dataclasses.asdict(config)
    settings = {name: value for name, value in settings.items() if name not in unchecked}
    settings["pretrained_model_path"] = content_of(options.pretrained_model_path)
    return {name: list(v) if isinstance(v, tuple) else v for name, v in settings.items()}


def content_of(path: str | Path) -> str:
    """A file's name and what is in it, as a text."""
    return f"{Path(path).name} (SHA-256 {digest(path)[:16]})"


def config_of(llama: Llama) -> LlamaConfig:
    """The configuration of the model with its adapters merged: an output layer that is adapted is
    not the input embedding any more.
    """
    is_tied = llama.config.tie_word_embeddings and not isinstance(llama.output, LoRALayer)
    return dataclasses.replace(llama.config, tie_word_embeddings=is_tied)


def save_model(trainer: TrainerCore, start: Start, options: StageOptions, **facts: Any) -> None:
    """Write FOLDER/model.pt, adapters merged, which load_pretrained reads, and with LoRA the
    adapters alone. Every process must call it; the first writes.
    """
    folder, llama = Path(options.out), start.llama
    # Adapters are not sharded, which options.py sees to.
    tensors = full_state(trainer)["model"] if options.shard else merged_state_dict(llama)
    if not trainer.process.is_main:
        return
    save_checkpoint(folder / MODEL, config_of(llama), tensors, step=trainer.step, **facts)
    if options.lora_rank:
        save_adapters(folder / ADAPTERS, llama, options, facts)


def export_model(options: StageOptions, start: Start, process: Process) -> None:
    """Write FOLDER/model, what FOLDER/model.pt has, in Hugging Face's form with its tokenizer."""
    if not process.is_main:
        return
    folder = Path(options.out)
    tensors = load_plain(folder / MODEL)["model"]
    save_model_folder(folder / FOLDER, config_of(start.llama), tensors, start.tokenizer)
    keep_tokenizer(folder, start.tokenizer)


def keep_tokenizer(folder: Path, tokenizer: BaseTokenizer) -> None:
    """Copy a SentencePiece model to where that of FOLDER/model.pt is looked for."""
    if isinstance(tokenizer, Tokenizer):
        copy_file(tokenizer.model_path, folder / TOKENIZER)


def results_in(folder: Path) -> list[str]:
    """What a run would replace in its folder."""
    return existing(folder, (*RESULTS, f"{FOLDER}/config.json"))


def check_model(folder: Path) -> None:
    """Raise FileNotFoundError if the best model so far of a run to resume is gone."""
    if not (folder / MODEL).exists():
        raise FileNotFoundError(
            f"--resume: {folder} has {PROGRESS}, and no {MODEL}, the best model so far: "
            "--overwrite begins again"
        )


def remove_results(folder: Path) -> None:
    """Delete what --overwrite replaces."""
    inner = (f"{FOLDER}/{name}" for name in (*MODEL_FILES, *MODEL_COMPANIONS))
    remove_files(folder, (*RESULTS, *inner))
