"""How many students train together follows from memory, and changes no figure."""

import pytest
import torch

from detkds_core.catalogue import Recipe
from detkds_core.policy import named_policies, to_json
from detkds_core.training import capacity, jobs
from detkds_core.training.batches import Batches
from detkds_core.training.group import DoesNotFitError, new_learner, prepare, train

NAMES = ("none", "pkd", "cwd")


def job(spec):
    candidates = [{"index": i, "policy": to_json(named_policies()[name].policy)} for i, name in enumerate(NAMES)]
    return spec(candidates=candidates, recipe={"iterations": 2})


def figures(result):
    return [{name: value for name, value in row.items() if name not in ("seconds", "cost")} for row in result["candidates"]]


def measured(spec, said=lambda *_: None):
    return figures(jobs.measure_candidates(job(spec), said))


def test_so_many_fit_into_what_is_free_beside_one_step_and_one_is_always_tried():
    need = capacity.Need(kept=100, passing=300)
    assert need.students(free=1000) == 5  # 0.8 * 1000 = 800, less a step's 300, over 100
    assert need.students(free=875) == 4
    assert need.students(free=10) == 1


def test_what_a_student_keeps_is_its_weights_moments_and_average(spec):
    wanted = spec(recipe={"iterations": 2, "ema": 0.9})
    recipe, start = Recipe.from_json(wanted["recipe"]), prepare(wanted, 3)
    learner = new_learner(start, named_policies()["none"].policy, recipe, 3)
    need = capacity.measured_need(start, learner, Batches(wanted["dataset"]["train"], recipe, 3))
    model = learner.student.model
    state = sum(value.nbytes for value in model.state_dict().values())
    learnt = [parameter for parameter in model.parameters() if parameter.requires_grad]
    moments = 2 * sum(parameter.nbytes for parameter in learnt) + 4 * len(learnt)  # AdamW: two, and a count each
    assert need.kept == 2 * state + moments
    assert need.passing >= 0


def test_a_device_with_little_memory_trains_them_one_after_the_other_to_the_same_rows(spec, monkeypatch):
    messages = []
    plenty = measured(spec, lambda _done, _total, message, *_: messages.append(message))
    assert "training 3 candidates together" in messages
    messages.clear()
    monkeypatch.setattr(capacity, "free_memory", lambda _device: 0)
    assert measured(spec, lambda _done, _total, message, *_: messages.append(message)) == plenty
    assert "training 1 of 3 candidates together" in messages


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("the third does not fit"), DoesNotFitError("nor does its first step")])
def test_candidates_that_run_out_of_memory_together_are_trained_again_in_halves(spec, monkeypatch, error):
    plenty = measured(spec)
    companies = []

    def crowded(learners, *args, **more):
        companies.append(len(learners))
        train(learners, *args, **more)
        if len(learners) > 2:
            raise error

    monkeypatch.setattr(jobs, "train", crowded)
    assert measured(spec) == plenty
    assert companies == [3, 1, 2]


def test_one_that_does_not_fit_alone_is_out_of_memory(spec, monkeypatch):
    def crowded(*_args, **_more):
        raise torch.OutOfMemoryError("nobody fits")

    monkeypatch.setattr(jobs, "train", crowded)
    with pytest.raises(torch.OutOfMemoryError, match="nobody fits"):
        measured(spec)


@pytest.mark.gpu
def test_on_a_gpu_the_memory_of_a_step_is_seen(spec):
    wanted = spec(recipe={"iterations": 2})
    recipe, start = Recipe.from_json(wanted["recipe"]), prepare(wanted, 3)
    learner = new_learner(start, named_policies()["pkd"].policy, recipe, 3)
    need = capacity.measured_need(start, learner, Batches(wanted["dataset"]["train"], recipe, 3))
    assert need.passing > 0
    assert need.students(capacity.free_memory(start.device)) > 8


def test_the_free_memory_of_this_machine_is_that_of_its_container():
    free = capacity.free_memory(torch.device("cpu"))
    assert 2**20 < free < 2**50
