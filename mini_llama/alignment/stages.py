"""The subcommands of align.py. Nothing here needs torch."""

from dataclasses import dataclass

from mini_llama.alignment.options import DpoOptions, SftOptions
from mini_llama.alignment.rl_options import (
    DemoOptions,
    GattOptions,
    PpoOptions,
    RejectionOptions,
    RewardOptions,
)


@dataclass(frozen=True)
class Stage:
    """A subcommand: its options, the module whose `run(options)` does it, and what it is."""

    options: type
    module: str
    text: str


# One line a stage.
STAGES: dict[str, Stage] = {
    "sft": Stage(SftOptions, "mini_llama.alignment.sft", "fine-tune on prompts and answers"),
    "reward": Stage(
        RewardOptions, "mini_llama.alignment.reward", "train a reward model on preferences"
    ),
    "rejection": Stage(
        RejectionOptions,
        "mini_llama.alignment.rejection_sampling",
        "sample several answers a prompt, keep the best, fine-tune on them",
    ),
    "ppo": Stage(PpoOptions, "mini_llama.alignment.ppo", "raise a reward by PPO, near the start"),
    "gatt": Stage(
        GattOptions,
        "mini_llama.alignment.demo.gatt",
        "Ghost Attention: keep to an instruction over all turns",
    ),
    "demo": Stage(
        DemoOptions,
        "mini_llama.alignment.demo.demo",
        "all of these on the bundled model, measured exactly, with a page of plots",
    ),
    "dpo": Stage(DpoOptions, "mini_llama.alignment.dpo", "train on preferences, without a reward"),
}
