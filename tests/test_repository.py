"""What holds for the repository as a whole: its rooms, its imports, its pins, and what no file may contain."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
CORE = ROOT / "libs/detkds_core/src/detkds_core"
PACKAGES = {
    "detkds_core": CORE,
    "detkds_client": ROOT / "libs/detkds_client/src/detkds_client",
    "detkds_api": ROOT / "services/api/src/detkds_api",
    "detkds_evolver": ROOT / "services/evolver/src/detkds_evolver",
    "detkds_worker": ROOT / "services/worker/src/detkds_worker",
}
ROOMS = ("policy", "catalogue", "losses", "detectors", "distillers", "training", "evaluation", "evolution", "datasets", "store", "report")
WITHOUT_TORCH = ("policy", "catalogue", "evolution", "datasets", "store", "report")


def tracked() -> list[Path]:
    """The files of the repository, deleted ones left out."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True).stdout
    return [path for name in listed.split("\0") if name and (path := ROOT / name).is_file()]


def modules() -> list[Path]:
    return [path for folder in PACKAGES.values() for path in sorted(folder.rglob("*.py"))]


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_of_the_design_has_its_thing(room: str) -> None:
    code = [line for path in (CORE / room).glob("*.py") for line in path.read_text().splitlines() if line.strip()]
    assert len(code) > 50


@pytest.mark.parametrize("package", ["detkds_client", "detkds_api", "detkds_evolver", "detkds_worker"])
def test_every_service_has_its_thing(package: str) -> None:
    code = [line for path in PACKAGES[package].glob("*.py") for line in path.read_text().splitlines() if line.strip()]
    assert len(code) > 50


IMPORT_ALL = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
    heavy = sorted({"torch", "torchvision", "mmdet", "mmcv", "mmengine"} & sys.modules.keys())
    if heavy:
        sys.exit(f"{name} imports {', '.join(heavy)}")
print(len(sys.argv) - 1)
"""


def modules_below(package: str, folder: Path) -> list[str]:
    """Dotted names of a folder's modules; those that run when imported (`__main__`) left out."""
    paths = [path.relative_to(folder.parent).with_suffix("") for path in sorted(folder.rglob("*.py"))]
    names = [".".join(path.parts).removesuffix(".__init__") for path in paths if path.name != "__main__"]
    prefix = package.rpartition(".")[0]
    return [f"{prefix}.{name}" if prefix else name for name in names]


@pytest.mark.parametrize(
    ("package", "folder"),
    [
        *((f"detkds_core.{room}", CORE / room) for room in WITHOUT_TORCH),
        *((name, PACKAGES[name]) for name in ("detkds_client", "detkds_api", "detkds_evolver")),
    ],
)
def test_a_fresh_interpreter_imports_no_torch(package: str, folder: Path) -> None:
    # Migrations are scripts that Alembic runs; they have no place among the modules.
    names = [name for name in modules_below(package, folder) if "migrations" not in name]
    run = subprocess.run([sys.executable, "-c", IMPORT_ALL, *names], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout.split()[-1] == str(len(names))
    assert package in names


def test_a_module_that_imports_torch_is_found_out() -> None:
    run = subprocess.run([sys.executable, "-c", IMPORT_ALL, "detkds_core.losses"], capture_output=True, text=True, timeout=120)
    assert run.returncode == 1
    assert "detkds_core.losses imports torch" in run.stderr


def test_no_file_names_a_place_of_one_machine() -> None:
    place = re.compile(r"(?<![\w.$}])/(?:work|root|home|Users)/[\w.]")
    found = []
    for path in tracked():
        content = path.read_bytes()
        if b"\0" not in content[:8192]:
            lines = content.decode("utf-8").splitlines()
            found += [f"{path.relative_to(ROOT)}:{number}: {line.strip()}" for number, line in enumerate(lines, 1) if place.search(line)]
    assert found == []


def test_pickles_are_read_in_one_place_and_as_tensors_only() -> None:
    calls = []
    for path in [*modules(), *sorted((ROOT / "benchmarks").glob("*.py"))]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "pickle.load", "pickle.loads"):
                calls.append((path.relative_to(ROOT).as_posix(), ast.unparse(node)))
    assert len(calls) <= 1, calls
    assert all(call.startswith("torch.load(") and "weights_only=True" in call for _, call in calls), calls


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    requirements = [Requirement(line) for line in lines if line and not line.startswith("#")]
    for requirement in requirements:
        assert [one.operator for one in requirement.specifier] == ["=="], f"constraints.txt: {requirement} is not pinned"
    return {canonicalize_name(one.name): next(iter(one.specifier)).version for one in requirements}


def installed_by_set_up() -> Iterator[tuple[str, str]]:
    """Name and version of everything that the packages and the tests need, directly or not."""
    makefile = (ROOT / "Makefile").read_text()
    test_packages = re.search(r"^TEST_PACKAGES := (.+)$", makefile, re.MULTILINE)
    assert test_packages
    waiting = [Requirement("detkds_core[torch]"), *(Requirement(name) for name in (*PACKAGES, *test_packages[1].split()))]
    seen: set[str] = set()
    while waiting:
        requirement = waiting.pop()
        try:
            found = distribution(requirement.name)
        except PackageNotFoundError:  # a CPU build of torch needs no CUDA library
            continue
        if str(requirement) in seen:
            continue
        seen.add(str(requirement))
        yield canonicalize_name(requirement.name), found.version
        for text in found.requires or ():
            needed = Requirement(text)
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in (*requirement.extras, "")):
                waiting.append(needed)


def test_everything_that_set_up_installs_is_pinned() -> None:
    pinned = pins()
    own = {canonicalize_name(name) for name in PACKAGES}
    found = dict(installed_by_set_up())
    assert {"torch", "onedl-mmdetection", "fastapi", "pytest"} <= found.keys()
    wrong = {name: (version, pinned.get(name)) for name, version in found.items() if name not in own and version != pinned.get(name)}
    assert wrong == {}


def test_opencv_needs_no_window_system() -> None:
    code = "import cv2; info = cv2.getBuildInformation(); print(info[info.index('GUI:'):].split()[1])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert run.stdout.split() == ["NONE"], run.stderr
    with (ROOT / "libs/opencv_headless/pyproject.toml").open("rb") as file:
        alias = tomllib.load(file)["project"]["dependencies"]
    assert alias == [f"opencv-python-headless=={pins()['opencv-python-headless']}"]
