"A listener that is trained here on two words, and the scores of its transcripts."
import numpy as np
import pytest
import torch

from workbench.errors import Refused
from workbench.parts.speech import scores as S

RATE = 22050


def tone(hertz, seconds=0.8):
    return 0.3 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * RATE)) / RATE).astype(np.float32)


def tokenizer(folder, multilingual):
    "Letters as bytes, and the signs that every whisper has."
    import json

    from transformers import WhisperTokenizer

    letters = ["Ġ", *"abcdefghijklmnopqrstuvwxyz"]
    languages = ["<|en|>", "<|am|>"] if multilingual else []
    special = ["<|endoftext|>", "<|startoftranscript|>", *languages, "<|translate|>", "<|transcribe|>",
               "<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"]
    (folder / "vocab.json").write_text(json.dumps({c: i for i, c in enumerate(letters + special[:1])}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tok = WhisperTokenizer.from_pretrained(folder)
    tok.add_special_tokens({"additional_special_tokens": special[1:]})
    return tok


def taught(folder, multilingual=False):
    "A whisper of one second that says `high` and `low`."
    from transformers import (
        GenerationConfig, WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration,
        WhisperProcessor)

    torch.manual_seed(0)
    folder.mkdir()
    tok = tokenizer(folder, multilingual)
    ids = tok.get_vocab()
    eos, sot = ids["<|endoftext|>"], ids["<|startoftranscript|>"]
    model = WhisperForConditionalGeneration(WhisperConfig(
        vocab_size=len(tok), d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, num_mel_bins=20,
        max_source_positions=50, max_target_positions=16, pad_token_id=eos, bos_token_id=eos,
        eos_token_id=eos, decoder_start_token_id=sot, suppress_tokens=None, begin_suppress_tokens=None))
    gen = {"decoder_start_token_id": sot, "eos_token_id": eos, "pad_token_id": eos, "max_length": 16,
           "is_multilingual": multilingual, "no_timestamps_token_id": ids["<|notimestamps|>"],
           "return_timestamps": False}
    head = [sot]
    if multilingual:
        gen |= {"lang_to_id": {"<|en|>": ids["<|en|>"], "<|am|>": ids["<|am|>"]},
                "task_to_id": {"transcribe": ids["<|transcribe|>"], "translate": ids["<|translate|>"]}}
        head += [ids["<|am|>"], ids["<|transcribe|>"]]
    head += [ids["<|notimestamps|>"]]
    model.generation_config = GenerationConfig(**gen)
    extractor = WhisperFeatureExtractor(feature_size=20, chunk_length=1)
    waves = [S.resample(tone(h), RATE, 16000) for h in (200, 2000)]
    x = extractor(waves, sampling_rate=16000, return_tensors="pt").input_features
    words = [head + tok(w, add_special_tokens=False).input_ids + [eos] for w in ("low", "high")]
    labels = torch.tensor([w + [-100] * (max(map(len, words)) - len(w)) for w in words])
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(80):
        loss = model(x, decoder_input_ids=labels[:, :-1].clamp_min(0), labels=labels[:, 1:]).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss < 0.01
    model.save_pretrained(folder)
    WhisperProcessor(extractor, tok).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("multilingual", [False, True])
def test_a_whisper_of_transformers_listens(tmp_path, multilingual):
    listen = S.listener(taught(tmp_path / "whisper", multilingual), "am")
    waves = [tone(200), tone(2000), tone(2000, 0.7)]
    heard = listen(waves, RATE)
    assert heard == ["low", "high", "high"] == listen(waves, RATE)
    assert S.intelligibility(["low", "high", "low"], heard) == {"asr_wer": 1 / 3, "asr_cer": 4 / 10}


def test_long_sound_is_heard_in_windows(tmp_path, monkeypatch):
    listen = S.listener(taught(tmp_path / "whisper"))
    monkeypatch.setattr(S, "WINDOW", 0.8)
    assert listen([np.concatenate([tone(200), tone(2000), tone(200)])], RATE) == ["low high low"]
    assert listen([], RATE) == []


@pytest.mark.parametrize("name, wants", [
    ("/nowhere/whisper", "no such folder"), ("nobody/whisper-none", "HF_HUB_OFFLINE is set"),
    ("faster-whisper:/nowhere", "faster-whisper needs")])
def test_a_listener_that_is_not_there(name, wants, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(Refused, match=wants):
        S.listener(name)


def test_a_folder_that_is_no_whisper(tmp_path):
    with pytest.raises(Refused, match="is no whisper that can be read"):
        S.listener(str(tmp_path))
    folder = taught(tmp_path / "whisper")
    (tmp_path / "whisper/model.safetensors").write_bytes(b"torn")
    with pytest.raises(Refused, match="is no whisper that can be read"):
        S.listener(folder)


def test_faster_whisper_says_what_it_lacks(tmp_path, monkeypatch):
    "The package is optional; where it stands, the folder is looked at first."
    import sys
    import types

    monkeypatch.setitem(sys.modules, "faster_whisper", types.SimpleNamespace(WhisperModel=None))
    with pytest.raises(Refused, match="needs a folder with model.bin"):
        S.listener(f"faster-whisper:{tmp_path}")
    monkeypatch.setitem(sys.modules, "faster_whisper", None)
    with pytest.raises(Refused, match="pip install faster-whisper"):
        S.listener(f"faster-whisper:{tmp_path}")


def test_distortion_grows_with_the_difference():
    rng = np.random.default_rng(0)
    mel = np.cumsum(rng.normal(size=(80, 60)), 1)
    noisy = [S.mcd(mel, mel + a * rng.normal(size=mel.shape)) for a in (0.1, 0.5, 2.0)]
    assert 0 < noisy[0] < noisy[1] < noisy[2]
    assert S.mcd(mel, mel[:, ::-1]) > 1 and S.mcd(mel, np.repeat(mel, [1, 2] * 30, 1)) < 1e-9
