"""Headless Chromium and node, for tests of the page; skipped with a reason where there is none."""

import functools
import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from mini_llama.inside.page import WEB

NAMES = ("chromium", "chromium-browser", "google-chrome")
SECONDS = 180
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0")
FLAGS += ("--disable-background-networking", "--no-first-run", "--virtual-time-budget=6000")
# What Chromium itself says, whatever the page.
CONSOLE = re.compile(r"CONSOLE[:(]\S* *\"?(.*)")


def chromium() -> str:
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip("no Chromium is installed: apt-get install chromium")
    return found


def node() -> str:
    found = shutil.which("node")
    if found is None:
        pytest.skip("node is not installed")
    return found


def evaluate(script: str) -> object:
    """What a module's last statement, `export default VALUE`, gives, as JSON. `WEB` in it stands
    for the folder of the page's modules.
    """
    script = script.replace("WEB", WEB.as_uri())
    source = f"{script}\nconsole.log(JSON.stringify(result));"
    done = subprocess.run(
        [node(), "--input-type=module", "-"],
        input=source,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@functools.cache
def _is_working(program: str) -> bool:
    """Chromium does not start in every container."""
    done = subprocess.run(
        [program, *FLAGS, "--dump-dom", "data:text/html,<p>here</p>"],
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    return "<p>here</p>" in done.stdout


def open_page(path: str | Path, profile: Path, *flags: str) -> tuple[str, list[str], list[str]]:
    """The page after its script has run: its document, console messages and requests."""
    program = chromium()
    if not _is_working(program):
        pytest.skip(f"{program} does not start here")
    log = profile / "net.json"
    address = path.as_uri() if isinstance(path, Path) else path
    places = (f"--user-data-dir={profile / 'chromium'}", f"--log-net-log={log}")
    done = subprocess.run(
        [program, *FLAGS, *places, *flags, "--dump-dom", address],
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
        timeout=SECONDS,
    )
    messages = [match[1] for match in CONSOLE.finditer(done.stderr)]
    return html.unescape(done.stdout), messages, requests(log)


def requests(log: Path) -> list[str]:
    """Addresses of http that the browser asked for; its own services are not the page's."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    found = re.findall(r'"url":"(https?://[^"]*)"', text)
    own = ("google.com", "googleapis.com", "gstatic.com", "gvt1.com", "chromium.org")
    return [url for url in found if not any(name in url for name in own)]
