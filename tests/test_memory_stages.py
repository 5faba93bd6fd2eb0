"The memory that a training is predicted to need is that of its fullest stage, whichever rows that has."
import json

from workbench.core.config.presets import load
from workbench.core.setup.memory_choice import needs_of
from workbench.core.setup.prepare import without_weights
from workbench.core.setup.state import processes

SMALL = ("model.params.d_model=16 model.params.d_kv=8 model.params.d_ff=32 model.params.num_layers=1 "
         "model.params.num_decoder_layers=1 model.params.num_heads=2 train.batch_tokens=null "
         "train.batch_size=16 data.step_frames=1")


def need(tmp_path, *frames):
    "Bytes of a pipeline whose stages read so many frames of each clip."
    steps = [{"name": f"frames{n}", "data": {"max_frames": n}, "train": {"max_steps": 2}} for n in frames]
    folder = tmp_path / "-".join(map(str, frames))
    (folder / "assets").mkdir(parents=True)
    own = folder / "own.yaml"
    own.write_text(json.dumps({"extends": "t5_tiny", "pipeline": {"steps": steps}}))
    cfg = load(str(own), SMALL)
    return needs_of(without_weights(cfg, folder, processes()), cfg, "cpu")


def test_the_rows_of_a_later_stage_count(tmp_path):
    short, long, both, back = (need(tmp_path, *f) for f in ((8,), (64,), (8, 64), (64, 8)))
    assert short < long and both == back == long, (short, long, both, back)
