"""`detkds doctor` on this machine, and on broken ones."""

import json

from detkds_client import doctor


def test_this_machine_can_run_detkds(detkds):
    done = detkds("doctor", "--json")
    findings = {finding["subject"]: finding for finding in json.loads(done.stdout)}
    assert set(findings) == {"Python", "torch", "torchvision", "MMDetection", "threads", "GPU", "disk", "database", "broker", "service"}
    assert findings["MMDetection"]["level"] == "ok", findings["MMDetection"]
    assert findings["service"]["level"] == "ok"
    assert done.returncode == (1 if any(finding["level"] == "fail" for finding in findings.values()) else 0)


def test_a_database_that_does_not_answer_fails_and_hides_its_password(tmp_path):
    finding = doctor.database("postgresql+psycopg://detkds:swordfish@127.0.0.1:9/detkds", tmp_path)
    assert finding.level == "fail"
    assert "swordfish" not in finding.found
    assert "DETKDS_DATABASE_URL" in finding.advice


def test_a_url_that_the_store_takes_is_tried(tmp_path):
    # Without a driver in its name, as many hosts give it: the store has its own.
    finding = doctor.database("postgresql://detkds:swordfish@127.0.0.1:9/detkds", tmp_path)
    assert "psycopg2" not in finding.found
    assert "DETKDS_DATABASE_URL" in finding.advice


def test_a_database_without_tables_says_what_to_do(tmp_path):
    finding = doctor.database(f"sqlite:///{tmp_path / 'empty.sqlite'}", tmp_path)
    assert (finding.level, finding.advice) == ("warn", "start the service once: detkds serve")


def test_a_broker_that_does_not_answer_fails(tmp_path):
    finding = doctor.broker("redis://:swordfish@127.0.0.1:9/0")
    assert finding.level == "fail"
    assert "swordfish" not in finding.found


def test_a_probe_that_crashes_is_a_finding():
    probe = {name: {"ok": False, "error": "ImportError: libGL.so.1"} for name in ("torch", "torchvision", "mmdet")}
    assert [finding.level for finding in doctor.packages(probe)] == ["fail"] * 3
    assert all("make setup" in finding.advice for finding in doctor.packages(probe))
    assert doctor.gpu(probe).level == "warn"


def test_threads_beyond_the_cores_are_told():
    assert "OMP_NUM_THREADS" in doctor.threads({"OMP_NUM_THREADS": "4096"}).advice


def test_passwords_are_never_shown():
    assert doctor.redacted("redis://:pw@host:6379/0") == "redis://:***@host:6379/0"
    assert doctor.redacted("sqlite:////tmp/x") == "sqlite:////tmp/x"
