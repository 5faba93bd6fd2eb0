"""Every preset loads, says what its keys mean, builds without a hub or memory, and has the size that was
published."""
import re
import resource
import types

import pytest
import torch
import yaml

from workbench.core.config.tasks import systems
from workbench.core.config import presets
from workbench.errors import Refused
from workbench.core.config.mistakes import keys_of
from workbench.core.run.folder import config_of, create
from workbench.core.stages.stages import configured, stages
from workbench.parts.shared import hub
from workbench.parts.text import model_config
from workbench.parts.text.seq2seq import embed_width
from workbench.parts.text.tokenizer import train_tokenizer
from workbench.parts.text.translator import build_model, find_model
from workbench.tasks.flow import task as flow
from workbench.tasks.flow import config as flow_config
from workbench.tasks.flow import dialect
from workbench.tasks.flow.data import FlowOwn
from workbench.tasks.sign import task as sign
from workbench.tasks.tts import task as tts
from workbench.tasks.tts import config as tts_config

ALL = ["bart_large", "mbart", "mt5_large", "t5_3b_lora", "t5_base", "t5_large", "t5_small", "t5_tiny",
       "transformer"]
SPEECH = ["amharic_tiny", "amharic_tts", "tts_full", "tts_small", "tts_tiny"]
IMAGES = ["flow_full", "flow_small", "flow_tiny", "spade_off_on"]
TEXTS = ["m2m100", "marian", "mt5_small", "nllb_600m", "nllb_600m_lora", "nllb_600m_qlora", "universal",
         "universal_small", "universal_tiny"]
CAPTIONS = ["caption_full", "caption_small", "caption_tiny", "caption_vit_gpt2"]
TASKS = {"sign": ALL, "tts": SPEECH, "flow": IMAGES, "translate": TEXTS, "caption": CAPTIONS}
# preset: (the figure that its papers and pages give, what the weights hold, tied tables counted once)
PUBLISHED = {
    "t5_small": ("60 M", 60_506_624), "t5_base": ("220 M", 222_903_552), "t5_large": ("738 M", 737_668_096),
    "bart_large": ("406 M", 406_291_456), "mbart": ("611 M", 610_879_488),
    "mt5_large": ("1.23 B", 1_229_581_312),
    "t5_3b_lora": ("2.85 B", 2_851_598_336),
    "transformer": ("262 M", 109_482_240 + 124_439_808 + 12 * 2_363_904),  # BERT base, GPT-2, cross-attention
}
SETTINGS = {  # preset: (rows of a batch on a GPU, learning rate), as the eight public presets have them
    "t5_small": (64, 3e-4), "t5_base": (32, 3e-4), "t5_large": (16, 1e-4), "bart_large": (16, 5e-5),
    "mbart": (8, 3e-5),
    "mt5_large": (12, 5e-5), "t5_3b_lora": (4, 1e-4)}


def refusal(config, overrides=""):
    "The message with which a configuration is refused."
    with pytest.raises(Refused) as caught:
        presets.load(config, overrides)
    return str(caught.value)


def own_text(name):
    return (presets.presets_folder / f"{name}.yaml").read_text(encoding="utf8")


def test_these_are_the_presets():
    assert presets.presets() == sorted(ALL + SPEECH + IMAGES + TEXTS + CAPTIONS)
    assert sorted(TASKS) == systems()  # every system of the workbench has some


@pytest.mark.parametrize("name", ALL + SPEECH + IMAGES + TEXTS + CAPTIONS)
def test_a_preset_loads_and_plans_its_stages(name):
    cfg = presets.load(name)
    assert cfg.preset == name and name in TASKS[cfg.task] and own_text(name).startswith("# ")
    assert len(stages(cfg)) == (3 if name in IMAGES else 2 if name == "universal_tiny" else 1)
    again = presets.resolve(yaml.safe_load(presets.dump(cfg)), "again")
    assert again.model_dump() == cfg.model_dump()  # what a run folder keeps is the configuration


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_a_preset_has_the_public_batch_and_rate(name):
    raw = presets.read_file(presets.find(name))
    assert (raw["train"]["batch_size"], raw["train"]["lr"]) == SETTINGS[name]
    assert raw["generate"]["num_beams"] == 5 and raw["generate"]["length_penalty"] == 0.6
    assert (raw["generate"]["no_repeat_ngram"] is None and raw["data"]["step_frames"] == 5
            and raw["data"]["max_frames"] == 300)


def leaves(name):
    "Dotted keys that a preset's file gives a value, without what it extends."
    tree = presets.read_yaml(own_text(name), name)
    tree.pop("extends", None)
    return set(presets.flat(tree))


def test_t5_base_lists_every_key_of_the_schema():
    # sections given as one value
    one_value = ("model.lora", "train.early_stopping", "train.optimizers", "train.schedulers", "begin_from")
    of_runs = {"preset", "notes", "asked", "pipeline"}  # set by the loader, or a list of stages
    of_types = {f"train.optimizer.{k}"
                for k in ("alpha", "centered", "amsgrad", "decoupled_weight_decay")} | {
        f"train.scheduler.{k}"
        for k in ("eta_min_factor", "start_factor", "end_factor", "total_iters", "step_size", "milestones",
                                         # of optimisers and schedules that it does not use
                                         "mode", "factor", "patience")}
    known = {k for k in keys_of(presets.schema_of(sign.SignConfig))
             if not k.startswith(tuple(o + "." for o in one_value))}
    ends = {k for k in known
            if not any(o.startswith(k + ".") for o in known)} | {"data.augment"} - {"pipeline"}
    listed = {k for k in leaves("t5_base") if not k.startswith("on_cpu.")}
    missing = {k for k in ends - listed - of_runs - of_types - {"data.augment"}
               if not k.startswith("pipeline.")}
    assert not missing and not listed - known


def test_every_key_of_t5_base_has_a_comment():
    bare = [line for line in own_text("t5_base").splitlines()
            if re.match(r"\s*\w+: *[^#\s]", line) and "#" not in line]
    # of on_cpu
    assert not [line for line in bare if line.split(":")[0].strip() not in ("train", "valid", "generate")]
    assert len(bare) <= 3


@pytest.mark.parametrize("name", ALL)
def test_a_preset_sets_nothing_that_t5_base_does_not_explain(name):
    inside = ("on_cpu.", "model.params.", "model.lora.", "extends")
    assert {k for k in leaves(name)
            if not k.startswith(inside)} <= leaves("t5_base") | {"on_cpu", "model.lora", "model.params"}


def test_tts_tiny_lists_every_key_of_the_task_and_the_others_set_no_other():
    parts = ("data", "model", "loss", "speak")
    known = {k for k in keys_of(tts_config.TtsConfig) if k.startswith(tuple(p + "." for p in parts))}
    ends = {k for k in known if not any(o.startswith(k + ".") for o in known)}
    listed = leaves("tts_tiny")
    assert ends <= listed and {k for k in listed if k.startswith(parts)} <= known
    for name in SPEECH:
        assert {k for k in leaves(name) if k.startswith(tuple(p + "." for p in parts))} <= listed
    lines = [line for line in own_text("tts_tiny").split("model:")[1].split("train:")[0].splitlines()
             if re.match(r"  \w+:", line)]
    assert len(lines) > 20 and sum("#" in line for line in lines) > 0.75 * len(lines)


def test_flow_tiny_lists_every_key_of_the_task_and_the_others_set_no_other():
    parts = ("data", "model", "loss", "sample")
    known = {k for k in keys_of(flow_config.FlowConfig) if k.startswith(tuple(p + "." for p in parts))}
    ends = {k for k in known if not any(o.startswith(k + ".") for o in known)}
    listed = leaves("flow_tiny")
    assert ends <= listed and {k for k in listed if k.startswith(parts)} <= known
    for name in IMAGES:
        assert {k for k in leaves(name) if k.startswith(tuple(p + "." for p in parts))} <= listed


def test_flow_full_has_the_documents_sizes():
    "Compressor 25 M, expander 30 M, flow processor 150 M, text encoder 66 M."
    cfg = presets.load("flow_full")
    own = FlowOwn(tokenizer=range(2879), length=cfg.data.length)
    with torch.device("meta"):
        nets = flow.nets(cfg, types.SimpleNamespace(own=own), False)
    sizes = {name: round(sum(p.numel() for p in net.parameters()) / 1e6) for name, net in nets.items()}
    assert sizes == {"compressor": 25, "expander": 30, "flow_processor": 151, "text_encoder": 66,
                     "discriminator": 3}


def speech_nets(cfg):
    "The nets of a speech preset, without data and memory."
    own = types.SimpleNamespace(
        table=cfg.model.rows or 90, speakers={"": 0}, base_rows=0,
        statistics={"mel": {"mean": [0.0] * 80, "std": [1.0] * 80}, "log_duration": 1.0})
    with torch.device("meta"):
        return tts.nets(cfg, types.SimpleNamespace(own=own), False)


def test_tts_full_has_the_public_size():
    "d_model 1024, 8 heads, 6 layers, 2,454 kept symbols and 81 new ones: about 55 M parameters."
    full, amharic = presets.load("tts_full"), presets.load("amharic_tts")
    m = full.model
    assert (m.width, m.heads, m.layers, m.rows, amharic.model.rows) == (1024, 8, 6, 2454, 2454 + 81)
    assert amharic.model.freeze_base_rows and amharic.train.lr == 1e-5 and len(amharic.speak.sentences) == 5
    assert (full.train.batch_size, full.train.accumulate, full.train.clip) == (16, 2, 0.5) or full.notes
    sizes = [sum(p.numel() for net in speech_nets(cfg).values() for p in net.parameters())
             for cfg in (full, amharic)]
    assert 52e6 < sizes[0] < 58e6 and sizes[1] - sizes[0] == 81 * 1024
    tiny = sum(p.numel() for net in speech_nets(presets.load("tts_tiny")).values() for p in net.parameters())
    assert tiny < 6e6


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_the_size_is_the_published_one_without_hub_and_memory(name):
    figure, exact = PUBLISHED[name]
    assert figure in own_text(name).split("\n\n")[0].split("extends")[0]
    cfg, before = presets.load(name), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    m, tok = cfg.model, train_tokenizer(["a text"])
    with torch.device("meta"):
        raw = model_config.override(hub.read_config(hub.locate(m.name, "scratch")), m.params)
        adapters = m.lora.model_dump() if m.lora else None
        model = build_model(raw, {"kind": "scratch"}, True, tok, None, adapters, m.freeze_encoder,
                            m.freeze_decoder)
    mine = sum(p.numel() for n, p in model.named_parameters() if "lora_" not in n)
    assert mine == exact and {p.device.type for p in model.parameters()} == {"meta"}
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 200  # MB


def test_t5_3b_with_adapters_trains_what_its_file_says():
    """Fault: `about 16 M trainable`, unreconciled.
    r 16 on queries and values is 11.8 M; the reader is the rest."""
    cfg = presets.load("t5_3b_lora")
    with torch.device("meta"):
        config, origin = find_model(cfg.model.name, "scratch", "cpu", train_tokenizer(["a text"]), {})
        model = build_model(config, origin, True, None, adapters=cfg.model.lora.model_dump())
        from workbench.parts.pose.reader import Reader

        reader = Reader(76 * 3, embed_width(model))
    adapters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    rest = sum(p.numel() for p in reader.parameters())
    assert adapters == (24 + 2 * 24) * 2 * 16 * (1024 + 4096) == 11_796_480
    assert f"{adapters:,}" in own_text("t5_3b_lora") and f"{rest:,}" in own_text("t5_3b_lora")


def test_adapters_of_the_preset_exist_in_its_architecture():
    "Fault: a LoRA preset whose targets (`q_proj`) do not exist in T5 (`q`, `v`)."
    cfg = presets.load("t5_3b_lora")
    config = hub.read_config(hub.locate(cfg.model.name, "scratch"))
    with torch.device("meta"):
        model = build_model(config, {"kind": "scratch"}, True, None, adapters=cfg.model.lora.model_dump())
        with pytest.raises(Refused, match="no layer q_proj, v_proj; its layers are q, k, v, o"):
            build_model(config, {"kind": "scratch"}, True, None, adapters={"targets": ["q_proj", "v_proj"]})
    carriers = {n.split(".lora_A")[0].rsplit(".", 1)[-1]
                for n, p in model.named_parameters() if "lora_A" in n}
    assert carriers == {"q", "v"}


def test_a_full_plan_of_the_largest_takes_seconds_and_no_memory():
    from workbench.core.setup.plan import plan

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    facts = plan(presets.load("t5_3b_lora", "data.languages=[ase]"))
    assert {n["net"]: n["trained"] for n in facts["nets"]}["translator"] == 11_796_480
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 1000


def test_overrides_win_and_are_typed():
    cfg = presets.load("t5_base", "train.lr=1e-5 model.lora.r=8 data.languages=[gsg,ase] model.language='en "
                                  "XX' train.checkpoint_every='2 epochs' model.params.num_layers=3 "
                                  "train.minutes=null")
    assert (cfg.train.lr, cfg.model.lora.r, cfg.data.languages) == (1e-5, 8, ["gsg", "ase"])
    assert (cfg.model.language == "en XX" and cfg.train.checkpoint_every == "2 epochs"
            and cfg.train.minutes is None)
    assert cfg.model.params == {"num_layers": 3}
    assert presets.load("t5_base", "train.batch_size=7").train.batch_size == 7  # over on_cpu too


def test_what_a_machine_without_gpu_changes_is_said(monkeypatch):
    monkeypatch.setattr(presets, "device_kind", lambda: "cpu")
    cfg = presets.load("t5_base")
    assert cfg.train.batch_size == 4 and cfg.train.minutes == presets.cpu_minutes
    assert "No GPU here" in cfg.notes[0] and "train.batch_size=4" in cfg.notes[0]
    monkeypatch.setattr(presets, "device_kind", lambda: "cuda")
    cfg = presets.load("t5_base")
    assert cfg.train.batch_size == 32 and cfg.train.minutes is None and not cfg.notes


@pytest.mark.parametrize("override, words", [
    ("train.learning_rate=1", "unknown key `train.learning_rate`; did you mean `train.lr`?"),
    ("model.lora_config.r=4", "unknown key `model.lora_config`; did you mean `model.lora`?"),
    ("data.num_keypoints=266", "unknown key `data.num_keypoints`; did you mean `data.keypoints`?"),
    ("model.use_lora=true", "did you mean `model.lora`?"),
    ("generate.num_beam=2", "did you mean `generate.num_beams`?"),
    ("train.batchsize=2", "did you mean `train.batch_size`?"),
    ("data.dims=4", "`data.dims` is 4"), ("train.lr=fast", "`train.lr` is 'fast'"),
    ("train.lr=-1", "`train.lr` is -1"),
    ("model.init=maybe", "`model.init` is 'maybe'"), ("data.max_rejected=2", "`data.max_rejected` is 2"),
    ("model.lora.dropout=1.5", "`model.lora.dropout` is 1.5"), ("train.checkpoint_every=often", "1 epoch"),
    ("nonsense", "is not of the form a.b=value"), ("train.lr='1", "overrides"),
])
def test_a_wrong_override_is_a_sentence(override, words):
    message = refusal("t5_base", override)
    assert words in message and "Traceback" not in message and "pydantic" not in message.lower()
    assert len(message.splitlines()) == 1


def test_several_mistakes_are_told_at_once():
    message = refusal("t5_base", "train.learning_rate=1 data.step_frame=2 model.size=3")
    assert len(message.splitlines()) == 3 and "data.step_frames" in message


def test_an_own_file_extends_a_preset(tmp_path):
    (tmp_path / "mine.yaml").write_text("extends: t5_small\ndata: {max_frames: 100}\n")
    (tmp_path / "child.yaml").write_text("extends: mine.yaml\ntrain: {lr: 1e-5}\n")
    cfg = presets.load(str(tmp_path / "child.yaml"))
    assert (cfg.preset, cfg.model.name, cfg.data.max_frames, cfg.train.lr) == ("child", "t5-small", 100, 1e-5)
    (tmp_path / "a.yaml").write_text("extends: b.yaml\n")
    (tmp_path / "b.yaml").write_text("extends: a.yaml\n")
    assert "goes in a circle" in refusal(str(tmp_path / "a.yaml"))
    (tmp_path / "bad.yaml").write_text("extends: t5_base\ntrain: {lr: [1\n")
    assert "bad.yaml, line" in refusal(str(tmp_path / "bad.yaml"))
    (tmp_path / "twice.yaml").write_text("extends: t5_base\nseed: 1\nseed: 2\n")
    assert "line 3: the key `seed` stands twice" in refusal(str(tmp_path / "twice.yaml"))
    (tmp_path / "typo.yaml").write_text("extends: t5_bse\n")
    assert "did you mean `t5_base`?" in refusal(str(tmp_path / "typo.yaml"))
    assert "no configuration file" in refusal(str(tmp_path / "none.yaml"))
    assert "did you mean `t5_large`?" in refusal("t5_larg")


def test_lengths_that_a_model_has_no_positions_for_are_refused():
    cfg = presets.load("transformer", "data.max_frames=600")
    stage = types.SimpleNamespace(assets=None)
    with pytest.raises(Refused, match="512 positions and a source can be 600 long: lower data.max_frames"):
        with torch.device("meta"):
            sign.nets(cfg, sign.data(cfg, stage), True)


def calls(monkeypatch, made):
    "How often `made` reads a file, translates a configuration and validates one."
    count = {"read": 0, "translated": 0, "validated": 0}

    def counted(what, real):
        def call(*args, **how):
            count[what] += 1
            return real(*args, **how)
        return call

    with monkeypatch.context() as patch:
        patch.setattr(presets, "read_yaml", counted("read", presets.read_yaml))
        patch.setattr(presets, "validate", counted("validated", presets.validate))
        patch.setattr(dialect, "translate", counted("translated", dialect.translate))
        made()
    return tuple(count.values())


def test_a_file_becomes_stages_in_one_pass(tmp_path, monkeypatch):
    """Each file is read once, translated once (what the user set once more, for its keys alone) and validated
    once; a stage that changes keys once more. A run's config.yaml is in our words: nothing is translated."""
    assert calls(monkeypatch, lambda: configured("t5_small")) == (2, 1, 1)  # it extends t5_base
    assert calls(monkeypatch, lambda: configured("flow_tiny")) == (1, 1, 1 + 3)
    assert calls(monkeypatch, lambda: configured("flow_tiny", "pipeline.only=[flow]")) == (1, 2, 1 + 3)
    (tmp_path / "mine.yaml").write_text("extends: flow_tiny\nseed: 3\n")
    assert calls(monkeypatch, lambda: configured(str(tmp_path / "mine.yaml"))) == (2, 2, 1 + 3)
    run = create(presets.load("flow_tiny"), tmp_path / "run")
    assert calls(monkeypatch, lambda: stages(config_of(run))) == (0, 0, 1 + 3)  # `settings` reads it
    assert config_of(run) == presets.load("flow_tiny")
