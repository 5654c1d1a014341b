"""Have I labelled enough: what curves say, what they leave open, and what is told of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from everlens.model.snapshot import CURVE_BINS, RECORD
from service.labelling import ENOUGH, LABELS_N, _gamma_quantile, outlook, trend
from service.routes.labelling import LabellingOut
from tests.reference import labelling as reference
from tests.unit.service.api import Api

bins = st.integers(0, 40).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n)))
curves = st.lists(st.lists(bins, min_size=CURVE_BINS, max_size=CURVE_BINS), min_size=1, max_size=4)


def as_table(rows: list[dict[int, tuple[int, int]]]) -> NDArray[np.uint8]:
    """Return the curves of classes: place of a bin → answers, and right ones."""
    curve_CN2 = np.zeros((len(rows), CURVE_BINS, 2), np.uint8)
    for row, bins_of in enumerate(rows):
        for place, counted in bins_of.items():
            curve_CN2[row, place] = counted
    return curve_CN2


@given(rows=curves, data=st.data())
def test_outlook_equals_the_loop(rows: list[list[tuple[int, int]]], data: st.DataObject) -> None:
    """Error, gain of a label, and both ends of what as many again bring, class by class."""
    labels = data.draw(st.lists(st.integers(1, 999), min_size=len(rows), max_size=len(rows)))
    found = outlook(np.array(rows, np.uint8), np.array(labels))
    expected = reference.outlook(rows, labels)
    np.testing.assert_allclose(np.stack(found, axis=1), expected, rtol=1e-9, atol=1e-12)


def test_classes_in_several_turns_are_those_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """How many are worked out at once makes no difference."""
    rng = np.random.default_rng(0)
    scored_CN = rng.integers(0, 20, (30, CURVE_BINS))
    curve_CN2 = np.stack([scored_CN, rng.binomial(scored_CN, 0.7)], axis=2).astype(np.uint8)
    labels_C = rng.integers(1, 99, 30)
    whole = outlook(curve_CN2, labels_C)
    monkeypatch.setattr("service.labelling._CLASSES_A_TURN", 7)
    np.testing.assert_allclose(outlook(curve_CN2, labels_C), whole, rtol=1e-12)


def test_the_quantiles_are_those_of_the_gamma_distribution() -> None:
    """Within 0.07 of the mean, which is far less than they are apart."""
    shape = np.array([0.5, 1.0, 2.0, 5.0, 20.0, 300.0])
    for z in (-1.28, 1.28):
        exact = stats.gamma.ppf(stats.norm.cdf(z), shape) / shape
        np.testing.assert_allclose(_gamma_quantile(shape, z), exact, atol=0.07)


def made_up(classes: int, exponent: float, seed: int) -> tuple[Any, Any, Any]:
    """Return curves, labels and true errors of classes of different levels under one power law."""
    rng = np.random.default_rng(seed)
    level_C = rng.gamma(3.0, 0.15, classes).clip(max=1.0)
    labels_C = rng.integers(2, 60, classes)
    curve_CN2 = np.zeros((classes, CURVE_BINS, 2), np.uint8)
    for c, labels in enumerate(labels_C):
        for n in range(1, labels):
            place = int(n).bit_length() - 1
            curve_CN2[c, place] += np.array([1, rng.random() > level_C[c] * n**-exponent], np.uint8)
    return curve_CN2, labels_C, level_C * labels_C**-exponent


@pytest.mark.parametrize("exponent", [0.2, 0.6, 1.0])
def test_a_power_law_is_found_again(exponent: float) -> None:
    """From curves made by one: its exponent, the level of each class, and how sure that is."""
    curve_CN2, labels_C, error_C = made_up(400, exponent, seed=1)
    found = outlook(curve_CN2, labels_C)
    step = np.linspace(0.0, 1.2, 25)
    assert step[trend(curve_CN2).log_prior_G.argmax()] == pytest.approx(exponent, abs=0.1)
    assert found.error_C.mean() == pytest.approx(error_C.mean(), rel=0.15)
    truth_C = error_C * (1 - 2**-exponent)
    inside_C = (found.least_C <= truth_C) & (truth_C <= found.most_C)
    assert 0.68 <= inside_C.mean() <= 0.92  # four of five
    true_gain_C = error_C * (1 - (labels_C / (labels_C + 1)) ** exponent)
    assert np.corrcoef(stats.rankdata(found.gain_C), stats.rankdata(true_gain_C))[0, 1] > 0.8


def test_a_class_that_labels_do_not_help_gains_less() -> None:
    """Of two with as many wrong answers, the one whose errors came early gains; the other did not."""
    improved = {0: (1, 0), 1: (2, 0), 2: (4, 1), 3: (8, 7), 4: (16, 16)}
    stuck = {0: (1, 1), 1: (2, 2), 2: (4, 3), 3: (8, 6), 4: (16, 12)}
    others = [improved] * 5
    labels_C = np.array([32] * 7)
    found = outlook(as_table([improved, stuck, *others]), labels_C)
    assert found.error_C[1] > 1.5 * found.error_C[0]
    share_C = found.gain_C / found.error_C  # of its errors, that a label takes away
    assert share_C[1] < 0.9 * share_C[0]


def test_a_class_nobody_asked_about_stands_where_others_stood() -> None:
    """With one label as those with one, with many as those with many; and nothing at all is said."""
    others = [{0: (1, 0), 1: (2, 1), 2: (4, 3), 3: (8, 7)}] * 40
    found = outlook(as_table([{}, {}, *others]), np.array([1, 16, *[16] * 40]))
    assert found.error_C[0] == pytest.approx(1.0, abs=0.25)
    assert found.error_C[1] < 0.5 * found.error_C[0]
    assert found.gain_C[0] > 5 * found.gain_C[1]
    nothing = outlook(as_table([{}, {}]), np.array([1, 9]))
    assert np.isfinite(nothing).all()
    assert nothing.gain_C[0] > nothing.gain_C[1]


@pytest.mark.anyio
async def test_what_is_told_of_labelling(api: Api, photos):
    """Curve, verdict and gain of each class, and the best to label next with a sentence why."""
    nothing = (await api.client.get("/labelling")).json()
    assert nothing == {"classes": [], "suggestions": [], "version": 0}
    pictures = {name: photos[name] for name in ("cat", "coffee", "rocket", "astronaut")}
    table = as_table(
        [
            {0: (60, 60)},
            {0: (10, 2)},
            {},
            {0: (1, 0), 5: (1, 1)},
        ]
    )
    record_CR = torch.full((4, len(RECORD)), float("nan"))
    record_CR[0, 0], record_CR[1, 0] = 1.0, 0.25
    manifest = api.publish(
        pictures, learned_through=4, record_CR=record_CR, curve_CN2=torch.from_numpy(table)
    )
    await api.served(manifest)
    told = (await api.client.get("/labelling")).json()
    LabellingOut.model_validate(told)
    cat, coffee, rocket, astronaut = told["classes"]
    assert (cat["label"], cat["samples"], cat["recall"]) == ("cat", 1, 1.0)
    assert cat["curve"] == [{"samples": 1, "recall": 1.0, "answers": 60}]
    assert astronaut["curve"] == [
        {"samples": 1, "recall": 0.0, "answers": 1},
        {"samples": 45, "recall": 1.0, "answers": 1},
    ]
    assert cat["enough"] is True
    assert (coffee["recall"], coffee["enough"]) == (0.25, False)
    assert (rocket["recall"], rocket["curve"], rocket["enough"]) == (None, [], None)
    assert astronaut["enough"] is None
    expected = outlook(table, np.ones(4, np.int64))
    gains = [about["expected_gain"] for about in told["classes"]]
    assert gains == pytest.approx((100 * expected.gain_C / 4).tolist(), abs=1e-5)
    why = {line["label"]: line["why"] for line in told["suggestions"]}
    assert "cat" not in why
    assert told["suggestions"][0]["label"] == "coffee"
    assert why == {
        "coffee": "1 label, 2 of the last 10 answers right: label a few more",
        "rocket": "1 label, and no answer about it was scored yet: label another to see how it "
        "fares",
        "astronaut": "1 label, 1 of the last 2 answers right: label a few more",
    }


@pytest.mark.anyio
async def test_before_anything_was_scored_no_gain_is_claimed(api: Api, photos):
    """Also of a version without records: the classes are there, and what is not known is null."""
    pictures = {name: photos[name] for name in ("cat", "coffee")}
    await api.served(api.publish(pictures, learned_through=2))
    told = (await api.client.get("/labelling")).json()
    LabellingOut.model_validate(told)
    for about in told["classes"]:
        assert (about["samples"], about["curve"]) == (1, [])
        assert (about["recall"], about["enough"], about["expected_gain"]) == (None, None, None)
    assert [line["label"] for line in told["suggestions"]] == ["cat", "coffee"]
    assert all("no answer" in line["why"] for line in told["suggestions"])


def test_enough_is_what_it_says() -> None:
    """At an exponent of a half, as many labels again take 29 % off: a sixth of errors is the limit."""
    assert ENOUGH / (1 - 2**-0.5) == pytest.approx(1 / 6, abs=0.01)
    assert LABELS_N[0] == 1
