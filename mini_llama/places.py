"""Where the project's own files are: its commands, its data, its bundled model."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "data"
