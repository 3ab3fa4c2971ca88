#!/bin/sh
# transformers 5: a Qwen-VL without mm_token_type_ids takes the picture's tokens for words in line, and says nothing.
#
# Up to 4.x the forward of Qwen2-VL, Qwen2.5-VL and Qwen3-VL found the picture in input_ids by itself and gave its tokens
# positions of three axes (time, row, column). Code that builds input_ids, pixel_values and image_grid_thw of its own (a
# differentiable reward must: the processor gives no gradient) was complete. Expected: the same, or an error. Seen: without
# mm_token_type_ids the forward runs with positions 0, 1, 2, ... for every token, and the logits are others than with them.
#
# Exits 0 while that is so, and 1 when it changes. Installs into a temporary folder.
set -eu
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q "torch==2.13.0" "transformers==5.23.0" "numpy<3"
cat > "$place/positions.py" <<'PY'
import sys
import warnings

import torch
import transformers
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

PICTURE, START, END, WORDS = 60, 61, 62, 64
text = {
    "vocab_size": WORDS, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 512,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
}
eye = {
    "depth": 2, "num_heads": 2, "in_channels": 3, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2,
    "hidden_size": 16, "out_hidden_size": 32, "intermediate_size": 24, "window_size": 16, "fullatt_block_indexes": [1],
}
ids = {"bos_token_id": 1, "eos_token_id": 2, "image_token_id": PICTURE, "vision_start_token_id": START, "vision_end_token_id": END, "video_token_id": 63}
torch.manual_seed(0)
model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=eye, **ids)).eval()
with torch.no_grad():
    for parameter in model.parameters():  # larger than a new model's, so that a wrong position shows
        if parameter.ndim > 1:
            parameter.normal_(0.0, parameter[0].numel() ** -0.5)

rows = columns = 8  # patches; merged 2 x 2, they are 16 tokens
tokens = torch.tensor([[1, 2, START, *[PICTURE] * 16, END, 3, 4, 5]])
given = {
    "input_ids": tokens,
    "attention_mask": torch.ones_like(tokens),
    "pixel_values": torch.rand(rows * columns, 3 * 2 * 4 * 4),
    "image_grid_thw": torch.tensor([[1, rows, columns]]),
    "use_cache": False,
}
types = (tokens == PICTURE).long()
line = torch.arange(tokens.shape[1]).expand(3, 1, -1)
with warnings.catch_warnings(record=True) as said, torch.no_grad():
    warnings.simplefilter("always")
    plain = model(**given).logits[:, -1]
with torch.no_grad():
    typed = model(**given, mm_token_type_ids=types).logits[:, -1]
    in_line = model(**given, position_ids=line).logits[:, -1]

print("transformers", transformers.__version__, "torch", torch.__version__)
print("largest difference of the last logits, without and with mm_token_type_ids:", float((plain - typed).abs().max()))
print("the same, without them and with positions 0, 1, 2, ...:                    ", float((plain - in_line).abs().max()))
print("warnings:", [str(w.message) for w in said])
print("expected: the first is 0, or there is an error; seen: it is not, and the second is")
silent = float((plain - typed).abs().max()) > 1e-3 and float((plain - in_line).abs().max()) < 1e-5 and not said
sys.exit(0 if silent else 1)
PY
"$place/venv/bin/python" "$place/positions.py"
