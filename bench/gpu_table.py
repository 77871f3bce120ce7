#!/usr/bin/env python
"""One table of what bench/gpu.sh measured: python bench/gpu_table.py FOLDER.

Reads parts.txt, decode.json, training.json and fsdp.jsonl of FOLDER, those that are there, and
writes results.json and table.md, with the card's name. The exit status is 1 if a part failed.
"""

import json
import platform
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch


def machine() -> dict[str, str]:
    """Card, driver and versions."""
    facts = {"python": platform.python_version(), "torch": str(torch.__version__), "card": "CPU"}
    if torch.cuda.is_available():
        facts["card"] = torch.cuda.get_device_name()
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=30)
            facts["driver"] = done.stdout.strip()
        except OSError:
            facts["driver"] = "unknown"
    return facts


def parts_of(folder: Path) -> list[dict[str, Any]]:
    """How each part ended."""
    lines = (line.split() for line in (folder / "parts.txt").read_text().splitlines())
    return [
        {"part": name, "name": "exit status", "value": int(status), "seconds": int(seconds)}
        for name, status, seconds in lines
    ]


def fsdp_rows(path: Path) -> list[dict[str, Any]]:
    """Tokens a second of a run's second half, from the time that each step took."""
    records = [json.loads(line) for line in path.read_text().splitlines()]
    rates = [record["tokens_per_second"] for record in records[len(records) // 2 :]]
    row = {"part": "fsdp", "name": "15m, bfloat16, FSDP2, one process, since the start"}
    return [row | {"value": statistics.median(rates), "unit": "tokens/s"}] if rates else []


def read_rows(folder: Path) -> list[dict[str, Any]]:
    rows = []
    for part in ("decode", "training"):
        path = folder / f"{part}.json"
        if path.exists():
            content = json.loads(path.read_text())
            found = content["rows"] if isinstance(content, dict) else content
            rows += [{"part": part} | row for row in found]
    if (folder / "fsdp.jsonl").exists():
        rows += fsdp_rows(folder / "fsdp.jsonl")
    return rows


def table(facts: dict[str, str], parts: list[dict[str, Any]], folder: Path) -> str:
    """Markdown: the machine, how the parts ended, and each part's own table."""
    lines = ["# " + ", ".join(f"{name} {value}" for name, value in facts.items()), ""]
    lines += ["| part | exit status | seconds |", "|---|---|---|"]
    lines += [f"| {row['part']} | {row['value']} | {row['seconds']} |" for row in parts]
    for part in ("decode", "training"):
        path = folder / f"{part}.md"
        if path.exists():
            lines += ["", f"## {part}", "", path.read_text().strip()]
    if (folder / "fsdp.jsonl").exists():
        rows = fsdp_rows(folder / "fsdp.jsonl")
        lines += ["", *(f"{row['name']}: {row['value']:,.0f} {row['unit']}" for row in rows)]
    return "\n".join(lines) + "\n"


def main() -> None:
    folder = Path(sys.argv[1])
    facts, parts = machine(), parts_of(folder)
    results = {"machine": facts, "rows": [*parts, *read_rows(folder)]}
    (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    text = table(facts, parts, folder)
    (folder / "table.md").write_text(text)
    for name in ("parts.txt", "fsdp.jsonl"):  # they are in results.json
        (folder / name).unlink(missing_ok=True)
    print(text)
    sys.exit(any(row["value"] for row in parts))


if __name__ == "__main__":
    main()
