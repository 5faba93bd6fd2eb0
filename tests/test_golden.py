"""Losses at a fixed seed are those of the build that recorded tests/golden.json: each tiny preset and three
toys, a few steps and a validation. `WORKBENCH_BITS=1` demands the same bits, which only the processor that
recorded them gives."""
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import runs

from workbench.core.run.folder import create, metrics_of
from workbench.core.stages.stages import complete

GOLDEN = json.loads((Path(__file__).parent / "golden.json").read_text(encoding="utf8"))
# Each run has a process of its own, as every run has; they fork from one that has imported the loop, because
# that takes longer than their steps. The evaluation of all rows that ends a run is left out: it takes longer
# than everything before it.
TRAIN = """
import os, sys
from pathlib import Path
from workbench.core.train import loop
loop.final_evaluation = lambda training: None
for folder in sys.argv[1:]:
    if not os.fork():
        os._exit(loop.attempt(Path(folder)))
    os.wait()
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    "{name: the folder of its run}"
    home = tmp_path_factory.mktemp("golden")
    folders = {name: create(complete(case["config"], case["overrides"]), home / name)
               for name, case in GOLDEN.items()}
    with runs.surroundings(""):
        subprocess.run([sys.executable, "-c", TRAIN, *folders.values()], cwd=home)
    return folders


def differences(lines, wanted):
    """What differs between lines of metrics, as texts. Scores, which no line of training has, are compared
    to the bit or not at all: on another processor a rounding may change a whole answer."""
    bits = os.environ.get("WORKBENCH_BITS") == "1"
    trained = {key for want in wanted if want["split"] == "train" for key in want}
    found = [f"{len(lines)} lines, recorded were {len(wanted)}"] if len(lines) != len(wanted) else []
    for line, want in zip(lines, wanted):
        if line.keys() - set(runs.outside) != want.keys():
            found.append(f"the keys are {sorted(line)}, recorded were {sorted(want)}")
        for key in want.keys() if bits else want.keys() & trained:
            got, value = line.get(key), want[key]
            near = not bits and isinstance(got, float) and isinstance(value, float)
            if not (math.isclose(got, value, rel_tol=1e-3, abs_tol=1e-5) if near else got == value):
                place = f"{want['stage']}, step {want['step']}, {want['split']}"
                found.append(f"{place}: {key} is {got}, recorded was {value}")
    return found


@pytest.mark.parametrize("name", GOLDEN)
def test_losses_are_those_of_the_build_that_recorded_them(name, trained):
    found = differences(metrics_of(trained[name]), GOLDEN[name]["lines"])
    assert not found, "\n".join([*found, (trained[name] / "status.json").read_text()])
