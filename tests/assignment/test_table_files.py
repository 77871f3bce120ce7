"""CSV, TSV and JSON files of labelled texts, as people have them, and what is refused of them."""

import csv
import io
import json
import random
import re
from pathlib import Path

import pytest

from mini_llama.assignment.prompts import read_prompts
from mini_llama.assignment.table_files import LABEL_COLUMNS, TEXT_COLUMNS, Columns, read_records


def pairs(path: Path, content: str | bytes, **columns: str) -> list[tuple[str, str]]:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return [(r.label, r.text) for r in read_records(path, Columns(**columns))]


def texts(count: int) -> list[str]:
    """Texts with all that CSV has to quote, without line breaks, and none of white space alone."""
    rng = random.Random(0)
    pieces = [
        '"',
        '""',
        ",",
        ";",
        "\t",
        "café",
        "😀",
        " ||| ",
        "|",
        "'",
        "\\",
        "good film",
        "\ufeff",
    ]
    return [f"a {''.join(rng.choices(pieces, k=rng.randint(1, 9)))} z" for _ in range(count)]


@pytest.mark.parametrize("ending", ["csv", "CSV", "tsv"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
def test_what_csv_writers_write_is_read(tmp_path, ending: str, delimiter: str, quoting: int):
    if ending == "tsv" and delimiter != "\t":
        delimiter = "\t"
    rows = [(text, str(i % 3)) for i, text in enumerate(texts(60))]
    for bom, end in ((b"", "\n"), (b"\xef\xbb\xbf", "\r\n")):
        written = io.StringIO()
        writer = csv.writer(written, delimiter=delimiter, quoting=quoting, lineterminator=end)
        writer.writerows([("text", "label"), *rows])
        found = pairs(tmp_path / f"d.{ending}", bom + written.getvalue().encode())
        assert found == [(label, text) for text, label in rows]


def test_line_breaks_within_a_cell_become_one_space(tmp_path):
    content = (
        'review,sentiment\r\n"One.\r\n\r\n  Two.\u2028Three.\n",positive\r\n\r\n"a\nb",negative'
    )
    assert pairs(tmp_path / "d.csv", content) == [
        ("positive", "One. Two. Three."),
        ("negative", "a b"),
    ]


def test_quotation_marks_of_a_tsv_are_those_of_the_text(tmp_path):
    """As GLUE's files have them: one may open and never close."""
    content = (
        'sentence\tlabel\n"dull\t0\nit says " great "\t1\nsay "no" " twice"\t0\n"a ""b"""\t1\n'
    )
    found = pairs(tmp_path / "d.tsv", content)
    assert [text for _, text in found] == [
        '"dull',
        'it says " great "',
        'say "no" " twice"',
        'a "b"',
    ]


@pytest.mark.parametrize("text", [*TEXT_COLUMNS, "Text", " REVIEW "])
@pytest.mark.parametrize("label", [*LABEL_COLUMNS, "Label"])
def test_usual_columns_are_found_wherever_they_stand(tmp_path, text: str, label: str):
    content = f"id,{label},x,{text}\n7,pos,,A joy.\n"
    assert pairs(tmp_path / "d.csv", content) == [("pos", "A joy.")]
    content = json.dumps({"id": 7, label: "pos", text: "A joy."})
    assert pairs(tmp_path / "d.jsonl", content) == [("pos", "A joy.")]


def test_columns_can_be_named(tmp_path):
    content = "text,body,label,stars\nno,A joy.,no,5\n"
    assert pairs(tmp_path / "d.csv", content, text="body", label="Stars") == [("5", "A joy.")]


@pytest.mark.parametrize("ending", ["json", "jsonl", "ndjson"])
def test_json(tmp_path, ending: str):
    labels = ["pos", 1, 0, True, 2.5]
    items = [{"text": t, "label": x} for t, x in zip(texts(5), labels, strict=True)]
    items[0]["text"] = "two\nlines"
    expected = [
        (x, i["text"]) for x, i in zip(["pos", "1", "0", "true", "2.5"], items, strict=True)
    ]
    expected[0] = ("pos", "two lines")
    lines = "\n".join(map(json.dumps, items))
    path = tmp_path / f"d.{ending}"
    assert pairs(path, lines) == pairs(path, f"\ufeff{lines}\r\n\n") == expected
    assert pairs(path, json.dumps(items, indent=1)) == expected


def test_a_long_text_is_read(tmp_path):
    """Beyond csv's own bound for a cell, which stays as it was."""
    text, limit = "a " * 100_000, csv.field_size_limit()
    assert pairs(tmp_path / "d.csv", f"text,label\n{text},1\n") == [("1", text.strip())]
    assert csv.field_size_limit() == limit


REFUSED = {
    "empty": ("csv", b"", "is empty"),
    "blank": ("csv", b"\n\n", "is empty"),
    "a header alone": ("csv", b"text,label\n", "is empty"),
    "no header": ("csv", b"A joy.,1\nDull.,0\n", "line 1 has no text column (text, sentence"),
    "no label column": ("csv", b"text,stars\na,1\n", "line 1 has no label column (label, senti"),
    "only those": ("csv", b"id;stars\n1;1\n", "only id;stars: name it with --text_column"),
    "two text columns": ("csv", b"text,review,label\na,b,1\n", "several text columns (text, rev"),
    "a column twice": ("csv", b"text,label,label\na,1,0\n", "several label columns"),
    "a cell too many": ("csv", b"text,label\na,1\nb, c,0\n", "line 3 has 3 cells, the header 2"),
    "a cell too few": ("csv", b"text,label\n\na\n", "line 3 has 1 cells, the header 2"),
    "after a cell of lines": ("csv", b'text,label\n"a\nb",1\nc\n', "line 4 has 1 cells"),
    "an open quotation": ("csv", b'text,label\na,1\n"b,0\nc,1\n', "line 3 is not CSV (a quotation"),
    "a quotation within": ("csv", b'text,label\n"a" b,1\n', "line 2 is not CSV"),
    "an empty label": ("csv", b"text,label\na,1\nb,\n", "line 3: the label is empty"),
    "an empty text": ("csv", b'text,label\na,1\n" ",0\n', "line 3: the text is empty"),
    "a label of two lines": ("csv", b'text,label\na,"1\n2"\n', "line 2: label '1\\n2' has a line"),
    "Latin-1": ("csv", "text,label\ncafé,1\n".encode("latin-1"), "line 2 is not UTF-8 (byte 0xe9"),
    "UTF-16": ("csv", "text,label\na,1\n".encode("utf-16"), "is UTF-16 by its byte order mark"),
    "a row of a TSV": ("tsv", b"text\tlabel\na\t1\tx\n", "line 2 has 3 cells, the header 2"),
    "no JSON": ("jsonl", b'{"text": "a", "label": 1}\n{"text": \n', "line 2 is not JSON"),
    "deep JSON": ("jsonl", b"[" * 100_000, "is not JSON"),
    "no object": ("jsonl", b'{"text": "a", "label": 1}\n7\n', "line 2 is not a JSON object"),
    "no objects": ("json", b'["a"]', "item 1 is not a JSON object"),
    "a key less": ("jsonl", b'{"text": "a", "label": 1}\n{"text": "b"}\n', "line 2 has no 'label'"),
    "no text": ("jsonl", b'{"text": null, "label": 1}\n', "line 1: 'text' is null, not a text"),
    "no label": (
        "jsonl",
        b'{"text": "a", "label": null}\n',
        "'label' is null, not a word or a num",
    ),
    "a list": ("jsonl", b'{"text": "a", "label": [1]}\n', "'label' is [1], not a word or a number"),
    "half a character": ("jsonl", b'{"text": "\\ud800", "label": 1}\n', "line 1 has half a surrog"),
    "other columns": ("json", b'[{"body": "a"}]', "no text column"),
}


@pytest.mark.parametrize(("ending", "content", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused_names_file_and_line(tmp_path, ending: str, content: bytes, message: str):
    path = tmp_path / f"d.{ending}"
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        pairs(path, content)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_column_that_is_not_there_is_refused(tmp_path):
    for columns, part in (
        ({"text": "body"}, "has no column 'body', only text, label: name it with --text_column"),
        ({"label": "text"}, "column 'text' cannot be both"),
    ):
        with pytest.raises(ValueError, match=re.escape(part)):
            pairs(tmp_path / "d.csv", "text,label\na,1\n", **columns)


# Prompts


def test_prompts(tmp_path):
    path = tmp_path / "p.txt"
    path.write_bytes("\ufeffOnce upon \r\n\n  café\n".encode())
    assert read_prompts(str(path)) == ["Once upon ", "  café"]
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a\\nb"}\n"c"\n\n{"id": 3, "text": ""}\n')
    assert read_prompts(str(path)) == ["a\nb", "c", ""]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", b" \n\n", "is empty"),
        ("p.txt", b"a\ncaf\xe9\n", "line 2 is not UTF-8"),
        ("p.jsonl", b'"a"\n{"prompts": "b"}\n', "line 2 has no text"),
        ("p.jsonl", b'"a"\nb\n', "line 2 is not JSON"),
        ("p.jsonl", b'"\\udc00"\n', "line 1 has half"),
        ("p.csv", b"text\na\n", "one a line"),
    ],
)
def test_bad_prompts_name_file_and_line(tmp_path, name: str, content: bytes, message: str):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        read_prompts(str(tmp_path / name))
    assert str(tmp_path / name) in str(error.value)
