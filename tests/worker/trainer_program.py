"""The trainer, its state kept at every step and, where asked, a backbone that refuses batches: `python trainer_program.py SPEC OUT`."""

import os
import sys

import torch

from detkds_core.training import distillation
from detkds_core.training.launch import RANK
from detkds_worker import trainer

distillation.RESUME_SECONDS = 0.0


def refuse(module, inputs):
    """With the accelerator's own error, and on one of two devices alone."""
    small = len(inputs) == 0 or not isinstance(inputs[0], torch.Tensor) or len(inputs[0]) <= int(os.environ["LARGEST_BATCH"])
    if type(module).__name__ == "ResNet" and module.training and not small and os.environ.get(RANK) == "1":
        raise torch.OutOfMemoryError("CUDA out of memory.")


if "LARGEST_BATCH" in os.environ:
    torch.nn.modules.module.register_module_forward_pre_hook(refuse)
torch.set_num_threads(1)
code = trainer.main(sys.argv[1:])
sys.stdout.flush()
sys.stderr.flush()
os._exit(code)
