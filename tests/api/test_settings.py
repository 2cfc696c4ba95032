"""Where the service may listen, and what it says when it may not."""

import os
import subprocess
import sys

import pytest
from pydantic import ValidationError

from detkds_api.settings import Settings

KEY = "0123456789abcdef0123456789abcdef"


def test_loopback_needs_no_key(tmp_path):
    assert Settings(home=tmp_path).hosts == ("localhost", "127.0.0.1", "::1")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.4", "gpu-host"])
def test_beyond_loopback_a_key_is_needed(tmp_path, host):
    with pytest.raises(ValidationError, match="DETKDS_API_KEY"):
        Settings(home=tmp_path, host=host)
    assert Settings(home=tmp_path, host=host, api_key=KEY).hosts == ("*",)


def test_a_short_key_is_none(tmp_path):
    with pytest.raises(ValidationError, match="16 characters"):
        Settings(home=tmp_path, api_key="secret")


def test_the_key_stays_out_of_the_settings_text(tmp_path):
    assert KEY not in repr(Settings(home=tmp_path, api_key=KEY))


def test_roots_come_as_in_path_and_resolved(tmp_path, monkeypatch):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    monkeypatch.setenv("DETKDS_DATA_ROOTS", f"{tmp_path / 'link'}{os.pathsep}{tmp_path}")
    real = tmp_path.resolve()
    assert Settings(home=tmp_path).data_roots == (real / "real", real)


def test_the_process_says_in_one_sentence_why_it_does_not_start(tmp_path):
    env = {**os.environ, "DETKDS_HOME": str(tmp_path), "DETKDS_HOST": "0.0.0.0"}
    done = subprocess.run([sys.executable, "-m", "detkds_api"], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith("detkds_api: DETKDS_HOST=0.0.0.0 would open this service to the network without a key")
    assert done.stderr.count("\n") == 1


def test_a_folder_of_data_that_is_not_there_ends_the_start(tmp_path):
    env = {**os.environ, "DETKDS_HOME": str(tmp_path), "DETKDS_DATA_ROOTS": f"{tmp_path}:/nope"}
    done = subprocess.run([sys.executable, "-m", "detkds_api"], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr == "detkds_api: DETKDS_DATA_ROOTS: /nope is no folder; make it, or name folders that are there, /data[:/more]\n"


def test_nothing_heavy_is_imported_at_the_start():
    code = "import sys, detkds_api.app; print(sorted(set(sys.modules) & {'torch', 'mmdet', 'sklearn', 'celery', 'matplotlib'}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr
