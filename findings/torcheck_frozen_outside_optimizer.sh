#!/usr/bin/env bash
# torcheck 1.0.1: its check that a frozen module stays as it is.
#
# Good guess: `add_module_unchanging_check(frozen)` watches weights that no optimiser steps, as frozen weights usually are, and
# complains at the step after which they have changed.
# Behaviour: a tensor that is in no registered optimiser is refused ("The tensor doesn't belong to any optimizer"), so the check
# cannot be asked of a frozen module at all unless its weights are handed to the optimiser. Once they are, and
# requires_grad is off, a weight that the forward pass shrinks is seen at the first step. Buffers (statistics of a norm) are never looked at.
# Output seen: `outside refused, inside seen, buffers silent`
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.3.5
"$folder/venv/bin/pip" install -q --no-deps torcheck==1.0.1
"$folder/venv/bin/python" - <<'PY'
import sys

import torch
from torch import nn
from torcheck.registry import Registry


def trained(inside, harm):
    "What torcheck says of three steps in which something happens to a frozen part."
    torch.manual_seed(0)
    frozen, head = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), nn.Linear(4, 1)
    frozen.requires_grad_(False).eval()
    parameters = [*head.parameters(), *(frozen.parameters() if inside else ())]
    optimizer, checks = torch.optim.SGD(parameters, 0.1), Registry()
    checks.register(optimizer)
    try:
        checks.add_module_unchanging_check(frozen, "frozen")
    except RuntimeError:
        return "refused"
    for _ in range(3):
        if harm == "statistics":
            frozen.train()
        else:
            frozen[0].weight.mul_(0.99)
        optimizer.zero_grad()
        head(frozen(torch.randn(8, 4))).square().mean().backward()
        try:
            optimizer.step()
        except RuntimeError:
            return "seen"
    return "silent"


found = [trained(False, "weight"), trained(True, "weight"), trained(True, "statistics")]
print("outside {}, inside {}, buffers {}".format(*found))
sys.exit(0 if found == ["refused", "seen", "silent"] else 1)
PY
