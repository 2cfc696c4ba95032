"""The `detkds` command as people run it: a process, its output, its exit code."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from detkds_core.evolution import Evolution, Spec, dumped
from detkds_core.store import searches

RECIPE = (
    "recipe: 2 iterations of 2 images at 64 px, adamw at lr 0.002, one_cycle; from the defaults for small detectors, "
    "but for your batch, image_size, iterations"
)


def paragraph(text: str) -> str:
    """Text without the line breaks of a terminal."""
    return re.sub(r"\s+", " ", text).strip()


def test_a_search_is_started_listed_and_cancelled(detkds, pairing):
    started = detkds("search", *pairing, "--candidates", "12", "--name", "from cli", "--no-wait", "--json")
    assert started.returncode == 0, started.stderr
    one = json.loads(started.stdout)
    assert one["spec"]["recipe"]["iterations"] == 2
    listed = detkds("searches")
    assert one["id"] in listed.stdout
    assert "from cli" in listed.stdout
    shown = detkds("searches", one["id"])
    assert "0 of 20 student iterations" in shown.stdout, "what twelve candidates train for, without looks"
    assert "No candidate is measured yet." in shown.stdout
    cancelled = detkds("cancel", one["id"])
    assert cancelled.returncode == 0
    assert "CANCELLED" in cancelled.stdout


def test_the_options_of_a_search_reach_the_service(detkds, pairing):
    budget = ["--iterations", "4000", "--algorithm", "random", "--weights", "published", "--mode", "logged"]
    started = detkds("search", *pairing, *budget, "--no-wait", "--json")
    assert started.returncode == 0, started.stderr
    spec = json.loads(started.stdout)["spec"]
    assert (spec["budget"], spec["candidates"], spec["algorithm"], spec["mode"]) == (4000, None, "random", "logged")
    assert (spec["rungs"], spec["space"]["balanced"]) == ([2], False)
    jobs = ["--rungs", "1", "--group", "6", "--parallelism", "3"]
    compared = "pkd, 2·l2[auto, region=all](global)"
    confirmation = ["--finalists", "4", "--confirm-seeds", "7", "--confirm-iterations", "9", "--distillers", compared]
    spec = json.loads(detkds("search", *pairing, *jobs, *confirmation, "--no-wait", "--json").stdout)["spec"]
    assert (spec["rungs"], spec["group"], spec["parallelism"]) == ([1, 2], 6, 3)
    named = [one["name"] for one in spec["confirmation"].pop("distillers")]
    assert (spec["confirmation"], named) == ({"finalists": 4, "seeds": 7, "iterations": 9}, ["pkd", "distiller 1"])
    default = json.loads(detkds("search", *pairing, "--no-wait", "--json").stdout)["spec"]
    assert (default["candidates"], default["algorithm"], default["mode"]) == (48, "detkds", "strict")
    assert (default["rungs"], default["space"]["balanced"]) == ([1, 2], True)
    every = json.loads(detkds("search", *pairing, "--rungs", "", "--distillers", "all", "--no-wait", "--json").stdout)["spec"]
    assert (every["rungs"], every["confirmation"]) == ([2], default["confirmation"])


def test_a_search_is_extended(detkds, service, wanted):
    one = service.http.post("/searches", json={**wanted, "name": "first"}).json()["id"]
    refused = detkds("extend", one, "--candidates", "12", "--no-wait")
    assert (refused.returncode, paragraph(refused.stderr)) == (1, f"search {one} is QUEUED; it can be extended once it has SUCCEEDED")
    with service.store.begin() as session:
        search = searches.get(session, one)
        evolution = Evolution(Spec.of_search(search.spec))
        evolution.ask()
        searches.record(session, one, 0, map(dumped, evolution.ledger))
        searches.start(session, search)
        searches.confirm(session, search)
        searches.succeed(session, search)
    shown = detkds("extend", one, "--candidates", "12", "--name", "longer", "--no-wait")
    assert shown.returncode == 0, shown.stderr
    lines = [paragraph(line) for line in shown.stdout.splitlines()]
    assert lines[0].startswith("search longer ")
    assert f"continues {one}" in lines
    assert lines[-1] == "done 0 of 80 student iterations", "nothing was spent before"


def test_a_preview_starts_nothing(detkds, pairing, service):
    before = service.http.get("/searches").json()["items"][:1]
    shown = detkds("search", *pairing, "--candidates", "12", "--preview")
    assert shown.returncode == 0, shown.stderr
    first, *lines = [paragraph(line) for line in shown.stdout.splitlines()]
    assert first == RECIPE
    sizes = re.fullmatch(r"about 12 candidates for (\d+) student iterations, (\d+) of them for looks before a training", lines[0])
    iterations, looks = map(int, sizes.groups())
    assert 40 < iterations <= 80, "what its course needs, within the budget"
    assert iterations - looks == 20
    assert lines[1] == "iterations of a rung candidates"
    assert lines[2] == "1 12"
    assert lines[3].split()[0] == "2"
    assert re.fullmatch(r"the trunks that these rungs fork from take [123] more, unless they are kept from before", lines[4])
    assert lines[5].startswith("the confirmation takes ")
    assert lines[6].startswith("different formulas: global ")
    beside = "hand-designed policies among the candidates, measured on the selection images as these are: none, 5·l2(standardize(global))"
    assert lines[7].startswith(beside)
    assert lines[8].startswith("then on the report images, with 5 new seeds: 2 finalists, no distillation and ")
    assert lines[-2] == "nothing of this pair was measured yet, so no time is expected"
    assert re.fullmatch(r"on disk about \d+ MB \([\d.,]+ GB are free\)", lines[-1])
    document = json.loads(detkds("search", *pairing, "--candidates", "12", "--preview", "--json").stdout)
    assert (document["proposed"], document["iterations"], document["spec"]["candidates"]) == (12, iterations, 12)
    assert service.http.get("/searches").json()["items"][:1] == before


def test_a_distillation_is_started_and_cancelled(detkds, pairing):
    started = detkds("distill", *pairing, "--policy", "pkd", "--no-wait", "--json")
    assert started.returncode == 0, started.stderr
    one = json.loads(started.stdout)
    assert one["formula"].startswith("0.5·l2(standardize(global))") or "standardize(global)" in one["formula"]
    assert one["id"] in detkds("distillations").stdout
    assert "CANCELLED" in detkds("cancel", one["id"]).stdout


def test_a_distillation_says_its_recipe_before_it_runs(detkds, pairing):
    """No pair is named: MMDetection's recipe of the student, at an eighth of its rate for two images a step."""
    teacher = pairing[pairing.index("--teacher") + 1]
    arguments = ["--dataset", "shapes", "--teacher", teacher, "--student", "retinanet_r50_fpn", "--resize", "--policy", "fitnets"]
    shown = detkds("distill", *arguments, "--recipe", "batch=2", "--recipe", "milestones=8, 10", "--no-wait")
    assert shown.returncode == 0, shown.stderr
    lines = [paragraph(line) for line in shown.stdout.splitlines()]
    assert (
        "recipe 12 epochs (36 iterations) of 2 images at 1333 x 800 px, sgd at lr 0.00125, steps; from MMDetection's "
        "retinanet/retinanet_r50_fpn_1x_coco.py, but for your batch, milestones"
    ) in lines
    scaled = "the learning rate was scaled from 0.01 to 0.00125: 2 images a step instead of the 16 that the rate is for"
    size = "the training images of 64 x 64 px (medians of longer and shorter sides) are shown as 800 x 800 px (recipe.image_size 1333)"
    assert [line for line in lines if line.startswith("note")] == [f"note {scaled}", f"note {size}: 12.5 times larger"]


def test_a_policy_can_come_from_a_file(detkds, pairing, tmp_path):
    file = tmp_path / "policy.json"
    file.write_text(json.dumps({"terms": []}))
    started = detkds("distill", *pairing, "--policy", f"@{file}", "--no-wait", "--json")
    assert started.returncode == 0, started.stderr
    assert json.loads(started.stdout)["spec"]["policy"] == {"terms": []}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search", "--candidates", "12"], "pair: is required: one of digits_gfl, trees_gfl, digits_gfl_fcos"),
        (["search", "--dataset", "shapes"], "teacher: is required, unless 'pair' names one of digits_gfl"),
        (["search", "--pair", "digits_gfl", "--teacher", "gfl_r18w32_fpn32"], "write it as DETECTOR:CHECKPOINT"),
        (["search", "--pair", "digits_yolo"], "did you mean digits_gfl"),
        (["search", "--pair", "digits_gfl", "--recipe", "iterations"], "write it as FIELD=VALUE"),
        (["search", "--pair", "digits_gfl", "--algorithm", "annealing"], "'evolution', 'genetic', 'tpe' or 'nsga2'"),
        (["search", "--pair", "digits_gfl", "--iterations", "1", "--preview"], "iterations: 1 are less than one full proxy of"),
        (["search", "--pair", "digits_gfl", "--iterations", "9999", "--hours", "1"], "hours: the budget is given in iterations already"),
        (["search", "--pair", "digits_gfl", "--warm-start", "mine"], "warm_start[0]: there is no search and no result 'mine'"),
        (["search", "--pair", "digits_gfl", "--rungs", "15;30"], "--rungs 15;30: write it as numbers with commas between"),
        (["extend", "none"], "how much more? Give one of --iterations, --candidates, --hours and --wall-clock-hours"),
        (["extend", "none", "--iterations", "100"], "there is no search none"),
        (["distill", "--pair", "digits_gfl", "--policy", "@/nothing/here.json"], "cannot be read as JSON"),
        (["searches", "none"], "there is no search none"),
        (["watch", "none"], "is neither a search nor a distillation"),
        (["results", "none"], "there is no result none"),
        (["results", "--checkpoint", "x.pth"], "needs the result's id"),
        (["results", "--report", "x.html"], "needs the result's id"),
        (
            [
                "datasets",
                "add",
                "mine",
                "--train-annotations",
                "/a",
                "--train-images",
                "/b",
                "--val-annotations",
                "/c",
                "--val-images",
                "/d",
            ],
            "train.annotations: '/a' leads outside the registered folders",
        ),
        (["convert", "missing.pth", "out.bin"], "does not end in .safetensors"),
        (["serve", "--home", "/proc/detkds"], "/proc/detkds cannot hold what the service remembers"),
    ],
)
def test_a_mistake_is_one_paragraph(detkds, arguments, message):
    done = detkds(*arguments)
    assert done.returncode == 1
    assert message in paragraph(done.stderr)
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_several_mistakes_are_a_line_each(detkds):
    done = detkds("search", "--pair", "digits_gfl", "--candidates", "-3", "--seed", "-1", *(f"--recipe=f{n}=1" for n in range(5)))
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert len(lines) == 7, "the service's own sentence stops after five"
    assert lines[0] == "candidates: -3 should be greater than or equal to 4"
    assert lines[2].startswith("recipe.f0: there is no field 'f0'; one of iterations, epochs, batch")


def test_an_address_that_cannot_be_listened_on_is_said_so(detkds, tmp_path):
    home = str(tmp_path / "home")
    assert "should be less than or equal to 65535" in paragraph(detkds("serve", "--home", home, "--port", "99999").stderr)
    assert "cannot listen on nowhere.invalid, port 8350: " in detkds("serve", "--home", home, "--host", "nowhere.invalid").stderr
    refused = detkds("serve", "--home", home, "--host", "0.0.0.0", "--port", "0").stderr
    assert refused.count("would open this service to the network without a key") == 1, "asked once, for it would say the same again"


def test_the_help_says_what_every_command_is_for(detkds):
    done = detkds("--help", COLUMNS="80")
    assert done.returncode == 0
    assert "Make a small detector better by letting it imitate a strong one" in paragraph(done.stdout)
    commands = done.stdout.partition("Commands:\n")[2].splitlines()
    assert len(commands) > 25
    assert [line for line in commands if line.endswith("...")] == [], "cut off"
    assert re.fullmatch(r"detkds \d+\.\d+\.\d+\n", detkds("--version").stdout)


def test_the_search_space_is_counted_as_json(detkds):
    rows = json.loads(detkds("census", "--knowledge", "localization", "--json").stdout)
    assert [(one["knowledge"], one["breadth"]) for one in rows] == [("localization", "published"), ("localization", "full")]
    assert rows[0]["raw"] == rows[0]["legal"] == rows[0]["distinct"] == 4, "l1, iou, giou, kl_edges"
    assert "--json has no place for what --numerical prints" in detkds("census", "--json", "--numerical").stderr


def test_nobody_there_is_one_paragraph(detkds):
    done = detkds("searches", DETKDS_URL="http://127.0.0.1:9")
    assert done.returncode == 1
    assert "no answer from http://127.0.0.1:9" in paragraph(done.stderr)
    done = detkds("searches", DETKDS_URL="")
    assert "Start one with 'detkds serve'" in paragraph(done.stderr)


@pytest.mark.parametrize("command", ["datasets", "policies", "pairs", "detectors", "results", "distillations"])
def test_what_is_listed_is_listed_as_json_too(detkds, command):
    shown, document = detkds(command), detkds(command, "--json")
    assert shown.returncode == document.returncode == 0, shown.stderr + document.stderr
    assert json.loads(document.stdout) is not None
    assert shown.stdout.strip()


def test_datasets_lists_built_in_and_registered(detkds):
    lines = detkds("datasets").stdout.splitlines()
    assert [line.split()[0] for line in lines if line.split()[0] not in ("mine", "leaky")] == ["name", "digits", "trees", "shapes"]


def test_a_dataset_is_checked_and_what_is_wrong_with_it_is_shown(detkds, service):
    def add(name, val):
        paths = {"train-annotations": "train/coco.json", "train-images": "train/images"}
        paths |= {"val-annotations": f"{val}/coco.json", "val-images": f"{val}/images"}
        return detkds("datasets", "add", name, *(part for key, path in paths.items() for part in (f"--{key}", str(service.roots / path))))

    done = add("mine", "val")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1].split()[:5] == ["mine", "registered", "2", "6", "4"]
    done = add("leaky", "train")
    assert (done.returncode, done.stdout) == (1, "")
    wrong = "val.images: 001.png has the same content as 001.png of train; AP would be of images learned by heart"
    assert wrong in done.stderr.splitlines()
    shown = detkds("datasets", "show", "leaky").stdout.splitlines()
    assert shown[1].split()[:2] == ["leaky", "REFUSED"]
    assert wrong in shown
    assert "there is no dataset 'other'" in detkds("datasets", "show", "other").stderr
    asked = detkds("distill", "--pair", "digits_gfl", "--dataset", "leaky", "--policy", "pkd")
    assert "'leaky' was refused; mend it and register it again (`detkds datasets show leaky`)" in paragraph(asked.stderr)
    deleted = detkds("datasets", "delete", "leaky")
    assert (deleted.returncode, deleted.stdout) == (0, "leaky is deleted\n"), deleted.stderr
    assert "leaky" not in detkds("datasets").stdout
    assert "'mine' is READY, and stays" in paragraph(detkds("datasets", "delete", "mine").stderr)


def test_interrupting_leaves_the_search_running_and_says_how_to_come_back(service, pairing, tmp_path):
    env = {**os.environ, "DETKDS_URL": service.url}
    command = [sys.executable, "-m", "detkds_client.cli", "search", *pairing, "--candidates", "12"]
    # started in a shell's background, the tests ignore Ctrl-C, and so would what they start
    heed = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed)
    search_id = process.stdout.readline().split()[-1]
    assert process.stdout.readline().strip() == RECIPE
    assert "QUEUED waiting 0/20" in process.stdout.readline()
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=20)
    assert process.returncode == 130
    assert f"detkds watch {search_id}" in told
    assert "Traceback" not in told
    assert service.http.get(f"/searches/{search_id}").json()["state"] == "QUEUED"


def test_watching_a_cancelled_search_says_so_by_its_exit_code(detkds, service, wanted):
    one = service.http.post("/searches", json=wanted).json()["id"]
    service.http.post(f"/searches/{one}/cancel")
    done = detkds("watch", one)
    assert done.returncode == 1
    assert "CANCELLED" in done.stdout
