"""Files of TFLite: the same numbers as torch at every length and batch, smaller in 8 bits, and a sentence for
what cannot leave."""
import subprocess

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from workbench.core.task import Axis, Graph, Leaving
from workbench.deploy import tflite, tools
from workbench.deploy.ready import far, run_graph, specs_of
from workbench.errors import Refused
from workbench.parts.portable.feeds import Unusable

pytest.importorskip("ai_edge_litert")
TENSORFLOW = ("absl-py==2.5.0", "astunparse==1.6.3", "flatbuffers==25.12.19", "gast==0.7.0",
              "google-pasta==0.2.0", "h5py==3.14.0", "keras==3.15.1", "libclang==18.1.1", "namex==0.1.0",
              "opt_einsum==3.4.0", "optree==0.20.0", "tensorflow-cpu==2.21.0", "termcolor==3.3.0",
              "wrapt==2.5.2")


class Reader(nn.Module):
    "Attention over what a mask leaves, and over a past that is padded on the left."

    def __init__(self):
        super().__init__()
        self.table, self.keys, self.out = nn.Embedding(50, 128), nn.Linear(128, 128), nn.Linear(128, 50)

    def forward(self, ids: Tensor, mask: Tensor, past: Tensor, past_mask: Tensor):
        x = self.table(ids)
        every = torch.cat([past, self.keys(x)], 1)
        hidden = torch.cat([past_mask, mask], 1)[:, None]
        scores = x @ every.mT / 128 ** 0.5 + (hidden - 1) * 1e4
        y = x + scores.softmax(-1) @ every
        return self.out(y), (every * hidden[:, 0, :, None]).sum(1)


class Placed(nn.Module):
    def forward(self, wave: Tensor):
        return torch.searchsorted(torch.arange(4.0), wave)


class Pictures(nn.Module):
    "Convolutions whose weights stand in memory as a training with channels_last leaves them."

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 16, 3,
                                           padding=1), *(nn.Conv2d(16, 16, 3, padding=1) for _ in range(8)))
        self.to(memory_format=torch.channels_last)

    def forward(self, picture: Tensor):
        return self.net(picture)


def leaving_of(net, **graph):
    axes = {"batch": Axis(high=8), "source": Axis(high=24, lengths=[3, 4, 5, 9]),
            "past": Axis(0, 12, [2, 5, 8], left=True)}
    words, past = {0: "batch", 1: "source"}, {0: "batch", 1: "past"}
    usual = {"inputs": {"ids": torch.ones(2, 5, dtype=torch.long), "mask": torch.ones(2, 5),
                        "past": torch.randn(2, 3, 128), "past_mask": torch.ones(2, 3)},
             "outputs": ["scores", "sum"],
             "axes": {"ids": words, "mask": words, "past": past, "past_mask": past, "scores": words,
                      "sum": {0: "batch"}}}
    return Leaving(graphs={"reader": Graph(net, **usual | graph)}, axes=axes, program="none",
                   expected=list, score=lambda answers: {})


def feeds_of(batch, source, past, seed=0):
    draw = np.random.default_rng(seed)
    return {"ids": draw.integers(0, 50, (batch, source)), "mask": np.ones((batch, source), np.float32),
            "past": draw.standard_normal((batch, past, 128)).astype(np.float32),
            "past_mask": np.ones((batch, past), np.float32)}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    "(what leaves, the folder of its files)."
    torch.manual_seed(0)
    leaving, folder = leaving_of(Reader().eval()), tmp_path_factory.mktemp("lite")
    places = {0: "batch", 2: "rows", 3: "columns"}
    leaving.graphs["pictures"] = Graph(Pictures().eval(), {"picture": torch.randn(2, 3, 4, 6)}, ["y"],
                                       {"picture": places, "y": places})
    leaving.axes.update(rows=Axis(high=8, lengths=[4], exact=True),
                        columns=Axis(high=8, lengths=[6], exact=True))
    for precision in ("fp32", "int8"):
        tflite.write(leaving, folder, precision, lambda line: None)
    return leaving, folder


def model_of(leaving, path):
    from workbench.parts.portable.lite import LiteModel

    specs, axes = specs_of(leaving)
    name = path.name.split(".")[0]
    return LiteModel(path, name, specs[name], axes)


@pytest.mark.parametrize("batch,source,past", [(1, 1, 0), (1, 5, 3), (3, 7, 2), (2, 24, 12), (8, 9, 8)])
def test_numbers_are_those_of_torch(written, batch, source, past):
    leaving, folder = written
    feeds = feeds_of(batch, source, past)
    wanted = run_graph(leaving.graphs["reader"], {k: torch.from_numpy(a) for k, a in feeds.items()})
    found = model_of(leaving, folder / "reader.tflite")(**feeds)
    small = model_of(leaving, folder / "reader.int8.tflite")(**feeds)
    for name, tensor in wanted.items():
        assert found[name].shape == tuple(tensor.shape) and found[name].dtype == np.float32
        assert far(found[name], tensor.numpy()) < 1e-5
        assert far(small[name], tensor.numpy()) < 0.1


def test_weights_in_another_order_of_memory_are_written_for_themselves(written):
    leaving, folder = written
    model = model_of(leaving, folder / "pictures.tflite")
    picture = torch.randn(2, 3, 4, 6)
    wanted = run_graph(leaving.graphs["pictures"], {"picture": picture})["y"]
    assert far(model(picture=picture.numpy())["y"], wanted.numpy()) < 1e-5
    with pytest.raises(Unusable, match="`pictures` was given 2 of `batch`, 5 of `rows`, 6 of `columns`, and "
                                       "the file holds"):
        model(picture=np.zeros((2, 3, 5, 6), np.float32))


def test_eight_bits_alone_leave_no_other_files(written, tmp_path):
    leaving, folder = written
    some = Leaving(graphs={"pictures": leaving.graphs["pictures"]}, axes=leaving.axes, program="none",
                   expected=list, score=lambda answers: {})
    assert tflite.write(some, tmp_path, "int8", lambda line: None) == {
        "pictures": [tmp_path / "pictures.int8.tflite"]}
    assert [p.name for p in tmp_path.iterdir()] == ["pictures.int8.tflite"]
    assert tflite.remarks(leaving)["lengths"]["reader"].startswith("source ")


def test_weights_stand_in_a_file_once(written):
    leaving, folder = written
    numbers = sum(t.numel() for t in leaving.graphs["reader"].net.parameters())
    sizes = [(folder / f"reader{kind}.tflite").stat().st_size for kind in ("", ".int8")]
    assert sizes[0] < 4 * numbers + 60_000, "four signatures hold the weights once"
    assert sizes[1] < 0.5 * sizes[0]


def test_what_is_too_long_is_said(written):
    leaving, folder = written
    model = model_of(leaving, folder / "reader.tflite")
    with pytest.raises(Unusable, match="takes 1 to 24 of `source` and was given 25"):
        model(**feeds_of(1, 25, 0))


def test_an_operator_that_cannot_leave_is_named(tmp_path):
    net = nn.Sequential(nn.ReLU(), Placed())
    leaving = leaving_of(net, inputs={"wave": torch.rand(1, 64)}, outputs=["place"], axes={})
    with pytest.raises(Refused, match=r"^`reader`: TFLite has no way for aten.searchsorted.Tensor of 1 "
                                      r"\(Placed\)"):
        tflite.write(leaving, tmp_path, "fp32", lambda line: None)
    assert not list(tmp_path.iterdir())


def test_an_environment_that_cannot_be_made_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.prefix", str(tmp_path))
    monkeypatch.setattr(tools, "make", lambda folder,
                        packages: tools.ran(["python3", "-c", "raise SystemExit('no')"]))
    with pytest.raises(Refused, match="failed .no.: once that is mended, `python -m workbench.deploy.tools`"):
        tools.overlay("nothing", ("nothing==1",), lambda line: None)
    assert not [p for p in (tmp_path / "share/workbench").iterdir() if p.suffix != ".lock"]


def test_tensorflow_reads_the_same_file(written, tmp_path):
    "In an environment of its own, since its packages are not those of the workbench."
    leaving, folder = written
    try:
        python = tools.overlay("tensorflow", TENSORFLOW, print)
    except Refused as e:
        pytest.skip(str(e))
    model = model_of(leaving, folder / "reader.tflite")
    signature, shapes = next(iter(model.sizes.items()))
    feeds = [np.ones(size, np.int32 if key == "ids" else np.float32) for key, size in shapes.items()]
    wanted = run_graph(leaving.graphs["reader"], dict(zip(shapes, map(torch.from_numpy, feeds))))
    np.savez(tmp_path / "feeds.npz", *feeds)
    code = ("import sys, numpy as np, tensorflow as tf\n"
            "run = tf.lite.Interpreter(sys.argv[1]).get_signature_runner(sys.argv[2])\n"
            "feeds = np.load(sys.argv[3])\n"
            "made = run(**{f'args_{i}': feeds[f'arr_{i}'] for i in range(len(feeds.files))})\n"
            "np.save(sys.argv[4], made['output_0']); print(tf.__version__)\n")
    done = subprocess.run([str(python), "-c", code, folder / "reader.tflite", signature,
                           tmp_path / "feeds.npz",
                           tmp_path / "made.npy"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split()[-1] == "2.21.0"
    assert far(np.load(tmp_path / "made.npy"), wanted["scores"].numpy()) < 1e-5
