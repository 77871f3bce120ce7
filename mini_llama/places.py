"""Where the project's own files are: its commands, its data, its bundled model."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "data"
SMOLLM2 = ROOT / "SmolLM2-135M-Instruct.Q4_1.gguf"
MODELS = {"smollm2": SMOLLM2}  # by the short names that stand for a path


def resolve_model(name: str | Path) -> Path:
    """The path that a model's short name stands for, in capitals or not, where nothing else has
    that name. Raises FileNotFoundError for a model that is not here yet, and for a name that is
    like a short one.
    """
    path, lower = Path(name), str(name).lower()
    if path.exists():
        return path
    for short, known in MODELS.items():
        if lower == short and known.is_file():
            return known
        if lower == short:
            raise FileNotFoundError(f"{name} is not here: get it with bash setup.sh --{short}")
        if short.rstrip("0123456789") in path.name.lower():
            raise FileNotFoundError(
                f"checkpoint {name} does not exist; {short} is the name of {known.stem}, once bash "
                f"setup.sh --{short} has got it"
            )
    return path
