"""What evidence is made of: the tower's feature and the trunk's, each brought to its length."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from everlens.model.backbone import Backbone
from everlens.model.heads import FeatureRecipe, evidence_feature
from everlens.model.tower import Hidden, pooled
from tests.pictures import PHOTOGRAPHS, crops

Array = NDArray[np.float64]


def expected_feature(feature: Array, trunk: Array, recipe: FeatureRecipe) -> Array:
    """Return the feature of one picture, number by number."""
    if recipe.root:
        feature = np.array([np.sqrt(max(number, 0.0)) for number in feature])
    feature = feature / np.sqrt((feature**2).sum())
    if recipe.trunk_weight == 0:
        return feature
    return np.concatenate([feature, recipe.trunk_weight * trunk / np.sqrt((trunk**2).sum())])


@given(
    seed=st.integers(0, 9999),
    root=st.booleans(),
    weight=st.sampled_from([0.0, 0.35, 2.0]),
    rectified=st.booleans(),
)
def test_feature_equals_the_loop(seed: int, root: bool, weight: float, rectified: bool) -> None:
    """Root, unit length, and the trunk's part at its weight beside it; signed features too."""
    rng = np.random.default_rng(seed)
    feature, trunk = 50 * rng.normal(size=(3, 8)), rng.normal(size=(3, 5))
    feature = np.abs(feature) if rectified else feature
    feature[:, 0] = 1.0  # one that is above zero
    recipe = FeatureRecipe(root=root, trunk_weight=weight)
    found = evidence_feature(torch.from_numpy(feature), torch.from_numpy(trunk), recipe)
    expected = [expected_feature(*rows, recipe) for rows in zip(feature, trunk, strict=True)]
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-14)
    assert found.shape == (3, 8 + 5 * (weight > 0))
    norms = found.norm(dim=1).numpy()
    np.testing.assert_allclose(norms, np.sqrt(1 + weight**2), atol=1e-14)


def test_scales_of_tower_and_trunk_do_not_matter() -> None:
    """Neither part outweighs the other by its numbers, only by the recipe."""
    feature, trunk = torch.rand(2, 8).double(), torch.rand(2, 5).double()
    recipe = FeatureRecipe(root=True, trunk_weight=0.35)
    found = evidence_feature(1e3 * feature, 1e-3 * trunk, recipe)
    torch.testing.assert_close(found, evidence_feature(feature, trunk, recipe))


def test_an_output_of_zeros_is_a_feature_of_zeros() -> None:
    """Nothing is divided by zero: a feature without a positive number stays finite."""
    feature = torch.tensor([[-1.0, -2.0], [0.0, 0.0]])
    found = evidence_feature(feature, torch.zeros(2, 3), FeatureRecipe(root=True, trunk_weight=1.0))
    assert torch.equal(found, torch.zeros(2, 5))


def test_pooling_is_the_mean_over_positions() -> None:
    """Over both sides of maps and over the length of tokens; channels stay in their order."""
    rng = np.random.default_rng(0)
    maps, tokens = rng.normal(size=(2, 3, 4, 5)), rng.normal(size=(2, 7, 3))
    found = pooled(Hidden(torch.from_numpy(maps)))
    expected = [[np.mean([*channel.ravel()]) for channel in picture] for picture in maps]
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)
    found = pooled(Hidden(torch.from_numpy(tokens), context="ignored"))
    expected = [[np.mean([token[c] for token in text]) for c in range(3)] for text in tokens]
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)
    half = pooled(Hidden(torch.from_numpy(tokens).bfloat16()))
    assert half.dtype == torch.float32


@pytest.mark.parametrize("kind", ["starter", "vit"])
@torch.no_grad()
def test_both_kinds_of_trunk_can_be_pooled(
    kind: str, small_model: Callable[[str], Backbone], starter_model: Backbone
) -> None:
    """Maps of the starter and tokens of a ViT give a row a picture, finite and not all alike."""
    backbone = starter_model if kind == "starter" else small_model(kind)
    trunk, top = backbone.image_tower.cut(backbone.top_blocks)
    size = backbone.pixels.size
    hidden = trunk(backbone.images([crops(name, 1, size)[0] for name in PHOTOGRAPHS[:2]]))
    pooled_BH = pooled(hidden)
    assert hidden.states.ndim == (4 if kind == "starter" else 3)
    assert pooled_BH.shape == (2, hidden.states.shape[1 if kind == "starter" else 2])
    feature_BF = top(hidden).feature_BD
    feature_BD = evidence_feature(feature_BF, pooled_BH, backbone.recipe)
    extra = pooled_BH.shape[1] if backbone.recipe.trunk_weight else 0
    assert feature_BD.shape == (2, feature_BF.shape[1] + extra)
    assert bool(feature_BD.isfinite().all())
    assert float((feature_BD[0] - feature_BD[1]).abs().max()) > 1e-3
