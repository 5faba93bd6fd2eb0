"""Torch and the formats of a bundle are measured in turns, each in a process of its own."""
import json

import numpy as np
import pytest
from test_map import BRIEF

import workbench
from workbench.lab.export import export, report_lines
from workbench.lab.export_bench import bench_table, summed
from workbench.parts.portable.timing import serve, timed

pytest.importorskip("onnxruntime")


def test_an_export_is_measured_where_it_is_asked_for(tmp_path, monkeypatch):
    import phrases

    tiny = ("{d_model: 32, encoder_layers: 1, decoder_layers: 1, encoder_attention_heads: 2, "
            "decoder_attention_heads: 2, encoder_ffn_dim: 64, decoder_ffn_dim: 64}")
    monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path / "runs"))
    run = workbench.train(
        "universal_tiny", f'{BRIEF} pipeline=null model.vocab_size=1500 "model.params={tiny}" '
        "data.max_length=30 generate.max_length=6 train.batch_tokens=null "
        f"data.source={phrases.corpus(tmp_path / 'texts', ['en-de'])}", run_dir=tmp_path / "run")
    report = export(run, "onnx", checkpoint="last", precision="fp32,int8", say=lambda line: None, bench=True)
    rows = json.loads((run / "export/bench.json").read_text())
    assert rows == report["bench"] and (run / "export/bench.png").read_bytes()[1:4] == b"PNG"
    ways = ["torch", "onnx fp32", "onnx int8"]
    assert [(r["way"], r["batch"]) for r in rows] == [(way, batch) for batch in (1, 8) for way in ways]
    assert {r["unit"] for r in rows} == {"tokens"}
    assert all(0 < r["median"] <= r["p95"] and r["rate"] > 0 and r["peak"] > 2e7 for r in rows)
    assert all(r["same"] == 1 for r in rows if r["way"] == "onnx fp32")
    size = {r["way"]: r["bytes"] for r in rows}
    assert size["onnx int8"] < size["onnx fp32"] and size["torch"] == report["torch"]["bytes"]
    assert any("Speed and memory" in str(getattr(part, "title", part)) for part in report_lines(report))


def test_what_is_counted():
    row = summed({"way": "x", "batch": 8, "calls": [0.1] * 19 + [1.0], "rates": [5.0, 7.0, 60.0], "peak": 9,
                  "bytes": 4, "same": 0.5}, "tokens", 2)
    assert row["median"] == pytest.approx(0.1) and row["rate"] == 7.0
    assert row["p95"] == np.quantile([0.1] * 19 + [1.0], 0.95)
    other = row | {"way": "torch", "rate": 3.5, "peak": 18}
    cells = bench_table([other, row]).rows[1]
    assert cells[5] == 2.0 and cells[7] == 0.5


def test_a_process_answers_lines(capsys):
    asked = []
    serve(lambda some: asked.append(len(some)) or [str(x) for x in some], [1, 2, 3], ["2\n", "1\n"])
    ready, first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert ready == {"ready": True} and asked == [1, 2, 1, 1, 1, 1]
    assert first["answers"] == second["answers"] == ["1", "2", "3"] and len(first["seconds"]) == 2
    assert timed(lambda some: some, [4, 5], 8)[1] == [4, 5] and first["peak"] > 1e6
