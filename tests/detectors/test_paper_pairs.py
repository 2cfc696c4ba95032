"""The paper's pairs at full architecture, with random weights: each builds, inherits and distils two iterations on a CPU."""

import resource
from dataclasses import replace

import pytest
import torch

from detkds_core.catalogue import DETECTORS, PAIRS
from detkds_core.detectors.build import build_detector, inherit
from detkds_core.detectors.pair import Student, Teacher, check_policy, make_adapters, match_levels
from detkds_core.distillers import build
from detkds_core.distillers.context import DistillerContext
from detkds_core.losses.policy import needs, policy_losses
from detkds_core.losses.signals import Scene
from detkds_core.policy import named_policies
from detkds_core.training.batches import Batch
from detkds_core.training.group import Start, model_inputs, teacher_signals
from detkds_core.training.steps import total_loss

CLASSES = tuple(f"class {i}" for i in range(80))
SHAPE = (64, 96)
MOST_MEMORY = 10e9  # bytes that the process has held at once


def shown() -> Batch:
    from numpy import ones, uint8

    boxes = torch.tensor([[8.0, 8.0, 40.0, 40.0], [30.0, 20.0, 90.0, 62.0]])
    images = [torch.randint(0, 256, (3, *SHAPE), dtype=torch.uint8) for _ in range(2)]
    return Batch(images, [boxes] * 2, [torch.tensor([1, 2])] * 2, [ones((2, *SHAPE), uint8)] * 2)


@pytest.mark.slow
@pytest.mark.parametrize("pair", [pair for pair in PAIRS.values() if pair.dataset == "coco"], ids=lambda pair: pair.name)
def test_a_pair_of_the_paper_distils_two_iterations(pair):
    teacher_entry, student_entry = DETECTORS[pair.teacher], DETECTORS[pair.student]
    policy = named_policies()[pair.policies[0]].policy
    check_policy(policy, teacher_entry, student_entry)
    levels = match_levels(teacher_entry, student_entry)
    assert len(levels.student) == len(student_entry.strides)
    model = build_detector(pair.student, CLASSES)
    taught = build_detector(pair.teacher, CLASSES)
    copied = inherit(model, taught) if pair.inherit else []
    # the teacher's head is the student's, but for the biases that FCOS's tricks add
    left = {key for key in model.state_dict() if key.startswith(("bbox_head", "rpn_head", "roi_head"))} - set(copied)
    assert not pair.inherit or left == ({key for key in left if key.endswith("conv.bias")} if "fcos" in pair.name else set())
    assert make_adapters(teacher_entry, student_entry, len(levels.student)) is None
    start = Start(Teacher(taught, levels.teacher), teacher_entry, student_entry, {}, CLASSES, levels, torch.device("cpu"))
    student = Student(model.train(), levels.student)
    channels = (256,) * len(levels.student)
    distillers = build(policy, DistillerContext(channels, channels))
    wanted = needs(policy)
    parameters = [*student.parameters(), *distillers.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=1e-4)
    before = {name: value.detach().clone() for name, value in model.neck.named_parameters()}
    batch = shown()
    batch = batch if student_entry.masks else replace(batch, masks=[])
    for step in range(2):
        inputs, samples = model_inputs(model.data_preprocessor, batch, start.device)
        said = teacher_signals(start, model.data_preprocessor, batch, inputs, wanted)
        task, signals = student.losses(inputs, samples, wanted)
        scene = Scene(tuple(batch.boxes), tuple(inputs.shape[-2:]), step=step, total_steps=2)
        compared = policy_losses(policy, signals, said, scene)
        for distiller in distillers:
            compared |= distiller(signals, said, scene)
        assert len(compared) >= len(policy.terms) + len(policy.distillers)
        assert all(loss.isfinite() and loss > 0 for loss in compared.values()), compared
        total = total_loss(task) + sum(compared.values())
        optimizer.zero_grad()
        total.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, 35.0)
        assert norm.isfinite()
        assert norm > 0
        optimizer.step()
    assert any(not torch.equal(value, before[name]) for name, value in model.neck.named_parameters())
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 < MOST_MEMORY
