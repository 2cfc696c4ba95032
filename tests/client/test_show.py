"""How documents look where nobody looks at a terminal."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from detkds_client import show, show_tables
from detkds_core.catalogue import BUILT_IN, Recipe
from detkds_core.catalogue.schedules import SMALL


def candidate(index, ap, failure=None, **changes):
    one = {"index": index, "ap": ap, "ap50": ap, "island": "global", "stage": "stage1", "operator": "seed", "formula": "l2(global)"}
    return one | {"failure": failure, "rung": None if ap is None else 120, "resolved": None, "rejected": None, "same_as": None} | changes


def test_candidates_are_shown_from_the_best_and_those_that_failed_with_their_reason(capsys):
    failure = {"kind": "not_finite", "detail": "the loss is nan at iteration 2"}
    show.candidates([candidate(0, 1.0), candidate(1, 3.0), candidate(2, None, failure), candidate(3, None)])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines[1:3]] == [["1", "120", "3.0"], ["0", "120", "1.0"]]
    assert lines[3:] == ["", "1 infeasible (2: the loss is nan at iteration 2)"]


def test_candidates_of_a_higher_rung_come_first_with_the_weights_that_they_got(capsys):
    show.candidates([candidate(0, 9.0, rung=15), candidate(1, 3.0, rung=120, resolved="7.503219·l2(global)"), candidate(2, 4.0, rung=15)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["#", "rung", "AP", "AP50", "island", "made", "by", "policy"]
    assert [line.split()[:3] + line.split()[-1:] for line in lines[1:]] == [
        ["1", "120", "3.0", "7.503·l2(global)"],
        ["0", "15", "9.0", "l2(global)"],
        ["2", "15", "4.0", "l2(global)"],
    ]


def test_what_was_refused_and_doubles_are_counted(capsys):
    descent, gradient = ({"gate": gate, "detail": "why"} for gate in ("descent", "gradient"))
    refused = [candidate(1, None, rejected=gradient), candidate(2, None, rejected=descent), candidate(3, None, rejected=gradient)]
    show.candidates([candidate(0, 3.0), *refused, candidate(4, None, same_as=0)])
    assert capsys.readouterr().out.splitlines()[2:] == [
        "",
        "5 proposed; refused by a gate: 1 by descent, 2 by gradient; 1 double of others",
    ]
    show.candidates(
        [candidate(0, 3.0), candidate(1, None, same_as=0, rejected={"gate": "duplicate", "detail": "its gradient is that of candidate 0"})]
    )
    assert "2 proposed; refused by a gate: none; 1 double of others" in capsys.readouterr().out
    show.candidates([candidate(0, 3.0)])
    assert "refused" not in capsys.readouterr().out


def result(**changes):
    one = {"id": "r", "name": "found", "kind": "search", "dataset": "digits", "formula": "0.7421037228031555·l2(global)", "ap": 34.6}
    return one | {"checkpoint": False, "metrics": {}, "evidence": {}} | changes


def test_a_result_says_what_its_ap_rests_on_and_how_far_its_gates_can_be_trusted(capsys):
    funnel = {"audited": 4, "falsely_rejected": 1, "false_reject_rate": 0.25, "false_reject_interval": [0.0456, 0.6994]}
    evidence = {
        "seeds": {"search": 0, "confirmation": [1, 2, 3]},
        "images": {"selection": 200, "report": 300},
        "summary": {"funnel": funnel},
        "cost": {"seconds": 471.4, "iterations": 4260, "trunk_seconds": 5.2, "trunk_iterations": 60},
    }
    show.result(result(metrics={"interval": [22.6, 43.1]}, evidence=evidence))
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "policy 0.7421·l2(global)" in lines
    assert "AP 34.6 (mean of seeds 1, 2, 3 on 300 report images; 95 % interval 22.6 to 43.1)" in lines
    rate = "25 % (95 % interval 5 to 70 %): 1 of 4 that were refused and trained all the same is among the best third"
    assert f"false-reject rate of the gates {rate}" in lines
    assert "cost 4,260 student iterations (60 of trunks), 7:51" in lines
    assert not any(line.startswith("gate ") for line in lines), "of a search that did not tell its gates apart"
    unknown = {"audited": 0, "falsely_rejected": 0, "false_reject_rate": None, "false_reject_interval": None}
    gates = {"duplicate": {"refused": 3, **unknown, "seconds": 0.05}, "descent": {"refused": 9, **funnel, "seconds": 12.4}}
    show.result(result(evidence={**evidence, "summary": {"funnel": {**funnel, "gates": gates, "look_seconds": 20.0}}}))
    assert [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()][-5:] == [
        "gate refused audited falsely refused seconds",
        "duplicate 3 0 - 0.05",
        "descent 9 4 1: 25 % (5 to 70 %) 12",
        "the look itself 7.55",
        "all 12 4 1: 25 % (5 to 70 %) 20",
    ]
    show.result(result(evidence={"seed": 4, "images": {"report": 1}, "cost": {"seconds": None, "iterations": 300}}))
    assert "300 student iterations, -" in capsys.readouterr().out
    show.result(result(evidence={"seed": 4, "images": {"report": 1}}))
    assert "34.6 (seed 4 on 1 report image)" in capsys.readouterr().out
    show.result(result())
    assert "34.6 (seed unknown on an unknown number of report images)" in capsys.readouterr().out


def test_a_preview_is_shown_with_its_cost(capsys):
    bought = {
        "formulas": {"global": 2286, "localization": 14},
        "excluded": {"logits": "the teacher has 1 prediction a cell, the student 3"},
        "proposed": 60,
        "rungs": [{"iterations": 15, "candidates": 60}, {"iterations": 1200, "candidates": 3}],
        "iterations": 2400,
        "trunk_iterations": 60,
        "confirmation_iterations": 1800,
        "seconds": 462.0,
    }
    show.preview(bought)
    assert [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()] == [
        "about 60 candidates for 2,400 student iterations",
        "iterations of a rung candidates",
        "15 60",
        "1,200 3",
        "the trunks that these rungs fork from take 60 more, unless they are kept from before",
        "the confirmation takes 1,800 more",
        "different formulas: global 2,286, localization 14",
        "logits is left out: the teacher has 1 prediction a cell, the student 3",
        "expected on one device: 8 min",
    ]


def test_a_preview_says_what_looks_count_as(capsys):
    show.preview({**BOUGHT, "iterations": 46, "look_iterations": 16})
    assert capsys.readouterr().out.splitlines()[0] == "about 6 candidates for 46 student iterations, 16 of them for looks before a training"


BOUGHT = {"proposed": 6, "iterations": 2400, "rungs": [], "confirmation_iterations": 9, "formulas": {}, "excluded": {}, "seconds": None}


def test_a_preview_says_what_a_warm_start_brings(capsys):
    left_out = {"this search leaves 'logits' out": 2, "its terms are not legal together": 1}
    show.preview({**BOUGHT, "warm_start": {"policies": 5, "left_out": left_out}})
    lines = capsys.readouterr().out.splitlines()
    assert lines[-4:-1] == [
        "begins with 5 policies of earlier searches; 3 cannot be used",
        "  2: this search leaves 'logits' out",
        "  1: its terms are not legal together",
    ]


def test_a_preview_names_whom_the_finalists_meet(capsys):
    beside = {"references": ["none"], "distillers": ["fgd"], "finalists": 2, "seeds": 5, "students": 20}
    show.preview({**BOUGHT, "evaluated": beside})
    met = "then on the report images, with 5 new seeds: 2 finalists, no distillation and fgd"
    assert met in capsys.readouterr().out.splitlines()
    show.preview({**BOUGHT, "evaluated": beside | {"students": 25}})
    assert f"{met}, and the best of the other hand-designed policies" in capsys.readouterr().out.splitlines()


def test_a_preview_says_how_long_the_workers_take(capsys):
    show.preview({**BOUGHT, "seconds": 600.0, "workers": 2, "clock_seconds": 300.0})
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2:] == ["expected on one device: 10 min", "by the clock, with the workers that are there (2): 5 min"]


def test_the_losses_of_a_training_and_their_ratio():
    curve = [{"iteration": 10, "task": 2.0, "distill/0_global": 1.0}, {"iteration": 20, "task": 0.5, "distill/0_global": 0.1}]
    assert show.loss_lines(curve) == ["task: 2 to 0.5", "distill/0_global: 1 to 0.1", "distillation to task: 0.5 to 0.2"]
    assert show.loss_lines([{"iteration": 10, "task": 2.0}]) == ["task: 2"]
    stopped = [{"iteration": 10, "task": 2.0, "distill/fgd_focal": 3.0}, {"iteration": 20, "task": 1.0}]
    assert show.loss_lines(stopped) == ["task: 2 to 1", "distill/fgd_focal: 3 to 0", "distillation to task: 1.5 to 0"]
    assert show.loss_lines([]) == []


def test_a_name_that_is_copied_is_not_broken_in_a_narrow_terminal():
    columns = [("detector", ""), ("family", ""), ("strides", "wide"), ("what it is", "")]
    rows = [("cascade_mask_rcnn_x101_dcn_fpn", "cascade_mask_rcnn", "4 8 16 32 64", "Cascade Mask R-CNN X101-DCN")]
    narrow = Console(width=60, record=True, file=io.StringIO())
    narrow.print(show.table(columns, rows, narrow.width))
    told = narrow.export_text()
    assert "cascade_mask_rcnn_x101_dcn_fpn" in told
    assert "strides" not in told


def test_of_many_measurements_every_so_many_and_the_best_are_shown(capsys):
    found = [{"iteration": 10 * place, "ap": 1.0, "ap50": 2.0, "ap75": 0.5, "images": 9} for place in range(1, 43)]
    found[4] |= {"ap": 5.0}
    show.evaluations([{**one, "segm": {"ap": 0.7}} for one in found], 50, None)
    first, headings, *rows = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    told = "on 9 selection images (every 3rd of 42, and the best; --json has all)"
    assert (first, headings) == (f"measured on its way, seed unknown, {told}", "iteration AP AP50 AP75 mask AP")
    assert rows[:3] == ["30 1.0 2.0 0.5 0.7", "50 5.0 2.0 0.5 0.7 the best: exported", "60 1.0 2.0 0.5 0.7"]
    assert [int(row.split()[0]) for row in rows] == sorted({*range(30, 421, 30), 50})


@pytest.mark.parametrize(("number", "text"), [(2, "2nd"), (3, "3rd"), (4, "4th"), (11, "11th"), (21, "21st"), (112, "112th")])
def test_ordinals(number, text):
    assert show.ordinal(number) == text


def test_a_student_that_was_measured_at_its_end_alone_has_its_last_weights(capsys):
    show.result(result(checkpoint=True, metrics={"student": {"iteration": 3000}}))
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[-2:] == [
        "student the weights of iteration 3,000, the last",
        "checkpoint detkds results r --checkpoint student.safetensors",
    ]


def test_a_search_is_shown_with_whom_it_was_measured_against(capsys):
    def line(entrant, name, mean, interval, formula):
        told = {"entrant": entrant, "name": name, "mean_ap": mean, "interval": interval, "formula": formula}
        return told | {"seeds": [1, 2, 3], "images": 300}

    gain = {"first": "pkd", "second": "none", "mean": 10.0, "interval": [8.0, 12.0], "p": 0.0021}
    metrics = {
        "winner": {"entrant": 1},
        "comparisons": [gain],
        "rows": [
            line(0, "none", 20.0, [18.0, 22.0], "none"),
            line(1, "pkd", 30.0, [27.5, 32.0], "5·l2(standardize(global))"),
            line(2, "candidate 4", None, None, "7.503219·l2(global)"),
        ],
    }
    show.entrants(metrics)
    lines = [" ".join(text.split()) for text in capsys.readouterr().out.splitlines()]
    assert lines[1:] == [
        "pkd (the result) 30.0 27.5 to 32.0 +10.0 8.0 to 12.0 0.002 3 300 5·l2(standardize(global))",
        "none 20.0 18.0 to 22.0 - - - 3 300 none",
        "candidate 4 - - - - - 3 300 7.503·l2(global)",
    ]


@pytest.mark.parametrize(("trunks", "said"), [(60, "4,260 (trunks 60)"), (0, "4,260"), (None, "4,260")])
def test_a_comparison_says_what_was_spent_on_trunks(trunks, said):
    one = {"id": "r", "name": "found", "ap": 30.0, "interval": None, "seeds": [1], "formula": "l2(global)", "versions": {}}
    cost = {"seconds": 61.0, "iterations": 4260, "trunk_seconds": 5.2, "trunk_iterations": trunks}
    assert show_tables.compared(one | {"teacher": "big", "student": "small", "cost": cost})[7] == said


def test_a_recipe_is_told_with_where_it_is_from(capsys):
    recipe = {"epochs": 24, "batch": 8, "accumulate": 2, "lr": 0.02, "auto_scale_lr": True, "optimizer": "sgd", "schedule": "steps"}
    spec = {
        "recipe": {**recipe, "image_size": 1333, "short_side": 800},
        "recipe_from": {"base": "the pair mine", "given": ["accumulate"]},
        "dataset": {"train": {"count": 1000}},
        "warnings": ["the images are small"],
    }
    show.plan(spec)
    assert capsys.readouterr().out.splitlines() == [
        "recipe: 24 epochs (1,500 iterations) of 16 images in 2 forwards at 1333 x 800 px, sgd at lr 0.02, steps; "
        "from the pair mine, but for your accumulate",
        "note: the images are small",
    ]
    assert [label for label, _ in show.plan_facts(spec, told=True)] == ["recipe"], "the result says the rest"
    whole = Recipe(iterations=4).to_json()
    words = "4 iterations of 8 images at 128 px, adamw at lr 0.002, one_cycle"
    assert show.recipe_line({"recipe": whole, "recipe_from": {"base": "the defaults", "given": sorted(whole)}}) == f"{words}; given whole"
    drawn = "36 epochs of 16 images at 1333 x 800 px (shorter sides of 640 to 800 px in training), sgd at lr 0.01, steps"
    assert show.recipe_words(BUILT_IN["retinanet_x101_64x4d_fpn"].training) == drawn
    assert show.recipe_line({"recipe": whole}) == words, "of an earlier version"
    assert show.recipe_line({"recipe": {"of_a_later_version": 1}}) is None


def test_one_of_a_thing_is_not_said_as_several():
    assert show.recipe_words(replace(SMALL, iterations=1, batch=1)).startswith("1 iteration of 1 image at ")
    assert show.loss_lines([{"task": 1.584, "distill/x": 0.5}]) == ["task: 1.584", "distill/x: 0.5", "distillation to task: 0.32"]
    assert show.loss_lines([{"task": 2.0}, {"task": 1.0}]) == ["task: 2 to 1"]


@pytest.mark.parametrize("lists", [show.searches, show.distillations, show.results])
def test_a_list_that_its_filters_have_emptied_says_so(capsys, lists):
    what = lists.__name__.removesuffix("s").replace("searche", "search")
    lists([], filtered=True)
    assert capsys.readouterr().out == f"No {what} passes these options; without them all are listed.\n"
    lists([])
    assert capsys.readouterr().out.startswith(f"No {what} yet.")
