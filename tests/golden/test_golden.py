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
        ({"transforms": None}, "transforms: None is not a list of at most 3: attention, scale, normalisation"),
        ({"transforms": ["no"] * 4}, "is not a list of at most 3: attention, scale, normalisation"),
        ({"transforms": ["no"], "distance": "kl"}, "'kl' compares distributions, not 'none'; last one of softmax_N, softmax_C, softmax_HW"),
        ({"student": "nobody"}, "the file of arrays has no 'nobody'"),
        ({"student": ["student"]}, "student: the file of arrays has no ['student']"),
        ({"student": "t3_batch"}, "student: has shape [2, 1536] instead of (N, C, H, W)"),
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


def test_what_is_no_case_hides_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = of("global", transforms=["satt", "no", "batch"])
    unsaid = {key: value for key, value in case.items() if key != "transforms"}
    assert main([str(written(tmp_path, ["global", None, unsaid, case]))]) == 1  # type: ignore[list-item]
    said = capsys.readouterr().out
    assert "FAILED unknown global: says no kind" in said
    assert "FAILED global l2: transforms: None is not a list" in said
    assert "4 cases, 3 failed" in said


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"img_shape": 96}, "img_shape: 96 is not a height and a width in pixels"),
        ({"img_shape": [0, 128]}, "img_shape: [0, 128] is not a height"),
        ({"boxes": ["boxes_0"]}, "boxes of 1 images, and 2 images"),
        ({"boxes": ["boxes_0", "boxes_9"]}, "boxes[1]: the file of arrays has no 'boxes_9'"),
        ({"boxes": ["boxes_0", "mgd.generation.0.bias"]}, "boxes of image 1: have shape [8] instead of (n, 4)"),
    ],
)
def test_ground_truth_that_cannot_be_read_is_named(change: dict[str, Any], why: str) -> None:
    assert why in str(evaluate({**of("fgbg"), **change}, FILE))


@pytest.mark.parametrize(
    ("name", "change", "why"),
    [
        ("mgd", {"parameters": ["generation.0.weight"]}, "parameters: ['generation.0.weight'] is no object"),
        ("mgd", {"parameters": {"generation.0.weight": "student"}}, "parameters.generation.0.weight: 'student' has shape [2, 8, 12, 16]"),
        ("mgd", {"mask_ratio": 0.65}, "mask_ratio: 0.65 draws at random, and has no figure"),
        ("maskd", {"weight_mask": "false"}, "weight_mask: 'false' is neither true nor false"),
    ],
)
def test_settings_of_distillers_that_cannot_be_read_are_named(name: str, change: dict[str, Any], why: str) -> None:
    assert why in str(evaluate({**of("distiller", name=name), **change}, FILE))


@pytest.mark.parametrize(("name", "suffix"), [("fgd", "_fgd"), ("mgd", "_mgd")])
def test_settings_may_be_called_as_in_the_official_classes(name: str, suffix: str) -> None:
    case = of("distiller", name=name)
    settings = [key for key in ("alpha", "beta", "gamma", "lambda_") if key in case]
    renamed = {key: value for key, value in case.items() if key not in settings}
    renamed |= {key.rstrip("_") + suffix: 2 * case[key] for key in settings}
    outcome = evaluate({**renamed, "value": 2 * case["value"], "grad_norm": 2 * case["grad_norm"]}, FILE)
    assert outcome.passed, outcome


def test_what_a_case_leaves_out_is_as_in_the_official_classes() -> None:
    # FGD's defaults are the settings of the public case; MGD's mask ratio draws at random, which no figure does.
    for name, left_out in (("fgd", ("temp", "alpha", "beta", "gamma", "lambda_")), ("mgd", ("alpha", "mask_ratio"))):
        outcome = evaluate({key: value for key, value in of("distiller", name=name).items() if key not in left_out}, FILE)
        assert outcome.passed, outcome


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
    for broken in (PUBLIC.with_suffix(".npz").read_bytes()[:5000], b"no arrays"):
        (tmp_path / "alone.npz").write_bytes(broken)
        assert main([str(alone)]) == 2
        assert f"{tmp_path / 'alone.npz'}: cannot be read" in capsys.readouterr().err
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


@pytest.mark.parametrize("images", [1, 2])
def test_a_batch_without_boxes_has_a_figure_of_its_background(images: int) -> None:
    # 2 channels of 3 x 4 cells, each of weight 1/12 on both sides: a distance of 1/12 everywhere, times 1/2.
    arrays = {"student": torch.zeros(images, 2, 3, 4), "teacher": torch.ones(images, 2, 3, 4)}
    arrays |= {f"boxes_{image}": torch.zeros(0, 4) for image in range(images)}
    case = {"kind": "fgbg", "transforms": ["no", "no", "no"], "distance": "l1", "weight": 4.0, "fg": 0.0, "bg": 4 / 24}
    outcome = evaluate({**case, "grad_norm": 4 / 24 / (images * 24) ** 0.5}, File({"img_shape": [24, 30]}, arrays))
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
