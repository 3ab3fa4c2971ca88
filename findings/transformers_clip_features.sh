#!/bin/sh
# transformers 5: CLIPModel.get_image_features and get_text_features give an output object, and no tensor as 4.x did.
#
# Every reward of CLIP's kind (CLIP score, PickScore, HPS, aesthetic heads) divides these features by their norm. Expected:
# a tensor [B, projection_dim], as in 4.x. Seen: a BaseModelOutputWithPooling, whose pooler_output is the PROJECTED feature,
# while in the output of vision_model, of the same class, pooler_output is the one before the projection. The projected one
# is the one that 4.x gave.
#
# Exits 0 while that is so, and 1 when it changes. Installs into a temporary folder.
set -eu
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q "torch==2.13.0" "transformers==5.23.0" "numpy<3"
cat > "$place/features.py" <<'PY'
import sys

import torch
import transformers
from transformers import CLIPConfig, CLIPModel

sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "projection_dim": 8}
text = {**sizes, "vocab_size": 64, "bos_token_id": 1, "eos_token_id": 2}
config = CLIPConfig(projection_dim=8, text_config=text, vision_config={**sizes, "image_size": 16, "patch_size": 8})
torch.manual_seed(0)
model = CLIPModel(config).eval()
pictures = torch.rand(2, 3, 16, 16)

with torch.no_grad():
    features = model.get_image_features(pixel_values=pictures)
    tower = model.vision_model(pixel_values=pictures)
    projected = model.visual_projection(tower.pooler_output)

print("transformers", transformers.__version__, "torch", torch.__version__)
print("expected: a tensor [2, 8]")
print("seen:    ", type(features).__name__, "and its pooler_output is", list(features.pooler_output.shape))
print("the same field of vision_model:", type(tower).__name__, list(tower.pooler_output.shape))
same = not isinstance(features, torch.Tensor) and torch.equal(features.pooler_output, projected)
print("pooler_output of get_image_features is the projected feature:", same)
sys.exit(0 if same else 1)
PY
"$place/venv/bin/python" "$place/features.py"
