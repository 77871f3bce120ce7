"""What the files beside a tokenizer say for chats: the template, and the tokens that end a turn."""

from pathlib import Path
from typing import Any

from utils import read_json

TEMPLATE_FILE = "chat_template.jinja"
CONFIG_FILE = "tokenizer_config.json"
DEFAULT = "default"
LARGEST_TEMPLATE = 2**20  # bytes
# How tokens are called that end a turn, in the templates of today's models.
END_NAMES = (
    *("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<|end_of_turn|>", "<end_of_turn>"),
    *("<|end_of_text|>", "<|endoftext|>"),
)


def read_chat_template(folder: Path) -> str | None:
    """The template, in Jinja, of a Hugging Face folder, if it has one. Raises OSError, ValueError
    as find_chat_template does.
    """
    found = find_chat_template(folder)
    return found[0] if found else None


def find_chat_template(folder: Path) -> tuple[str, Path] | None:
    """The template of a Hugging Face folder and the file that has it: chat_template.jinja before
    tokenizer_config.json; of several, the one named "default".

    Raises OSError; ValueError for what is no template, and for several without a default.
    """
    if (path := folder / TEMPLATE_FILE).is_file():
        return read_template(path), path
    path = folder / CONFIG_FILE
    template = _read_if_there(path).get("chat_template")
    if isinstance(template, list):
        template = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
    if isinstance(template, dict):
        if DEFAULT not in template:
            names = ", ".join(map(str, template)) or "none"
            raise ValueError(
                f"{path}: chat_template has no template named {DEFAULT!r} (it has {names}); write "
                "the one to use to a file, and give it with --template"
            )
        template = template[DEFAULT]
    if template is not None and not isinstance(template, str):
        raise ValueError(
            f"{path}: chat_template is {type(template).__name__}, not a text; correct it, or "
            "choose --template plain"
        )
    return (template, path) if template else None


def read_template(path: Path) -> str:
    """A file of Jinja. Raises OSError; ValueError for one that is not UTF-8, or far too long."""
    if path.stat().st_size > LARGEST_TEMPLATE:
        raise ValueError(
            f"{path} has {path.stat().st_size} bytes, and a chat template at most "
            f"{LARGEST_TEMPLATE}: give another file"
        )
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8; get it again") from None


def _read_if_there(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}
