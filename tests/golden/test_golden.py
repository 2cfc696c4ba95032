"""Figures of the official implementations (public.json): values to 1e-5 relative, gradient norms to 1e-4 relative."""

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from detkds_core.golden import File, Outcome, deviation, elementwise_deviation, evaluate, evaluate_all, main, read

PUBLIC = Path(__file__).parent / "public.json"
FILE = read(PUBLIC)


def name(case: dict[str, Any]) -> str:
    return " ".join(map(str, (case["kind"], case.get("name", ""), *case.get("transforms", ()), case.get("distance", ""))))


def test_there_is_a_case_of_each_kind() -> None:
    assert Counter(case["kind"] for case in FILE.cases) == {
        "transform": 26,
        "distance": 5,
        "global": 120,
        "fgbg": 5,
        "instance": 4,
        "logits": 5,
        "distiller": 7,
    }


@pytest.mark.parametrize("case", FILE.cases, ids=name)
def test_official_figure(case: dict[str, Any]) -> None:
    outcome = evaluate(case, FILE)
    assert outcome.passed, outcome
    assert set(outcome.deviations) == {"value", "grad_norm"} & {*case, "value"}


def written(folder: Path, cases: list[dict[str, Any]], **figures: Any) -> Path:
    """A file like the public one with these cases; its arrays are the public ones."""
    path = folder / "cases.json"
    path.write_text(json.dumps({**FILE.figures, **figures, "cases": cases}))
    np.savez(path.with_suffix(".npz"), **{name: array.numpy() for name, array in FILE.arrays.items()})
    return path


def of(kind: str, **also: Any) -> dict[str, Any]:
    return dict(next(case for case in FILE.cases if case["kind"] == kind and also.items() <= case.items()))


@pytest.mark.parametrize("figure", ["value", "grad_norm"])
def test_a_figure_that_is_off_is_named_and_fails(figure: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = of("global", transforms=["satt", "no", "batch"])
    tolerance = {"value": 1e-5, "grad_norm": 1e-4}[figure]
    near, far = ({**case, figure: case[figure] * (1 + factor * tolerance)} for factor in (0.9, 1.1))
    assert main([str(written(tmp_path, [near]))]) == 0
    assert main([str(written(tmp_path, [near, far]))]) == 1
    said = capsys.readouterr().out
    assert re.search(r"global +2 cases .* 1 FAILED", said)
    assert re.search(rf"FAILED global satt no batch l2: .*{figure} is off by 1\.1e-0{5 if figure == 'value' else 4}", said)
    assert "2 cases, 1 failed" in said


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"kind": "gram"}, "not a kind of case; one of transform, distance, global"),
        ({"kind": None}, "says no kind"),
        ({"transforms": ["satt", "no", "norm_X"]}, "transforms[2]: 'norm_X' is not known"),
        ({"distance": "emd"}, "distance: 'emd' is not known"),
        ({"transforms": ["mask", "no", "no"]}, "draws at random"),
        ({"student": "nobody"}, "the file of arrays has no 'nobody'"),
        ({"value": None}, "value: None is not a number"),
        ({"value": float("nan")}, "value is off by inf"),
    ],
)
def test_a_case_that_cannot_be_evaluated_fails_and_hides_no_other(
    change: dict[str, Any], why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = of("global", transforms=["satt", "no", "batch"])
    assert main([str(written(tmp_path, [{**case, **change}, case]))]) == 1
    said = capsys.readouterr().out
    assert why in said
    assert "2 cases, 1 failed" in said


def test_distillers_that_are_not_known_or_lack_parameters_fail() -> None:
    mgd = of("distiller", name="mgd")
    assert "not a distiller" in str(evaluate({**mgd, "name": "kdd"}, FILE))
    some = dict(list(mgd["parameters"].items())[:2])
    assert "levels.0.generation.2.weight, levels.0.generation.2.bias not given" in str(evaluate({**mgd, "parameters": some}, FILE))
    strange = {**mgd["parameters"], "generation.9.weight": "mgd.generation.0.weight"}
    assert "'generation.9.weight' is not a parameter" in str(evaluate({**mgd, "parameters": strange}, FILE))


def test_nothing_to_evaluate_is_said_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "none.json")]) == 2
    alone = tmp_path / "alone.json"
    alone.write_text(PUBLIC.read_text())
    assert main([str(alone)]) == 2
    assert f"{tmp_path / 'alone.npz'}: No such file" in capsys.readouterr().err
    assert main([str(written(tmp_path, []))]) == 2
    assert "holds no cases" in capsys.readouterr().err


def test_other_shapes_strides_and_numbers_of_boxes() -> None:
    # Figures by hand, of a map of 3 x 5 cells of 4 pixels on an image of 11 x 18, three images, one of them without boxes.
    student = torch.zeros(3, 2, 3, 5)
    teacher = torch.ones(3, 2, 3, 5)
    # Box 1: x 0..18 of 18 is cells 0 to 5, y 0..11 is cells 0 to 3: all of the map, weight 1/(4*6). Image 2: cells 1..3 x 0..1, 1/(3*2).
    boxes = {"boxes_0": torch.tensor([[0.0, 0.0, 18.0, 11.0]]), "boxes_2": torch.tensor([[4.0, 0.0, 10.0, 3.5]])}
    file = File({"img_shape": [11, 18]}, {"student": student, "teacher": teacher, **boxes})
    fg = (15 / 24 + 6 / 6) / 45
    bg = 0.5 * (0 + 1 + 1) / 45
    case = {"kind": "fgbg", "transforms": ["no", "no", "no"], "distance": "l1", "weight": 1.0, "fg": fg, "bg": bg}
    outcome = evaluate(case, file)
    assert outcome.passed, outcome


def test_operations_over_images_have_figures_on_one_image() -> None:
    feat = torch.tensor([[[[-2.0, 3.0]]]])
    for name, wanted in (("norm_N", feat.sign()), ("softmax_N", torch.ones(1, 1, 1, 2)), ("natt", torch.ones(1, 1, 1, 2))):
        outcome = evaluate({"kind": "transform", "name": name, "output": "out"}, File({}, {"student": feat, "out": wanted}))
        assert outcome.passed, outcome


def test_deviations_by_hand() -> None:
    assert deviation(1.1, 1.0, 0.0) == pytest.approx(0.1)
    assert deviation(2e-8, 1e-8, 1e-7) == pytest.approx(0.1)
    # The second element is small beside the first, and counts as a tenth of it.
    assert elementwise_deviation(torch.tensor([10.0, 0.3]), torch.tensor([10.0, 0.2])) == pytest.approx(0.1)
    assert elementwise_deviation(torch.tensor([10.0, 5.0]), torch.tensor([10.0, 4.0])) == pytest.approx(0.25)
    nan = float("nan")
    assert elementwise_deviation(torch.tensor([nan, 1.0]), torch.tensor([nan, 1.0])) == 0
    assert elementwise_deviation(torch.tensor([nan, 1.0]), torch.tensor([1.0, nan])) == float("inf")
    failed = Outcome("global", "x", {"value": 1.1e-5})
    assert not failed.passed
    assert replace(failed, deviations={"value": 0.9e-5}).passed
    assert all(outcome.passed for outcome in evaluate_all(File(FILE.figures | {"cases": FILE.cases[:3]}, FILE.arrays)))
