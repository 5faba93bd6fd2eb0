"""What the first document types, calls and names is found in the guide, beside what it is here."""
from pathlib import Path

import nbformat
import pytest

from workbench.core.config.presets import load
from workbench.errors import Refused

GUIDES = Path(__file__).parents[1] / "nbs/guides"
COMMANDS = ["python bootstrap_from_pretrained.py", "python prepare_training_data.py",
            "python train_universal_system.py", "python convert_models.py",
            "torchrun --nproc_per_node=4 distributed_train.py",
            "export MASTER_ADDR=localhost MASTER_PORT=12355 WORLD_SIZE=4", "optimize_memory_usage()"]
CALLS = ["models/universal_encoder_initial.pt", "models/universal_decoder_initial.pt",
         "VocabularyManager().get_vocab_for_pair(src_lang, tgt_lang)", "trainer.setup_distributed()",
         "trainer.optimize_memory()", "torch.load('checkpoints/best_model.pt')",
         "checkpoints/checkpoint_epoch_1.pt", "Wandb training logs", "model.onnx", "model.mlmodel",
         "model.tflite"]


def source(name):
    return "\n\n".join(c.source for c in nbformat.read(GUIDES / name, 4).cells)


@pytest.mark.parametrize("words", COMMANDS + CALLS)
def test_the_guide_answers_it(words):
    assert words in source("from_your_scripts.ipynb")


def test_the_guide_of_translation_goes_the_whole_way():
    page = source("translation.ipynb")
    steps = ["workbench prepare", "workbench bootstrap", "workbench train", "workbench use RUN"]
    at = [page.index(step) for step in steps]
    assert at == sorted(at) and "not part of this version" not in page


@pytest.mark.parametrize("key, ours", [("world_size", "--nproc"), ("nproc_per_node", "--nproc"),
                                       ("master_addr", "--nproc"), ("master_port", "--nproc"),
                                       ("optimize_memory_usage", "train.memory"),
                                       ("optimize_memory", "train.memory")])
def test_its_words_as_keys_are_answered_with_ours(key, ours):
    for where in ({key: 4}, {"train": {key: 4}}):
        with pytest.raises(Refused, match=f"did you mean `{ours}`"):
            load("t5_tiny", where)
