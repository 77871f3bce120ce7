"""Run see.py: load, look, and write the page or serve it."""

import dataclasses

from mini_llama.inside import page
from mini_llama.inside.classifying import read_worst, worst_data
from mini_llama.inside.live import make_server
from mini_llama.inside.look import look, size_of, title_of
from mini_llama.inside.options import SeeOptions
from mini_llama.inside.server import serve
from mini_llama.inside.sides import load_sides
from utils import atomic_write, raise_on_sigterm


def run(options: SeeOptions) -> None:
    """Write the page, or with --serve serve it until Ctrl-C. Raises OSError or ValueError, one line
    each.
    """
    raise_on_sigterm()
    worst = read_worst(options.worst) if options.worst is not None else []
    if worst and options.text is None:
        options = dataclasses.replace(options, text=worst[0].sentence)
    sides = load_sides(options, [] if options.serve else [options.out])
    classifier = sides[0].classifier
    names = classifier.names if classifier else None
    extra = {"worst": worst_data(worst, names)} if worst else {}
    data = look(sides) | extra
    if options.serve:
        serve(make_server(sides, data, extra))
        return
    with atomic_write(options.out) as file:
        file.write(page.render(title_of(data), data))
    for note in dict.fromkeys(note for trace in data["traces"] for note in trace["notes"]):
        print(note)
    for line in data["code"]["verdict"] if "code" in data else []:
        print(line)
    if "difference" in data:
        print(data["difference"]["sentence"])
    print(f"wrote {options.out} ({size_of(options.out)}): open it in a browser")
