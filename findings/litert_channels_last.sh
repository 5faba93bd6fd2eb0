#!/usr/bin/env bash
# litert-torch 0.10.0: a convolution whose weights lie in channels_last order leaves with the numbers of another one.
#
# Good guess: the order in memory is no part of a model. A net that was trained with `channels_last` (as convolutions are on CPUs and GPUs)
# converts as the same net in plain order does, or the converter says that it cannot.
# Behaviour: the file is written without a word and computes something else. The converter tells constants apart by their address; of
# weights in another order it makes a plain copy, frees it, and the next copy can stand at the same address: then the file holds the
# first one's numbers twice. How wrong it is changes from run to run; a toy net may come out right and the real one not.
# Output seen: `contiguous 6.9e-07 · channels_last 0.67` (and 0.51 in another process), shares of the largest output
# Mend: `net.to(memory_format=torch.contiguous_format)` and contiguous copies of all weights before converting; compare outputs always.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q litert-torch==0.10.0 torch==2.13.0 ai-edge-litert==2.3.0 numpy==2.3.5
cd "$folder"
venv/bin/python - 2>/dev/null <<'PY' | tail -1
import litert_torch
import torch
from ai_edge_litert.interpreter import Interpreter

torch.manual_seed(0)
layers = [m for _ in range(6) for m in (torch.nn.Conv2d(16, 16, 3, padding=1), torch.nn.SiLU())]
net, x, far = torch.nn.Sequential(*layers).eval(), torch.randn(1, 16, 8, 8), {}
for name, order in (("contiguous", torch.contiguous_format), ("channels_last", torch.channels_last)):
    net.to(memory_format=order)
    litert_torch.convert(net, (x,)).export(f"{name}.tflite")
    made = Interpreter(f"{name}.tflite").get_signature_runner()(args_0=x.numpy())["output_0"]
    wanted = net(x).detach().numpy()
    far[name] = abs(made - wanted).max() / abs(wanted).max()
print(" · ".join(f"{name} {value:.2g}" for name, value in far.items()))
assert far["contiguous"] < 1e-4 and far["channels_last"] > 0.01
PY
