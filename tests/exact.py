"""A base model that computes in one precision wherever it runs."""

from __future__ import annotations

import dataclasses

import torch

from everlens.model.backbone import Backbone
from everlens.model.precision import in_precision


def in_bfloat16(backbone: Backbone) -> Backbone:
    """Return the base model as it answers where the processor multiplies bfloat16."""
    tower = in_precision(backbone.image_tower, torch.bfloat16)
    return dataclasses.replace(backbone, answering_tower=tower, precision=torch.bfloat16)


def in_float32(backbone: Backbone) -> Backbone:
    """Return the base model with its image tower as it was loaded, to be compared with float64."""
    return dataclasses.replace(
        backbone, answering_tower=backbone.image_tower, precision=torch.float32
    )
