"""One self-contained page: our modules, our style and the data in one file that asks for nothing.

A Content-Security-Policy allows this script and this style by their hashes, and nothing else.
"""

import base64
import hashlib
import html
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

WEB = Path(__file__).resolve().parent / "web"
# In the order in which they need each other.
MODULES = (
    "numbers",
    "sampling",
    "colours",
    "pictures",
    "app",
    "layer",
    "outcome",
    "compare",
    "student",
    "live",
    "main",
)
IMPORT = re.compile(r"^import .*?;\n", re.MULTILINE | re.DOTALL)
EXPORT = re.compile(r"^export (?=(?:async )?(?:function|const|class)\b)", re.MULTILINE)
# What a script element's content may not hold: it could end there.
SIGNS = {ord(sign): f"\\u{ord(sign):04x}" for sign in "<>&"}
MAX_BYTES = 5_000_000


def bundle() -> str:
    """Our JavaScript modules as one, which imports nothing."""
    parts = [read(f"{name}.mjs") for name in MODULES]
    return "\n".join(EXPORT.sub("", IMPORT.sub("", part)) for part in parts)


def read(name: str) -> str:
    """One of the page's files."""
    return (WEB / name).read_text(encoding="utf-8")


def script_and_style() -> tuple[str, str]:
    return f"\n{bundle()}", f"\n{read('page.css')}"


def policy_of_ours(is_live: bool = False) -> str:
    """The policy of every page."""
    return policy(*script_and_style(), is_live)


def policy(script: str, style: str, connects: bool) -> str:
    """The page's Content-Security-Policy; a page that is served may ask its own server."""
    own = "; connect-src 'self'" if connects else ""
    return (
        f"default-src 'none'; script-src '{digest(script)}'; style-src '{digest(style)}'; "
        f"base-uri 'none'; form-action 'none'{own}"
    )


def digest(text: str) -> str:
    """A source's hash, as a policy has it."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def as_json(data: Mapping[str, Any]) -> str:
    """JSON for a script element: in ASCII, and without a sign that HTML could take for its own."""
    return json.dumps(data, separators=(",", ":"), allow_nan=False).translate(SIGNS)


def render(title: str, data: Mapping[str, Any], is_live: bool = False) -> str:
    """The page; one that is live may ask its server. Raises ValueError for numbers that are none,
    and for a page that is too large.
    """
    script, style = script_and_style()
    parts = {
        "title": html.escape(title),
        "policy": html.escape(policy(script, style, is_live), quote=False),
        "style": style,
        "script": script,
        "data": as_json(data),
    }
    page = re.sub(r"\{\{ (\w+) \}\}", lambda match: parts[match[1]], read("page.html"))
    if len(page.encode()) > MAX_BYTES:
        raise ValueError(f"the page would have {len(page.encode())} bytes: give a shorter --text")
    return page
