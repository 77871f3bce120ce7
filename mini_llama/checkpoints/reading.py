"""Which format a path is of: the first of FORMATS that recognises it reads it.

Formats are told apart by content, not by a file's name; but one file of a folder means the folder.
Nothing in a file is ever executed, and tensors are mapped from the file, not copied.
"""

from pathlib import Path

from mini_llama.checkpoints import contradictions
from mini_llama.checkpoints.foreign import refuse_foreign, remark_on_unknown
from mini_llama.checkpoints.formats import folder, gguf, huggingface, llama2c, meta, torch_file
from mini_llama.checkpoints.formats.base import Format
from mini_llama.checkpoints.record import Checkpoint
from mini_llama.places import resolve_model
from mini_llama.text_files import check_file
from utils import REMEDY

FORMATS: tuple[Format, ...] = (
    folder.FORMAT,
    huggingface.FORMAT,
    meta.FORMAT,
    torch_file.FORMAT,
    llama2c.FORMAT,
    gguf.FORMAT,
)


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a file or folder of any supported format, or a model by its short name.

    Raises FileNotFoundError, IsADirectoryError or another OSError for what is not a readable file,
    ValueError for what is not a whole checkpoint; each is one line with the file, what is wrong
    with it and a remedy.
    """
    path = resolve_model(path)
    form = recognise(path)
    checkpoint = form.read(path)
    contradictions.check(checkpoint)
    return checkpoint


def recognise(path: str | Path) -> Format:
    """The format of a path, which is not read yet; raises as read_checkpoint, where a look at the
    path is enough: for what does not exist, is of no format, or is of a kind that is not supported.
    """
    path = resolve_model(path)
    check_exists(path)
    refuse_foreign(path)
    for form in FORMATS:
        if form.recognises(path):
            form.check(path)
            return form
    names = [form.name for form in FORMATS if form.is_folder == path.is_dir()]
    if path.is_dir():
        files = " or ".join(dict.fromkeys(names))
        raise IsADirectoryError(f"{path} is a directory without {files}; {REMEDY}")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty; {REMEDY}")
    if remark := remark_on_unknown(path):
        raise ValueError(f"{path} {remark}")
    raise ValueError(f"{path} is neither {' nor '.join(names)}; {REMEDY}")


def check_exists(path: str | Path) -> None:
    """Raise FileNotFoundError, with a remedy, for a checkpoint that is not there, and ValueError
    for a pipe or a device.
    """
    path = resolve_model(path)
    if not path.exists():
        raise FileNotFoundError(f"checkpoint {path} does not exist; {REMEDY}")
    check_file(path)
