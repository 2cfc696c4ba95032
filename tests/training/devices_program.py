"""Train a small student, in as many processes as it is started in, and write its weights: `python devices_program.py SPEC OUT`."""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from detkds_core.catalogue import DETECTORS, Recipe
from detkds_core.detectors.build import build_detector
from detkds_core.detectors.checkpoints import BACKBONE, backbone_weights
from detkds_core.detectors.runtime import prepare_mmdet
from detkds_core.policy import from_json
from detkds_core.training import parallel
from detkds_core.training.group import batches_for, new_learner, prepare, train

FROZEN = "fcos_frozen_norms"


def add_detector_without_batch_coupling() -> None:
    """FCOS whose backbone normalises by stored statistics; its head's group norm looks at one image at a time.

    Its losses are divided by numbers that MMDetection averages over processes. So are GFL's, but not below 1, which an untrained GFL is.
    """
    entry = DETECTORS["fcos_r18w8_fpn32"]
    backbone = {**entry.config["backbone"], "norm_eval": True}
    DETECTORS[FROZEN] = replace(entry, name=FROZEN, config={**entry.config, "backbone": backbone})


def frozen_student(folder: Path, classes: Sequence[str]) -> dict[str, str]:
    """The student of that detector with a backbone that counts as pretrained: one of random weights would not stay frozen."""
    add_detector_without_batch_coupling()
    prepare_mmdet()
    torch.manual_seed(7)
    weights = backbone_weights(build_detector(FROZEN, classes).state_dict())
    path = folder / "backbone.safetensors"
    save_file({key: value.contiguous() for key, value in weights.items()}, path, metadata={"part": BACKBONE})
    return {"detector": FROZEN, "checkpoint": str(path)}


def trained(spec: dict[str, Any]) -> dict[str, Any]:
    """Weights, the losses of the last step and the scales of terms whose weights were found."""
    add_detector_without_batch_coupling()
    start, recipe = prepare(spec, spec["seed"]), Recipe.from_json(spec["recipe"])
    learner = new_learner(start, from_json(spec["policy"]), recipe, spec["seed"])
    train([learner], start, batches_for(learner, spec["dataset"]["train"], recipe, spec["seed"]))
    assert learner.failure is None
    return {"weights": learner.student.model.state_dict(), "losses": learner.read_losses(), "scales": learner.scales}


def main() -> None:
    torch.set_num_threads(1)
    prepare_mmdet()
    with parallel.joined():
        result = trained(json.loads(Path(sys.argv[1]).read_text()))
        if parallel.rank() == 0:
            torch.save(result, sys.argv[2])


if __name__ == "__main__":
    main()
