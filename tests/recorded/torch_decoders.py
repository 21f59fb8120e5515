"""Makes torch_decoders.npz: small decoders of transformers, to be compared with without PyTorch.

    python tests/recorded/torch_decoders.py    # with torch 2.14 and transformers 5.24, on a CPU

Of Gemma 3 (norms with offset 1, before and after each block, and of queries and keys) and of Qwen 3 (without offset):
the sizes, all weights with random norms, tokens, and logits in float32 and in float64.
"""

import json
from pathlib import Path

import numpy as np
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, Qwen3Config, Qwen3ForCausalLM

SIZES = {
    "vocab_size": 11, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8, "rms_norm_eps": 1e-6, "max_position_embeddings": 16,
}  # fmt: skip
MODELS = {
    "gemma3": (
        Gemma3ForCausalLM,
        Gemma3TextConfig(**SIZES, layer_types=["full_attention"] * 2, query_pre_attn_scalar=8),
    ),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config(**SIZES, tie_word_embeddings=True)),
}


def record(make, config):
    config._attn_implementation = "eager"
    model = make(config).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.copy_(torch.randn_like(value) * (0.3 if "norm" in name else 0.2) + float("norm" in name))
        tokens = torch.randint(0, SIZES["vocab_size"], (2, 7))
        found = {f"weights/{name}": value.numpy().copy() for name, value in model.named_parameters()}
        found |= {"tokens": tokens.numpy(), "logits": model(tokens).logits.numpy()}
        found["exact logits"] = model.double()(tokens).logits.numpy()
    theta = config.rope_parameters
    found["rope"] = json.dumps(theta)
    return found


if __name__ == "__main__":
    torch.manual_seed(0)
    found = {"sizes": json.dumps(SIZES)}
    for name, (make, config) in MODELS.items():
        found |= {f"{name}/{key}": value for key, value in record(make, config).items()}
    np.savez_compressed(Path(__file__).with_suffix(".npz"), **found)
