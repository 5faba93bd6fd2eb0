"""Refresh what library notebooks keep of their outputs: each cell that has one, or the cells named.

    python tests/pictures.py nbs/parts/speech/30_mel.ipynb            # makes the kept outputs again
    python tests/pictures.py nbs/parts/speech/30_mel.ipynb mel_shown  # this cell keeps its output as well

A notebook is run as a whole, in its folder; the outputs of all other cells are dropped, and of a kept one
what a person does not look at: streams, and the text beside a picture.
"""
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient


def looked_at(outputs):
    "A picture, a page or a text that a cell ends in."
    shown = [o for o in outputs if o.output_type in ("display_data", "execute_result")]
    for out in shown:
        kinds = [k for k in ("image/png", "text/html", "text/plain") if k in out.data]
        beside = {} if kinds[0] == "text/plain" else {"text/plain": "a picture"}
        out.data = {kinds[0]: out.data[kinds[0]]} | beside
        out.metadata = {}
    return shown


def refresh(path, names=()):
    book = nbformat.read(path, 4)
    kept = {c.id for c in book.cells if c.cell_type == "code" and c.outputs} | set(names)
    if odd := kept - {c.id for c in book.cells}:
        raise SystemExit(f"{path} has no cell {', '.join(sorted(odd))}.")
    NotebookClient(book, timeout=120, kernel_name="python3",
                   resources={"metadata": {"path": path.parent}}).execute()
    for cell in book.cells:
        if cell.cell_type == "code":
            cell.outputs = looked_at(cell.outputs) if cell.id in kept else []
            cell.execution_count = None
            cell.metadata.pop("execution", None)
    size = {c.id: len(str(c.outputs)) for c in book.cells if c.id in kept}
    print(path, ", ".join(f"{name} {n / 1000:.1f} kB" for name, n in size.items()))
    nbformat.write(book, path)


if __name__ == "__main__":
    refresh(Path(sys.argv[1]), sys.argv[2:])
