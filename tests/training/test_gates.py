"""Candidates that cannot teach are not trained, cost the others nothing, and are trained all the same when audited."""

import math

import pytest
import torch

from detkds_core.catalogue import PAIRS, Recipe
from detkds_core.evolution.spec import GATES
from detkds_core.policy import Policy, parse_formula, to_json
from detkds_core.training import gates, pull
from detkds_core.training.gates import CASCADE, Descent, Known, _apart, _unlike, descended, descent, duplicate_of, judge, leads_away
from detkds_core.training.group import batches_for, new_learner, prepare
from detkds_core.training.jobs import measure_candidates
from detkds_core.training.probe import Finding, Look, probe

from .test_forks import SILENT, told

FINE = Descent((0.8, 0.4), (1.0, 0.7), (2.0, 1.0))
AWAY = Descent((0.8, 0.9), (1.0, 1.7), (2.0, 3.0))


def found(formula="l2(global)", sketch=(0.6, 0.8), ratio=1.0, first_loss=1.0, failure=None):
    return Finding(parse_formula(formula), Look(1.0, ratio, 0.1, sketch, failure), {}, first_loss)


def gate_of(finding, known=(), descents=(FINE, FINE), names=GATES):
    refusal, _ = judge(finding, names, known, iter(descents))
    return None if refusal is None else refusal.gate


def test_each_gate_refuses_its_own():
    assert gate_of(found()) is None
    assert gate_of(found(failure={"kind": "not_finite", "detail": ""})) == "finite"
    assert gate_of(found(failure={"kind": "not_computable", "detail": ""})) == "finite"
    assert gate_of(found(failure={"kind": "no_gradient", "detail": ""})) == "gradient"
    assert gate_of(found(first_loss=100.0)) is None
    assert gate_of(found(first_loss=100.1)) == "first_loss"
    assert gate_of(found("l2[warm_up=500](global)", first_loss=100.1)) is None, "on the first batch it weighs nothing"
    assert gate_of(found(), descents=(AWAY, AWAY)) == "descent"
    assert gate_of(found(), descents=(AWAY, FINE)) is None
    assert gate_of(found(), [Known(4, (0.6, 0.8))]) == "duplicate"


def test_a_gate_that_is_not_asked_for_refuses_nothing_and_the_second_descent_is_not_made():
    assert gate_of(found(failure={"kind": "not_finite", "detail": ""}), names=["descent"]) is None
    assert gate_of(found(first_loss=1e9), [Known(4, (0.6, 0.8))], (AWAY, AWAY), names=["finite", "gradient"]) is None
    made = []
    judge(found(), GATES, (), (made.append(one) or FINE for one in range(2)))
    assert made == [0]


def test_each_gate_that_is_met_has_its_time(monkeypatch):
    """By a clock that goes on by a second a look at it, and by ten a descent."""
    seconds = [0.0]

    def tick():
        seconds[0] += 1
        return seconds[0]

    def slow(*descents):
        for one in descents:
            seconds[0] += 10
            yield one

    monkeypatch.setattr(gates.time, "perf_counter", tick)
    times = {"finite": 1.0, "gradient": 1.0, "duplicate": 1.0, "first_loss": 1.0}
    assert tuple(CASCADE) == GATES
    assert judge(found(), GATES, (), slow(FINE, FINE)) == (None, {**times, "descent": 11.0})
    assert judge(found(), GATES, (), slow(AWAY, AWAY))[1] == {**times, "descent": 21.0}
    refusal, took = judge(found(first_loss=101.0), GATES, (), slow(AWAY, AWAY))
    assert (refusal.gate, took) == ("first_loss", times)
    assert judge(found(), ["descent", "finite"], (), slow(FINE))[1] == {"finite": 1.0, "descent": 11.0}
    still = found(failure={"kind": "no_gradient", "detail": ""}, first_loss=101.0)
    assert judge(still, ["finite", "first_loss", "descent"], (), slow(AWAY, AWAY)) == (None, {"finite": 1.0}), "it has nothing to judge by"


def test_duplicates_have_a_direction_and_a_strength():
    turned = (math.cos(0.9e-3 + math.acos(0.6)), math.sin(0.9e-3 + math.acos(0.6)))
    further = (math.cos(1.1e-3 + math.acos(0.6)), math.sin(1.1e-3 + math.acos(0.6)))
    assert duplicate_of(found(sketch=turned), [Known(7, (0.6, 0.8), 1.0)]) == 7
    assert duplicate_of(found(sketch=further), [Known(7, (0.6, 0.8), 1.0)]) is None
    assert duplicate_of(found(ratio=1.009), [Known(7, (0.6, 0.8), 1.0)]) == 7
    assert duplicate_of(found(ratio=1.02), [Known(7, (0.6, 0.8), 1.0)]) is None
    assert duplicate_of(found(ratio=1.02), [Known(7, (0.6, 0.8))]) == 7  # of unknown strength
    assert duplicate_of(found(), [Known(1, (1.0, 0.0)), Known(2, (0.6, 0.8)), Known(3, (0.6, 0.8))]) == 2
    assert duplicate_of(found(), [Known(1, (0.6, 0.8, 0.0))]) is None  # a sketch of another kind
    # a look leaves schedules out, so it does not tell these apart
    assert duplicate_of(found("l2[warm_up=5](global)"), [Known(7, (0.6, 0.8), 1.0)]) is None


def test_leading_away_takes_the_gap_and_the_task():
    assert "1 - CKA from 0.8 to 0.9, L2 from 1 to 1.7, the detector's own loss from 2 to 3" in leads_away(AWAY)
    assert leads_away(Descent((0.8, 0.9), (1.0, 0.7), (2.0, 3.0))) is None  # a gap of 1.8 falls to 1.6
    assert leads_away(Descent((0.8, 0.4), (1.0, 1.7), (2.0, 3.0))) is not None  # and grows to 2.1
    assert leads_away(Descent((0.8, 0.8), (1.0, 1.017), (2.0, 3.0))) is None  # less than a hundredth
    assert leads_away(Descent((0.8, 0.9), (1.0, 1.7), (2.0, 2.01))) is None
    assert leads_away(Descent((0.8, 0.9), (1.0, 1.7), None)) is not None
    assert leads_away(Descent((0.8, math.nan), (1.0, math.nan), (2.0, math.nan))) is not None


def test_gaps_of_rows_worked_out_by_hand():
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 2.0], [0.0, -2.0]], dtype=torch.float64)
    assert _unlike(x, 3 * x + 5) == pytest.approx(0.0)  # neither a factor nor a summand counts
    assert _unlike(x, x @ torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)) == pytest.approx(0.0)  # nor a rotation
    # grams are diag(2, 8) and 2; the product of the first column with x is (2, 0): 4 / (sqrt(68) * 2)
    assert _unlike(x, x[:, :1]) == pytest.approx(1 - 4 / (68**0.5 * 2))
    assert _unlike(x, torch.ones_like(x)) == 1.0
    assert _apart(x, 2 * x) == pytest.approx(0.5)


def test_a_descent_is_steps_of_the_tensors_own_size():
    """Adam's first steps are as long as its rate: 50 of 0.02 standard deviations, less what its memory slows down at the end."""
    x, still = torch.tensor([-2.0, 2.0, -2.0, 2.0]), torch.ones(3)
    tensors = {("logits", 0): x, ("edges", 0): still}
    slopes = torch.tensor([1.0, 1.0, 0.0, 1e-9])
    moved = descended(lambda now, _step: (now["logits", 0] * slopes).sum(), tensors, enough=lambda _: False)
    change = moved["logits", 0] - x
    assert change[:2].tolist() == pytest.approx([-2.0, -2.0], rel=1e-2)
    assert change[2] == 0
    assert abs(change[3]) < 1e-2  # a gradient that is rounding beside the others
    assert torch.equal(moved["edges", 0], still)
    assert torch.equal(x, tensors["logits", 0])


def test_a_descent_that_has_come_nearer_after_a_few_steps_ends():
    tensors, asked = {("logits", 0): torch.tensor([-2.0, 2.0])}, []

    def enough(now):
        asked.append(now["logits", 0])
        return True

    moved = descended(lambda now, _step: now["logits", 0].sum(), tensors, enough=enough)
    assert (moved["logits", 0] - tensors["logits", 0]).tolist() == pytest.approx([-0.4, -0.4], rel=1e-2), "ten steps of 0.04"
    assert [one.tolist() for one in asked] == [moved["logits", 0].tolist()], "asked once"


@pytest.fixture
def ground(spec):
    """A student that has its trained teacher's neck and head, so that its own loss says something of its maps."""
    pair = PAIRS["digits_gfl"]
    job = spec(teacher={"detector": pair.teacher, "checkpoint": pair.teacher_checkpoint}, student={"detector": pair.student})
    recipe, start = Recipe.from_json(job["recipe"]), prepare(job, 3)
    learner = new_learner(start, Policy(()), recipe, 3)
    return start, learner, batches_for(learner, start.train, recipe, 3), recipe


@pytest.mark.parametrize("formula", ["l2(global)", "kl[T=2](softmax_C(logits))", "giou(localization)", "l2(global) + l1(logits)"])
def test_a_loss_leads_to_the_teacher_and_its_negative_away(ground, formula, monkeypatch):
    start, learner, batches, recipe = ground
    (finding,), stills = probe(start, learner, batches, [parse_formula(formula)])
    towards = descent(finding.resolved, learner.student, stills[0], recipe)
    assert towards.distance[1] < towards.distance[0]
    assert leads_away(towards) is None
    losses = gates.policy_losses
    monkeypatch.setattr(gates, "policy_losses", lambda *args: {name: -value for name, value in losses(*args).items()})
    away = descent(finding.resolved, learner.student, stills[0], recipe)
    assert leads_away(away) is not None
    assert (away.task is None) == ("global" not in formula)


def test_a_descent_passes_through_adapters(spec):
    job = spec(student={"detector": "gfl_r18w8_fpn16"}, inherit=False)
    recipe, start = Recipe.from_json(job["recipe"]), prepare(job, 3)
    learner = new_learner(start, Policy(()), recipe, 3)
    assert learner.student.adapters is not None
    (finding,), stills = probe(start, learner, batches_for(learner, start.train, recipe, 3), [parse_formula("0.3·l2[balanced](global)")])
    found = descent(finding.resolved, learner.student, stills[0], recipe)
    assert found.distance[1] < found.distance[0]


def test_a_descent_of_what_is_said_of_proposals(spec, small_digits, tmp_path):
    from detkds_core.detectors.build import build_detector, save_weights

    torch.manual_seed(1)
    teacher = tmp_path / "teacher.safetensors"
    save_weights(build_detector("faster_rcnn_r18w8_fpn32", small_digits.classes), teacher, {})
    name = "faster_rcnn_r18w8_fpn32"
    job = spec(teacher={"detector": name, "checkpoint": str(teacher)}, student={"detector": name}, inherit=False)
    recipe, start = Recipe.from_json(job["recipe"]), prepare(job, 3)
    learner = new_learner(start, Policy(()), recipe, 3)
    formula = "0.3·l2[balanced, region=proposals](logits) + 0.1·l2[balanced](global)"
    (finding,), stills = probe(start, learner, batches_for(learner, start.train, recipe, 3), [parse_formula(formula)])
    found = descent(finding.resolved, learner.student, stills[0], recipe)
    assert found.distance[1] < found.distance[0]
    assert found.task is None, "the head need not be asked"


def job_of(spec, candidates, **entries):
    rows = [{"index": index, "policy": to_json(parse_formula(text)), **more} for index, (text, more) in enumerate(candidates)]
    return spec(candidates=rows, recipe={"iterations": 2}, **entries)


CANDIDATES = [
    ("none", {}),
    ("fgd", {}),
    ("0.3·l2[balanced](global)", {}),
    ("1000000·l2(global)", {}),
    ("0.3·l2[balanced](scale(global))", {}),  # as the third, by identity
    ("0.6·l2[balanced](global)", {}),  # the same direction, twice as strong
    ("1000000·l1(global)", {"audit": True}),
]


def test_a_reference_need_not_show_that_it_can_teach(spec, monkeypatch):
    monkeypatch.setattr(gates, "leads_away", lambda _: "away")
    texts = ["1000000·l2(global)", "0.3·l2[balanced](global)", "0.5·l1[balanced](global)", "0.3·l2[balanced](scale(global))"]
    known = [(text, {"reference": index != 2}) for index, text in enumerate(texts)]
    rows = measure_candidates(job_of(spec, known, gates=list(GATES)), SILENT)["candidates"]
    assert [row["rejected"] and row["rejected"]["gate"] for row in rows] == [None, None, "descent", "duplicate"]
    assert [row["ap"] is not None for row in rows] == [True, True, False, False]


def test_refused_candidates_are_not_trained_and_cost_the_others_nothing(spec):
    rows = measure_candidates(job_of(spec, CANDIDATES, gates=list(GATES)), SILENT)["candidates"]
    assert [row["rejected"] and row["rejected"]["gate"] for row in rows] == [
        None,
        None,
        None,
        "first_loss",
        "duplicate",
        None,
        "first_loss",
    ]
    assert [row["ap"] is None for row in rows] == [False, False, False, True, True, False, False]
    assert [row["cost"]["iterations"] for row in rows] == [2, 2, 2, 0, 0, 2, 2]
    assert all(row["failure"] is None for row in rows)
    assert rows[4]["same_as"] == 2
    assert [index for index, row in enumerate(rows) if "same_as" in row] == [4]
    assert rows[0]["look"] is rows[1]["look"] is None
    assert all(len(row["look"]["sketch"]) == 16 for row in rows[2:])
    assert all(row["cost"]["probe_seconds"] > sum(row["cost"]["gate_seconds"].values()) > 0 for row in rows[2:])
    assert list(rows[2]["cost"]["gate_seconds"]) == list(GATES)
    assert list(rows[3]["cost"]["gate_seconds"]) == ["finite", "gradient", "duplicate", "first_loss"], "who is refused meets no other"
    assert list(rows[4]["cost"]["gate_seconds"]) == ["finite", "gradient", "duplicate"]
    assert [row["cost"]["gate_seconds"] for row in rows[:2]] == [{}, {}], "nobody looked at them"
    assert "above 100" in rows[3]["rejected"]["detail"]
    for index in (2, 3, 6):
        (alone,) = measure_candidates(
            {**job_of(spec, CANDIDATES, gates=list(GATES)), "candidates": [job_of(spec, CANDIDATES)["candidates"][index]]}, SILENT
        )["candidates"]
        assert told(alone) == told(rows[index])
    # without gates all are trained, and look as they always did
    plain = measure_candidates(job_of(spec, CANDIDATES[:4]), SILENT)["candidates"]
    assert [row["ap"] for row in plain[:3]] == [row["ap"] for row in rows[:3]]
    assert plain[3]["ap"] is not None
    assert all(row["look"] is row["rejected"] is None for row in plain)


def test_who_acts_for_a_part_of_the_training_is_nobodys_double(spec):
    scheduled, throughout = ("0.3·l2[balanced, stop=0.5](global)", {}), ("0.3·l2[balanced](global)", {})
    (first,) = measure_candidates(job_of(spec, [scheduled], gates=[]), SILENT)["candidates"]
    assert (first["look"]["sketch"], first["look"]["ratio"] > 0) == ([], True)
    known = [{"index": 7, "sketch": first["look"]["sketch"], "ratio": first["look"]["ratio"]}]
    (second,) = measure_candidates(job_of(spec, [throughout], gates=list(GATES), known=known), SILENT)["candidates"]
    assert (second["rejected"], len(second["look"]["sketch"])) == (None, 16)


def test_candidates_of_earlier_groups_are_known(spec):
    (first,) = measure_candidates(job_of(spec, CANDIDATES[2:3], gates=[]), SILENT)["candidates"]
    known = [{"index": 40, "sketch": first["look"]["sketch"], "ratio": first["look"]["ratio"]}]
    twice = measure_candidates(job_of(spec, [CANDIDATES[5], CANDIDATES[4]], gates=["duplicate"], known=known), SILENT)["candidates"]
    assert [row["rejected"] and row["rejected"]["gate"] for row in twice] == [None, "duplicate"]
    assert twice[1]["same_as"] == 40
    # measured again, a candidate is not its own duplicate
    known[0]["index"] = 1
    again = measure_candidates(job_of(spec, [CANDIDATES[5], CANDIDATES[4]], gates=["duplicate"], known=known), SILENT)["candidates"]
    assert [row["rejected"] for row in again] == [None, None]


def test_what_does_not_move_the_student_is_refused(spec, monkeypatch):
    losses = pull.policy_losses
    monkeypatch.setattr(pull, "policy_losses", lambda *args: {name: value.detach() for name, value in losses(*args).items()})
    job = job_of(spec, [("l2(global)", {}), ("none", {})], gates=["finite", "gradient"])
    rows = measure_candidates(job, SILENT)["candidates"]
    assert rows[0]["rejected"] == {"gate": "gradient", "detail": "the policy does not move the student"}
    assert rows[0]["ap"] is rows[0]["failure"] is None
    assert rows[1]["rejected"] is None
