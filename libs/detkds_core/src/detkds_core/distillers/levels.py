"""Levels of a student and a teacher side by side: channels adapted, the teacher without gradient."""

from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from detkds_core.losses.signals import Signals


def adapters(student_channels: Sequence[int], teacher_channels: Sequence[int]) -> nn.ModuleList:
    """A 1x1 convolution for each level whose channels differ, the identity for the others."""
    if len(student_channels) != len(teacher_channels):
        raise ValueError(
            f"the student has {len(student_channels)} levels and the teacher {len(teacher_channels)}; align the levels of the pair"
        )
    pairs = zip(student_channels, teacher_channels, strict=True)
    return nn.ModuleList(nn.Identity() if s == t else nn.Conv2d(s, t, 1) for s, t in pairs)


def aligned(align: nn.ModuleList, student: Signals, teacher: Signals) -> Iterator[tuple[Tensor, Tensor]]:
    """The features of each level in float32, the student's adapted to the teacher's channels, the teacher's without gradient."""
    if not len(align) == len(student.features) == len(teacher.features):
        raise ValueError(
            f"features have {len(student.features)} levels at the student and {len(teacher.features)} at the teacher, "
            f"the distiller was built for {len(align)}"
        )
    for level, (adapt, s, t) in enumerate(zip(align, student.features, teacher.features, strict=True)):
        ours = adapt(s.float())
        if ours.shape != t.shape:
            raise ValueError(f"features of level {level} are {tuple(ours.shape)} at the student and {tuple(t.shape)} at the teacher")
        yield ours, t.detach().float()


def squared_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Sum of squared differences over everything but images, mean over images."""
    return (student - teacher).square().sum() / len(student)


def absolute_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Sum of absolute differences over everything but images, mean over images."""
    return (student - teacher).abs().sum() / len(student)
