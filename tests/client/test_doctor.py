"""`detkds doctor` on this machine, and on broken ones."""

import http.server
import json
import subprocess
import sys
import threading
from contextlib import contextmanager
from dataclasses import replace

import pytest

from detkds_api.detectors import detector_view
from detkds_client import doctor, matchmaker, trainable
from detkds_core.catalogue import BUILT_IN, DETECTORS, PAIRS, Recipe, exchange, pair_facts
from detkds_core.catalogue.own import write_file
from detkds_core.policy import named_policies
from detkds_core.policy.named import cannot_run
from detkds_core.store import results, searches


def test_this_machine_can_run_detkds(detkds):
    done = detkds("doctor", "--json")
    findings = {finding["subject"]: finding for finding in json.loads(done.stdout)}
    subjects = {
        "Python",
        "torch",
        "torchvision",
        "MMDetection",
        "threads",
        "GPU",
        "detectors",
        "data folders",
        "disk",
        "database",
        "broker",
        "service",
    }
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


def test_the_folders_of_data_are_told_and_one_that_is_not_there_fails(tmp_path):
    assert doctor.data_roots({}).found.startswith("DETKDS_DATA_ROOTS is not set")
    assert doctor.data_roots({"DETKDS_DATA_ROOTS": str(tmp_path)}) == ("ok", "data folders", str(tmp_path.resolve()), "")
    finding = doctor.data_roots({"DETKDS_DATA_ROOTS": f"{tmp_path}:{tmp_path / 'gone'}"})
    assert finding.level == "fail"
    assert finding.found.startswith(f"DETKDS_DATA_ROOTS: {tmp_path / 'gone'} is no folder; make it")


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
        (("--resize",), "--policy, --resize, --classes and --batch belong to a pair"),
        (("--policy", "pkd"), "--policy, --resize, --classes and --batch belong to a pair: give --pair, or --teacher and --student"),
    ],
)
def test_what_is_not_there_is_refused_in_one_sentence(detkds, arguments, told):
    done = detkds("doctor", *arguments)
    assert done.returncode == 1
    assert told in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("entry", BUILT_IN.values(), ids=BUILT_IN)
def test_a_detector_that_a_service_lists_is_the_one_that_it_knows(entry):
    listed = json.loads(detector_view(entry).model_dump_json())
    assert matchmaker.entry_of(listed) == replace(entry, source=None, width=None, config={})


def test_a_detector_of_the_services_is_asked_for_where_it_is_known(detkds, own_service, own_detectors):
    asked = ("doctor", "--teacher", "mine", "--student", "gfl_r18w16_fpn32", "--json")
    for options, environment in (((), {"DETKDS_URL": own_service}), (("--url", own_service), {"DETKDS_URL": ""})):
        done = detkds(*asked, *options, **environment)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert (found["teacher"]["title"], found["teacher"]["edge_bins"], found["signals"]["edges"]) == ("a GFL of mine", 9, None)
    done = detkds("doctor", "--pair", "digits_gfl", "--student", "mine", "--policy", "kl_edges(localization)", DETKDS_URL=own_service)
    assert done.returncode == 0, done.stderr
    done = detkds(*asked, DETKDS_URL="", DETKDS_DETECTORS=str(own_detectors))
    assert json.loads(done.stdout)["teacher"]["name"] == "mine", "without a service, this machine's folder"


@contextmanager
def listing(*detectors):
    """The address of a service of another version, which lists these."""

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps({"detectors": detectors, "pairs": []}).encode())

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def mine(name, entry="retinanet_r50_fpn", without=(), **changes):
    """A detector of somebody's own as a service lists it."""
    listed = json.loads(detector_view(BUILT_IN[entry]).model_dump_json()) | {"name": name, "own": True, **changes}
    return {key: value for key, value in listed.items() if key not in without}


def test_a_detector_of_an_older_service_is_taken_as_that_service_takes_it():
    without = ("overlaps", "training")
    with listing(mine("boxes", without=without), mine("points", "fcos_r50_fpn", without=without)) as url:
        for name, entry in (("boxes", "retinanet_r50_fpn"), ("points", "fcos_r50_fpn")):
            asked = matchmaker.question(None, "gfl_r50_fpn", name, url=url)
            assert asked.student == replace(BUILT_IN[entry], name=name, own=True, source=None, config={}, training=None)
            assert asked.images == matchmaker.DEFAULT_BATCH


def test_a_detector_that_another_version_lists_says_so_and_keeps_no_other_from_being_examined():
    recipe = {**Recipe().to_json(), "patience": 3}
    newer = mine("newer", training=recipe)
    images = mine("images", inputs={**newer["inputs"], "depth": 16})
    with listing(newer, images, mine("strange", family="mine"), mine("oldest", without=("inputs", "scores")), mine("right")) as url:
        assert matchmaker.question(None, "gfl_r50_fpn", "right", url=url).student.name == "right"
        for name, why in (
            ("newer", "recipe.patience: not a field"),
            ("images", r".*unexpected keyword argument 'depth'"),
            ("strange", "family: 'mine' is not known here"),
            ("oldest", "inputs, scores: not told"),
        ):
            said = f"'{name}' is a detector of the service, which is of another version of DetKDS than this command: {why}"
            with pytest.raises(matchmaker.UnknownNameError, match=said):
                matchmaker.question(None, "gfl_r50_fpn", name, url=url)


def test_a_detector_that_nobody_knows_says_who_was_asked(detkds, own_service):
    def told(**environment):
        done = detkds("doctor", "--teacher", "mime", "--student", "gfl_r18w16_fpn32", **environment)
        assert (done.returncode, done.stdout) == (1, "")
        return done.stderr

    assert told(DETKDS_URL=own_service) == "'mime' is not a detector of the catalogue; did you mean mine?\n"
    first, second = told(DETKDS_URL="").splitlines()
    assert first.startswith("'mime' is not a detector of the catalogue; one of gfl_r18w8_fpn32")
    assert second.startswith("A detector of your own is known to the service, which was not asked: no service is known:")
    done = detkds("doctor", "--teacher", "mine", "--student", "gfl_r18w16_fpn32", "--url", "http://127.0.0.1:9")
    assert done.stderr.startswith("no answer from http://127.0.0.1:9")


def test_a_policy_that_a_pair_can_train_with(detkds):
    wanted = "2*l2(standardize(global)) + 3·l2(standardize(global)) + kl_edges[T=2](localization)"
    done = detkds("doctor", "--pair", "digits_gfl", "--policy", wanted, DETKDS_URL="")
    assert done.returncode == 0, done.stderr
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert lines[1:] == [
        "10 classes, 8 images a batch on a device",
        "",
        "part formula needs on this pair",
        "terms[0] 2·l2(standardize(global)) features legal",
        "terms[1] 3·l2(standardize(global)) features legal",
        "terms[2] kl_edges[T=2](localization) edges, logits legal",
        "",
        "canonical form 5·l2(standardize(global)) + kl_edges[T=2](localization)",
        "signals edges, features, logits",
        "can train yes",
    ]
    found = json.loads(detkds("doctor", "--pair", "digits_gfl", "--policy", "5·l2(standardize(global))", "--json").stdout)
    assert (found["can_train"], found["name"], found["signals"]) == (True, "pkd", ["features"])
    assert found["policy"] == {
        "terms": [{"knowledge": "global", "transforms": ["none", "none", "standardize"], "distance": "l2", "weight": 5.0}]
    }


def test_a_policy_that_it_cannot_train_with_is_told_part_by_part(detkds):
    wanted = "kl(logits) + kl_edges(localization) + l2(global) + l1[region=proposals](logits) + crosskd"
    asked = ("doctor", "--teacher", "gfl_r50_fpn", "--student", "fcos_r18w8_fpn32", "--policy", wanted)
    done = detkds(*asked, "--json")
    assert done.returncode == 1
    found = json.loads(done.stdout)
    assert (found["can_train"], found["canonical"], found["policy"], found["signals"]) == (False, None, None, None)
    faults = {part["path"]: [one["field"] for one in part["faults"]] for part in found["parts"]}
    assert faults == {"terms[0]": ["transforms[0]"], "terms[1]": ["distance"], "terms[2]": [], "terms[3]": ["region"], "distillers[0]": []}
    assert [part["signals"] for part in found["parts"][:3]] == [None, ["edges", "logits"], ["features"]]
    shown = detkds(*asked)
    assert (shown.returncode, shown.stderr) == (1, "")
    lines = [" ".join(line.split()) for line in shown.stdout.splitlines()]
    reason = "distance: 'kl_edges' needs edge distributions of both detectors (GFL), with as many bins (the student predicts no edge"
    assert any(line.startswith(f"terms[1] kl_edges(localization) edges, logits {reason}") for line in lines)
    assert lines[-1] == "can train no: 3 of 5 parts are refused"


@pytest.mark.parametrize(
    ("policy", "told"),
    [
        ("pkdd", "--policy: 'pkdd' is not a named policy; did you mean pkd?"),
        ("l2(global", "--policy: terms[0]: column 10: the end where ')' should be"),
        ("l2(globe)", "--policy: terms[0].knowledge: 'globe' is not a kind of knowledge; one of global,"),
        ("@/nothing/here.json", "/nothing/here.json cannot be read as JSON"),
        ("search:none", "there is no search none; `detkds searches` lists them"),
    ],
)
def test_a_policy_that_cannot_be_read_is_refused_in_one_sentence(detkds, policy, told):
    done = detkds("doctor", "--pair", "digits_gfl", "--policy", policy)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(told)
    assert len(done.stderr.splitlines()) == 1


def test_the_winner_of_a_search_and_a_file_are_policies_too(detkds, service, wanted, tmp_path):
    one = service.http.post("/searches", json=wanted).json()["id"]
    asked = ("doctor", "--pair", "digits_gfl", "--json", "--policy")
    assert detkds(*asked, f"search:{one}").stderr == f"--policy: search {one} is QUEUED, and has no winner\n"
    policy = {"terms": [{"knowledge": "logits", "transforms": ["softmax_C"], "distance": "kl", "weight": 2.0}]}
    with service.store.begin() as session:
        search = searches.get(session, one)
        searches.start(session, search)
        searches.confirm(session, search)
        results.create(session, search, policy=policy, ap=30.0, metrics={}, evidence={}, artifacts={}, environment={})
        searches.succeed(session, search)
    (tmp_path / "policy.json").write_text(json.dumps(policy))
    for text in (f"search:{one}", f"@{tmp_path / 'policy.json'}"):
        assert json.loads(detkds(*asked, text).stdout)["canonical"] == "2·kl(softmax_C(logits))"


@pytest.mark.parametrize(
    "policy",
    ["pkd", "none", "ld_main", "pear(mm(logits))", "kl(logits)", "l1[region=proposals](logits)", "l2(global) + kl(logits)", "crosskd"],
)
@pytest.mark.parametrize("student", ["gfl_r18w8_fpn32", "faster_rcnn_r18w8_fpn32"])
def test_the_doctor_and_the_service_are_of_one_mind(service, wanted, student, policy):
    body = {name: wanted[name] for name in ("dataset", "teacher", "recipe")}
    answer = service.http.post("/distill", json={**body, "student": {"detector": student}, "policy": policy})
    asked = matchmaker.question(None, "gfl_r18w32_fpn32", student, classes=2, batch=2)
    found = trainable.examine(asked, trainable.read_policy(policy))
    assert found["can_train"] is (answer.status_code == 202), answer.text
    if found["can_train"]:
        assert answer.json()["formula"] == found["canonical"]
        return
    told = {f"{part['path']}.{one['field']}".rstrip(".") + f": {one['message']}" for part in found["parts"] for one in part["faults"]}
    assert {error["message"] for error in answer.json()["errors"]} == told


def test_a_distiller_that_learns_from_a_teacher_with_masks_says_what_the_dataset_must_have():
    asked = matchmaker.question("cascade_mask_x101_mask_rcnn_r50", None, None)
    assert trainable.examine(asked, trainable.read_policy("pkd"))["notes"] == []
    (note,) = trainable.examine(asked, trainable.read_policy("maskd"))["notes"]
    assert note == "maskd first learns with the teacher, which learns masks too: the dataset must have segmentations"


def test_a_pair_is_examined_without_torch():
    script = (
        "import sys; from detkds_client import matchmaker as m; q = m.question('gfl_r101_r50', None, None); m.report(q, m.examine(q));"
        " from detkds_client import trainable as t; t.report(q, t.examine(q, t.read_policy('fgd + kl_edges(localization)')));"
        " assert not {'torch', 'mmdet', 'mmcv', 'mmengine'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
