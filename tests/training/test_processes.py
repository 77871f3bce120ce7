"""Processes of a run: how they end."""

import os
import subprocess
import sys

import pytest

from tests.helpers import ROOT

PROGRAM = """
import atexit
from mini_llama.training.processes import end_process
atexit.register(print, "finalized")
print("last words")
end_process(3)
"""


@pytest.mark.parametrize(
    ("variables", "printed"),
    [({}, "last words\nfinalized\n"), ({"RANK": "0"}, "last words\n")],
    ids=["alone", "torchrun"],
)
def test_processes_of_torchrun_end_without_finalizing(variables: dict, printed: str):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout, done.stderr) == (3, printed, "")
