"""The lists of notebooks in nbs/index.ipynb: each with its title and its first sentence, in reading order.
`python tests/index_lists.py` writes them; a test compares them with the notebooks."""
import re
from functools import cache
from pathlib import Path

import nbformat

from workbench.lab.docs.pages import read_pages, rooms

nbs = Path(__file__).parents[1] / "nbs"
index = nbs / "index.ipynb"
folders = ("core", "parts", "tasks", "deploy", "lab")  # a cell for each, with the id `list-<folder>`


@cache
def all_pages():
    "Every notebook in reading order."
    return read_pages(nbs)


def line(page):
    "A notebook as a line: its title and its first sentence."
    return f"[{page.title}]({page.path.as_posix()}): {re.split(r'(?<=[.!?]) ', page.says)[0]}"


def title(room):
    "A folder as the words above its notebooks."
    return f"**{rooms.get(room) or room.rpartition('/')[2]}** (`{room}/`)"


def lists():
    "{id of a cell: its source}: the notebooks of a folder, those of each folder in it under its title."
    found = {f"list-{name}": [] for name in folders}
    last = None
    for page in all_pages():
        lines = found.get(f"list-{page.path.parts[0]}")
        if lines is None:
            continue
        room = page.path.parent.as_posix()
        if "/" not in room:  # beside the folders
            lines += ["", line(page)]
        else:
            lines += [*(["", title(room), ""] if room != last else []), f"- {line(page)}"]
        last = room
    return {name: "\n".join(lines).strip() for name, lines in found.items()}


if __name__ == "__main__":
    book, sources = nbformat.read(index, 4), lists()
    for cell in book.cells:
        cell.source = sources.get(cell.id, cell.source)
    nbformat.write(book, index)
