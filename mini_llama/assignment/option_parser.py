"""The command line of run_llama.py: its parser, and its options with the bundled stand-ins."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from mini_llama import bundled, command_line
from mini_llama.assignment.options import Options

PROGRAM = "run_llama.py"
DESCRIPTION = (
    "The assignment's command line: python run_llama.py --option {generate,prompt,finetune,lora}."
)


def make_parser() -> command_line.OneLineParser:
    return command_line.make_parser(PROGRAM, DESCRIPTION, Options)


def parse(argv: Sequence[str] | None) -> tuple[dict[str, Any], bool]:
    """All options by name, and whether the bundled files stand in for missing real ones."""
    defaults = {field.name: field.default for field in dataclasses.fields(Options)}
    given = command_line.parse_given(make_parser(), argv)
    bundled_values = bundled.stand_in(given)
    return defaults | bundled_values | given, bool(bundled_values)
