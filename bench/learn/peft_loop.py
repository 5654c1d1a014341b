"""
A plain loop with peft's LoRA on Hugging Face's CLIPModel, as its documentation would have one write.

Runs in an environment of its own and knows nothing of everlens. It says on its standard output that
it is ready; then each line of standard input asks for one optimisation step, and is answered with
how long that took.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from typing import Any

import peft
import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch.nn import functional
from transformers import CLIPConfig, CLIPModel

# The linear maps of the image tower's blocks: attention and MLP, as everlens bends them.
TARGETS = r".*vision_model\.encoder\..*\.(q_proj|k_proj|v_proj|out_proj|fc1|fc2)"
LENGTH = 77  # CLIP's context: what its tokenizer pads to
LAST_TOKEN = 49407


def lora_model(patch_size: int, rank: int, alpha: float) -> Any:
    """Return a CLIP ViT-B of random weights with fresh adapters in it."""
    config = CLIPConfig(
        vision_config={"patch_size": patch_size, "hidden_act": "gelu"},
        text_config={"hidden_act": "gelu"},
    )
    lora = LoraConfig(r=rank, lora_alpha=alpha, target_modules=TARGETS)
    return get_peft_model(CLIPModel(config), lora).train()


def padded_texts(count: int) -> torch.Tensor:
    """Return token ids of so many short texts, padded to the model's context."""
    tokens_KL = torch.full((count, LENGTH), LAST_TOKEN)
    tokens_KL[:, 0] = LAST_TOKEN - 1
    tokens_KL[:, 1:7] = torch.randint(1000, 40000, (count, 6))
    return tokens_KL


def steps(model: Any, device: torch.device) -> Iterator[dict[str, float]]:
    """Take one step for each line of standard input; yield how long it took."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=1e-5)
    for line in sys.stdin:
        asked = json.loads(line)
        images = torch.randn(asked["pictures"], 3, 224, 224, device=device)
        tokens_KL = padded_texts(asked["classes"]).to(device)
        target_B = (torch.arange(asked["pictures"]) % asked["classes"]).to(device)
        wall, cpu = time.perf_counter(), time.process_time()
        optimiser.zero_grad(set_to_none=True)
        logit_BK = model(pixel_values=images, input_ids=tokens_KL).logits_per_image
        loss = functional.cross_entropy(logit_BK, target_B)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        shown = float(loss.detach())
        yield {
            "wall_s": time.perf_counter() - wall,
            "cpu_s": time.process_time() - cpu,
            "loss": shown,
        }


def main() -> None:
    """Answer until standard input ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--patch-size", type=int, required=True)
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--alpha", type=float, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--device", required=True)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    device = torch.device(given.device)
    model = lora_model(given.patch_size, given.rank, given.alpha).to(device)
    about = {
        "peft": peft.__version__,
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "adapters": sum(
            name.endswith("lora_A.default.weight") for name, _ in model.named_parameters()
        ),
        "trained": sum(p.numel() for p in model.parameters() if p.requires_grad),
    }
    print(json.dumps(about), flush=True)
    for timing in steps(model, device):
        print(json.dumps(timing), flush=True)


if __name__ == "__main__":
    main()
