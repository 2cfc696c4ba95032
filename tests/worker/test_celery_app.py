"""The Celery application: its settings, and that its task runs only what the database gives it. (With a broker: tests/services.)"""

import json
import subprocess
import sys

import pytest

from detkds_worker import celery_app

WANTED = {
    "task_serializer": "json",
    "accept_content": ["json"],
    "task_ignore_result": True,
    "task_acks_late": False,
    "worker_consumer": "detkds_worker.messages:OurMessages",
    "worker_prefetch_multiplier": 1,
    "worker_disable_prefetch": True,
    "worker_concurrency": 1,
    "worker_pool": "prefork",
    "worker_pool_start_method": "spawn",
    "worker_max_tasks_per_child": 1,
    "worker_proc_alive_timeout": 120,
    "task_time_limit": None,
    "task_soft_time_limit": None,
    "broker_transport_options": {"visibility_timeout": 3600, "unacked_restore_interval": 5, "unacked_restore_throttle": 1},
    "broker_connection_retry_on_startup": True,
    "worker_soft_shutdown_timeout": 60,
}


@pytest.mark.parametrize("name", WANTED)
def test_a_setting_is_what_was_found_to_be_safe(name: str) -> None:
    assert getattr(celery_app.app.conf, name) == WANTED[name]


def test_there_is_one_task_and_its_message_is_an_id() -> None:
    ours = [name for name in celery_app.app.tasks if not name.startswith("celery.")]
    assert ours == ["detkds.run_job"]
    signature = celery_app.run_job.s("0198a3c2")
    assert json.loads(json.dumps(signature["args"])) == ["0198a3c2"]


def test_the_app_is_imported_without_torch() -> None:
    """Celery's main process and its children only supervise; a gigabyte of torch in each would serve nobody."""
    script = "import sys, detkds_worker.celery_app; print('torch' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "False"
