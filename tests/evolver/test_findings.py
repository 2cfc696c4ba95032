"""What trainers found out, in an order that is the search's own."""

from itertools import permutations
from typing import Any

from detkds_core.store.models import Job
from detkds_evolver.findings import inherited, warnings_of


def job(kind: str, first: int, warnings: tuple[str, ...] = (), not_finite: int = 0, **spec: Any) -> Job:
    rows = [{"index": first, "not_finite": not_finite}, {"index": first + 1}]
    candidates = [{"index": row["index"]} for row in rows]
    return Job(kind=kind, spec={**spec, "candidates": candidates}, result={"candidates": rows, "warnings": list(warnings)})


def test_whatever_the_order_of_its_jobs_a_search_says_the_same() -> None:
    own = [
        job("evaluate", 10, ("b", "c"), number=10, not_finite=1),
        job("evaluate", 2, ("a", "b"), number=9),
        job("evaluate", 4, ("d", "a"), number=9),  # the other half of a group that was split
        job("confirm", 0, ("e",), not_finite=3, seed=100),
        job("confirm", 0, ("f",), not_finite=4, seed=11),
        Job(kind="evaluate", spec={"number": 9, "candidates": [{"index": 2}, {"index": 4}]}, result=None),
    ]
    said = [
        *"zabdcfe",
        "some detections of candidate 10 on the selection images have a box or score that is not finite; "
        "each counts as wrong and matches no object",
        "detections of pkd on the report images whose box or score is not finite: 4 with seed 11, 3 with seed 100; "
        "each counts as wrong and matches no object",
    ]
    for order in permutations(own):
        assert warnings_of({"warnings": ["z"]}, order, {0: "pkd"}) == said


def test_jobs_of_an_earlier_version_say_nothing() -> None:
    one = Job(kind="evaluate", spec={"number": 0, "candidates": [{"index": 0}]}, result={"candidates": [{"index": 0}]})
    assert (warnings_of({}, [one], {}), inherited([one])) == ([], None)
    one.result = {"candidates": [], "inherited": {"tensors": 0, "of": 10}}
    assert inherited([one]) == {"tensors": 0, "of": 10}, "nothing is a finding too"
