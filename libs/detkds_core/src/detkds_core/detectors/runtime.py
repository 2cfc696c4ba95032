"""MMDetection made ready in a process: its ops, its registries, its silence."""

import contextlib
import functools
import io
import logging
import os
import sys
import warnings
from typing import Any

from detkds_core.detectors import ops


@functools.cache
def prepare_mmdet() -> bool:
    """Make MMDetection usable in this process; first call of everything that uses it. Later calls do nothing.

    Bridges mmcv's compiled ops to torchvision (unless mmcv was compiled), registers MMDetection's models and makes its scope the
    default one, and lets checkpoints load as tensors only, never as pickled objects. Nothing is printed and nothing warned: the
    libraries' messages at import (packages that they would like, names that moved) concern nobody who can act on them.
    Afterwards MMEngine's own logger speaks from warnings on, to stderr: by default it lists every weight it sets, on stdout, which
    belongs to the program's own output.
    Returns True when the ops come from the bridge, False when mmcv is compiled.
    """
    # torch refuses to load when both are set, and a checkpoint is a stranger's file
    os.environ.pop("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", None)
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        bridged = ops.install()
        import mmdet.models  # noqa: F401  # its registries; nothing here loads data or runs hooks by MMDetection

        _default_scope()
        _assign_on_the_device()
    _quiet_logger()
    # what their code says about itself while it trains: deprecations that a user cannot mend
    warnings.filterwarnings("ignore", module=r"mm(det|cv|engine)\.")
    warnings.filterwarnings("ignore", message="torch.meshgrid: in an upcoming release")  # told by torch, of MMDetection
    return bridged


def _default_scope() -> None:
    """Let names without a scope be MMDetection's."""
    from mmengine.registry import DefaultScope

    DefaultScope.get_instance("detkds", scope_name="mmdet")  # the newest is the current one


def _assign_on_the_device() -> None:
    """Let RepPoints' assigner count its points on their own device: it counts on the CPU, where a GPU's mask cannot choose among them."""
    from mmdet.models.task_modules.assigners import PointAssigner

    assign = PointAssigner.assign

    @functools.wraps(assign)
    def on_the_device(self: Any, pred_instances: Any, *args: Any, **kwargs: Any) -> Any:
        with pred_instances.priors.device:
            return assign(self, pred_instances, *args, **kwargs)

    PointAssigner.assign = on_the_device


def _quiet_logger() -> None:
    from mmengine.logging import MMLogger

    if MMLogger.check_instance_created("mmengine"):
        return  # the program has set it up as it likes
    logger = MMLogger.get_instance("mmengine", log_level="WARNING")
    for handler in logger.handlers:
        if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stdout:
            handler.setStream(sys.stderr)
