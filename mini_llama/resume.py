"""What a resumed run must share with the one that was interrupted: its settings and its files."""

import dataclasses
import hashlib
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

from config import FIELD_NAMES, LlamaConfig
from mini_llama.text_files import check_file

REMEDY = "start again without --resume"


def check_same_run(
    path: Path,
    saved: object,
    keys: Set[str],
    settings: Mapping[str, object],
    remedy: str = REMEDY,
) -> None:
    """Raise ValueError unless `saved`, the content of `path`, is the state of a run with these
    settings: a dict with just these keys, "settings" among them.
    """
    is_state = isinstance(saved, dict) and saved.keys() == keys
    written = saved["settings"] if isinstance(saved, dict) and is_state else None
    if not isinstance(written, dict):
        raise ValueError(f"--resume: {path} is not the state of an interrupted run; {remedy}")
    written = _with_all_fields(written)
    for name, value in settings.items():
        if (found := written.get(name)) != value:
            raise ValueError(
                f"--resume: {path} was written with {name} {found}, not {value}; "
                f"use the same settings, or {remedy}"
            )


def _with_all_fields(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings, and the fields of a model's configuration that an earlier version had not."""
    known = {name: settings[name] for name in FIELD_NAMES & settings.keys()}
    if "dim" not in known:
        return settings
    try:
        return settings | dataclasses.asdict(LlamaConfig(**known))
    except (TypeError, ValueError):  # damaged: the comparison says in what
        return settings


def digest(path: str | Path) -> str:
    """SHA-256, in hexadecimal: of a file, of a folder's files, or of a name (tiktoken:gpt2)."""
    path = Path(path)
    if path.is_dir():
        parts = [f"{file.name} {digest(file)}" for file in sorted(path.iterdir()) if file.is_file()]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()
    if not path.exists():
        return hashlib.sha256(str(path).encode()).hexdigest()
    check_file(path)
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
