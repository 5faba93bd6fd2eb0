#!/usr/bin/env bash
# pose-format 0.15.0: what `Pose.interpolate` makes of a point that was not seen for a while.
#
# Good guess: a point with confidence 0 over frames 10 to 39 of 50 stays unseen (masked, confidence
# near 0) over that stretch after resampling from 25 to 50 frames a second; both reading a recording and training on it rely on
# confidence 0 meaning "not seen".
# Behaviour: every frame of the gap comes back as seen, with confidence 1.0 and coordinates on a curve between the two
# ends of the gap. 1.2 seconds that no camera saw are indistinguishable from a measurement.
# Output seen: `frames 50 -> 100, unseen 30 -> 0, lowest confidence 1.000`
# Mend in a pipeline: interpolate the confidence by hand (nearest frame) and put it back.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q pose-format==0.15.0 numpy==2.3.5 scipy==1.17.1
"$folder/venv/bin/python" - <<'PY'
import sys

import numpy as np
from pose_format import Pose
from pose_format.numpy import NumPyPoseBody
from pose_format.pose_header import PoseHeader, PoseHeaderComponent, PoseHeaderDimensions

points = ["LEFT_SHOULDER", "RIGHT_SHOULDER", "RIGHT_WRIST"]
header = PoseHeader(0.1, PoseHeaderDimensions(640, 480, 0), [PoseHeaderComponent("BODY", points, [], [], "XYC")])
frames, fps = 50, 25
seconds = np.arange(frames) / fps
xy = np.zeros((frames, 1, 3, 2), np.float32)
xy[:, 0, 0], xy[:, 0, 1] = (380, 240), (260, 240)
xy[:, 0, 2, 0], xy[:, 0, 2, 1] = 300 + 20 * np.sin(2 * np.pi * seconds), 300
confidence = np.ones((frames, 1, 3), np.float32)
confidence[10:40, 0, 2] = 0  # the wrist leaves the picture for 1.2 seconds

twice = Pose(header, NumPyPoseBody(fps, xy, confidence)).interpolate(2 * fps)
found = np.asarray(twice.body.confidence)[:, 0, 2]
print(f"frames {frames} -> {len(found)}, unseen 30 -> {(found < 0.5).sum()}, lowest confidence {found.min():.3f}")
sys.exit(0 if len(found) == 2 * frames and found.min() > 0.99 else 1)
PY
