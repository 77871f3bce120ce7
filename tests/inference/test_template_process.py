"""Hostile chat templates: each is refused with one line, in bounded time and memory."""

import os
import re
import time
from pathlib import Path

import pytest

from mini_llama.inference import template_process
from mini_llama.inference.template_process import MEMORY_BYTES, TemplateProcess
from tests.inference.template_styles import LARGE, LOOPS, REACHING, WRONG

MESSAGES = {"messages": [{"role": "user", "content": "hi"}]}
HAS_LIMITS = pytest.mark.skipif(os.name != "posix", reason="the system has no limits")


def refusal(source: str) -> str:
    """The message for a template, which is one line."""
    process = TemplateProcess(source, "some.jinja")
    with pytest.raises(ValueError, match=r"^chat template some\.jinja .*--template plain") as error:
        process.render(MESSAGES)
    message = str(error.value)
    assert message.isprintable() and len(message) < 700
    return message


@HAS_LIMITS
@pytest.mark.parametrize("name", LOOPS)
def test_one_that_never_ends(name: str):
    import resource

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert "computes for more than a second" in refusal(LOOPS[name])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 4


@HAS_LIMITS
@pytest.mark.parametrize("name", LARGE)
def test_one_without_bound(name: str):
    source, message = LARGE[name]
    assert message in refusal(source)


def test_memory_is_bounded():
    """By the process's own account of the most it had."""
    process = TemplateProcess(LARGE["doubled"][0], "x")
    with pytest.raises(ValueError, match="needs more than 256 MiB of memory"):
        process.render(MESSAGES)
    status = Path(f"/proc/{process.process.pid}/status")
    if not status.exists():
        pytest.skip("needs /proc")
    most = re.search(r"VmHWM:\s*(\d+) kB", status.read_text())
    assert 1024 * int(most.group(1)) < MEMORY_BYTES


@pytest.mark.parametrize("name", REACHING)
def test_one_that_reaches_out(name: str):
    message = refusal(REACHING[name])
    assert re.search("reaches for what it must not have|no loader", message)


@pytest.mark.parametrize("name", WRONG)
def test_one_that_is_wrong(name: str):
    source, message = WRONG[name]
    assert message in refusal(source)


def test_a_wait_is_bounded_without_limits_of_the_system(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(template_process, "SECONDS", 60)
    monkeypatch.setattr(template_process, "WAITING_SECONDS", 1.0)
    begin = time.monotonic()
    refusal(LOOPS["for ever"])
    assert time.monotonic() - begin < 10


def test_a_long_template_is_not_tried():
    with pytest.raises(ValueError, match="writes too much: the template itself has"):
        TemplateProcess("a" * (2**20 + 1), "x")


def test_the_process_stays_and_is_started_again():
    """One process for a conversation, also after an error, and another after it was killed."""
    source = "{% for i in range(messages) %}{% for j in range(messages) %}{{ 1 // k }}{% endfor %}"
    process = TemplateProcess(source + "{% endfor %}", "x")
    assert process.render({"messages": 2, "k": 1}) == "1111"
    first = process.process.pid
    with pytest.raises(ValueError, match="ZeroDivisionError"):
        process.render({"messages": 1, "k": 0})
    begin = time.monotonic()
    assert process.render({"messages": 1, "k": 1}) == "1"
    assert time.monotonic() - begin < 1 and process.process.pid == first
    process.process.kill()
    process.process.wait()
    assert process.render({"messages": 1, "k": 1}) == "1"
    assert process.process.pid != first
    child = process.process
    process.close()
    assert child.poll() is not None


def test_computing_time_counts_for_each_text():
    """Many quick turns are not one long one."""
    process = TemplateProcess("{% for i in range(60000) %}{% endfor %}{{ messages }}", "x")
    for n in range(3):
        assert process.render({"messages": n}) == str(n)


def test_the_worker_writes_nothing_and_starts_nothing():
    """What a way out of the sandbox could still do: the limits are in force for the process."""
    process = TemplateProcess("{{ messages }}", "x")
    assert process.render({"messages": 1}) == "1"
    place = Path(f"/proc/{process.process.pid}")
    if not place.exists():
        pytest.skip("needs /proc")
    lines = (place / "limits").read_text().splitlines()
    rows = {line[:25].strip(): line[25:].split()[0] for line in lines}
    assert rows["Max file size"] == rows["Max processes"] == rows["Max core file size"] == "0"
    assert rows["Max address space"] == str(MEMORY_BYTES)
    variables = (place / "environ").read_text().split("\0")
    assert "PATH" not in {variable.partition("=")[0] for variable in variables}
