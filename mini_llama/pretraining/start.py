"""The model that a run starts from: a fresh one of a preset's shape, or a checkpoint (--init).

A checkpoint's shape, arithmetic and tokenizer are its own; options that say otherwise are refused.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from config import FIELD_NAMES, LlamaConfig, resolve_arithmetic
from mini_llama.bounds import UsageError
from mini_llama.checkpoints.conversion import TRUE_LLAMA
from mini_llama.checkpoints.own_tokenizer import find_own_tokenizer
from mini_llama.checkpoints.reading import read_checkpoint
from mini_llama.checkpoints.record import Checkpoint, check_is_pretrained
from mini_llama.checkpoints.tensor_files import load_plain
from mini_llama.pretraining.options import SHAPE, PretrainOptions
from mini_llama.pretraining.run_folder import TOKENIZER
from mini_llama.tokenization.base import BaseTokenizer
from mini_llama.tokenization.find import check_vocabulary
from mini_llama.training.folder import PROGRESS


@dataclass(frozen=True)
class Start:
    """What a run starts from. Without a `config` the options' shape is trained from scratch;
    `tokenizer` is None where one is to be trained; `note` is a line to print, or "".
    """

    config: LlamaConfig | None = None
    checkpoint: Checkpoint | None = None
    tokenizer: str | Path | None = None
    note: str = ""

    def config_for(self, options: PretrainOptions, tokenizer: BaseTokenizer) -> LlamaConfig:
        """The model's configuration. Raises ValueError if the tokenizer is not the model's."""
        if self.config is None:
            return options.model_config(tokenizer.n_words)
        check_vocabulary(tokenizer, self.config.vocab_size, options.init or options.out)
        return self.config


def find_start(options: PretrainOptions) -> Start:
    """Where --init, --tokenizer and a run that is resumed say to start. Raises OSError, ValueError.

    A run that is resumed does not need the checkpoint any more, only its tokenizer.
    """
    out = Path(options.out)
    own_tokenizer = out / TOKENIZER
    kept = own_tokenizer if options.resume and own_tokenizer.exists() else None
    if options.init is None:
        return Start(tokenizer=options.tokenizer or kept)
    if options.resume and (out / PROGRESS).exists():
        config = recorded_config(out / PROGRESS)
        return Start(config, tokenizer=kept or choose_tokenizer(options))
    checkpoint = read_checkpoint(options.init)
    check_is_pretrained(checkpoint)
    config, note = initial_config(checkpoint, options)
    check_shape(config, options)
    return Start(config, checkpoint, choose_tokenizer(options), note)


def recorded_config(progress: Path) -> LlamaConfig | None:
    """The configuration in a run's progress; None if it is damaged, which loading it will say."""
    saved = load_plain(progress)
    settings = saved.get("settings") if isinstance(saved, dict) else None
    if not isinstance(settings, dict):
        return None
    return LlamaConfig(**{name: settings[name] for name in FIELD_NAMES & settings.keys()})


def initial_config(checkpoint: Checkpoint, options: PretrainOptions) -> tuple[LlamaConfig, str]:
    """The checkpoint's configuration, with the options' dropout and at least their context; and
    a line on its arithmetic.
    """
    assumed = TRUE_LLAMA | {"norm": "layernorm" if checkpoint.has_biases else TRUE_LLAMA["norm"]}
    recorded = assumed | checkpoint.recorded
    arithmetic = resolve_arithmetic(recorded, None, options.norm, options.attention)
    config = checkpoint.make_config(
        norm=arithmetic.norm, attention=arithmetic.attention, dropout=options.dropout
    )
    config = dataclasses.replace(config, max_seq_len=max(config.max_seq_len, options.context))
    note = f"start from {checkpoint.path}: {arithmetic.norm}, {arithmetic.attention} attention"
    known = {name for name in assumed if getattr(options, name) is not None}
    known |= checkpoint.recorded.keys()
    if unrecorded := [name for name in assumed if name not in known]:
        note += f" (it does not record its {' and '.join(unrecorded)}: taken for a true Llama's)"
    if options.vocab_size is not None:
        note += "; --vocab_size: its embeddings are not of the tokenizer that is trained"
    return config, note


def check_shape(config: LlamaConfig, options: PretrainOptions) -> None:
    """Raise ValueError if an option, or a preset that was named, asks for another shape."""
    given = {name: getattr(options, name) for name in (*SHAPE, "vocab_size")}
    wanted = {name: (f"--{name}", value) for name, value in given.items() if value is not None}
    if options.preset is not None:
        shape, preset = options.model_config(), f"--preset {options.preset}"
        wanted = {name: (preset, getattr(shape, name)) for name in SHAPE} | wanted
    for name, (flag, value) in wanted.items():
        if value != getattr(config, name):
            raise UsageError(
                f"--init {options.init} has {name} {getattr(config, name)}, and {flag} asks for "
                f"{value}: leave that option out, or start without --init"
            )


def choose_tokenizer(options: PretrainOptions) -> str | Path | None:
    """--tokenizer, or the checkpoint's own; None if --vocab_size asks for a new one.

    Raises ValueError if the checkpoint has none.
    """
    assert options.init is not None
    if options.tokenizer is not None or options.vocab_size is not None:
        return options.tokenizer
    found = find_own_tokenizer(options.init)
    if not found.exists():
        raise ValueError(
            f"--init {options.init} has no tokenizer beside it: name its own with --tokenizer; "
            "--vocab_size trains a new one, for which its embeddings mean nothing"
        )
    return found
