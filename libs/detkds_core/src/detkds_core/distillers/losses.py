"""The losses of a policy's distillers, beside which `losses.policy` has those of its terms."""

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn

from detkds_core.losses.policy import found_weight, schedule
from detkds_core.losses.signals import Scene, Signals
from detkds_core.policy.terms import Distiller, Policy


def scale_name(distiller: Distiller) -> str:
    """What a distiller's scale is called, as that of a term is by its loss: `distill/fgd`."""
    return f"distill/{distiller.name}"


def distiller_losses(
    policy: Policy,
    modules: Sequence[nn.Module],
    student: Signals,
    teacher: Signals,
    scene: Scene,
    scales: Mapping[str, float] | None = None,
    only: Callable[[Distiller], bool] = lambda _distiller: True,
) -> dict[str, Tensor]:
    """The weighted losses of the parts of each distiller of a policy, {"distill/fgd_focal": scalar, ...}.

    Nothing of a distiller that counts nothing: at the first step of its warm-up, and once it has stopped.

    modules: of its distillers, in their order (`build`). scales: what multiplies the weight of a `balanced` distiller, by `scale_name`; 1
    where missing. only: of the distillers for which it holds.
    """
    found: dict[str, Tensor] = {}
    for distiller, module in zip(policy.distillers, modules, strict=True):
        now = schedule(distiller, scene.step, scene.total_steps)
        if not only(distiller) or now == 0:
            continue
        weight = found_weight(distiller, (scales or {}).get(scale_name(distiller))) * now
        losses = module(student, teacher, scene)
        found |= losses if weight == 1 else {name: weight * loss for name, loss in losses.items()}
    return found
