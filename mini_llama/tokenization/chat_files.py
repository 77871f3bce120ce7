"""What the files beside a tokenizer say for chats: the template, and the tokens that end a turn."""

from pathlib import Path
from typing import Any

from utils import read_json

TEMPLATE_FILE = "chat_template.jinja"
CONFIG_FILE = "tokenizer_config.json"
# How tokens are called that end a turn, in the templates of today's models.
END_NAMES = (
    *("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<|end_of_turn|>", "<end_of_turn>"),
    *("<|end_of_text|>", "<|endoftext|>"),
)


def read_chat_template(folder: Path) -> str | None:
    """The template, in Jinja, of a Hugging Face folder, if it has one: its own file before the one
    of tokenizer_config.json; of several, the one named "default". Raises OSError, ValueError.
    """
    if (folder / TEMPLATE_FILE).is_file():
        try:
            return (folder / TEMPLATE_FILE).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise ValueError(f"{folder / TEMPLATE_FILE} is not UTF-8; get it again") from None
    template = _read_if_there(folder / CONFIG_FILE).get("chat_template")
    if isinstance(template, list):
        named = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _read_if_there(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}
