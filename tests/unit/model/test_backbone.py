"""Loading the base model: what its fingerprint tells apart, and how it says no."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

from bench.tiny_clip import CONFIG
from everlens.errors import ModelError
from everlens.model.backbone import Backbone, load_backbone
from tests.pictures import squashed
from tests.unit.model.folders import CONFIGS, write_model

CPU = torch.device("cpu")


@pytest.fixture
def copied(model_folder: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy of the small ViT that a test may change."""
    return Path(shutil.copytree(model_folder("vit"), tmp_path / "copy"))


def fingerprint(folder: Path, **settings: str) -> str:
    return load_backbone(str(folder), device=CPU, **settings).fingerprint


def rewrite(folder: Path, **changes: object) -> None:
    about = json.loads((folder / "open_clip_config.json").read_text(encoding="utf-8"))
    for path, value in changes.items():
        section = about
        *sections, leaf = path.split("__")
        for name in sections:
            section = section[name]
        section[leaf] = value
    (folder / "open_clip_config.json").write_text(json.dumps(about), encoding="utf-8")


def test_equal_models_have_equal_fingerprints(
    small_model: Callable[[str], Backbone], copied: Path
) -> None:
    """The same weights have the same fingerprint, wherever they lie."""
    assert fingerprint(copied) == small_model("vit").fingerprint
    assert len(fingerprint(copied)) == 64


def test_random_weights_are_the_same_in_every_process(tiny_folder: str) -> None:
    """`pretrained=random` gives equal models twice, whatever was drawn before."""
    first = load_backbone(tiny_folder, "random", device=CPU)
    torch.manual_seed(77)
    again = load_backbone(tiny_folder, "random", device=CPU)
    assert first.fingerprint == again.fingerprint


def test_one_changed_weight_changes_the_fingerprint(copied: Path) -> None:
    """The last bit of one number anywhere in either tower makes another model."""
    seen, weights = {fingerprint(copied)}, load_file(copied / "open_clip_model.safetensors")
    for name in ("visual.proj", "ln_final.bias", "logit_scale"):
        changed = weights[name].flatten().clone()
        changed[0] = torch.nextafter(changed[0], torch.tensor(9.0))
        altered = {**weights, name: changed.view_as(weights[name])}
        save_file(altered, copied / "open_clip_model.safetensors")
        seen.add(fingerprint(copied))
    assert len(seen) == 4


@pytest.mark.parametrize(
    "changes",
    [
        {"model_cfg__quick_gelu": True},
        {"model_cfg__vision_cfg__head_width": 16},
        {"model_cfg__text_cfg__heads": 4},
        {"model_cfg__vision_cfg__pool_type": "avg"},
        {"preprocess_cfg__mean": [0.5, 0.5, 0.5]},
        {"preprocess_cfg__resize_mode": "squash"},
        {"preprocess_cfg__interpolation": "bilinear"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_changes_an_answer_changes_the_fingerprint(
    copied: Path, changes: dict[str, object]
) -> None:
    """Equal weights that compute something else, or see other pixels, are another model."""
    before = fingerprint(copied)
    rewrite(copied, **changes)
    assert fingerprint(copied) != before


def test_templates_belong_to_the_fingerprint(copied: Path) -> None:
    """Other prompts are other text vectors."""
    assert fingerprint(copied) != fingerprint(copied, templates="{} | a drawing of a {}")


def test_a_folder_gives_its_preprocessing(small_model: Callable[[str], Backbone]) -> None:
    """Size comes from the model, mean and deviation from the folder's configuration."""
    spec = small_model("vit").pixels
    assert (spec.size, spec.mean, spec.std) == (32, (0.48, 0.46, 0.41), (0.27, 0.26, 0.28))
    assert (spec.resize, spec.interpolation) == ("shortest", "bicubic")


def test_pixels_become_what_the_tower_was_trained_on(
    small_model: Callable[[str], Backbone],
) -> None:
    """Each channel is (value / 255 - mean) / std, channels first."""
    backbone, pixels = small_model("vit"), squashed("cat", 32)
    expected = (pixels / 255 - np.array(backbone.pixels.mean)) / np.array(backbone.pixels.std)
    found_B3HW = backbone.images([pixels, pixels[::-1]])
    assert found_B3HW.shape == (2, 3, 32, 32)
    # Float32 against float64, for values up to three.
    np.testing.assert_allclose(found_B3HW[0].permute(1, 2, 0), expected, atol=1e-6, rtol=0)


def test_a_name_is_the_mean_of_its_prompts(small_model: Callable[[str], Backbone]) -> None:
    """Unit vectors of all templates are averaged and brought to length one again."""
    backbone = small_model("vit")
    with torch.no_grad():
        each = [
            functional.normalize(
                backbone.text_tower(backbone.tokenize([t.format("owl")])).embedding_BE[0], dim=0
            )
            for t in backbone.templates
        ]
    expected_E = functional.normalize(torch.stack(each).sum(dim=0), dim=0)
    assert len(backbone.templates) == 3
    torch.testing.assert_close(backbone.name_embedding("owl"), expected_E, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["vit", "siglip", "starter"])
def test_names_together_are_the_names_alone(
    small_model: Callable[[str], Backbone], starter_model: Backbone, kind: str
) -> None:
    """Longer names beside a short one change its vector by rounding alone."""
    backbone = starter_model if kind == "starter" else small_model(kind)
    names = ["owl", "a very long name of a very small bird", "tit"]
    alone_NE = torch.stack([backbone.name_embedding(name) for name in names])
    torch.testing.assert_close(backbone.name_embeddings(names), alone_NE, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["vit", "siglip", "starter"])
def test_a_name_that_would_be_cut_does_not_fit(
    small_model: Callable[[str], Backbone], starter_model: Backbone, kind: str
) -> None:
    """Tokenizers cut silently; a name fits only if all prompts are read to the end."""
    backbone = starter_model if kind == "starter" else small_model(kind)
    assert backbone.name_fits("cat")
    assert backbone.name_fits("猫")
    assert not backbone.name_fits("word " * 199 + "end")
    fitting = [n for n in range(1, 160) if backbone.name_fits(" ".join(["cat"] * n))]
    assert fitting == list(range(1, len(fitting) + 1))
    # The longest name that fits still ends differently from one that goes on.
    longest = " ".join(["cat"] * len(fitting))
    for template in backbone.templates:
        row, other = backbone.tokenize([template.format(longest), template.format(f"{longest} x")])
        assert not torch.equal(row, other)


def test_own_templates_replace_the_models(copied: Path) -> None:
    """Prompts are separated by bars, and white space around them is dropped."""
    backbone = load_backbone(str(copied), device=CPU, templates=" a {} | the {}. |")
    assert backbone.templates == ("a {}", "the {}.")


@pytest.mark.parametrize("templates", ["a photo", "{} and {}", "a {name}", "{} {x}", "{} }", "{0}"])
def test_a_template_without_its_place_is_refused(templates: str) -> None:
    """Each prompt needs exactly one {} and no other brace; said before anything is loaded."""
    with pytest.raises(ModelError, match=r"exactly one \{\}"):
        load_backbone("starter", device=CPU, templates=templates)


def test_a_known_model_without_weights_names_its_tags(calls_out: list[str]) -> None:
    """Without EVERLENS_PRETRAINED the error lists what may stand there."""
    with pytest.raises(ModelError, match=r"needs EVERLENS_PRETRAINED.*laion2b_s34b_b79k"):
        load_backbone("ViT-B-32", device=CPU)
    assert calls_out == []


@pytest.mark.parametrize(
    ("model", "pretrained"),
    [
        ("ViT-B-33", ""),
        ("ViT-B-33", "openai"),
        ("ViT-B-33", "random"),
        ("ViT-B-32", "no-such-tag"),
        ("ViT-B-32", "weights/that/are/not/there.safetensors"),
        ("ViT-B-32", "laion2b_s34b_b79k"),
        ("hf-hub:nobody/nothing", ""),
    ],
)
def test_what_cannot_be_loaded_is_one_line(
    calls_out: list[str],
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    model: str,
    pretrained: str,
) -> None:
    """A name, tag, file or hub out of reach is one sentence, and nothing else is printed."""
    with pytest.raises(ModelError) as raised:
        load_backbone(model, pretrained, device=CPU)
    message = str(raised.value)
    assert "\n" not in message
    assert model in message
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []
    assert calls_out == []


@pytest.mark.parametrize("missing", ["open_clip_config.json", "open_clip_model.safetensors"])
def test_an_incomplete_folder_is_one_line(copied: Path, missing: str) -> None:
    """A folder without its configuration or its weights says which model it was."""
    (copied / missing).unlink()
    with pytest.raises(ModelError) as raised:
        load_backbone(str(copied), device=CPU)
    assert str(copied) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_weights_of_another_shape_are_refused(copied: Path) -> None:
    """Weights that do not fit the configuration stop the start."""
    rewrite(copied, model_cfg__vision_cfg__layers=2)
    with pytest.raises(ModelError, match="cannot load"):
        load_backbone(str(copied), device=CPU)


def test_pictures_that_are_not_square_are_refused(tmp_path: Path) -> None:
    """Only square pictures are taken; the error says what the model wants."""
    vision = {**CONFIGS["vit"]["vision_cfg"], "image_size": [32, 64]}
    folder = write_model(tmp_path / "wide", {**CONFIGS["vit"], "vision_cfg": vision})
    with pytest.raises(ModelError, match="64 x 32"):
        load_backbone(str(folder), device=CPU)


def test_the_configuration_is_not_changed_by_loading(tiny_folder: str) -> None:
    """Loading writes nothing to the folder."""
    load_backbone(tiny_folder, "random", device=CPU)
    written = json.loads((Path(tiny_folder) / "open_clip_config.json").read_text(encoding="utf-8"))
    assert written == CONFIG
    assert [path.name for path in Path(tiny_folder).iterdir()] == ["open_clip_config.json"]
