"""`detkds workers` and `detkds job`, and why something waits, as people see it."""

import json

import pytest

from detkds_client import show_progress
from detkds_core.store import jobs, workers
from detkds_core.store.queue import Device


@pytest.fixture
def held(service, detkds, pairing) -> jobs.Claim:
    """A distillation that runs on a GPU of the worker gpu-0."""
    one = json.loads(detkds("distill", *pairing, "--policy", "pkd", "--name", "mine", "--no-wait", "--json").stdout)["id"]
    with service.store.begin() as session:
        device = Device("GPU-5d0f", 1, 12)
        workers.present(session, "gpu-0", seconds=300, device=device)
        job = jobs.of_distillation(session, one).id
        found = jobs.claim(session, worker="gpu-0", device=device, lease_seconds=300, job_id=job)
    yield found
    with service.store.begin() as session:
        jobs.cancel(session, job)
        workers.leave(session, "gpu-0")


def test_workers_are_listed_drained_and_taken_back(detkds, held):
    listed = detkds("workers").stdout.splitlines()
    assert listed[0].split() == ["name", "state", "device", "GiB", "holds", "job"]
    assert listed[1].split() == ["gpu-0", "busy", "GPU-5d0f", "12", "distillation", "mine", held.job_id]
    assert detkds("workers", "drain", "gpu-0").stdout.splitlines()[1].split()[1] == "draining"
    drained = json.loads(detkds("workers", "--json").stdout)[0]
    assert drained["state"] == "draining"
    assert json.loads(detkds("workers", "undrain", drained["id"], "--json").stdout)["state"] == "busy"
    wrong = detkds("workers", "drain", "gpu-9")
    assert wrong.returncode == 1
    assert wrong.stderr.strip() == "there is no worker 'gpu-9'; one of gpu-0"


def test_a_job_is_shown_where_it_runs_or_with_why_it_waits(service, detkds, pairing, held):
    shown = detkds("job", held.job_id).stdout
    assert "gpu-0 on GPU-5d0f" in shown
    assert "waiting" not in shown
    options = ("--policy", "pkd", "--seed", "4", "--device-memory", "80", "--priority", "2", "--no-wait", "--json")
    second = json.loads(detkds("distill", *pairing, *options).stdout)
    assert (second["priority"], second["device_memory_gib"]) == (2, 80)
    with service.store.read() as session:
        job = jobs.of_distillation(session, second["id"]).id
    why = "needs 1 GPU with 80 GiB; no worker has that: gpu-0 has 1 GPU with 12 GiB"
    assert why in " ".join(detkds("job", job).stdout.split())
    paused = detkds("pause", second["id"]).stdout
    assert [line.split() for line in paused.splitlines() if line.startswith(("waiting", "priority"))] == [
        ["waiting", "paused"],
        ["priority", "2"],
    ]


@pytest.mark.parametrize(
    ("done", "of_search", "told"),
    [
        (24, {}, "best AP 3.0 on selection images"),
        (26, {}, "AP 3.0 on report images"),
        (26, {"best": None}, "best AP 3.0 on selection images"),
        (26, {"best": {"rung": 1200}}, "best AP 3.0 at 1,200 iterations on selection images"),
    ],
)
def test_a_watcher_is_told_on_which_images_an_ap_was_measured(done, of_search, told):
    progress = {"step": "training", "done": done, "total": 26, "best_ap": 3.0}
    assert show_progress.best_so_far({"progress": progress, **of_search}) == told


def test_a_watcher_is_told_why_it_waits(capsys):
    progress = {"step": "waiting", "done": 0, "total": 5, "best_ap": None, "seconds_left": None, "fraction": 0.0, "message": ""}
    with show_progress.following() as told:
        for waiting in ("no worker is there", "no worker is there", None):
            told({"state": "QUEUED", "progress": progress, "waiting": waiting})
    assert capsys.readouterr().out.splitlines() == [
        "QUEUED waiting 0/5 best AP -, waiting: no worker is there",
        "QUEUED waiting 0/5 best AP -",
    ]
    line = show_progress.progress_line({"progress": {**progress, "message": "waiting for a worker"}, "waiting": "all workers are draining"})
    assert line.plain.endswith("all workers are draining")
    assert "waiting for a worker" not in line.plain
