"""Read a submission wherever the finder found it: a zip, a folder, or a part of one."""

from mini_llama.submissions.archive import Submission, read_folder, read_submission
from mini_llama.submissions.finding import Part, Source


def read_source(source: Source) -> Submission:
    """Read a zip, a folder or a part of one. Raises OSError if it cannot be read."""
    if not isinstance(source, Part):
        return read_folder(source) if source.is_dir() else read_submission(source)
    read = read_folder if source.path.is_dir() else read_submission
    return read(source.path, dict(source.files) or None)
