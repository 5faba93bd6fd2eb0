"""Text to image leaves as graphs and a sampler: the same pictures without torch, in every size."""
from dataclasses import replace

import numpy as np
import pytest
import torch
from bare import bare_python, ran
from test_map import BRIEF, SMALL, pictures

import workbench
from workbench.core.run.folder import config_of
from workbench.deploy import bundle as bundles
from workbench.deploy import onnx as onnx_files
from workbench.deploy.ready import far, run_graph
from workbench.errors import Refused
from workbench.lab.export import export
from workbench.lab.use import read_run
from workbench.parts.portable.bundle import Bundle
from workbench.parts.portable.feeds import Unusable
from workbench.parts.portable.pictures import read_pixels, write_png
from workbench.parts.text.encoder import HubEncoder
from workbench.tasks.flow import program
from workbench.tasks.flow.exports import answers, exports
from workbench.tasks.flow.graphs import ReadTextHub

pytest.importorskip("onnxruntime")
SIZES = "data.sizes=[16,[24,16]] data.prefix=icon"
quiet = lambda words: None


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("flow")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_RUNS", str(folder / "runs"))
        pictures(folder / "mine")
        yield folder


def trained(home, name, over):
    return workbench.train("flow_tiny", f"{BRIEF} {SMALL['flow']} {SIZES} data.source={home / 'mine'} {over}",
                           run_dir=home / name)


@pytest.fixture(scope="module")
def opened(home):
    "A run with a flow; layers that began at zero and have hardly moved are nudged, so that they count."
    ends = " ".join(f"pipeline.steps.{s}.train.max_steps=2" for s in ("vae_off", "vae_on", "flow"))
    run = trained(home, "flow", ends)
    found, draw = read_run(run, config_of(run), "last"), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for net in found.nets.values():
            for p in net.requires_grad_(False).eval().parameters():
                p.add_(0.05 * torch.randn(p.shape, generator=draw))
    return found


@pytest.fixture(scope="module")
def made(opened, home):
    "(what leaves, its bundle, the report)."
    leaving = exports(opened.nets, opened.data, opened.ctx)
    report = bundles.export(leaving, bundles.Source("flow", "flow", "last", 6), home / "bundle",
                            [("onnx", "fp32")], lambda folder, manifest, report: None, quiet)
    return leaving, Bundle(home / "bundle"), report


def noise(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def apart(found, wanted):
    "The largest difference of pictures, in steps of 1 of 255."
    return max(int(abs(a.astype(int) - b.astype(int)).max()) for a, b in zip(found, wanted, strict=True))


# Pictures

def test_a_bundle_is_proven_by_drawings_and_reconstructions(made):
    leaving, _, report = made
    kinds = {isinstance(given, dict) for given in leaving.inputs}
    assert kinds == {True, False} and report["problem"] == ""
    [found] = report["formats"]
    assert found["agreement"] == found["agreement with the workbench"] == 1
    assert {o["graph"] for o in found["outputs"]} == {"text_encoder", "velocity", "expander", "compressor"}
    assert {"psnr", "ssim", "retrieval_rank"} <= found["scores"].keys()
    assert {o["graph"]
            for o in found["outputs"] if o["shapes"] > 1} >= {"text_encoder", "velocity", "expander"}


@pytest.mark.parametrize("guidance", [1, 2.5])
@pytest.mark.parametrize("sampler", ["euler", "heun", "ddim", "adaptive"])
def test_pictures_are_those_of_the_workbench(opened, made, sampler, guidance):
    "At sizes, lengths and batches that were not used at export."
    leaving, bundle, _ = made
    cfg = opened.ctx.cfg
    sample = cfg.sample.model_copy(update={"sampler": sampler, "guidance": guidance, "steps": 3})
    model = cfg.model.model_copy(update={"path": "cosine" if sampler == "ddim" else "straight"})
    ctx = replace(opened.ctx, cfg=cfg.model_copy(update={"sample": sample, "model": model}))
    settings = exports(opened.nets, opened.data, ctx).settings
    assert settings["rows"] == (1 if sampler == "adaptive" else 16)
    inputs = [{"text": "red", "noise": noise(0, 4, 3, 7)},
              {"text": "a grinning face " * 5, "noise": noise(1, 4, 3, 7)},
              {"text": "face", "noise": noise(2, 4, 3, 7)},
              {"text": "a red face", "noise": noise(3, 4, 5, 2)}]
    found = program.opened(bundle.models, settings, bundle.assets)(inputs)
    wanted = answers(opened.nets, opened.data, inputs, ctx, settings["rows"])
    assert [p.shape for p in found] == [(12, 28, 3)] * 3 + [(20, 8, 3)]
    assert apart(found, wanted) <= 1 and np.std(wanted[0]) > 1
    alone = program.opened(bundle.models, settings, bundle.assets)(inputs[1:2])
    assert apart(alone, found[1:2]) <= 1


def test_every_graph_is_exact_at_other_sizes(made):
    leaving, bundle, _ = made
    for b, h, w, s in ((1, 2, 9, 1), (5, 7, 3, 12)):
        given = {"picture": noise(0, b, 48, h, w).clip(-1, 1), "latent": noise(1, b, 4, h, w),
                 "point": noise(2, b, 4, h, w), "time": noise(3, b, 256).clip(-1, 1),
                 "text": noise(4, b, s, 16),
                 "ids": np.arange(b * s).reshape(b, s), "mask": np.tri(b, s, s // 2, dtype=np.float32)}
        for name, graph in leaving.graphs.items():
            feeds = {key: given[key] for key in graph.inputs}
            wanted = run_graph(graph, {key: torch.from_numpy(a) for key, a in feeds.items()})
            for key, found in bundle.models[name](**feeds).items():
                assert far(found, wanted[key].numpy()) < 1e-4, (name, b, h, w, s)


def test_weights_lie_in_the_order_of_their_dimensions(opened, made):
    "Fault: TFLite's converter reads weights with their channels last in another order, and says nothing."
    lie = lambda net: all(p.is_contiguous() for p in net.parameters())
    assert not lie(opened.nets["compressor"]) and all(lie(graph.net) for graph in made[0].graphs.values())


def test_tokens_are_those_of_training(opened, made):
    _, bundle, _ = made
    pieces, limit = program.opened_pieces(bundle.assets), opened.data.own.length
    for text in ("red", "a grinning face " * 5, "é  ü", "</s> red"):
        wanted = opened.data.own.encode(text)
        assert program.tokens_of(text, bundle.settings, pieces).tolist() == wanted and len(wanted) <= limit
    with pytest.raises(Unusable, match="empty caption"):
        program.tokens_of("  ", bundle.settings, pieces)


def test_a_caption_has_noise_of_its_own(made):
    _, bundle, _ = made
    draw = program.opened(bundle.models, bundle.settings, bundle.assets)
    one, other, wide = draw(["a red face", "face", {"text": "face", "size": [16, 24]}])
    assert one.shape == (16, 16, 3) and wide.shape == (16, 24, 3) and apart(draw(["a red face"]), [one]) <= 1
    assert (one != other).any()
    with pytest.raises(Unusable, match="multiples of 4"):
        draw([np.zeros((16, 18, 3), np.uint8)])
    with pytest.raises(Unusable, match="1 to 64 of `rows` and was given 100: shorten"):
        draw([np.zeros((400, 16, 3), np.uint8)])


def test_the_example_draws_without_torch(made, home, tmp_path):
    _, bundle, _ = made
    picture = np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)
    write_png(picture, tmp_path / "in.png")
    done = ran(bare_python(tmp_path / "env"), bundle.folder / "example.py", "a red face", tmp_path / "in.png",
               "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    files = done.stdout.split()
    assert len(files) == 2
    wanted = program.opened(bundle.models, bundle.settings, bundle.assets)(["a red face", picture])
    assert apart([read_pixels(file) for file in files], wanted) <= 1


# Other runs

def test_a_run_of_the_vae_alone_reconstructs(home):
    "Its last stage trained SPADE, so that is on; a caption is refused in one sentence."
    run = trained(home, "vae", "pipeline=null loss.train_vae=true loss.train_spade=true")
    report = export(run, "onnx", out=home / "vae_bundle", checkpoint="last", say=quiet)
    bundle = Bundle(home / "vae_bundle")
    assert report["problem"] == "" and sorted(bundle.manifest["graphs"]) == ["compressor", "expander"]
    assert report["formats"][0]["scores"].keys() == {"psnr", "ssim"} and not bundle.settings["draws"]
    run_it = program.opened(bundle.models, bundle.settings, bundle.assets)
    picture = np.random.default_rng(0).integers(0, 256, (20, 32, 3), np.uint8)
    opened = read_run(run, config_of(run), "last")
    assert apart(run_it([picture]), answers(opened.nets, opened.data, [picture], opened.ctx, 1)) <= 1
    with pytest.raises(Unusable, match="trained no flow: it reconstructs pictures and draws none"):
        run_it(["a red face"])


def test_a_checkpoint_that_cannot_draw_says_so(opened):
    with pytest.raises(Refused, match="no scale of the latents"):
        exports(opened.nets, opened.data, replace(opened.ctx, assets={}))


def small_encoder(kind):
    from transformers import BertConfig, BertModel, T5Config, T5EncoderModel

    torch.manual_seed(0)
    if kind == "t5":
        return T5EncoderModel(T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2))
    return BertModel(BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                                intermediate_size=32))


@pytest.mark.parametrize("kind", ["bert", "t5"])
def test_encoders_of_the_hub_leave(opened, made, kind, tmp_path):
    "A caption without a token, and lengths that were not used at export."
    leaving = made[0]
    net = HubEncoder(small_encoder(kind).eval().requires_grad_(False))
    graph = replace(leaving.graphs["text_encoder"], net=ReadTextHub(net))
    ids = torch.arange(21).reshape(3, 7)
    mask = torch.tensor([[1.0] * 7, [1.0] * 3 + [0.0] * 4, [0.0] * 7])
    wanted = net(ids, mask > 0).numpy()
    given = {"ids": ids, "mask": mask}
    assert far(run_graph(graph, given)["text"].numpy(), wanted) < 1e-5
    alone = replace(leaving, graphs={"text_encoder": graph})
    [path] = onnx_files.write(alone, tmp_path, "fp32", quiet)["text_encoder"]
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    [found] = session.run(None, {key: x.numpy() for key, x in given.items()})
    assert far(found, wanted) < 1e-4
