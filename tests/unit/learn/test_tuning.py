"""SIT steps through the tuner: what moves, what never does, and that it can be repeated."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch.nn import functional

from everlens.model.adapter import AdapterSpec, merged
from everlens.model.backbone import Backbone
from everlens.model.tower import Hidden
from tests.exact import in_float32
from tests.reference import sit as reference
from tests.unit.learn.exemplars import FIRST_STEPS, SPEC, Lesson, buffer_of, exemplars, same_bits
from worker.learn.class_weights import ClassWeightConfig
from worker.learn.contrast import contrastive_loss
from worker.learn.randomness import generator_for
from worker.learn.tuning import WARM_UP_STEPS

TWO = [0, 1, 0, 1, 0, 1]
BOTH = dataclasses.replace(SPEC, tune="both")


def embed(lesson: Lesson, kept) -> torch.Tensor:
    with torch.no_grad():
        states = torch.stack([e.trunk for e in kept]).float()
        return functional.normalize(lesson.tuner.image_top(Hidden(states)).embedding_BE, dim=-1)


@pytest.mark.parametrize("tune", ["image", "text", "both"])
def test_step_zero_is_the_frozen_model_to_the_bit(tiny_clip: Backbone, tune: str) -> None:
    """Before the first step the bent towers say what the frozen ones say."""
    lesson = Lesson(tiny_clip, dataclasses.replace(SPEC, tune=tune))
    kept = exemplars(tiny_clip, TWO)
    states = torch.stack([e.trunk for e in kept]).float()
    with torch.no_grad():  # with a gradient attention adds up in another order
        frozen = lesson.tuner.frozen_image_top(Hidden(states))
        bent = lesson.tuner.image_top(Hidden(states))
    assert torch.equal(bent.embedding_BE, frozen.embedding_BE)
    assert torch.equal(bent.feature_BD, frozen.feature_BD)
    text_E = lesson.tuner.text_vector("a photo of a cat.")
    tokens_1L = tiny_clip.tokenize(["a photo of a cat."])
    frozen_E = functional.normalize(tiny_clip.text_tower(tokens_1L).embedding_BE[0], dim=-1)
    assert torch.equal(text_E, frozen_E)


def test_half_of_step_zero_is_the_frozen_model_to_the_bit(tiny_clip: Backbone) -> None:
    """In half precision the frozen weights are multiplied as the answering tower does it."""
    lesson = Lesson(tiny_clip, half_precision=True)
    states = torch.stack([e.trunk for e in exemplars(tiny_clip, TWO)]).float()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        frozen = lesson.tuner.frozen_image_top(Hidden(states))
        bent = lesson.tuner.image_top(Hidden(states))
    assert torch.equal(bent.embedding_BE, frozen.embedding_BE)
    assert torch.equal(bent.feature_BD, frozen.feature_BD)


def test_first_loss_is_that_of_the_frozen_features(tiny_clip: Backbone) -> None:
    """The loss of the first step is the loop's, over frozen features and the batch's classes."""
    lesson, kept = Lesson(tiny_clip, steps=1), exemplars(tiny_clip, TWO)
    image_BE = embed(lesson, kept).double().numpy()
    text_KE = torch.stack(lesson.vectors[:2]).double().numpy()
    expected = reference.loss(image_BE, text_KE, TWO, tiny_clip.logit_scale)
    (found,) = lesson.teach(kept)
    # Float32 logits of size 14 against float64.
    assert found == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("tune", "low"), [("image", 0.05), ("text", 0.25), ("both", 0.05)])
def test_loss_goes_down_towards_zero(tiny_clip: Backbone, tune: str, low: float) -> None:
    """On photographs that can be told apart the loss falls from step to step, to near zero."""
    lesson = Lesson(tiny_clip, dataclasses.replace(SPEC, tune=tune), steps=60)
    losses = lesson.teach(exemplars(tiny_clip, TWO))
    assert losses[0] > losses[2] > losses[10]
    # The doubled softmax of the published code could not go below log(1 + 1/e) = 0.31.
    assert losses[-1] < low


def test_one_class_without_company_moves_nothing(tiny_clip: Backbone) -> None:
    """With momentum from earlier steps, a batch of one class leaves every bit as it was."""
    lesson = Lesson(tiny_clip, BOTH)
    lesson.teach(exemplars(tiny_clip, TWO))
    before = lesson.tuner.state()
    assert any(name.startswith("exp_avg.") for name in before)
    alone = exemplars(tiny_clip, [2, 2, 2])
    assert lesson.teach(alone, buffer_of(alone), number=2) == []
    assert same_bits(lesson.tuner.state(), before)


def test_one_class_is_completed_from_replay(tiny_clip: Backbone) -> None:
    """The same batch teaches as soon as replay holds another class."""
    lesson = Lesson(tiny_clip, replay_samples=4)
    alone = exemplars(tiny_clip, [2, 2, 2])
    before = lesson.tuner.state()
    losses = lesson.teach(alone, buffer_of(exemplars(tiny_clip, TWO)))
    assert len(losses) == 3
    assert losses[0] > 0
    assert not same_bits(lesson.tuner.state(), before)


def test_replay_moves_on_with_each_step(tiny_clip: Backbone) -> None:
    """Each step draws its own company, going round the classes."""
    lesson, buffer = (
        Lesson(tiny_clip, steps=2, replay_samples=1),
        buffer_of(exemplars(tiny_clip, [0, 1, 3])),
    )
    lesson.teach(exemplars(tiny_clip, [2]), buffer)
    assert buffer.next_class == 2


def test_one_class_cannot_fill_a_step(tiny_clip: Backbone) -> None:
    """Of each class so many new samples take part, others in each step; replay fills the rest."""
    batch = exemplars(tiny_clip, [0, 0, 0, 0, 0, 0, 1])
    lesson, buffer = Lesson(tiny_clip, steps=1, new_per_class=2), buffer_of(batch)
    drawn = [lesson.tuner._some_of_each(batch, generator_for(k)) for k in range(40)]
    for new in drawn:
        assert [e.class_index for e in new] == [0, 0, 1]
        assert [e.seq for e in new] == sorted(e.seq for e in new)
    assert {e.seq for new in drawn for e in new} == set(range(7))
    lesson.teach(batch, buffer)
    # Four were left out: the round robin went on by four, from class 0 to 1, twice.
    assert buffer.next_class == 2
    alone = Lesson(tiny_clip, steps=1, new_per_class=2)
    assert alone.teach(batch[:6]) == []


def test_the_base_model_is_never_written_to(tiny_clip: Backbone) -> None:
    """After tuning both towers all weights of the base are the same bits, without a gradient."""
    towers = (tiny_clip.image_tower, tiny_clip.text_tower)
    before = [{k: t.clone() for k, t in tower.state_dict().items()} for tower in towers]
    name = tiny_clip.name_embedding("walrus").clone()
    Lesson(tiny_clip, BOTH).teach(exemplars(tiny_clip, TWO))
    for tower, weights in zip(towers, before, strict=True):
        assert same_bits(tower.state_dict(), weights)
        assert all(p.grad is None and not p.requires_grad for p in tower.parameters())
    # So an unseen name has the same zero-shot score before and after any amount of learning.
    assert torch.equal(tiny_clip.name_embedding("walrus"), name)


def test_a_shared_text_adapter_does_move_absent_names(tiny_clip: Backbone) -> None:
    """Zero gradient is not zero movement: tuned text towers bend names that were not there."""
    lesson = Lesson(tiny_clip, dataclasses.replace(SPEC, tune="text"))
    before = lesson.tuner.text_vector("walrus")
    lesson.teach(exemplars(tiny_clip, TWO))
    assert not torch.equal(lesson.tuner.text_vector("walrus"), before)


def test_only_the_chosen_tower_is_tuned(tiny_clip: Backbone) -> None:
    """`tune` says whose tensors there are; `none` has none and is not active."""
    towers = {
        tune: {
            name.partition(".")[0]
            for name in Lesson(tiny_clip, dataclasses.replace(SPEC, tune=tune)).tuner.adapter()
        }
        for tune in ("image", "text", "both", "none")
    }
    assert towers == {
        "image": {"image"},
        "text": {"text"},
        "both": {"image", "text"},
        "none": set(),
    }
    assert not Lesson(tiny_clip, dataclasses.replace(SPEC, tune="none")).tuner.active
    assert not Lesson(tiny_clip, steps=0).tuner.active
    assert Lesson(tiny_clip).tuner.active


@pytest.mark.parametrize("spec", [SPEC, BOTH], ids=["image", "both"])
def test_tuning_repeats_to_the_bit(tiny_clip: Backbone, spec: AdapterSpec) -> None:
    """The same seed and batch give the same bits; another seed does not."""
    batch, buffer = exemplars(tiny_clip, [2, 0, 2]), exemplars(tiny_clip, [*TWO, 2, 3, 3])
    lessons = [Lesson(tiny_clip, spec, seed=seed, replay_samples=3) for seed in (0, 0, 1)]
    losses = [lesson.teach(batch, buffer_of(buffer)) for lesson in lessons]
    states = [lesson.tuner.state() for lesson in lessons]
    assert losses[0] == losses[1] != losses[2]
    assert same_bits(states[0], states[1])
    assert not same_bits(states[0], states[2])


def test_a_restored_tuner_goes_on_with_the_same_bits(tiny_clip: Backbone) -> None:
    """Saved after a batch and restored into a new tuner, the next batch ends in the same bits."""
    kept, batch = exemplars(tiny_clip, [*TWO, 2, 3, 3]), exemplars(tiny_clip, [2, 0, 2])
    undisturbed = Lesson(tiny_clip, BOTH, replay_samples=3)
    buffer = buffer_of(kept)
    undisturbed.teach(batch, buffer)
    saved, place = undisturbed.tuner.state(), buffer.next_class
    undisturbed.teach(batch, buffer, number=2)

    restored = Lesson(tiny_clip, BOTH, replay_samples=3)
    restored.tuner.load_state(saved)
    assert same_bits(restored.tuner.state(), saved)
    again = buffer_of(kept)
    again.next_class = place
    restored.teach(batch, again, number=2)
    assert same_bits(restored.tuner.state(), undisturbed.tuner.state())
    assert not same_bits(saved, undisturbed.tuner.state())


def test_saved_state_is_a_copy(tiny_clip: Backbone) -> None:
    """Further steps do not reach into a state that was saved, or into one that was loaded."""
    lesson, batch = Lesson(tiny_clip), exemplars(tiny_clip, TWO)
    lesson.teach(batch)
    saved = lesson.tuner.state()
    copy = {name: tensor.clone() for name, tensor in saved.items()}
    other = Lesson(tiny_clip)
    other.tuner.load_state(saved)
    lesson.teach(batch)
    other.teach(batch)
    assert same_bits(saved, copy)


def test_a_state_without_moments_clears_them(tiny_clip: Backbone) -> None:
    """Loading the state of an unused tuner into a used one leaves no momentum behind."""
    lesson, fresh = Lesson(tiny_clip), Lesson(tiny_clip).tuner.state()
    lesson.teach(exemplars(tiny_clip, TWO))
    lesson.tuner.load_state(fresh)
    assert same_bits(lesson.tuner.state(), fresh)


def test_the_served_top_is_the_tuned_one(tiny_clip: Backbone) -> None:
    """The merged top says what the tuned one says, and is made from the published tensors."""
    lesson, kept = Lesson(in_float32(tiny_clip)), exemplars(tiny_clip, TWO)
    lesson.teach(kept)
    states = torch.stack([e.trunk for e in kept]).float()
    with torch.no_grad():
        tuned = lesson.tuner.image_top(Hidden(states)).feature_BD
        served = lesson.tuner.merged_image_top()(Hidden(states)).feature_BD
        frozen = lesson.tuner.frozen_image_top(Hidden(states)).feature_BD
    tensors = {k.removeprefix("image."): t for k, t in lesson.tuner.adapter().items()}
    frozen_top = lesson.tuner.frozen_image_top
    published = merged(frozen_top, frozen_top, tensors, SPEC)(Hidden(states)).feature_BD
    assert torch.equal(served, published)
    # Features of size one after two float32 blocks, summed in another order.
    torch.testing.assert_close(served, tuned, atol=1e-4, rtol=0)
    assert float((tuned - frozen).abs().max()) > 1e-2


def test_a_loss_that_is_not_finite_stops_before_the_weights(tiny_clip: Backbone) -> None:
    """A step whose gradient is not finite is left out: nothing moves, nobody is stopped."""
    lesson, batch = Lesson(tiny_clip), exemplars(tiny_clip, TWO)
    before = lesson.tuner.state()
    broken = dataclasses.replace(batch[0], trunk=torch.full_like(batch[0].trunk, float("nan")))
    assert [] == lesson.teach([broken, *batch[1:]])
    assert same_bits(lesson.tuner.state(), before)


def test_captions_are_learnt_as_texts_of_their_own(tiny_clip: Backbone) -> None:
    """Two captions of one class give two candidates that do not compete with each other."""
    lesson = Lesson(tiny_clip, dataclasses.replace(SPEC, tune="text"), steps=1)
    kept = exemplars(tiny_clip, [1, 1, 0])
    batch = [dataclasses.replace(kept[0], text="a cat asleep"), *kept[1:]]
    image_BE = embed(lesson, kept).double().numpy()
    prompts = ["a photo of a astronaut.", "a photo of a cat.", "a cat asleep"]
    texts = torch.stack([lesson.tuner.text_vector(p) for p in prompts]).double().numpy()
    candidates = ([0, 2], [0, 1], [0, 1, 2])
    losses = [
        reference.loss(image_BE[[k]], texts, [target], tiny_clip.logit_scale, candidates[k])
        for k, target in enumerate([2, 1, 0])
    ]
    (found,) = lesson.teach(batch)
    assert found == pytest.approx(sum(losses) / 3, abs=1e-4)


ALIKE = ClassWeightConfig(temperature=math.inf)
SHARP = ClassWeightConfig(temperature=0.5)


def test_infinite_temperature_is_the_class_balanced_loss(tiny_clip: Backbone) -> None:
    """All classes weigh the same: the loss is the mean over classes of the mean over pictures."""
    classes = [0, 1, 2, 0, 0, 3]
    lesson, kept = Lesson(tiny_clip, steps=1, class_weights=ALIKE), exemplars(tiny_clip, classes)
    image_BE = embed(lesson, kept).double().numpy()
    text_KE = torch.stack(lesson.vectors).double().numpy()
    own = {
        c: [
            reference.loss(image_BE[[k]], text_KE, [c], tiny_clip.logit_scale)
            for k, of in enumerate(classes)
            if of == c
        ]
        for c in range(4)
    }
    expected = sum(sum(losses) / len(losses) for losses in own.values()) / 4
    (found,) = lesson.teach(kept)
    # Float32 logits of size 14 against float64.
    assert found == pytest.approx(expected, abs=1e-4)
    plain = Lesson(tiny_clip, steps=1).teach(kept)
    assert found != pytest.approx(plain[0], abs=1e-3)


def test_replayed_classes_stand_for_those_that_were_not_drawn(tiny_clip: Backbone) -> None:
    """One replayed class of three known ones counts as often as it comes: three to one."""
    batch, kept = exemplars(tiny_clip, [0]), exemplars(tiny_clip, [1, 1])
    lesson = Lesson(tiny_clip, steps=1, replay_samples=1, class_weights=ALIKE)
    buffer = buffer_of([kept[0]])
    image_BE = embed(lesson, [batch[0], kept[0]]).double().numpy()
    text_KE = torch.stack(lesson.vectors[:2]).double().numpy()
    losses = [reference.loss(image_BE[[k]], text_KE, [k], tiny_clip.logit_scale) for k in range(2)]
    (found,) = lesson.teach(batch, buffer)
    # Four photographs are known, so a quarter each; the replayed one is there once in four draws.
    assert found == pytest.approx(losses[0] / 4 + losses[1] / 4 * 4, abs=1e-4)


def test_class_weights_have_the_mean_one(tiny_clip: Backbone) -> None:
    """Before any loss all are one; then the harder classes are above it, once that is accepted."""
    assert Lesson(tiny_clip).tuner.class_weights(3).tolist() == [1.0, 1.0, 1.0]
    lesson = Lesson(tiny_clip, steps=1, class_weights=SHARP)
    assert lesson.tuner.class_weights(4).tolist() == [1.0] * 4
    lesson.teach(exemplars(tiny_clip, [0, 1, 2, 3, 0, 1]))
    assert lesson.tuner.class_weights(4).tolist() == [1.0] * 4
    lesson.tuner.accept()
    weight_C = lesson.tuner.class_weights(4)
    assert float(weight_C.mean()) == pytest.approx(1, abs=1e-12)
    assert lesson.tuner.losses is not None
    loss_C = lesson.tuner.losses.loss_C
    assert weight_C.argsort().tolist() == loss_C.argsort().tolist()
    assert float(weight_C.max()) > 1.05
    # A class that nobody has measured weighs the mean.
    assert lesson.tuner.class_weights(5)[4] == pytest.approx(1, abs=1e-12)


def test_a_restored_tuner_knows_the_losses_of_its_classes(tiny_clip: Backbone) -> None:
    """Saved and restored, weights and the next steps are the same bits; the copy is its own."""
    kept = exemplars(tiny_clip, [*TWO, 2, 3, 3])
    lessons = [
        Lesson(tiny_clip, replay_samples=3, contrast=1.0, augment=True, class_weights=SHARP)
        for _ in range(2)
    ]
    buffers = [buffer_of(kept), buffer_of(kept)]
    lessons[0].teach(kept[:4], buffers[0])
    saved = lessons[0].tuner.state()
    assert "class.loss_C" in saved
    copy = {name: tensor.clone() for name, tensor in saved.items()}
    lessons[1].tuner.load_state(saved)
    buffers[1].next_class = buffers[0].next_class
    for lesson in lessons:
        lesson.tuner.accept()
    weight_C = lessons[0].tuner.class_weights(4)
    assert torch.equal(lessons[1].tuner.class_weights(4), weight_C)
    for lesson, buffer in zip(lessons, buffers, strict=True):
        lesson.teach(kept[4:], buffer, number=2)
    states = [lesson.tuner.state() for lesson in lessons]
    assert same_bits(states[0], states[1])
    lessons[0].tuner.accept()
    assert not torch.equal(lessons[0].tuner.class_weights(4), weight_C)
    assert same_bits(saved, copy)


def test_rolling_back_leads_to_what_was_accepted_last(tiny_clip: Backbone) -> None:
    """
    Tensors, moments and class losses are the accepted bits; at first those of a new tuner.

    The number of steps stays: else the first ones would come again as long as the gate is closed.
    """

    def bits(lesson: Lesson) -> dict[str, torch.Tensor]:
        return lesson.tuner.state()

    lesson, batch = Lesson(tiny_clip, class_weights=SHARP), exemplars(tiny_clip, TWO)
    fresh = bits(lesson)
    lesson.teach(batch)
    assert not same_bits(bits(lesson), fresh)
    lesson.tuner.roll_back()
    assert same_bits(bits(lesson), fresh)
    lesson.teach(batch)
    lesson.tuner.accept()
    good = bits(lesson)
    lesson.teach(batch, number=2)
    assert not same_bits(bits(lesson), good)
    lesson.tuner.roll_back()
    assert same_bits(bits(lesson), good)
    assert lesson.tuner.steps_drawn == WARM_UP_STEPS + 9
    # Twice in a row: steps after a return do not reach into what was accepted.
    lesson.teach(batch, number=3)
    lesson.tuner.roll_back()
    assert same_bits(bits(lesson), good)
    other = Lesson(tiny_clip, class_weights=SHARP)
    other.teach(batch)
    other.teach(batch, number=2)
    lesson.teach(batch, number=2)
    assert same_bits(bits(lesson), bits(other))


def test_the_first_rounds_have_more_steps(tiny_clip: Backbone) -> None:
    """Eight a round until 64 were drawn, then as the settings say; what was skipped is not one."""
    lesson, batch = Lesson(tiny_clip, steps=2, warm_up=True), exemplars(tiny_clip, TWO)
    assert lesson.teach(batch[::2]) == []  # one class, no company
    assert lesson.tuner.steps_drawn == 0
    taken = [len(lesson.teach(batch, number=k)) for k in range(10)]
    assert taken == [FIRST_STEPS] * 8 + [2, 2]
    patient = Lesson(tiny_clip, steps=FIRST_STEPS + 1, warm_up=True)
    assert len(patient.teach(batch)) == FIRST_STEPS + 1
    assert not Lesson(tiny_clip, steps=0, warm_up=True).tuner.active


def test_a_restored_tuner_goes_on_in_the_warm_up(tiny_clip: Backbone) -> None:
    """In the middle of the warm-up, the restored one takes as many and ends in the same bits."""
    batch = exemplars(tiny_clip, TWO)
    lessons = [Lesson(tiny_clip, steps=1, warm_up=True) for _ in range(2)]
    for number in range(5):
        lessons[0].teach(batch, number=number)
    lessons[1].tuner.load_state(lessons[0].tuner.state())
    lessons[1].tuner.steps_drawn = lessons[0].tuner.steps_drawn
    for number in range(5, 10):
        losses = [lesson.teach(batch, number=number) for lesson in lessons]
        assert losses[0] == losses[1]
    assert same_bits(lessons[0].tuner.state(), lessons[1].tuner.state())


def test_half_precision_teaches_nearly_the_same(tiny_clip: Backbone) -> None:
    """Bfloat16 passes give losses close to those of float32; what is trained stays float32."""
    batch = exemplars(tiny_clip, TWO)
    lessons = [
        Lesson(tiny_clip, steps=12, contrast=1.0, half_precision=half) for half in (False, True)
    ]
    losses = [lesson.teach(batch) for lesson in lessons]
    # Eight bits of a number: logits of size 14 are off by a few hundredths.
    assert losses[1][0] == pytest.approx(losses[0][0], abs=0.1)
    assert losses[1] != losses[0]
    assert losses[1][-1] < 0.5 * losses[1][0]
    assert all(tensor.dtype == torch.float32 for tensor in lessons[1].tuner.adapter().values())
    again = Lesson(tiny_clip, steps=12, contrast=1.0, half_precision=True)
    assert again.teach(batch) == losses[1]


def test_the_contrastive_loss_is_added_at_its_weight(tiny_clip: Backbone) -> None:
    """The first loss is SIT's and so many times that of the features as they are."""
    batch = exemplars(tiny_clip, TWO)
    plain, heavy = (Lesson(tiny_clip, steps=1, contrast=weight) for weight in (0.0, 2.5))
    with torch.no_grad():
        states = torch.stack([e.trunk for e in batch]).float()
        feature_BD = plain.tuner.image_top(Hidden(states)).feature_BD
    beside = contrastive_loss(functional.normalize(feature_BD, dim=-1), TWO)
    (sit,), (both,) = plain.teach(batch), heavy.teach(batch)
    assert both == pytest.approx(sit + 2.5 * float(beside), abs=1e-4)


def test_variety_changes_what_is_learnt_and_repeats(tiny_clip: Backbone) -> None:
    """With augmentation the same seed gives the same losses, and others than without."""
    batch = exemplars(tiny_clip, TWO)
    losses = [Lesson(tiny_clip, augment=augment).teach(batch) for augment in (True, True, False)]
    assert losses[0] == losses[1] != losses[2]
