"""The client's shapes are the API's: they are written twice, since the client needs nothing of the services, and say the same."""

import pytest

from detkds_api import (
    candidates,
    comparison,
    datasets,
    distill,
    jobs,
    keys,
    progress,
    results,
    search_space,
    search_views,
    uploads,
    workers,
)
from detkds_client import types

SHAPES = [
    (types.Progress, progress.Progress),
    (types.Search, search_views.SearchView),
    (types.Rung, candidates.Rung),
    (types.Candidate, candidates.CandidateView),
    (types.Distillation, distill.DistillationView),
    (types.Result, results.ResultView),
    (types.ResultPolicy, results.ResultPolicy),
    (types.Cost, comparison.Cost),
    (types.Compared, comparison.Compared),
    (types.Group, comparison.Group),
    (types.Comparison, comparison.Comparison),
    (types.Dataset, datasets.DatasetView),
    (types.Checkpoint, uploads.CheckpointView),
    (types.Place, search_space.Place),
    (types.KnowledgeSpace, search_space.KnowledgeSpace),
    (types.SearchSpace, search_space.SearchSpaceView),
    (types.Worker, workers.WorkerView),
    (types.Job, jobs.JobView),
    (types.LogPart, jobs.LogView),
    (types.Key, keys.KeyView),
]


@pytest.mark.parametrize(("ours", "theirs"), SHAPES, ids=lambda shape: shape.__name__)
def test_the_client_knows_every_field_of_an_answer_and_no_other(ours, theirs):
    assert set(ours.__annotations__) == set(theirs.model_fields)
