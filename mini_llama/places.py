"""Where the project's own files are: its commands, its data, its bundled model."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "data"
SMOLLM2 = ROOT / "SmolLM2-135M-Instruct.Q4_1.gguf"
MODELS = {"smollm2": SMOLLM2}  # by the short names that stand for a path


def resolve_model(name: str | Path) -> Path:
    """The path that a model's short name stands for, where nothing else has that name. Raises
    FileNotFoundError for a model that is not here yet.
    """
    path = Path(name)
    known = MODELS.get(str(name))
    if known is None or path.exists():
        return path
    if not known.is_file():
        raise FileNotFoundError(f"{name} is not here: get it with bash setup.sh --{name}")
    return known
