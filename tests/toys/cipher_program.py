"The program of the toy that leaves: texts in, texts out."
import numpy as np

from workbench.parts.portable.feeds import Unusable


def opened(models, settings, folder):
    letters = (folder / "letters.txt").read_text()

    def program(inputs):
        if odd := [c for text in inputs for c in text if c not in letters]:
            raise Unusable(f"`{odd[0]}` is no letter of this cipher: write a to z.")
        ids = np.zeros((len(inputs), max(map(len, inputs))))
        mask = np.zeros(ids.shape)
        for i, text in enumerate(inputs):
            ids[i, :len(text)], mask[i, :len(text)] = [letters.index(c) for c in text], 1
        logits = models["net"](ids=ids, mask=mask)["logits"]
        found = ["".join(letters[i] for i in row[:len(text)]) for row, text in zip(logits.argmax(-1), inputs)]
        return [text[::-1] if settings["wrong"] else text for text in found]
    return program


def read_input(word):
    return word


def write_answer(answer, path):
    return answer
