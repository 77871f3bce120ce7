"""Self-contained HTML pages: jinja2 templates with one frame, style and policy.

Every value is escaped, and the policy (Content-Security-Policy) forbids requests, and scripts but
for one of ours that a page names by its hash.
"""

from collections.abc import Callable
from pathlib import Path

import jinja2
from markupsafe import Markup

TEMPLATES = Path(__file__).resolve().parent / "templates"


def render(template: str, spell: Callable[[str], str] = str, **values: object) -> str:
    """The page of a template in templates/, which extends base.html, filled with `values`.

    `spell` is applied to every inserted text before it is escaped.
    """

    def finalize(value: object) -> object:
        return spell(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=finalize,
    )
    return environment.get_template(template).render(values)
