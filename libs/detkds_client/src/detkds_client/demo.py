"""`detkds demo`: the whole way once on real images, as a client of a service that it starts for itself."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from detkds_client import show
from detkds_client.client import Client
from detkds_client.show_progress import following
from detkds_client.types import Candidate, DetectorChoice, Distillation, Result, Search
from detkds_core import processes
from detkds_core.catalogue import PAIRS, Pair, Recipe
from detkds_core.datasets import Dataset, default_cache, load_dataset, report_ids
from detkds_core.policy import canonical, canonical_json, from_json, named_policies, readable
from detkds_core.report import (
    SEARCHED,
    Box,
    CandidatePoint,
    ImagePanel,
    ReportData,
    Row,
    Verdict,
    confirmed_rows,
    row_names,
    rung_means,
    text_table,
    write_report,
)
from detkds_core.report.data import State

DEMOS = {"digits": "digits_gfl", "trees": "trees_gfl"}  # the pair that each dataset is shown with
ITERATIONS = 1_440  # of the search: as many as 12 candidates at the full proxy would take
GROUP = 8  # candidates of one trainer
FINALISTS, SEEDS, DISTILLERS = 2, 3, ("pkd",)  # of the confirmation: fewer than a search's own, for minutes count here
WORKERS = 2  # trainers at once where there is no GPU: one thread each uses 2 cores better than two threads of one
PANELS = 6  # validation images in the report: the first of the report half, whatever they show
STEPS = 4


def run(*, dataset: str, seed: int, train_teacher: bool = False, folder: Path = Path("demo"), iterations: int = ITERATIONS) -> Path:
    """Search, distil and report on a built-in dataset; writes below `folder` and returns the report's path.

    Everything random follows from `seed`; two runs with one seed give the same candidates and the same AP.
    """
    began = time.monotonic()
    if dataset not in DEMOS:
        raise SystemExit(f"detkds demo: there is no demo on {dataset!r}; one of {', '.join(DEMOS)}")
    pair = PAIRS[DEMOS[dataset]]
    say = show.console().print
    home = folder.resolve() / f"{dataset}-seed{seed}"
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    say(f"[bold]DetKDS demo[/]: {pair.title}")
    data = load_dataset(dataset, default_cache())
    say(f"dataset {dataset}: {data.train.count} training and {data.val.count} validation images, digest {data.digest[:12]}")
    teacher: DetectorChoice = {"detector": pair.teacher, "checkpoint": pair.teacher_checkpoint}
    if train_teacher:
        teacher["checkpoint"] = str(trained_teacher(pair, home, seed))
    with service(home) as client:
        student: DetectorChoice = {"detector": pair.student}
        common: dict[str, Any] = {"dataset": dataset, "teacher": teacher, "student": student, "seed": seed}

        heading(1, "teacher, and the student alone")
        alone = distilled(client, policy="none", recipe=pair.full.to_json(), name="student alone", **common)
        say(f"teacher AP {alone['metrics']['teacher']['ap']:.1f}, student alone AP {alone['metrics']['student']['ap']:.1f}")

        heading(2, f"search within {iterations:,} student iterations")
        started = client.search(
            iterations=iterations,
            group=GROUP,
            parallelism=WORKERS,
            recipe=pair.proxy.to_json(),
            confirmation={"finalists": FINALISTS, "seeds": SEEDS, "iterations": pair.full.iterations, "distillers": list(DISTILLERS)},
            name=f"demo on {dataset}",
            **common,
        )
        with following() as follow:
            search = client.wait_search(started["id"], cast(Callable[[Search], None], follow))
        must_succeed(search)
        found = client.result(str(search["result_id"]))
        say(f"policy {readable(found['formula'])}", markup=False)

        heading(3, "distillation with the best policy")
        best = distilled(client, policy={"search": search["id"]}, recipe=pair.full.to_json(), name="distilled student", **common)
        say(f"distilled student AP {best['metrics']['student']['ap']:.1f} with seed {seed}")

        heading(4, "results")
        checkpoint = client.download_checkpoint(best["id"], home / "student.pth", "pth")
        report = home / "report.html"
        rows = result_rows(found, alone, teacher_seed=seed if train_teacher else 0)
        judged = Verdict.from_json(found["metrics"], row_names(found["metrics"]))
        points = [candidate_point(one) for one in client.candidates(search["id"])]
        detections = {name: client.detections(result["id"]) for name, result in (("alone", alone), ("distilled", best))}
        write_report(
            report,
            ReportData(
                title=f"DetKDS on {dataset}",
                dataset=dataset,
                pair=f"{pair.teacher} teaches {pair.student}",
                rows=rows,
                formula=readable(found["formula"]),
                policy=cast(Mapping[str, Any], found["policy"]),
                candidates=points,
                panels=panels(data, detections["alone"], detections["distilled"]),
                evidence=evidence(data, pair, found, search, seed, time.monotonic() - began),
                verdict=judged,
                insight=cast(Mapping[str, Any], found["evidence"]["insight"]),
                searched_on=f"{found['evidence']['images']['selection']} selection images, with seed {seed}",
                funnel=found["evidence"]["summary"]["funnel"],
            ),
        )
        shutil.copyfile(report, folder.resolve() / "report.html")
        print()
        print(text_table(rows))
        print()
        print(judged.sentence)
        print(f"policy      {readable(found['formula'])}")
        print(f"checkpoint  {shown(checkpoint)}")
        print(f"report      {shown(folder.resolve() / 'report.html')}")
        print(f"everything  {time.monotonic() - began:.0f} s, seed {seed}; the same command gives the same candidates and the same AP")
    return report


def heading(step: int, text: str) -> None:
    show.console().print(f"\n[bold cyan]{step}/{STEPS}[/] [bold]{text}[/]")


def shown(path: Path) -> str:
    """A path as short as it can be said from here."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


@contextmanager
def service(home: Path) -> Iterator[Client]:
    """`detkds serve` on a free loopback port, gone when the demo is."""
    environment = {name: value for name, value in os.environ.items() if name not in ("DETKDS_DATABASE_URL", "DETKDS_BROKER_URL")}
    workers = 1 if shutil.which("nvidia-smi") else WORKERS
    threads = max(1, len(os.sched_getaffinity(0)) // 2 // workers)
    environment |= {"DETKDS_DATA_ROOTS": str(home), "DETKDS_HOME": str(home), "DETKDS_THREADS": str(threads)}
    with (home / "serve.log").open("wb") as log:
        command = [sys.executable, "-m", "detkds_client", "serve", "--home", str(home), "--host", "127.0.0.1"]
        command += ["--port", "0", "--workers", str(workers)]
        server = processes.start_bound(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
    try:
        address = home / "serve.json"
        deadline = time.monotonic() + 120
        while not address.exists():
            if server.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"detkds demo: the service does not start; the end of {log.name}:\n{tail(home / 'serve.log')}")
            time.sleep(0.1)
        with Client(json.loads(address.read_text())["url"]) as client:
            yield client
    finally:
        processes.stop_group(server, grace=30.0)


def tail(path: Path, lines: int = 20) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])


def trained_teacher(pair: Pair, home: Path, seed: int) -> Path:
    """Train the pair's teacher anew, in a process of its own: this one has no torch."""
    path = home / "teacher.safetensors"
    command = [sys.executable, "-m", "detkds_core.training.teacher", "--pair", pair.name, "--seed", str(seed), "--out", str(path)]
    subprocess.run(command, check=True)
    return path


def distilled(client: Client, **wanted: Any) -> Result:
    """Train one student through the service and wait for its result."""
    started = client.distill(**wanted)
    with following() as follow:
        done = client.wait_distillation(started["id"], cast(Callable[[Distillation], None], follow))
    must_succeed(done)
    return client.result(str(done["result_id"]))


def must_succeed(done: Search | Distillation) -> None:
    if done["state"] != "SUCCEEDED":
        raise SystemExit(f"detkds demo: {done['name']} ended as {done['state']}: {done['reason']}")


def result_rows(found: Result, alone: Result, teacher_seed: int = 0) -> list[Row]:
    """The result table: teacher, then what the confirmation measured on fresh seeds and the report images; of the finalists the best."""
    metrics = alone["metrics"]
    teacher = metrics["teacher"]
    rows = [
        Row(
            "teacher",
            "teacher",
            (teacher_seed,),
            (teacher["ap"],),
            (teacher["ap50"],),
            (teacher["ap75"],),
            teacher["parameters"],
            teacher["images"],
        )
    ]
    confirmed = confirmed_rows(found["metrics"], metrics["student"]["parameters"], readable)
    return rows + [row for row in confirmed if row.role != "searched" or row.name == SEARCHED]


def candidate_point(one: Candidate) -> CandidatePoint:
    names = {canonical_json(canonical(named.policy)): name for name, named in named_policies().items()}
    failure = one["failure"]
    return CandidatePoint(
        index=one["index"],
        stage=one["stage"],
        formula=readable(one["resolved"] or one["formula"]),
        fitness=one["ap"],
        island=one["island"],
        operator=one["operator"],
        failure=f"{failure['kind']}: {failure['detail']}" if failure else None,
        name=names.get(canonical_json(canonical(from_json(one["policy"])))) if one["stage"] == "reference" else None,
        state=cast(State, one["state"]),
        rungs=rung_means((each["rung"], each["ap"]) for each in one["rungs"]),
    )


def panels(data: Dataset, alone: Sequence[Mapping[str, Any]], distilled: Sequence[Mapping[str, Any]]) -> list[ImagePanel]:
    """The first report images with ground truth and with what either student finds."""
    content = data.val.load()
    names = {category["id"]: category["name"] for category in content["categories"]}
    records = {image["id"]: image for image in content["images"]}

    def boxes(found: Sequence[Mapping[str, Any]], image_id: int) -> list[Box]:
        return [box(one["bbox"], names[one["category_id"]], one.get("score")) for one in found if one["image_id"] == image_id]

    return [
        ImagePanel(
            image=data.val.images / records[image_id]["file_name"],
            title=records[image_id]["file_name"],
            truth=boxes([one for one in content["annotations"] if not one.get("iscrowd", 0)], image_id),
            alone=boxes(alone, image_id),
            distilled=boxes(distilled, image_id),
        )
        for image_id in report_ids(data)[:PANELS]
    ]


def box(xywh: Sequence[float], label: str, score: float | None) -> Box:
    x, y, width, height = xywh
    return Box((x, y, x + width, y + height), label, score)


def evidence(data: Dataset, pair: Pair, found: Result, search: Search, seed: int, seconds: float) -> dict[str, str]:
    def said(recipe: Recipe) -> str:
        return f"{recipe.iterations} iterations of {recipe.batch} images at {recipe.image_size} px, {recipe.optimizer} at {recipe.lr}"

    versions = ", ".join(f"{name} {version}" for name, version in found["environment"].items())
    return {
        "dataset": f"{data.name}, SHA-256 {data.digest}",
        "images": f"{data.train.count} for training; of {data.val.count} for validation one half selects, the other reports",
        "a candidate": f"{said(pair.proxy)}, seed {seed}, measured on {pair.proxy.eval_images or 'all'} selection images",
        "confirmation": f"{said(pair.full)}; {SEEDS} fresh seeds, against no distillation and {', '.join(DISTILLERS)}",
        "intervals": f"over the seeds and {found['evidence']['draws']} draws of the report images, which the search never saw",
        "candidates": f"{found['evidence']['candidates']['proposed']} proposed within {search['spec']['budget']:,} student iterations",
        "cost": show.cost(found["evidence"]["cost"])[0][1],
        "made with": versions,
        "took": f"{seconds:.0f} s",
    }
