"""Every named policy trains on signals of the kinds that it needs; modules follow from policy, context and seed alone."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from detkds_core.distillers import DistillerContext, build, settings_of, token_settings
from detkds_core.distillers.build import BUILDERS
from detkds_core.distillers.maskd import MasKD
from detkds_core.losses import Scene, Signals, needs, policy_losses
from detkds_core.losses.signals import Rois
from detkds_core.policy import Distiller, Policy, named_policies, parse_formula
from detkds_core.policy.distillers import DISTILLERS

SIZES = ((6, 8), (3, 4))  # cells of two levels on an image of 48 x 64 pixels
C, K, BINS = 4, 3, 5
SCENE = Scene((torch.tensor([[4.0, 4.0, 30.0, 40.0], [20.0, 8.0, 60.0, 30.0]]), torch.zeros(0, 4)), (48, 64), step=600, total_steps=1000)
POLICIES = {name: one.policy for name, one in named_policies().items() if name != "none"}


class Detector(nn.Module):
    """All that a detector may say of an image, each as a parameter of its own, so that any gradient is seen."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def levels(channels: int) -> nn.ParameterList:
            return nn.ParameterList(nn.Parameter(torch.randn(2, channels, *size, generator=generator)) for size in SIZES)

        self.features, self.logits, self.edges = levels(C), levels(K), levels(4 * BINS)
        self.class_tower, self.box_tower = levels(C), levels(C)
        self.regions = torch.tensor([[0.0, 4, 4, 30, 40], [0, 20, 8, 60, 30], [1, 0, 0, 64, 48]])
        self.roi_scores = nn.Parameter(torch.randn(len(self.regions), K + 1, generator=generator))
        self.roi_boxes = nn.Parameter(self.regions[:, None, 1:] + 4 * torch.randn(len(self.regions), K, 4, generator=generator))
        self.corners = nn.ParameterList(nn.Parameter(24 * torch.rand(2, h * w, 4, generator=generator)) for h, w in SIZES)

    def signals(self) -> Signals:
        return Signals(
            tuple(self.features),
            tuple(self.logits),
            tuple(torch.cat([c[..., :2], c[..., :2] + 8 + c[..., 2:].abs()], 2) for c in self.corners),
            tuple(self.edges),
            assigned=tuple(torch.arange(h * w).expand(2, -1) % 3 == 0 for h, w in SIZES),
            valuable=tuple((torch.arange(h * w).expand(2, -1) % 3 == 1) * 0.3 for h, w in SIZES),
            towers=dict.fromkeys((2, 3), tuple(zip(self.class_tower, self.box_tower, strict=True))),
            rois=Rois(self.regions, self.roi_scores, self.roi_boxes),
        )


def context(seed: int = 0) -> DistillerContext:
    with torch.random.fork_rng():
        torch.manual_seed(9)
        head = nn.ModuleList([nn.Conv2d(C, K, 1), nn.Conv2d(C, 4 * BINS, 1)]).requires_grad_(False)
    tokens = MasKD([C, C], [C, C]).mask_modules.state_dict()
    return DistillerContext((C, C), (C, C), head_tail=lambda c, b, *_: (head[0](c.relu()), head[1](b.relu())), tokens=tokens, seed=seed)


def losses(policy: Policy, modules: nn.ModuleList, student: Signals, teacher: Signals) -> dict[str, Tensor]:
    found = policy_losses(policy, student, teacher, SCENE) if policy.terms else {}
    for module in modules:
        found |= module(student, teacher, SCENE)
    return found


@pytest.mark.parametrize("name", POLICIES)
def test_every_named_policy_trains(name: str) -> None:
    policy = POLICIES[name]
    student, teacher = Detector(0), Detector(1)
    modules = build(policy, context())
    learnt = [p for p in modules.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD([*student.parameters(), *learnt], lr=1e-3)
    for _ in range(2):
        found = losses(policy, modules, student.signals(), teacher.signals())
        assert all(key.startswith("distill/") and loss.shape == () and loss.isfinite() for key, loss in found.items())
        total = torch.stack(list(found.values())).sum()
        assert total.item() > 0
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    assert all(p.grad is None for p in teacher.parameters())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in learnt)
    # What it says that it needs is what it learns from.
    of = {"features": student.features, "logits": student.logits, "boxes": student.corners, "edges": student.edges}
    of |= {"roi_scores": [student.roi_scores], "roi_boxes": [student.roi_boxes]}
    of["towers"] = [*student.class_tower, *student.box_tower]
    needed = {"towers" if name.startswith("towers_") else name for name in needs(policy)}
    moved = {kind for kind, levels in of.items() if any(p.grad is not None and p.grad.abs().sum() > 0 for p in levels)}
    assert moved <= needed
    assert moved


@pytest.mark.parametrize(
    "name", [name for name, policy in POLICIES.items() if policy.distillers or not needs(policy) & {"logits", "boxes"}]
)
def test_an_image_without_boxes_is_finite(name: str) -> None:
    student, teacher = Detector(0), Detector(1)
    empty = replace(SCENE, boxes=(torch.zeros(0, 4), torch.zeros(0, 4)))
    policy = POLICIES[name]
    found = policy_losses(policy, student.signals(), teacher.signals(), empty)
    for module in build(policy, context()):
        found |= module(student.signals(), teacher.signals(), empty)
    assert all(loss.isfinite() for loss in found.values())


@pytest.mark.parametrize("name", DISTILLERS)
def test_first_weights_follow_from_the_seed_alone(name: str) -> None:
    policy, first, second = Policy((), (Distiller(name),)), context(), context(seed=1)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = build(policy, first).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)
    again, other = build(policy, first).state_dict(), build(policy, second).state_dict()
    assert all(torch.equal(value, again[key]) for key, value in one.items())
    # MasKD's are the tokens that it is given; on heads of one width CrossKD learns nothing.
    assert name in ("maskd", "crosskd") or any(not torch.equal(value, other[key]) for key, value in one.items())


def test_there_is_a_module_for_each_distiller_and_all_of_its_settings() -> None:
    assert set(BUILDERS) == set(DISTILLERS)
    for name, entry in DISTILLERS.items():
        halved = tuple((key, setting.low if setting.whole else setting.default / 2) for key, setting in entry.settings.items())
        assert len(build(Policy((), (Distiller(name, halved),)), replace(context(), tokens=None) if name == "maskd" else context())) == 1


def test_settings() -> None:
    assert settings_of(Distiller("mgd", (("mask_ratio", 0.5),))) == {"alpha": 2e-5, "mask_ratio": 0.5, "l1": 0}
    (fgd,) = build(parse_formula("fgd[alpha=0.1, beta=0.2, gamma=0.3, lambda=0.4, temperature=0.8]"), context())
    assert (fgd.alpha, fgd.beta, fgd.gamma, fgd.lambda_, fgd.temperature) == (0.1, 0.2, 0.3, 0.4, 0.8)
    assert token_settings(parse_formula("maskd[tokens=3, steps=10] + l2(global)")) == (3, 10)
    assert token_settings(parse_formula("fgd")) is None


def test_maskd_looks_with_the_tokens_that_were_learned() -> None:
    given = context()
    (maskd,) = build(parse_formula("maskd"), given)
    for name, value in given.tokens.items():
        assert_close(maskd.mask_modules.state_dict()[name], value)
    with pytest.raises(ValueError, match="2000 steps on the teacher have taught, and got none"):
        build(parse_formula("maskd"), replace(given, tokens=None))
    assert len(build(parse_formula("maskd[steps=0]"), replace(given, tokens=None))) == 1


def test_crosskd_needs_a_head_to_look_through() -> None:
    with pytest.raises(ValueError, match="this teacher has none to lend"):
        build(parse_formula("crosskd"), replace(context(), head_tail=None))
