"""A base model that answers in float32 wherever it runs, to be compared with float64."""

from __future__ import annotations

import dataclasses

import torch

from everlens.model.backbone import Backbone


def in_float32(backbone: Backbone) -> Backbone:
    """Return the base model with its image tower as it was loaded."""
    return dataclasses.replace(
        backbone, answering_tower=backbone.image_tower, precision=torch.float32
    )
