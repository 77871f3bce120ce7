"""html_page.py: what is put into a page is text, and the page needs and runs nothing else."""

import html.parser
import re

import jinja2
import pytest

from mini_llama import html_page
from mini_llama.command_line import visible

EVIL = "<script>alert(1)</script> & \"'{{ 7 * 7 }}{% raw %}\x1b\u202e"
TEMPLATE = """{% extends "base.html" %}
{% block content %}
<p title="{{ name }}">{{ name }}</p>
{% macro twice(text) %}<b>{{ text }}</b><b>{{ text }}</b>{% endmacro %}
{{ twice(name) }}
{% endblock %}
"""


@pytest.fixture
def template(tmp_path, monkeypatch):
    """A template beside copies of the real ones."""
    for path in html_page.TEMPLATES.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "test.html").write_text(TEMPLATE, encoding="utf-8")
    monkeypatch.setattr(html_page, "TEMPLATES", tmp_path)
    return "test.html"


class Reader(html.parser.HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_values_are_text(template):
    page = Reader(html_page.render(template, title=EVIL, name=EVIL))
    assert "script" not in page.tags
    assert page.texts.count(EVIL) == 5  # in the title, the heading, the paragraph, and twice
    assert ("title", EVIL) in page.attributes


def test_values_can_be_spelled_out(template):
    text = html_page.render(template, visible, title="t", name=EVIL)
    assert "\x1b" not in text and "\u202e" not in text
    assert Reader(text).texts.count(visible(EVIL)) == 3
    assert "&amp;lt;" not in text  # escaped once


@pytest.mark.parametrize("name", ["base.html", "grades.html", "reproduction.html"])
def test_templates_load_nothing(name):
    text = (html_page.TEMPLATES / name).read_text(encoding="utf-8")
    if "script-src 'sha256-{{ script_hash }}'" in text:  # one script, whose text the policy names
        text = text.replace("<script>{{ script }}</script>", "", 1)
    assert not re.search(r"https?:|url\(|<script|<link|<iframe|\|safe|\bon\w+=", text)
    assert "default-src 'none'" in text or 'extends "base.html"' in text


def test_a_value_that_is_missing_is_an_error(template):
    with pytest.raises(jinja2.UndefinedError):
        html_page.render(template, title="t")
