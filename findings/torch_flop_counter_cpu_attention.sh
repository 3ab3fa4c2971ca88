#!/bin/sh
# torch: FlopCounterMode counts attention on a CPU as nothing, unless the math backend is chosen.
#
# torch.utils.flop_counter counts the products of scaled_dot_product_attention on GPUs (flash, efficient, cuDNN).
# Expected: 2 (L S d + L S d) B H FLOPs for the same call on a CPU, where a fused kernel is the default, too. Seen: 0 with the
# fused kernel and the right count with the math backend: whoever measures a model's FLOPs on a CPU misses its attention.
#
# Exits 0 while that is so, and 1 when it changes. Installs into a temporary folder.
set -eu
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q "torch==2.13.0" "numpy<3"
cat > "$place/count.py" <<'PY'
import sys

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.flop_counter import FlopCounterMode

batch, heads, queries, keys, width = 2, 4, 64, 96, 32
q = torch.randn(batch, heads, queries, width)
k, v = torch.randn(2, batch, heads, keys, width)


def counted(backend):
    with sdpa_kernel(backend), FlopCounterMode(display=False) as counter:
        scaled_dot_product_attention(q, k, v)
    return counter.get_total_flops()


expected = 2 * 2 * batch * heads * queries * keys * width
fused, plain = counted(SDPBackend.FLASH_ATTENTION), counted(SDPBackend.MATH)
print("torch", torch.__version__)
print("expected of both:", expected)
print("fused kernel    :", fused)
print("math            :", plain)
sys.exit(0 if fused == 0 and plain == expected else 1)
PY
"$place/venv/bin/python" "$place/count.py"
