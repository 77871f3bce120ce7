"""A file of texts to continue: one a line, or JSON lines."""

from pathlib import Path

from mini_llama.assignment.reviews import existing
from mini_llama.assignment.table_files import is_table, json_items, valid_text
from mini_llama.text_files import read_text, split_lines

KEYS = ("prompt", "text")


def read_prompts(path: str) -> list[str]:
    """The texts of a file, in order. Blank lines are left out; JSON lines, each a text or an object
    with a "prompt" or "text", may have an empty one and line breaks.

    Raises OSError, and ValueError with the line's number.
    """
    content = read_text(existing(path))
    if Path(path).suffix.lower() in (".csv", ".tsv"):
        raise ValueError(f"{path}: prompts are one a line of a text file, or JSON lines, not CSV")
    if is_table(path):
        items = json_items(content, path)
        prompts = [valid_text(_prompt(item, place), place) for item, place in items]
    else:
        prompts = [line for line in split_lines(content) if line.strip()]
    if not prompts:
        raise ValueError(f"{path} is empty; a file of prompts has one a line")
    return prompts


def _prompt(item: object, place: str) -> str:
    if isinstance(item, dict):
        item = next((item[key] for key in KEYS if key in item), None)
    if not isinstance(item, str):
        raise ValueError(f'{place} has no text; a line is {{"prompt": "…"}}, or a text')
    return item
