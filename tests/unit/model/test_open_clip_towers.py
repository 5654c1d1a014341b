"""Towers over open_clip's models say what open_clip says, wherever they are cut."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor, nn

from everlens.model.backbone import Backbone, load_backbone
from everlens.model.open_clip_towers import ReadOutBlock, ResidualBlock, text_tower
from everlens.model.tower import Tower
from tests.pictures import PHOTOGRAPHS, squashed
from tests.unit.model.folders import CONFIGS, TEXT, VIT, write_model

Folder = Callable[[str], Path]
Small = Callable[[str], Backbone]

TEXTS = ("cat", "a photo of a joshua tree.", "Motörhead's 2nd album, unplugged; ¿qué? 猫")
CLOSE = 1e-5  # float32 over a few blocks, in our attention and in the stock one


def pictures(backbone: Backbone) -> Tensor:
    return backbone.images([squashed(name, backbone.pixels.size) for name in PHOTOGRAPHS])


def stock(folder: Path) -> Any:
    return open_clip.create_model(f"local-dir:{folder}", require_pretrained=True).eval()


def assert_cut_anywhere(tower: Tower, inputs: Tensor, expected_BE: Tensor) -> None:
    """Check every cut: trunk, then top, is what the whole says."""
    for top_blocks in range(len(tower.blocks) + 1):
        trunk, top = tower.cut(top_blocks)
        assert len(trunk.blocks) + len(top.blocks) == len(tower.blocks)
        with torch.no_grad():
            found = top(trunk(inputs))
        torch.testing.assert_close(found.embedding_BE, expected_BE, atol=CLOSE, rtol=CLOSE)
        assert found.feature_BD.ndim == 2
        assert len(found.feature_BD) == len(inputs)


@pytest.mark.parametrize("kind", CONFIGS)
def test_pictures_mean_what_they_mean_to_open_clip(
    model_folder: Folder, small_model: Small, kind: str
) -> None:
    """The image tower of a model in a folder equals `encode_image`, for every cut."""
    backbone = small_model(kind)
    images_B3HW = pictures(backbone)
    with torch.no_grad():
        expected_BE = stock(model_folder(kind)).encode_image(images_B3HW, normalize=False)
    assert_cut_anywhere(backbone.image_tower, images_B3HW, expected_BE)


@pytest.mark.parametrize("kind", CONFIGS)
def test_texts_mean_what_they_mean_to_open_clip(
    model_folder: Folder, small_model: Small, kind: str
) -> None:
    """The text tower equals `encode_text`, for every cut, also where texts lose their padding."""
    backbone, folder = small_model(kind), model_folder(kind)
    whole_BL = open_clip.get_tokenizer(f"local-dir:{folder}")(list(TEXTS))
    with torch.no_grad():
        expected_BE = stock(folder).encode_text(whole_BL, normalize=False)
    assert_cut_anywhere(backbone.text_tower, whole_BL, expected_BE)
    assert_cut_anywhere(backbone.text_tower, backbone.tokenize(TEXTS), expected_BE)


@pytest.mark.parametrize(
    ("kind", "image_blocks", "text_blocks"),
    [
        ("vit", 3, 2),
        ("average", 3, 2),
        ("siglip", 12, 2),
        ("convnext", 15, 2),  # 2 + 2 + 6 + 2 blocks and three downsamplings
        ("pooled", 0, 2),
        ("eva", 0, 2),
        ("fastvit", 0, 2),
        ("coca", 0, 0),
        ("normed", 0, 0),
    ],
)
def test_what_can_be_cut(
    small_model: Small, kind: str, image_blocks: int, text_blocks: int
) -> None:
    """Known architectures have blocks that an adapter can bend; of others the whole is the stem."""
    backbone = small_model(kind)
    assert len(backbone.image_tower.blocks) == image_blocks
    assert len(backbone.text_tower.blocks) == text_blocks
    assert backbone.top_blocks == min(4, image_blocks)


@pytest.mark.parametrize(
    ("kind", "is_cut"), [("vit", True), ("convnext", True), ("siglip", False), ("coca", False)]
)
def test_texts_are_cut_where_nothing_after_them_matters(
    small_model: Small, kind: str, is_cut: bool
) -> None:
    """Behind a causal mask a word takes three tokens; where all tokens matter all are kept."""
    assert small_model(kind).tokenize(["cat"]).shape == (1, 3 if is_cut else 32)


def test_a_text_means_the_same_beside_a_longer_one(small_model: Small) -> None:
    """Cutting at the longest text of a call changes no shorter one."""
    backbone = small_model("vit")
    with torch.no_grad():
        alone_BE = backbone.text_tower(backbone.tokenize(["cat"])).embedding_BE
        beside_BE = backbone.text_tower(backbone.tokenize(["cat", TEXTS[2]])).embedding_BE[:1]
    torch.testing.assert_close(alone_BE, beside_BE, atol=CLOSE, rtol=CLOSE)


def test_texts_are_read_out_at_their_own_end_token(tmp_path: Path) -> None:
    """A tokenizer whose end token is not its highest number loses nothing by the cut."""
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    words = ["<s>", "<pad>", "</s>", "<unk>", "a", "photo", "of", ".", "picture", "cat", "dog"]
    inner = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: k for k, word in enumerate(words)}, "<unk>")
    )
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    inner.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    text = {
        **TEXT,
        "vocab_size": len(words),
        "pool_type": "eos",
        "eos_id": 2,
        "hf_tokenizer_name": "words",
    }
    folder = write_model(tmp_path / "eos", {"embed_dim": 32, "vision_cfg": VIT, "text_cfg": text})
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    backbone = load_backbone(str(folder), device=torch.device("cpu"))
    texts = ["cat", "a photo of a dog"]
    whole_BL = open_clip.get_tokenizer(f"local-dir:{folder}")(texts)
    tokens_BL = backbone.tokenize(texts)
    assert whole_BL.shape == (2, 32)
    assert tokens_BL.tolist() == whole_BL[:, :7].tolist()
    with torch.no_grad():
        expected_BE = stock(folder).encode_text(whole_BL, normalize=False)
    assert_cut_anywhere(backbone.text_tower, tokens_BL, expected_BE)


def test_a_clip_without_a_causal_mask_keeps_its_padding(tmp_path: Path) -> None:
    """Where the padding is attended to, it is not cut off."""
    text = {**TEXT, "no_causal_mask": True}
    folder = write_model(
        tmp_path / "both-ways", {"embed_dim": 32, "vision_cfg": VIT, "text_cfg": text}
    )
    model = stock(folder)
    _, ends = text_tower(model)
    assert ends is None
    backbone = load_backbone(str(folder), device=torch.device("cpu"))
    tokens_BL = backbone.tokenize(["cat"])
    with torch.no_grad():
        expected_BE = model.encode_text(tokens_BL, normalize=False)
    assert_cut_anywhere(backbone.text_tower, tokens_BL, expected_BE)


@pytest.mark.parametrize("kind", ["vit", "siglip", "convnext", "coca"])
def test_towers_hold_the_weights_of_the_model_and_no_copies(small_model: Small, kind: str) -> None:
    """Cutting a tower makes no tensor: trunk and top share the tower's, frozen, in eval mode."""
    tower = small_model(kind).image_tower
    trunk, top = tower.cut(len(tower.blocks) // 2)
    own = {tensor.data_ptr() for tensor in tower.parameters()}
    assert {t.data_ptr() for part in (trunk, top) for t in part.parameters()} == own
    assert not any(parameter.requires_grad for parameter in tower.parameters())
    assert not any(module.training for module in tower.modules())


def test_no_stock_attention_is_left(small_model: Small) -> None:
    """In open_clip's own towers every map that an adapter bends is an `nn.Linear`."""
    backbone = small_model("vit")
    modules = [*backbone.image_tower.modules(), *backbone.text_tower.modules()]
    assert not any(isinstance(module, nn.MultiheadAttention) for module in modules)


def test_a_real_architecture_equals_open_clip() -> None:
    """ViT-B-32 at its full size, with random weights, says what open_clip says."""
    name = "ViT-B-32"
    backbone = load_backbone(name, "random", device=torch.device("cpu"))
    torch.manual_seed(0)
    model = open_clip.create_model(name, load_weights=False).eval()
    images_B3HW = pictures(backbone)[:2]
    tokens_BL = open_clip.get_tokenizer(name)(list(TEXTS))
    with torch.no_grad():
        image_BE, text_BE = model.encode_image(images_B3HW), model.encode_text(tokens_BL)
        for tower, inputs, expected_BE, blocks in (
            (backbone.image_tower, images_B3HW, image_BE, (0, 1, 4, 12)),
            (backbone.text_tower, backbone.tokenize(TEXTS), text_BE, (0, 4, 12)),
        ):
            for top_blocks in blocks:
                trunk, top = tower.cut(top_blocks)
                found_BE = top(trunk(inputs)).embedding_BE
                torch.testing.assert_close(found_BE, expected_BE, atol=CLOSE, rtol=CLOSE)
    assert backbone.top_blocks == 4


def test_the_last_block_computes_what_is_read_out(small_model: Callable[[str], Backbone]) -> None:
    """It gives the class token alone, and that is the one of a whole block."""
    tower = small_model("vit").image_tower
    last = tower.blocks[-1]
    assert type(last) is ReadOutBlock
    states_BLE = torch.randn(3, 17, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = ResidualBlock.forward(last, states_BLE, None)
        read = last(states_BLE, None)
    assert read.shape == (3, 1, 64)
    torch.testing.assert_close(read, whole[:, :1], atol=1e-5, rtol=0)
