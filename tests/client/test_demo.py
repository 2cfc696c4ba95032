"""What the demo makes of the service's answers; the whole of it is `make demo`."""

from pathlib import Path
from typing import Any, cast

import pytest

from detkds_client import demo
from detkds_client.types import Candidate, Result
from detkds_core.datasets import report_ids
from detkds_core.datasets.digits import digits
from detkds_core.policy import named_policies, parse_formula, to_json

TEACHER = {"ap": 60.0, "ap50": 80.0, "ap75": 70.0, "parameters": 2_900_000, "images": 300}
STUDENT = {"ap": 20.0, "ap50": 40.0, "ap75": 18.0, "parameters": 259_000, "images": 300}


def line(entrant: int, name: str, role: str, formula: str, ap: list[float]) -> dict[str, Any]:
    figures = {"seeds": [1, 2, 3], "ap": ap, "ap50": ap, "ap75": ap, "images": 300, "mean_ap": sum(ap) / 3, "interval": [1.0, 99.0]}
    return {"entrant": entrant, "name": name, "role": role, "policy": to_json(parse_formula(formula)), **figures}


def test_the_table_has_teacher_alone_pkd_and_the_winner_only() -> None:
    rows = [
        line(0, "none", "alone", "none", [20.0, 21.0, 19.0]),
        line(1, "pkd", "reference", "5·l2(standardize(global))", [25.0, 26.0, 24.0]),
        line(2, "candidate 7", "searched", "10·l2(standardize(global))", [24.0, 24.0, 24.0]),
        line(3, "candidate 9", "searched", "2·l1(norm_C(global))", [27.0, 28.0, 27.5]),
    ]
    # PKD is the result, as it would be if the searched policy did not beat it; the table has both
    found = cast(Result, {"metrics": {"rows": rows, "winner": {"entrant": 1}, "searched": {"entrant": 3}}})
    alone = cast(Result, {"metrics": {"teacher": TEACHER, "student": STUDENT}})
    table = demo.result_rows(found, alone)
    assert [(row.name, row.role) for row in table] == [
        ("teacher", "teacher"),
        ("student alone", "alone"),
        ("student, pkd", "reference"),
        ("student, searched policy", "searched"),
    ]
    assert table[3].ap == (27.0, 28.0, 27.5)
    assert table[3].seeds == (1, 2, 3)
    assert table[3].interval == (27.5, 1.0, 99.0)
    assert demo.row_names(found["metrics"])["candidate 7"] == "student, candidate 7"
    assert [row.parameters for row in table] == [2_900_000, 259_000, 259_000, 259_000]


def test_a_reference_among_the_candidates_has_its_name_and_a_failure_its_reason() -> None:
    pkd = named_policies()["pkd"]
    one: dict[str, Any] = {
        "index": 1,
        "stage": "reference",
        "formula": "5·l2(standardize(global))",
        "policy": to_json(pkd.policy),
        "ap": 3.0,
        "resolved": None,
        "state": "MEASURED",
        "rungs": [{"rung": 120, "ap": 2.5}, {"rung": 15, "ap": 1.0}, {"rung": 120, "ap": 3.5}, {"rung": 120, "ap": None}],
    }
    point = demo.candidate_point(cast(Candidate, {**one, "island": None, "operator": "reference", "failure": None}))
    assert (point.name, point.fitness, point.failure) == ("pkd", 3.0, None)
    assert (point.state, point.rungs) == ("MEASURED", {120: 3.0, 15: 1.0})
    failed = {
        **one,
        "stage": "stage1",
        "ap": None,
        "island": "global",
        "operator": "seed",
        "failure": {"kind": "not_finite", "detail": "at 3"},
        "state": "INFEASIBLE",
        "rungs": [],
        "resolved": "0.7421037228031555·l2(standardize(global))",
    }
    point = demo.candidate_point(cast(Candidate, failed))
    assert (point.name, point.fitness, point.failure, point.state) == (None, None, "not_finite: at 3", "INFEASIBLE")
    assert point.formula == "0.7421·l2(standardize(global))"


def test_panels_show_the_first_report_images_with_their_own_boxes(tmp_path: Path) -> None:
    data = digits(tmp_path, train=4, val=16, size=64)
    ids = report_ids(data)
    found = [{"image_id": ids[1], "category_id": 3, "bbox": [1.0, 2.0, 10.0, 20.0], "score": 0.9}]
    shown = demo.panels(data, found, [])
    assert len(shown) == min(demo.PANELS, len(ids))
    names = {image["id"]: image["file_name"] for image in data.val.load()["images"]}
    assert [panel.title for panel in shown] == [names[i] for i in ids[: demo.PANELS]]
    assert [len(panel.alone) for panel in shown] == [0, 1, 0, 0, 0, 0]
    assert shown[1].alone[0].xyxy == (1.0, 2.0, 11.0, 22.0)
    assert shown[1].alone[0].label == "2"
    truth = [one for one in data.val.load()["annotations"] if one["image_id"] == ids[0]]
    assert len(shown[0].truth) == len(truth)


def test_a_dataset_without_a_demo_is_refused_with_those_that_have_one(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no demo on 'coco'; one of digits, trees"):
        demo.run(dataset="coco", seed=0, folder=tmp_path)
