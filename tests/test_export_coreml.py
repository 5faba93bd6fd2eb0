"""Core ML: its files say and hold what the net has, in three precisions, and what the converter would change
in silence is refused by name. Predictions are compared on macOS."""
import sys
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from torch import nn
from transformers import T5Config
from transformers.models.t5.modeling_t5 import T5Stack

from workbench.core.task import Axis, Graph, Leaving
from workbench.deploy import coreml, coreml_check, coreml_convert
from workbench.deploy.half import halved, largest, too_large
from workbench.deploy.operators import check_operators, traced
from workbench.deploy.ready import far
from workbench.deploy.verify import Call
from workbench.errors import Refused

if find_spec("coremltools") is None:
    pytest.skip("coremltools is not installed", allow_module_level=True)
mac = pytest.mark.skipif(sys.platform != "darwin", reason="Core ML predicts on macOS alone")
ROW = {0: "batch", 1: "source"}


class Encoder(nn.Module):
    "A T5 encoder that is given ready masks."

    def __init__(self, stack):
        super().__init__()
        self.stack = stack

    def forward(self, ids, mask):
        bias = ((mask - 1) * 1e4)[:, None, None].expand(-1, 1, ids.shape[1], -1)
        return self.stack(input_ids=ids, attention_mask=bias).last_hidden_state


def leaving_of(net, inputs, outputs, axes, **more):
    graph = Graph(net.eval(), inputs, outputs, axes)
    axis = {"batch": Axis(1, 8), "source": Axis(1, 64), "past": Axis(0, 64)} | more
    return Leaving(graphs={"net": graph}, axes=axis, program="none", expected=list, score=dict)


def encoder(size=1.0):
    "A small T5 encoder whose hidden states are `size` times as large."
    torch.manual_seed(0)
    config = T5Config(vocab_size=99, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4)
    config._attn_implementation, config.use_cache, config.is_decoder = "eager", False, False
    net = Encoder(T5Stack(config))
    with torch.no_grad():
        for i, p in enumerate(net.parameters()):
            nn.init.normal_(p, std=0.2) if p.dim() > 1 else p.copy_(1 + 0.1 * torch.randn_like(p))
        net.stack.embed_tokens.weight.mul_(size)
        for block in net.stack.block:  # what is added is as large as what it is added to
            block.layer[1].DenseReluDense.wo.weight.mul_(size)
    return leaving_of(net, {"ids": torch.randint(99, (2, 7)), "mask": torch.ones(2, 7)}, ["hidden"],
                      {"ids": ROW, "mask": ROW, "hidden": ROW})


class Step(nn.Module):
    "A step of a decoder with one layer that keeps keys and values."

    def __init__(self):
        super().__init__()
        self.table, self.q, self.k, self.v = nn.Embedding(50, 32), *(nn.Linear(32, 32) for _ in range(3))
        self.out = nn.Linear(32, 50, bias=False)
        self.out.weight = self.table.weight

    def forward(self, ids, past_mask, past_key, past_value):
        x = self.table(ids)
        key, value = (f(x).unflatten(2, (2, 16)).transpose(1, 2) for f in (self.k, self.v))
        bias = torch.cat([(past_mask - 1) * 1e4, past_mask.new_zeros(ids.shape)], 1)[:, None, None]
        keys, values = torch.cat([past_key, key], 2), torch.cat([past_value, value], 2)
        scores = self.q(x).unflatten(2, (2, 16)).transpose(1, 2) @ keys.mT / 4 + bias
        x = x + (scores.softmax(-1) @ values).transpose(1, 2).flatten(2)
        return self.out(x)[:, -1], key, value


def step():
    torch.manual_seed(0)
    kept = {0: "batch", 2: "past"}
    inputs = {"ids": torch.randint(50, (2, 1)), "past_mask": torch.ones(2, 3),
              "past_key": torch.randn(2, 2, 3, 16),
              "past_value": torch.randn(2, 2, 3, 16)}
    return leaving_of(Step(), inputs, ["logits", "key", "value"], {
        "ids": {0: "batch"}, "past_mask": {0: "batch", 1: "past"}, "past_key": kept, "past_value": kept,
        "logits": {0: "batch"}, "key": {0: "batch"}, "value": {0: "batch"}})


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    "(what leaves, the folder, precision -> its files)"
    leaving, folder = step(), tmp_path_factory.mktemp("step")
    return leaving, folder, {p: coreml.write(leaving, folder, p, str)["net"]
                             for p in ("fp32", "fp16", "int8")}


def calls_of(leaving):
    "Calls with lengths and batches that were not used at export."
    net, found = leaving.graphs["net"].net, []
    for batch, past in ((1, 1), (3, 9)):
        feeds = {"ids": torch.randint(50, (batch, 1)), "past_mask": torch.ones(batch, past),
                 "past_key": torch.randn(batch, 2, past, 16), "past_value": torch.randn(batch, 2, past, 16)}
        with torch.no_grad():
            outputs = net(*feeds.values())
        found.append(Call("net", {k: x.numpy() for k, x in feeds.items()},
                          dict(zip(leaving.graphs["net"].outputs, (x.numpy() for x in outputs)))))
    return found


# The files

def spec_of(folder, name):
    import coremltools as ct

    return ct.utils.load_spec(str(folder / name))


def test_the_file_states_types_and_ranges(written):
    spec = spec_of(written[1], "net.mlpackage").description
    said = {f.name: coreml_check.described(f) for f in spec.input}
    assert said == {"ids": {"dtype": "INT32", "lengths": ((1, 8), (1, 1))},
                    "past_mask": {"dtype": "FLOAT32", "lengths": ((1, 8), (1, 64))},
                    **{f"past_{k}": {"dtype": "FLOAT32", "lengths": ((1, 8), (2, 2), (1, 64), (16, 16))}
                       for k in ("key", "value")}}
    assert {f.name: f.type.multiArrayType.dataType for f in spec.output} == dict.fromkeys(
        ("logits", "key", "value"), 65568)  # FLOAT32


def test_float16_inside_stays_float32_outside(written):
    spec = spec_of(written[1], "net.fp16.mlpackage")
    kinds = {coreml_check.described(f)["dtype"] for f in (*spec.description.input, *spec.description.output)}
    assert kinds == {"INT32", "FLOAT32"} and spec.specificationVersion == 7  # iOS 16


def test_every_weight_is_in_the_file_in_its_precision(written):
    leaving, folder, files = written
    found = {p: coreml_check.compare("net", leaving.graphs["net"], leaving.axes,
                                     folder / f"{coreml.stem('net', p)}.mlpackage", p) for p in files}
    assert {f["weights"] for f in found.values()} == {7}
    assert found["fp32"]["difference"] == 0 and 0 < found["fp16"]["difference"] < 5e-4 < 0.005
    assert found["fp16"]["difference"] < found["int8"]["difference"] < 0.005
    size = {p: next(f.stat().st_size for f in fs if f.name == "weight.bin") for p, fs in files.items()}
    assert size["fp16"] < 0.56 * size["fp32"] and size["int8"] < 0.4 * size["fp32"]


def test_a_tied_weight_is_stored_once(written):
    net = written[0].graphs["net"].net
    weights = next(f for f in written[2]["fp32"] if f.name == "weight.bin")
    assert weights.stat().st_size < 4 * sum(p.numel() for p in net.parameters()) + 4000


def test_a_changed_weight_is_found_and_named(written, tmp_path):
    leaving, folder, _ = written
    other = step()
    with torch.no_grad():
        other.graphs["net"].net.v.weight[3, 4] += 0.01
    with pytest.raises(Refused, match="the weight `v.weight` of `net` differs by"):
        coreml_check.compare("net", other.graphs["net"], leaving.axes, folder / "net.mlpackage", "fp32")


def test_other_names_and_ranges_are_found(written):
    leaving, folder, _ = written
    graph, path = leaving.graphs["net"], folder / "net.mlpackage"
    longer = leaving.axes | {"past": Axis(0, 128)}
    with pytest.raises(Refused, match="the input `past_mask` of `net` is .*64.* should be .*128"):
        coreml_check.compare("net", graph, longer, path, "fp32")
    renamed = replace(graph, outputs=["scores", "key", "value"])
    with pytest.raises(Refused, match="and the graph .*scores"):
        coreml_check.compare("net", renamed, leaving.axes, path, "fp32")


def test_what_is_checked_off_macos(written):
    leaving, folder, files = written
    for precision, most in (("fp32", 1e-6), ("fp16", 5e-3), ("int8", 0.05)):
        found = coreml.check(leaving, folder, files[precision], precision, calls_of(leaving))
        assert not found["problem"] and {o["calls"] for o in found["outputs"]} == {2}
        assert max(o["difference"] for o in found["outputs"]) < most
        assert "7 weights found" in found["says"]
        if sys.platform != "darwin":
            assert "predictions need macOS" in found["says"]


@mac
def test_predictions_are_torch_s(written):
    leaving, folder, _ = written
    models = coreml.models_of(leaving, folder, "fp32")
    for call in calls_of(leaving):
        found = models["net"](**call.feeds)
        assert all(far(found[k], x) <= 1e-4 for k, x in call.outputs.items())


def test_the_old_format_knows_floats_alone_and_keeps_positions_whole(written):
    folder = written[1]
    spec = spec_of(folder, "net.mlmodel")
    assert spec.WhichOneof("Type") == "neuralNetwork" and spec.specificationVersion == 5
    assert {coreml_check.described(f)["dtype"] for f in spec.description.input} == {"FLOAT32"}
    small = spec_of(folder, "net.int8.mlmodel")
    rounded = [layer for layer in small.neuralNetwork.layers if layer.WhichOneof("layer") == "loadConstantND"
               and layer.loadConstantND.data.HasField("quantization")]
    assert not any(max(layer.loadConstantND.shape) < 512 and len(layer.loadConstantND.shape) < 2
                   for layer in rounded)
    assert (folder / "net.int8.mlmodel").stat().st_size < 0.5 * (folder / "net.mlmodel").stat().st_size


# float16

def test_t5_overflows_and_its_norms_stay_in_float32(tmp_path):
    said, leaving = [], encoder(size=300.0)
    graph = leaving.graphs["net"]
    feeds = [tuple(graph.inputs.values())]
    kept = too_large(largest(graph.net, feeds))
    assert any(path[-1] == "layer_norm" for path in kept) and ("stack", "final_layer_norm") in kept
    assert not any(path[-1] in ("q", "k", "v") for path in kept)
    with torch.no_grad():
        exact = graph.net(*feeds[0])
    assert not far(halved(graph.net, feeds)[0],
                   exact) < 0.1 and far(halved(graph.net, feeds, kept)[0], exact) < 0.01
    files = coreml.write(leaving, tmp_path, "fp16", said.append)["net"]
    assert any("modules in float32" in s and "65,504" in s for s in said)
    assert not [f for f in files if f.suffix == ".mlmodel" and f.parent == tmp_path]
    assert any("keeps no module in float32" in s for s in said)
    program = coreml_check.program_of(tmp_path / "net.fp16.mlpackage")
    kinds = {}
    for op in program.functions["main"].operations:
        if op.op_type in ("pow", "reduce_mean", "rsqrt", "linear"):
            kinds.setdefault(op.op_type, set()).add(op.outputs[0].dtype.__type_info__().name)
    assert kinds["reduce_mean"] == {"fp32"} and "fp16" in kinds["linear"], kinds


def test_nothing_is_kept_where_nothing_overflows(tmp_path):
    said = []
    coreml.write(encoder(size=1.0), tmp_path, "fp16", said.append)
    assert not any("float32" in s for s in said)


class Masked(nn.Module):
    def __init__(self, low):
        super().__init__()
        self.low = low

    def forward(self, x, mask):
        return torch.softmax(x + (1 - mask) * self.low, -1)


def test_a_mask_of_finfo_min_is_refused_in_float16_alone(tmp_path):
    row = {"x": torch.zeros(2, 3), "mask": torch.ones(2, 3)}, ["y"], {"x": ROW, "mask": ROW, "y": ROW}
    lowest = leaving_of(Masked(torch.finfo(torch.float32).min), *row)
    with pytest.raises(Refused, match=r"`net`: the graph itself \(Masked\) computes with -3.4e\+38 "
                                      r"\(aten::mul\)"):
        coreml.write(lowest, tmp_path, "fp16", str)
    assert not list(tmp_path.iterdir())
    coreml.write(lowest, tmp_path, "fp32", str)
    coreml.write(leaving_of(Masked(-1e4), *row), tmp_path, "fp16", str)


# What the converter does in silence

class Shrink(nn.Module):
    def __init__(self, antialias):
        super().__init__()
        self.antialias = antialias

    def forward(self, x):
        return nn.functional.interpolate(x, (4, 4), mode="bilinear", antialias=self.antialias)


def test_antialias_is_refused(tmp_path):
    net = lambda antialias: nn.Sequential(nn.Conv2d(3, 3, 1), Shrink(antialias))
    image = {"x": torch.rand(1, 3, 8, 8)}, ["y"], {}
    with pytest.raises(Refused, match=r"`net`: 1 \(Shrink\) resizes with antialias=True"):
        coreml.write(leaving_of(net(True), *image), tmp_path, "fp32", str)
    assert not list(tmp_path.iterdir())
    coreml.write(leaving_of(net(False), *image), tmp_path, "fp32", str)


class Spread(nn.Module):
    "As many frames as the durations say."

    def __init__(self, frozen):
        super().__init__()
        self.frozen = frozen

    def forward(self, durations):
        return torch.arange(int(durations.sum()) if self.frozen else durations.sum())[None].float()


@pytest.mark.parametrize("frozen", [True, False])
def test_a_predicted_length_is_not_frozen(tmp_path, frozen):
    leaving = leaving_of(Spread(frozen), {"durations": torch.tensor([[2, 3]])}, ["y"],
                         {"durations": {1: "source"}, "y": {1: "frames"}}, frames=Axis(1, 99))
    if frozen:
        with pytest.raises(Refused, match="the output `y` of `net` depends on lengths"):
            coreml.write(leaving, tmp_path, "fp32", str)
        assert not list(tmp_path.iterdir())
    else:
        coreml.write(leaving, tmp_path, "fp32", str)


class Chosen(nn.Module):
    "Two columns, whatever the length: an output that is said to vary and does not."

    def forward(self, x):
        return torch.stack([x[:, 0], x[:, 1]], 1)


def test_a_range_whose_output_is_fixed_is_refused(tmp_path):
    leaving = leaving_of(Chosen(), {"x": torch.rand(2, 5)}, ["y"], {"x": ROW, "y": ROW})
    with pytest.raises(Refused, match="the output `y` of `net` is always 2 long in Core ML, the example's "
                                      "`source`"):
        coreml.write(leaving, tmp_path, "fp32", str)
    assert not list(tmp_path.iterdir())


class Odd(nn.Module):
    def forward(self, x):
        return torch.special.i0(x)


def test_an_unsupported_operator_is_named_with_its_module(tmp_path):
    net = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.ReLU(), Odd()))
    with pytest.raises(Refused, match=r"`net`: Core ML has no way for aten::special_i0 of 1.1 \(Odd\)"):
        coreml.write(leaving_of(net, {"x": torch.rand(2, 4)}, ["y"], {"x": {0: "batch"}, "y": {0: "batch"}}),
                     tmp_path, "fp32", str)
    assert not list(tmp_path.iterdir())


def test_a_missing_converter_is_said(monkeypatch):
    monkeypatch.setattr(coreml_convert, "find_spec", lambda name: None)
    with pytest.raises(Refused, match=r"pip install 'workbench\[export\]'"):
        coreml_convert.require()


def test_nothing_is_printed(tmp_path, capfd):
    coreml.write(leaving_of(nn.Linear(4, 4), {"x": torch.rand(2, 4)}, ["y"],
                            {"x": {0: "batch"}, "y": {0: "batch"}}),
                 tmp_path, "int8", str)
    said = capfd.readouterr()
    assert not said.out and not said.err


def test_the_net_stays_as_it_is(written):
    other = step()
    mine, its = (x.graphs["net"].net.state_dict() for x in (written[0], other))
    assert all(torch.equal(mine[k], its[k]) for k in its)
    graph = other.graphs["net"]
    script = traced("net", graph, other.axes)
    check_operators("net", script, graph.net, half=True)
    assert np.allclose(*(x[0].detach()
                         for x in (script(*graph.inputs.values()), graph.net(*graph.inputs.values()))))
    assert not [h for m in graph.net.modules() for h in (*m._forward_hooks, *m._forward_pre_hooks)]
