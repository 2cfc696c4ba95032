"""MasKD's tokens learn on a frozen detector, the same for the same seed, once for the same facts."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from detkds_core.datasets.kept import sweep
from detkds_core.detectors.build import build_detector
from detkds_core.distillers.maskd import MasKD
from detkds_core.training.tokens import cached_tokens, learn_tokens

LEVELS, CHANNELS = (0, 2), (32, 32)  # of three


def inputs(step: int) -> tuple[Tensor, list[Any]]:
    """Two noisy images of 64 pixels with a bright box each."""
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    generator = torch.Generator().manual_seed(step)
    images, samples = torch.randn(2, 3, 64, 64, generator=generator), []
    for image in images:
        image[:, 16:40, 8:40] += 3
        sample = DetDataSample(metainfo={"img_shape": (64, 64), "pad_shape": (64, 64)})
        sample.gt_instances = InstanceData(bboxes=torch.tensor([[8.0, 16.0, 40.0, 40.0]]), labels=torch.tensor([1]))
        sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long))
        samples.append(sample)
    return images, samples


@pytest.fixture(scope="module", params=["gfl_r18w8_fpn32", "faster_rcnn_r18w8_fpn32"])
def teacher(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return build_detector(request.param, ("a", "b")).eval().requires_grad_(False)


def learn(teacher: nn.Module, steps: int, seed: int = 0) -> dict[str, Tensor]:
    return learn_tokens(teacher, LEVELS, CHANNELS, inputs, tokens=3, steps=steps, seed=seed)


def test_the_tokens_learn_and_the_teacher_stays_as_it_was(teacher: nn.Module) -> None:
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    seen = teacher.extract_feat(inputs(0)[0])
    fresh, learned = learn(teacher, 0), learn(teacher, 8)
    assert all(not torch.equal(fresh[name], value) for name, value in learned.items())
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert not any(module.training for module in teacher.modules())
    assert not any(p.requires_grad or p.grad is not None for p in teacher.parameters())
    assert_close(teacher.extract_feat(inputs(0)[0]), seen)  # no mask is left on it
    # They fit MasKD's modules, and their masks are less alike than those of fresh tokens.
    alike = []
    for state in (fresh, learned):
        modules = MasKD(CHANNELS, CHANNELS, num_tokens=3).mask_modules
        modules.load_state_dict(state)
        alike.append(sum(module(seen[level])[1].item() for module, level in zip(modules, LEVELS, strict=True)))
    assert alike[1] < alike[0]


def test_the_same_seed_gives_the_same_tokens(teacher: nn.Module) -> None:
    one, again, other = learn(teacher, 2), learn(teacher, 2), learn(teacher, 2, seed=1)
    assert all(torch.equal(value, again[name]) for name, value in one.items())
    assert any(not torch.equal(value, other[name]) for name, value in one.items())


def test_tokens_that_are_not_finite_are_an_error(teacher: nn.Module) -> None:
    def broken(step: int) -> tuple[Tensor, list[Any]]:
        images, samples = inputs(step)
        return images * float("nan"), samples

    with pytest.raises(RuntimeError, match="not finite"):
        learn_tokens(teacher, LEVELS, CHANNELS, broken, tokens=3, steps=2, seed=0)
    assert not teacher.training


def test_tokens_are_learned_once_for_the_same_facts(tmp_path: Path) -> None:
    learned: list[int] = []

    def learn() -> dict[str, Tensor]:
        learned.append(1)
        return {"0.mask_token": torch.full((2, 3), float(len(learned)))}

    facts = {"teacher": "abc", "dataset": "def", "tokens": 2, "seed": 0}
    first = cached_tokens(tmp_path / "tokens", facts, learn)
    os.utime(next((tmp_path / "tokens").iterdir()), (0, 0))
    again = cached_tokens(tmp_path / "tokens", dict(reversed(facts.items())), learn)
    assert len(learned) == 1
    assert sweep(tmp_path / "tokens", days=1) == 0, "tokens that were just used are none that nobody uses"
    assert torch.equal(first["0.mask_token"], again["0.mask_token"])
    other = cached_tokens(tmp_path / "tokens", {**facts, "seed": 1}, learn)
    assert other["0.mask_token"][0, 0] == 2
    assert len(list((tmp_path / "tokens").iterdir())) == 2
