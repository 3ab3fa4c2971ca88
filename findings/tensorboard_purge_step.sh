#!/bin/sh
# TensorBoard: purge_step hides retrained steps of classic scalars, but not of the newer format, the only one with fp64.
#
# A run that is resumed from a checkpoint trains some steps again. SummaryWriter(purge_step=N) promises that what was
# logged from step N on is dropped. Expected: every step once, whichever format its scalars have. Seen: classic scalars
# (float32) are dropped; with new_style=True, double_precision=True the old and the new value stand side by side.
#
# Exits 0 while that is so, and 1 when it changes. Installs into a temporary folder.
set -eu
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q "torch==2.13.0" "tensorboard==2.21.0" "numpy<3" "setuptools<81"
cat > "$place/purge.py" <<'PY'
import sys, tempfile, time
from importlib.metadata import version

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray
from torch.utils.tensorboard import SummaryWriter


def steps(**style):
    folder = tempfile.mkdtemp()
    for purge, logged in ((None, range(0, 5)), (3, range(3, 6))):
        writer = SummaryWriter(folder, purge_step=purge)
        for step in logged:
            writer.add_scalar("v", step + (100.0 if purge else 0.0), step, **style)
        writer.close()
        time.sleep(1.1)  # the second file's name has a later second
    events = EventAccumulator(folder, size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    if "v" in events.Tags()["tensors"]:
        return [(e.step, float(make_ndarray(e.tensor_proto))) for e in events.Tensors("v")]
    return [(e.step, e.value) for e in events.Scalars("v")]


print("tensorboard", version("tensorboard"), "torch", version("torch"))
wanted = [(0, 0.0), (1, 1.0), (2, 2.0), (3, 103.0), (4, 104.0), (5, 105.0)]
classic, newer = steps(), steps(new_style=True, double_precision=True)
print("expected of both:", wanted)
print("classic         :", classic)
print("newer, fp64     :", newer)
sys.exit(0 if classic == wanted and len(newer) == 8 else 1)
PY
"$place/venv/bin/python" "$place/purge.py"
