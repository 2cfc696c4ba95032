"""The paper's eight pairs at their full size: each builds and learns for two steps under the policy that was released for it."""

import gc

import numpy as np
import pytest
import torch

from detkds_core.catalogue import DETECTORS
from detkds_core.catalogue.pairs import PAPER_PAIRS
from detkds_core.catalogue.recipe import Recipe
from detkds_core.detectors.build import build_detector, inherit
from detkds_core.detectors.pair import Teacher, match_levels
from detkds_core.losses.signals import Scene
from detkds_core.policy import named_policies
from detkds_core.training.batches import Batch
from detkds_core.training.group import Start, model_inputs, new_learner, teacher_signals
from detkds_core.training.steps import study, update

CLASSES = ("a", "b", "c")
HEIGHT, WIDTH = 64, 96
CPU = torch.device("cpu")


def two_images(masks: bool) -> Batch:
    generator = torch.Generator().manual_seed(3)
    boxes = torch.tensor([[8.0, 8, 40, 48], [20, 4, 90, 60]])
    filled = np.zeros((2, HEIGHT, WIDTH), np.uint8)
    for mask, (x1, y1, x2, y2) in zip(filled, boxes.int().tolist(), strict=True):
        mask[y1:y2, x1:x2] = 1
    return Batch(
        images=[torch.randint(0, 256, (3, HEIGHT, WIDTH), generator=generator, dtype=torch.uint8) for _ in range(2)],
        boxes=[boxes, boxes],
        labels=[torch.tensor([0, 2])] * 2,
        masks=[filled, filled] if masks else [],
    )


@pytest.fixture
def _freed():
    yield
    gc.collect()


@pytest.mark.slow
@pytest.mark.usefixtures("_freed")
@pytest.mark.parametrize("pair", PAPER_PAIRS, ids=lambda pair: pair.name)
def test_a_pair_of_the_paper_learns_two_steps_under_its_own_policy(pair):
    teacher_entry, student_entry = DETECTORS[pair.teacher], DETECTORS[pair.student]
    levels = match_levels(teacher_entry, student_entry)
    teacher = Teacher(build_detector(pair.teacher, CLASSES), levels.teacher, levels.strides)
    student = build_detector(pair.student, CLASSES)
    if pair.inherit:
        assert inherit(student, teacher.model)
    start = Start(teacher, teacher_entry, student_entry, student.state_dict(), CLASSES, levels, CPU)
    recipe = Recipe(iterations=2, batch=2, lr=1e-3, optimizer="sgd", weight_decay=1e-4, schedule="steps", warm_up=0)
    frozen = {key: value.clone() for key, value in teacher.model.state_dict().items()}
    (name,) = pair.policies
    policy = named_policies()[name].policy
    learner = new_learner(start, policy, recipe, seed=0)
    preprocess, batch = learner.student.model.data_preprocessor, two_images(student_entry.masks)
    before = [p.detach().clone() for p in learner.parameters()]
    for step in range(2):
        inputs, samples = model_inputs(preprocess, batch, CPU)
        boxes = tuple(sample.gt_instances.bboxes for sample in samples)
        scene = Scene(boxes=boxes, batch_shape=tuple(inputs.shape[-2:]), step=step, total_steps=2)
        said = teacher_signals(start, preprocess, batch, inputs, learner.needs)
        study(learner, inputs, samples, said, scene, recipe, teacher, 0)
        gradients = [p.grad for p in learner.parameters() if p.grad is not None]
        assert len(gradients) > 100
        assert all(bool(gradient.isfinite().all()) for gradient in gradients)
        losses = learner.read_losses()
        assert sum(one.startswith("distill/") for one in losses) == len(policy.terms) + len(policy.distillers)
        assert all(value > 0 for one, value in losses.items() if one.startswith("distill/")), losses
        update(learner, step, recipe)
        assert learner.failure is None
    moved = sum(not torch.equal(a, b) for a, b in zip(before, learner.parameters(), strict=True))
    assert moved > len(before) / 2
    assert all(torch.equal(value, frozen[key]) for key, value in teacher.model.state_dict().items())
