"""The command line of run_llama.py: its parser, and its options with the bundled stand-ins."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from mini_llama import bundled, command_line
from mini_llama.assignment.options import OUTPUT_ENDINGS, Options, dataset_of, default_of

PROGRAM = "run_llama.py"
DESCRIPTION = (
    "The assignment's command line: python run_llama.py --option {generate,prompt,finetune,lora}, "
    "and --option predict, which uses what the last two have trained."
)


def make_parser() -> command_line.OneLineParser:
    return command_line.make_parser(PROGRAM, DESCRIPTION, Options)


def parse(argv: Sequence[str] | None) -> tuple[dict[str, Any], bool]:
    """All options by name, and whether the bundled files stand in for missing real ones."""
    defaults = {field.name: field.default for field in dataclasses.fields(Options)}
    given = command_line.parse_given(make_parser(), argv)
    bundled_values = bundled.stand_in(given)
    if given.get("prompts") is not None:
        bundled_values.pop("prompt_text", None)
    chosen = defaults | bundled_values | given
    return chosen | _without_foreign_files(chosen, given), bool(bundled_values)


def _without_foreign_files(chosen: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, str]:
    """Own data do not meet the default's: beside other --train or --dev files there is no test file
    unless one is named, and option prompt reads no training file beside another --dev.
    """
    own = [name for name in ("train", "dev") if given.get(name) not in (None, default_of(name))]
    changes: dict[str, str] = {}
    if own and "test" not in given:
        changes["test"] = ""
    if own == ["dev"] and "train" not in given and chosen["option"] == "prompt":
        changes["train"] = ""
    endings = OUTPUT_ENDINGS.get(chosen["option"])
    trains = chosen["option"] in ("finetune", "lora")
    if own and trains:  # the default names are of prompt's files
        dataset = dataset_of(chosen["train"])
        for split in ("dev", "test"):
            if f"{split}_out" not in given:
                changes[f"{split}_out"] = f"{dataset}-{split}-{endings}-output.txt"
    return changes
