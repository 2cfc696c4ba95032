"""Figures of the official implementations (tests/golden): values to 1e-5 relative, gradient norms to 1e-4 relative."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from detkds_core.losses import Scene, Signals, policy_losses
from detkds_core.losses.distances import DISTANCES
from detkds_core.losses.transforms import ATTENTION, NORMALISATION, SCALE
from detkds_core.policy import Policy, Term
from detkds_core.policy.named import named_policies

GOLDEN = Path(__file__).parents[1] / "golden"
FIGURES = json.loads((GOLDEN / "public.json").read_text())
ARRAYS = {name: torch.tensor(array) for name, array in np.load(GOLDEN / "public.npz").items()}
SCENE = Scene((ARRAYS["boxes_0"], ARRAYS["boxes_1"]), tuple(FIGURES["img_shape"]))


def our(name: str) -> str:
    return {"no": "none", "one_minus_cos": "cos"}.get(name, name)


def cases(*kinds: str) -> list[Any]:
    found = [case for case in FIGURES["cases"] if case["kind"] in kinds]
    return [pytest.param(case, id=" ".join(map(str, [case["kind"], case.get("name", ""), *case.get("transforms", [])]))) for case in found]


def check(term: Term, value: float, grad_norm: float) -> None:
    feat = ARRAYS["student"].clone().requires_grad_()
    # The arrays stand for features or for classification logits.
    student, teacher = (Signals(features=(x,), logits=(x,)) for x in (feat, ARRAYS["teacher"]))
    (loss,) = policy_losses(Policy((term,)), student, teacher, SCENE).values()
    loss.backward()
    assert feat.grad is not None
    assert loss.item() == pytest.approx(value, rel=1e-5)
    assert feat.grad.norm().item() == pytest.approx(grad_norm, rel=1e-4)


def test_there_is_a_case_of_each_kind() -> None:
    count = {kind: len(cases(kind)) for kind in ("transform", "distance", "global", "fgbg", "instance", "logits")}
    assert count == {"transform": 26, "distance": 5, "global": 120, "fgbg": 5, "instance": 4, "logits": 5}


@pytest.mark.parametrize("case", cases("transform"))
def test_transform(case: dict[str, Any]) -> None:
    stage = (ATTENTION, SCALE, NORMALISATION)[case["stage"] - 1]
    assert_close(stage[our(case["name"])](ARRAYS[case["input"]]), ARRAYS[case["output"]], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("case", cases("distance"))
def test_distance(case: dict[str, Any]) -> None:
    value = DISTANCES[our(case["name"])](ARRAYS[case["student"]], ARRAYS[case["teacher"]])
    assert value.item() == pytest.approx(case["value"], rel=1e-5)


@pytest.mark.parametrize("case", cases("global", "fgbg", "instance", "logits"))
def test_term(case: dict[str, Any]) -> None:
    value = case["fg"] + case["bg"] if case["kind"] == "fgbg" else case["value"]
    term = Term(case["kind"], tuple(map(our, case["transforms"])), case["distance"], case["weight"])
    check(term, value, case["grad_norm"])


@pytest.mark.parametrize("case", [case for case in cases("distiller") if case.values[0]["name"] in ("pkd", "cwd")])
def test_hand_designed_distiller_that_is_a_policy(case: dict[str, Any]) -> None:
    (term,) = named_policies()[case["name"]].policy.terms
    # PKD's own factor of 1/2 is part of the policy's weight.
    weight = case["loss_weight"] / (2 if case["name"] == "pkd" else 1)
    check(replace(term, weight=weight, temperature=case.get("tau", 1.0)), case["value"], case["grad_norm"])
