"""The modules of a policy's distillers."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from detkds_core.distillers.context import DistillerContext
from detkds_core.distillers.crosskd import CrossKD
from detkds_core.distillers.fgd import FGD
from detkds_core.distillers.gid import GID
from detkds_core.distillers.maskd import MasKD
from detkds_core.distillers.mgd import MGD
from detkds_core.policy.distillers import DISTILLERS as ENTRIES
from detkds_core.policy.terms import Distiller, Policy

Settings = Mapping[str, Any]


def build(policy: Policy, context: DistillerContext) -> nn.ModuleList:
    """A module for each distiller of a legal policy, in its order: forward(student, teacher, scene) -> {"distill/<name>_<part>": scalar}.

    Their first weights follow from the context's seed and the distiller's place alone; the global generator is left as it was.
    Raises ValueError where the context lacks what a distiller needs.
    """
    modules = []
    for place, distiller in enumerate(policy.distillers):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(context.seed + place)
            modules.append(BUILDERS[distiller.name](context, settings_of(distiller)))
    return nn.ModuleList(modules).to(context.device)


def settings_of(distiller: Distiller) -> dict[str, Any]:
    """All settings of a distiller, those that the policy does not give at their default; whole numbers as int."""
    given = dict(distiller.settings)
    known = ENTRIES[distiller.name].settings
    return {name: int(given.get(name, one.default)) if one.whole else float(given.get(name, one.default)) for name, one in known.items()}


def token_settings(policy: Policy) -> tuple[int, int] | None:
    """How many tokens a level MasKD has in this policy, and in how many steps they are learned; None without MasKD."""
    for distiller in policy.distillers:
        if distiller.name == "maskd":
            settings = settings_of(distiller)
            return settings["tokens"], settings["steps"]
    return None


def tokens_of(policy: Policy, state: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """MasKD's tokens in the state of what `build` made of a policy; None without MasKD."""
    for place, distiller in enumerate(policy.distillers):
        if distiller.name == "maskd":
            prefix = f"{place}.mask_modules."
            return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    return None


def _fgd(context: DistillerContext, settings: Settings) -> nn.Module:
    weights = {"lambda_" if name == "lambda" else name: value for name, value in settings.items()}
    return FGD(context.student_channels, context.teacher_channels, **weights)


def _mgd(context: DistillerContext, settings: Settings) -> nn.Module:
    return MGD(context.student_channels, context.teacher_channels, **{**settings, "l1": bool(settings["l1"])})


def _maskd(context: DistillerContext, settings: Settings) -> nn.Module:
    module = MasKD(
        context.student_channels,
        context.teacher_channels,
        num_tokens=settings["tokens"],
        weight_mask=bool(settings["weigh"]),
        custom_mask=bool(settings["student_masks"]),
        masks_from=settings["masks_from"],
        weight=settings["weight"],
    )
    if context.tokens is not None:
        module.mask_modules.load_state_dict(dict(context.tokens))
    elif settings["steps"]:
        raise ValueError(f"maskd looks with tokens that {settings['steps']} steps on the teacher have taught, and got none")
    return module


def _gid(context: DistillerContext, settings: Settings) -> nn.Module:
    return GID(context.student_channels, context.teacher_channels, **settings)


def _crosskd(context: DistillerContext, settings: Settings) -> nn.Module:
    if context.head_tail is None:
        raise ValueError("crosskd needs the last layers of the teacher's dense head, and this teacher has none to lend")
    return CrossKD(context.head_tail, context.tower_channels, **{**settings, "giou": bool(settings["giou"])})


BUILDERS: Mapping[str, Callable[[DistillerContext, Settings], nn.Module]] = {
    "fgd": _fgd,
    "mgd": _mgd,
    "maskd": _maskd,
    "gid": _gid,
    "crosskd": _crosskd,
}
