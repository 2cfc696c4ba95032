"""`detkds doctor` on this machine, and on broken ones."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from detkds_client import doctor, matchmaker
from detkds_core.catalogue import BUILT_IN, DETECTORS, PAIRS, exchange, pair_facts
from detkds_core.catalogue.own import write_file
from detkds_core.policy import named_policies
from detkds_core.policy.named import cannot_run


def test_this_machine_can_run_detkds(detkds):
    done = detkds("doctor", "--json")
    findings = {finding["subject"]: finding for finding in json.loads(done.stdout)}
    subjects = {"Python", "torch", "torchvision", "MMDetection", "threads", "GPU", "detectors", "disk", "database", "broker", "service"}
    assert set(findings) == subjects
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


def test_the_operators_detectors_are_counted_and_a_wrong_file_is_named(tmp_path):
    assert doctor.detectors({}).found == f"{len(BUILT_IN)} built in; DETKDS_DETECTORS, the folder of your own, is not set"
    entry = BUILT_IN["gfl_r18w8_fpn32"]
    write_file(replace(entry, name="mine", config=json.loads(json.dumps(entry.config)), own=True), tmp_path)
    there = {"DETKDS_DETECTORS": str(tmp_path)}
    assert doctor.detectors(there) == ("ok", "detectors", f"{len(BUILT_IN)} built in, 1 in {tmp_path}: mine", "")
    (tmp_path / "other.json").write_text("[]")
    finding = doctor.detectors(there)
    assert (finding.level, finding.found) == ("fail", f"{tmp_path}/other.json: is a list, not an object with the fields of a detector")


def test_a_pair_is_not_examined_beside_a_wrong_file(detkds, tmp_path):
    (tmp_path / "other.json").write_text("[]")
    done = detkds("doctor", "--pair", "digits_gfl", DETKDS_DETECTORS=str(tmp_path))
    assert done.returncode == 1
    assert done.stderr == f"{tmp_path}/other.json: is a list, not an object with the fields of a detector\n"


def test_passwords_are_never_shown():
    assert doctor.redacted("redis://:pw@host:6379/0") == "redis://:***@host:6379/0"
    assert doctor.redacted("sqlite:////tmp/x") == "sqlite:////tmp/x"


def test_a_pair_of_the_catalogue_is_examined_without_a_service(detkds, tmp_path):
    done = detkds("doctor", "--pair", "digits_gfl_fcos", "--json", DETKDS_URL="http://127.0.0.1:9")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["pair"], found["classes"], found["images_per_batch"], found["adapters"]) == ("digits_gfl_fcos", 10, 8, 0)
    assert found["levels"] == [{"teacher": stride, "student": stride} for stride in (8, 16, 32)]
    knowledge = {one["name"]: one for one in found["knowledge"]}
    assert all(one["excluded"] is None for one in knowledge.values())
    assert knowledge["logits"]["regions"] == ["all", "teacher_score", "foreground", "assigned", "assigned_score"]
    assert knowledge["instance"]["lacking"] == {"proposals": "the student is a one-stage detector and makes no proposals"}
    # from the language's own count: l1, iou, giou and diou of boxes; the published space has no diou
    assert knowledge["localization"]["formulas"]["published"] == 3
    assert all(0 < one["formulas"]["published"] < one["formulas"]["full"] for one in knowledge.values())
    assert found["signals"]["edges"] == "the student predicts no edge distributions (GFL)"
    assert found["signals"]["towers"] is None
    policies = {one["name"]: one["cannot_run"] for one in found["policies"]}
    assert set(policies) == set(named_policies())
    assert policies["pkd"] == policies["crosskd"] == []
    assert policies["ld_main"][0].startswith("policy.terms[0].distance: 'kl_edges' needs edge distributions")
    assert found["signals"]["edges"] in policies["ld_main"][0]


def test_two_detectors_that_differ_in_everything(detkds):
    done = detkds("doctor", "--teacher", "gfl_r50_fpn", "--student", "faster_rcnn_r18w8_fpn32", "--classes", "3", "--batch", "2")
    assert done.returncode == 0, done.stderr
    told = done.stdout
    assert told.startswith("GFL R50 teaches Faster R-CNN, ResNet-18 of width 8")
    assert "3 classes, 2 images a batch" in told
    assert told.count("same cells") == 3
    assert told.count("the teacher alone") == 2
    assert "3 adapters (1x1)" in told
    assert "the teacher has 1 prediction a cell, the student 3" in told
    assert "'crosskd' compares towers" in told


def test_how_each_wants_its_images(capsys):
    asked = matchmaker.question("fcos_r101_r50", None, None)
    found = matchmaker.examine(asked)
    assert found["teacher"]["inputs"]["mean"] == [102.9801, 115.9465, 122.7717]
    assert found["student"]["inputs"] == {"mean": [103.53, 116.28, 123.675], "std": [1.0, 1.0, 1.0], "rgb": False, "pad": 32, "fill": 0.0}
    matchmaker.report(asked, found)
    told = capsys.readouterr().out
    assert "BGR less 102.98 115.947 122.772" in told
    assert "pixels its own way" in told
    other = matchmaker.question("digits_gfl", None, None)
    matchmaker.report(other, matchmaker.examine(other))
    assert "pixels its own way" not in capsys.readouterr().out


def test_resize_is_told_level_by_level():
    teacher, student = replace(DETECTORS["gfl_r50_fpn"], strides=(6, 12)), DETECTORS["gfl_r18w8_fpn32"]
    apart = matchmaker.examine(matchmaker.Question(teacher, student, False, 3, 2, None))
    assert apart["levels"] == []
    assert apart["left_over"] == {"teacher": [6, 12], "student": [8, 16, 32]}
    assert all("no pyramid level in common" in one["excluded"] for one in apart["knowledge"])
    assert [one["name"] for one in apart["policies"] if not one["cannot_run"]] == ["none"]
    near = matchmaker.examine(matchmaker.Question(teacher, student, True, 3, 2, None))
    assert near["levels"] == [{"teacher": 6, "student": 8}, {"teacher": 12, "student": 16}]
    assert near["left_over"] == {"teacher": [], "student": [32]}
    assert {one["name"] for one in near["knowledge"] if one["excluded"] is None} == {"global", "fgbg", "instance"}


def test_every_pair_of_the_catalogue_can_run_its_own_policies():
    for name in PAIRS:
        asked = matchmaker.question(name, None, None)
        offer = exchange(asked.teacher, asked.student)
        facts = pair_facts(offer, asked.student, asked.classes, asked.images)
        for policy in ("none", "pkd", *asked.pair.policies):
            assert cannot_run(named_policies()[policy].policy, offer, facts, (asked.teacher.family, asked.student.family)) == []


def test_a_pairs_own_policy_stands_first(capsys):
    asked = matchmaker.question("cascade_mask_x101_mask_rcnn_r50", None, None)
    found = matchmaker.examine(asked)
    assert found["own_policies"] == ["detkds_cascade_mask_rcnn"]
    matchmaker.report(asked, found)
    assert "detkds_cascade_mask_rcnn: published for this pair" in capsys.readouterr().out


def test_a_detector_takes_the_place_of_the_pairs():
    asked = matchmaker.question("digits_gfl", None, "fcos_r18w8_fpn32:somewhere.pth", classes=4)
    assert (asked.teacher.name, asked.student.name, asked.classes) == ("gfl_r18w32_fpn32", "fcos_r18w8_fpn32", 4)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--pair", "digits_gf"), "'digits_gf' is not a pair of the catalogue; did you mean digits_gfl"),
        (("--teacher", "gfl_r50_fp", "--student", "detr_r18"), "'gfl_r50_fp' is not a detector of the catalogue; did you mean gfl_r50_fpn"),
        (("--pair", "zzz"), "one of digits_gfl, trees_gfl"),
        (("--teacher", "gfl_r50_fpn"), "--student is missing: give both, or --pair"),
        (("--resize",), "--resize, --classes and --batch belong to a pair"),
    ],
)
def test_what_is_not_there_is_refused_in_one_sentence(detkds, arguments, told):
    done = detkds("doctor", *arguments)
    assert done.returncode == 1
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_a_pair_is_examined_without_torch():
    script = (
        "import sys; from detkds_client import matchmaker as m; q = m.question('gfl_r101_r50', None, None); m.report(q, m.examine(q));"
        " assert not {'torch', 'mmdet', 'mmcv', 'mmengine'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
