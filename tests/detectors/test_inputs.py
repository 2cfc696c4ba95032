"""Teacher and student may want their images differently: the teacher sees the same pixels its own way."""

from dataclasses import replace

import pytest
import torch

from detkds_core.catalogue import DETECTORS
from detkds_core.detectors.build import build_detector
from detkds_core.detectors.pair import Teacher, match_levels
from detkds_core.training.batches import Batch
from detkds_core.training.group import Start, model_inputs, teacher_signals

CLASSES = ("a", "b", "c")
CAFFE_MEAN = (102.9801, 115.9465, 122.7717)  # blue first
NEEDS = frozenset({"features"})


def batch() -> Batch:
    generator = torch.Generator().manual_seed(2)
    images = [torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8) for size in ((50, 70), (64, 40))]
    return Batch(images, [torch.tensor([[4.0, 4, 30, 30]])] * 2, [torch.tensor([0])] * 2)


def by_hand(images: list[torch.Tensor], mean: tuple[float, ...], shape: tuple[int, int]) -> torch.Tensor:
    """Blue, green, red less their means, with zeros right and below."""
    inputs = torch.zeros(len(images), 3, *shape)
    for place, image in enumerate(images):
        inputs[place, :, : image.shape[1], : image.shape[2]] = image.float() - torch.tensor(mean).view(3, 1, 1)
    return inputs


def started(teacher: torch.nn.Module) -> Start:
    gfl = DETECTORS["gfl_r18w8_fpn32"]
    levels = match_levels(gfl, gfl)
    return Start(Teacher(teacher, levels.teacher), gfl, gfl, {}, CLASSES, levels, torch.device("cpu"))


def test_a_caffe_teacher_of_a_pytorch_student_sees_its_own_normalisation():
    from mmdet.models import DetDataPreprocessor

    teacher = build_detector("gfl_r18w8_fpn32", CLASSES)
    teacher.data_preprocessor = DetDataPreprocessor(mean=CAFFE_MEAN, std=(1, 1, 1), bgr_to_rgb=False, pad_size_divisor=32)
    student = build_detector("gfl_r18w8_fpn32", CLASSES).data_preprocessor
    shown = batch()
    inputs, _ = model_inputs(student, shown, torch.device("cpu"))
    assert inputs.shape == (2, 3, 64, 96)
    start = started(teacher)
    said = teacher_signals(start, student, shown, inputs, NEEDS)
    expected = start.teacher.signals(by_hand(shown.images, CAFFE_MEAN, (64, 96)), NEEDS)
    for ours, theirs in zip(said.features, expected.features, strict=True):
        torch.testing.assert_close(ours, theirs)
    otherwise = start.teacher.signals(inputs, NEEDS)
    assert not torch.allclose(otherwise.features[0], said.features[0], atol=1e-3)


def test_a_teacher_of_the_same_normalisation_sees_the_students_inputs():
    start = started(build_detector("gfl_r18w8_fpn32", CLASSES))
    student = build_detector("fcos_r18w8_fpn32", CLASSES).data_preprocessor
    inputs = torch.randn(2, 3, 64, 96)  # not what the batch would give
    said = teacher_signals(start, student, batch(), inputs, NEEDS)
    torch.testing.assert_close(said.features[0], start.teacher.signals(inputs, NEEDS).features[0])


@pytest.mark.parametrize(("teacher", "mean"), [("yolox_tiny", (0.0, 0.0, 0.0)), ("gfl_r18w8_fpn32", None)], ids=["pixels", "to pixels"])
def test_a_detector_that_takes_pixels_as_they_are(teacher, mean):
    model = build_detector(teacher, CLASSES)
    student = build_detector("yolox_tiny" if mean is None else "gfl_r18w8_fpn32", CLASSES).data_preprocessor
    shown = batch()
    inputs, _ = model_inputs(student, shown, torch.device("cpu"))
    start = replace(started(model), teacher=Teacher(model, (0, 1, 2)))
    said = teacher_signals(start, student, shown, inputs, NEEDS)
    own, _ = model_inputs(model.data_preprocessor, shown, torch.device("cpu"))
    expected = start.teacher.signals(own, NEEDS)
    torch.testing.assert_close(said.features[0], expected.features[0])
    if mean is not None:
        torch.testing.assert_close(own[0, :, :50, :70], shown.images[0].float())
        assert set(own[0, :, 50:].unique().tolist()) == {114.0}


@pytest.mark.parametrize("name", ["rtmdet_tiny", "gfl_r18w8_fpn32"])
def test_a_teacher_that_fills_its_images_up_further_than_the_student_hands_over_what_lies_under_the_students(name):
    """A neck that joins maps of neighbouring strides needs sides of whole multiples; a DETR fills nothing up."""
    teacher, detr = DETECTORS[name], DETECTORS["detr_r18"]
    levels = match_levels(teacher, detr)
    student = build_detector("detr_r18", CLASSES).eval()
    start = Start(Teacher(build_detector(name, CLASSES), levels.teacher), teacher, detr, {}, CLASSES, levels, torch.device("cpu"))
    odd = Batch([torch.randint(0, 256, (3, 100, 133), dtype=torch.uint8)], [torch.tensor([[4.0, 4, 30, 30]])], [torch.tensor([0])])
    inputs, _ = model_inputs(student.data_preprocessor, odd, torch.device("cpu"))
    assert inputs.shape[-2:] == (100, 133)
    said = teacher_signals(start, student.data_preprocessor, odd, inputs, NEEDS)
    own, _ = model_inputs(start.teacher.model.data_preprocessor, odd, torch.device("cpu"))
    assert own.shape[-2:] == (128, 160)
    maps = [student.extract_feat(inputs)[level] for level in levels.student]
    assert [x.shape[-2:] for x in said.features] == [x.shape[-2:] for x in maps]
    for ours, whole in zip(said.features, start.teacher.signals(own, NEEDS).features, strict=True):
        torch.testing.assert_close(ours, whole[..., : ours.shape[-2], : ours.shape[-1]])
