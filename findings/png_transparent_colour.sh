#!/usr/bin/env bash
# Pillow 13.0.0: the one transparent colour of a PNG (tRNS) is not found in greys of 2 and 4 bits and in RGB of 16 bits.
#
# The good guess, written down before it was run: `image.convert("RGBA")` gives alpha 0 wherever a pixel has the colour that tRNS
# names, whatever the bit depth, because Pillow brings both to 8 bits.
#
# What happens: the pixels of 2- and 4-bit greys are multiplied by 85 and 17, and of 16-bit RGB the high bytes are kept; the
# number of tRNS stays as it stands in the file. A grey of 4 bits whose transparent value is 8 has pixels of 136 and looks for 8: every
# pixel is opaque, and the hidden colour shows. pypng 0.20220715 is the second opinion: it gives alpha 0 at these places.
# A way out: compare before scaling (`image.tile[0].args` is "L;4" before the pixels are read); for RGB of 16 bits decode once more
# with the tile's raw mode "RGB;16L", which gives the low bytes.
#
# Seen (alpha of an opaque and of a transparent pixel): bits 2, bits 4 and RGB 16: Pillow [255, 255], pypng [255, 0];
#        bits 1 and bits 8: [255, 0] from both.
# Exit status: 0 as described, 1 where the behaviour has changed.
set -euo pipefail
home=$(mktemp -d); trap 'rm -rf "$home"' EXIT
python3 -m venv "$home/venv"
"$home/venv/bin/pip" install -q pillow==13.0.0 pypng==0.20220715
"$home/venv/bin/python" - <<'PY'
import io
import sys

import png
from PIL import Image

changed = False
for name, size, rows, how in (
        ("bits 1", 2, [[0, 1]], dict(greyscale=True, bitdepth=1, transparent=1)),
        ("bits 2", 2, [[0, 2]], dict(greyscale=True, bitdepth=2, transparent=2)),
        ("bits 4", 2, [[0, 8]], dict(greyscale=True, bitdepth=4, transparent=8)),
        ("bits 8", 2, [[0, 8]], dict(greyscale=True, bitdepth=8, transparent=8)),
        ("RGB 16", 2, [[0, 0, 0, 4660, 22136, 39612]], dict(greyscale=False, bitdepth=16, transparent=(4660, 22136, 39612)))):
    box = io.BytesIO()
    png.Writer(size, 1, **how).write(box, rows)
    theirs = list(Image.open(io.BytesIO(box.getvalue())).convert("RGBA").getchannel("A").tobytes())
    _, _, lines, info = png.Reader(bytes=box.getvalue()).asRGBA()
    second = [255 * bool(a) for a in list(next(iter(lines)))[3::4]]  # pypng gives alpha in the file's own bits
    print(name, "Pillow alpha", theirs, "pypng", second)
    changed |= theirs != ([255, 0] if name in ("bits 1", "bits 8") else [255, 255]) or second != [255, 0]
sys.exit(changed)
PY
