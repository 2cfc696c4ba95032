"""How documents look where nobody looks at a terminal."""

from detkds_client import show


def candidate(index, ap, failure=None):
    return {"index": index, "ap": ap, "ap50": ap, "island": "global", "stage": "stage1", "operator": "seed", "formula": "l2(global)"} | {
        "failure": failure
    }


def test_candidates_are_shown_from_the_best_and_those_that_failed_with_their_reason(capsys):
    failure = {"kind": "not_finite", "detail": "the loss is nan at iteration 2"}
    show.candidates([candidate(0, 1.0), candidate(1, 3.0), candidate(2, None, failure), candidate(3, None)])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[1:3]] == [["1", "3.0"], ["0", "1.0"]]
    assert lines[3:] == ["", "1 not possible (2: the loss is nan at iteration 2)"]


def test_the_losses_of_a_training_and_their_ratio():
    curve = [{"iteration": 10, "task": 2.0, "distill/0_global": 1.0}, {"iteration": 20, "task": 0.5, "distill/0_global": 0.1}]
    assert show.loss_lines(curve) == ["task: 2 to 0.5", "distill/0_global: 1 to 0.1", "distillation to task: 0.5 to 0.2"]
    assert show.loss_lines([{"iteration": 10, "task": 2.0}]) == ["task: 2 to 2"]
    assert show.loss_lines([]) == []
