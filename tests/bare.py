"A Python that holds numpy, a tokenizer library and the runtime of exports, and nothing else."
import os
import shutil
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

packages = ("numpy", "tokenizers", "onnxruntime")


def linked(source, target):
    "Link a file, or copy it where the disk cannot."
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def bare_python(home, names=packages):
    "The interpreter of a new environment; its packages are those of this one, file by file."
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True)
    lib = next(home.glob("lib/python*/site-packages"), home / "Lib/site-packages")
    for name in names:
        found = distribution(name)
        for file in found.files:
            if ".." not in file.parts and file.suffix != ".pyc":
                linked(found.locate_file(file), lib / file)
    python = home / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    code = ("import importlib.util as u; print([m for m in ('torch', 'transformers', 'workbench', 'onnx') "
            "if u.find_spec(m)])")
    assert ran(python, "-c", code).stdout.strip() == "[]"
    return python


def ran(python, *words, cwd=None):
    "A process of that interpreter, which is told nothing of ours."
    kept = {k: v for k, v in os.environ.items() if k in ("PATH", "SYSTEMROOT", "TMPDIR")}
    return subprocess.run([str(python), *map(str, words)], cwd=cwd or Path(python).parent, env=kept,
                          capture_output=True, text=True)
