"""Small models of each kind that open_clip knows, with random weights, as folders."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file

Config = dict[str, Any]

TEXT: Config = {"context_length": 32, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
VIT: Config = {"image_size": 32, "layers": 3, "width": 64, "head_width": 32, "patch_size": 8}

# What SigLIP's text tower is like: it sees to both sides, and reads out at the last place.
SIGLIP_TEXT: Config = {**TEXT, "no_causal_mask": True, "pool_type": "last", "proj_bias": True}

CONFIGS: dict[str, Config] = {
    "vit": {"embed_dim": 32, "vision_cfg": VIT, "text_cfg": TEXT},
    "quick": {"embed_dim": 32, "quick_gelu": True, "vision_cfg": VIT, "text_cfg": TEXT},
    "average": {
        "embed_dim": 32,
        "custom_text": True,
        "vision_cfg": {
            **VIT,
            "pool_type": "avg",
            "final_ln_after_pool": True,
            "no_ln_pre": True,
            "ls_init_value": 0.3,
        },
        "text_cfg": {**TEXT, "proj_type": "none", "pool_type": "first", "ls_init_value": 0.3},
    },
    "siglip": {
        "embed_dim": 192,
        "custom_text": True,
        "vision_cfg": {
            "image_size": 224,
            "timm_model_name": "vit_tiny_patch16_224",
            "timm_pool": "map",
            "timm_proj": "none",
        },
        "text_cfg": SIGLIP_TEXT,
    },
    "convnext": {
        "embed_dim": 32,
        "vision_cfg": {
            "image_size": 64,
            "timm_model_name": "convnext_atto",
            "timm_pool": "",
            "timm_proj": "linear",
        },
        "text_cfg": TEXT,
    },
    "pooled": {
        "embed_dim": 32,
        "vision_cfg": {
            "image_size": 224,
            "timm_model_name": "convnext_atto",
            "timm_pool": "abs_attn",
            "timm_proj": "",
        },
        "text_cfg": TEXT,
    },
    "eva": {
        "embed_dim": 32,
        "custom_text": True,
        "vision_cfg": {
            "image_size": 224,
            "timm_model_name": "eva02_tiny_patch14_224",
            "timm_pool": "token",
            "timm_proj": "linear",
        },
        "text_cfg": TEXT,
    },
    "fastvit": {
        "embed_dim": 32,
        "custom_text": True,
        "vision_cfg": {
            "image_size": 64,
            "timm_model_name": "fastvit_t8",
            "timm_pool": "avg",
            "timm_proj": None,
        },
        "text_cfg": TEXT,
    },
    "coca": {
        "embed_dim": 32,
        "custom_text": True,
        "vision_cfg": {
            **VIT,
            "attentional_pool": True,
            "attn_pooler_queries": 4,
            "attn_pooler_heads": 4,
            "output_tokens": True,
        },
        "text_cfg": {**TEXT, "embed_cls": True, "output_tokens": True},
        "multimodal_cfg": {
            "context_length": 32,
            "vocab_size": 49408,
            "width": 32,
            "heads": 2,
            "layers": 1,
        },
    },
    "normed": {  # attention blocks of open_clip's own that are not the stock ones
        "embed_dim": 32,
        "vision_cfg": {**VIT, "qk_norm": True},
        "text_cfg": {**TEXT, "qk_norm": True},
    },
}


def write_model(folder: Path, config: Config, seed: int = 1) -> Path:
    """Write configuration and random weights as open_clip's `local-dir:` reads them."""
    folder.mkdir(parents=True)
    about = {
        "model_cfg": copy.deepcopy(config),
        "preprocess_cfg": {"mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28]},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(about), encoding="utf-8")
    torch.manual_seed(seed)
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    # Weights as they come have unit norms and zero biases, which hide what is left out.
    for parameter in model.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    return folder
