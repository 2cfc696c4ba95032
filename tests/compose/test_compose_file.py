"""The compose files say what they must, by rules of the compose specification and of ours."""

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from packaging.specifiers import SpecifierSet

from . import compose_file

ROOT = compose_file.ROOT
MAIN = ROOT / "docker-compose.yml"
FILES = [MAIN, *(ROOT / f"docker/{name}.yml" for name in ("first-host", "worker-host", "s3", "s3-worker-host"))]
SECRETS = {"POSTGRES_PASSWORD": "p" * 16, "REDIS_PASSWORD": "r" * 16, "DETKDS_API_KEY": "k" * 16}
PLACES = {
    "DETKDS_PRIVATE_ADDRESS": "10.0.0.1",
    "DETKDS_SHARED_DATA": "/srv/detkds",
    "DETKDS_DATASETS": "/srv/datasets",
    "DETKDS_HOST_NAME": "second",
}
S3 = {"AWS_ENDPOINT_URL": "https://s3", "AWS_DEFAULT_REGION": "eu", "AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "s" * 16}

# Of the compose specification, what our files use, with the shape that each must have.
SERVICE_KEYS: dict[str, type | tuple[type, ...]] = {
    "image": str,
    "build": dict,
    "command": list,
    "environment": dict,
    "user": str,
    "read_only": bool,
    "tmpfs": list,
    "cap_drop": list,
    "security_opt": list,
    "init": bool,
    "restart": str,
    "volumes": list,
    "networks": list,
    "depends_on": dict,
    "healthcheck": dict,
    "ports": list,
    "shm_size": str,
    "mem_limit": str,
    "cpus": str,
    "pids_limit": str,
    "stop_grace_period": str,
    "deploy": dict,
    "profiles": list,
}
HEALTH_KEYS = {"test", "interval", "timeout", "start_period", "retries"}
WORKERS = ("worker", *(f"worker-{number}" for number in range(1, 8)), "worker-pair", "worker-cpu")
OURS = ("migrate", "api", "evolver", *WORKERS)
HEX_DIGEST = re.compile(r"[\w./-]+:[\w.-]+@sha256:[0-9a-f]{64}")


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    document: dict[str, Any] = compose_file.interpolate(compose_file.read(MAIN), SECRETS)
    return document


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_key_is_one_of_the_specification_with_its_shape(path: Path) -> None:
    document = compose_file.interpolate(compose_file.read(path), SECRETS | PLACES | S3)
    assert {key for key in document if not key.startswith("x-")} <= {"name", "services", "networks", "volumes"}
    for name, service in document["services"].items():
        for key, value in service.items():
            assert key in SERVICE_KEYS, f"{name}.{key}"
            assert isinstance(value, SERVICE_KEYS[key]), f"{name}.{key}"
        for key, value in service.get("environment", {}).items():
            assert isinstance(value, str), f"{name}.environment.{key}: YAML would hand over a {type(value).__name__}"
        for duration in (service.get("stop_grace_period"), *(service.get("healthcheck", {}).get(k) for k in ("interval", "timeout"))):
            assert duration is None or re.fullmatch(r"\d+s", duration), f"{name}: {duration}"
        health = service.get("healthcheck", {"test": ["CMD"]})
        assert set(health) <= HEALTH_KEYS
        assert health["test"][0] in ("CMD", "CMD-SHELL")
        assert re.fullmatch(r"\d+[mg]", service.get("mem_limit", "1g")), name
        assert re.fullmatch(r"\d+(\.\d+)?", service.get("cpus", "0")), name
        assert re.fullmatch(r"\d+", service.get("pids_limit", "1")), name


def test_what_is_named_exists(compose: dict[str, Any]) -> None:
    services = compose["services"]
    for name, service in services.items():
        for network in service["networks"]:
            assert network in compose["networks"], f"{name}: {network}"
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert source in compose["volumes"] or source.startswith(("./", "/")), f"{name}: {volume}"
        for other, rule in service.get("depends_on", {}).items():
            assert other in services, f"{name} waits for {other}"
            if rule["condition"] == "service_healthy":
                assert "healthcheck" in services[other], f"{name} waits for the health of {other}"
            else:
                assert rule["condition"] == "service_completed_successfully"
                assert services[other]["restart"] == "no", f"{other} would start again instead of completing"


def test_what_runs_long_starts_again_and_has_time_to_stop(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        if name != "migrate":
            assert service["restart"] == "unless-stopped", name
            assert "healthcheck" in service, name
            assert int(service["stop_grace_period"].removesuffix("s")) >= 30, name


def gpus_of(service: dict[str, Any]) -> list[str]:
    """The GPUs that a worker reserves; none of one that works on the CPU."""
    if "deploy" not in service:
        return []
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]  # mandatory; without it compose refuses the file
    assert device["driver"] == "nvidia"
    assert "count" not in device, "count and device_ids exclude one another"
    return list(device["device_ids"])


RESERVED = {
    "": [],
    "cpu": [[]],
    "gpus-1": [["0"]],
    "gpus-2": [["0"], ["1"]],
    "gpus-4": [["0"], ["1"], ["2"], ["3"]],
    "gpus-8": [[str(number)] for number in range(8)],
    "gpus-pair": [["0", "1"]],
}
FIRST_HOST = ("docker-compose.yml", "docker-compose.yml:docker/first-host.yml:docker/s3.yml")
FURTHER_HOST = ("docker/worker-host.yml", "docker/worker-host.yml:docker/s3-worker-host.yml")


@pytest.mark.parametrize("profile", RESERVED)
@pytest.mark.parametrize("files", [*FIRST_HOST, *FURTHER_HOST])
def test_a_profile_starts_one_worker_a_gpu(profile: str, files: str) -> None:
    """On a first host and on a further one, with overlays and without: the same workers, each with its own GPUs and name."""
    services = compose_file.project(SECRETS | PLACES | S3 | {"COMPOSE_FILE": files, "COMPOSE_PROFILES": profile})
    others = {name for name in services if name not in WORKERS}
    assert others == ({"postgres", "redis", "migrate", "api", "evolver"} if files in FIRST_HOST else set())
    workers = {name: service for name, service in services.items() if name in WORKERS}
    assert [gpus_of(service) for service in workers.values()] == RESERVED[profile]
    host = "" if files in FIRST_HOST else "second/"
    names = [service["environment"]["DETKDS_WORKER_NAME"] for service in workers.values()]
    expected = {"cpu": ["cpu"], "gpus-pair": ["gpus-0-1"]}.get(profile) or [f"gpu-{gpu}" for (gpu,) in RESERVED[profile]]
    assert names == [host + name for name in expected]
    for service in workers.values():
        assert ("AWS_SECRET_ACCESS_KEY" in service["environment"]) == ("s3" in files)
        assert service["build"]["target"] == ("worker-cpu" if profile == "cpu" else "worker")


def test_the_env_file_as_it_is_copied_starts_everything_on_one_gpu() -> None:
    services = compose_file.project(compose_file.env_file(ROOT / ".env.example") | SECRETS)
    assert set(services) == {"postgres", "redis", "migrate", "api", "evolver", "worker"}


def test_the_example_lists_the_sets_of_files_that_there_are() -> None:
    listed = re.findall(r"^# COMPOSE_FILE=(.+)$", (ROOT / ".env.example").read_text(), re.MULTILINE)
    assert {name for files in listed for name in files.split(":")} == {str(path.relative_to(ROOT)) for path in FILES}
    guide = (ROOT / "docs/deploy.md").read_text()
    for files in listed:
        assert compose_file.project(SECRETS | PLACES | S3 | {"COMPOSE_FILE": files, "COMPOSE_PROFILES": "gpus-1"})
        assert files in guide, f"docs/deploy.md does not say when {files} is wanted"


def test_no_documented_command_names_files_or_profiles() -> None:
    """Who added an overlay or a profile on the command line would lose it with the next upgrade or restore."""
    for path in (ROOT / "docs/deploy.md", ROOT / "README.md", MAIN, *FILES[1:], ROOT / "docker/Dockerfile", ROOT / ".env.example"):
        for command in re.findall(r"docker compose ([^`\n]*)", path.read_text()):
            assert not re.search(r"--(file|profile|env-file)\b(?! -)", command.split(" api tar")[0]), f"{path.name}: {command}"


def test_the_volume_of_several_hosts_is_made_by_what_stands_in_the_env_file(tmp_path: Path) -> None:
    """The reader has only written it there; with nothing there the command stops."""
    (command,) = re.findall(r"^ *(sh -c '\. \./\.env .*)$", (ROOT / "docs/deploy.md").read_text(), re.MULTILINE)
    docker = tmp_path / "docker"
    docker.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    docker.chmod(0o755)

    def run(line: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / ".env").write_text((ROOT / ".env.example").read_text() + line)
        path = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
        return subprocess.run(["/bin/sh", "-c", command], cwd=tmp_path, env=path, capture_output=True, text=True, check=False)

    said = run("DETKDS_SHARED_DATA=/srv/shared\n")
    assert said.stdout.splitlines()[-2:] == ["device=/srv/shared", "detkds_data"]
    assert run("").returncode != 0


def test_workers_differ_only_in_gpu_name_and_profile(compose: dict[str, Any]) -> None:
    further = compose_file.interpolate(compose_file.read(ROOT / "docker/worker-host.yml"), SECRETS | PLACES)

    def common(service: dict[str, Any]) -> dict[str, Any]:
        kept = {key: value for key, value in service.items() if key not in ("deploy", "profiles", "image", "build")}
        return kept | {"environment": kept["environment"] | {"DETKDS_WORKER_NAME": ""}}

    for document in (compose, further):
        for name in WORKERS:
            assert common(document["services"][name]) == common(document["services"]["worker"])
            cpu = name == "worker-cpu"
            assert document["services"][name]["image"] == ("detkds-worker-cpu:0.1.0" if cpu else "detkds-worker:0.1.0")
    profiles = {name: compose["services"][name]["profiles"] for name in WORKERS}
    assert profiles == {name: service["profiles"] for name, service in further["services"].items()}


def test_every_container_is_bounded(compose: dict[str, Any]) -> None:
    """Memory, CPUs and processes; workers take all CPUs, for a bound above the host's number is an error."""
    further = compose_file.interpolate(compose_file.read(ROOT / "docker/worker-host.yml"), SECRETS | PLACES)
    bounds = {"postgres": ("2g", "2", "512"), "redis": ("512m", "1", "512")}
    bounds |= dict.fromkeys(("migrate", "api", "evolver"), ("4g", "2", "512")) | dict.fromkeys(WORKERS, ("32g", "0", "4096"))
    for document, names in ((compose, set(bounds)), (further, set(WORKERS))):
        found = {name: (one["mem_limit"], one["cpus"], one["pids_limit"]) for name, one in document["services"].items()}
        assert found == {name: bounds[name] for name in names}


def test_databases_are_not_root_and_write_only_their_data(compose: dict[str, Any]) -> None:
    """As the users of their images (docker-library/postgres 17/alpine3.24: 70:70, redis 7.4/alpine: 999:1000), whose the volumes are."""
    users = {"postgres": "70:70", "redis": "999:1000"}
    written = {"postgres": ["/tmp", "/var/run/postgresql:uid=70,gid=70,mode=775"], "redis": ["/tmp"]}
    for name in ("postgres", "redis"):
        service = compose["services"][name]
        assert (service["user"], service["read_only"], service["tmpfs"]) == (users[name], True, written[name])
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]


def test_images_of_others_are_pinned_by_digest(compose: dict[str, Any]) -> None:
    for name, tag in (("postgres", "postgres:17-alpine"), ("redis", "redis:7.4-alpine")):
        image = compose["services"][name]["image"]
        assert HEX_DIGEST.fullmatch(image), image
        assert image.startswith(f"{tag}@")
    (python,) = re.findall(r"^ARG PYTHON_IMAGE=(\S+)$", (ROOT / "docker/Dockerfile").read_text(), re.MULTILINE)
    assert HEX_DIGEST.fullmatch(python), python
    assert python.startswith("python:3.11-slim@")


def test_only_the_api_can_be_reached_and_only_from_this_host(compose: dict[str, Any]) -> None:
    assert compose["networks"]["internal"] == {"internal": True}
    for name, service in compose["services"].items():
        if name == "api":
            assert service["networks"] == ["internal", "front"]
            assert service["ports"] == ["127.0.0.1:8350:8350"]
            assert service["environment"]["DETKDS_API_KEY"] == SECRETS["DETKDS_API_KEY"]
        else:
            assert service["networks"] == ["internal"], name
            assert "ports" not in service, name
            assert "DETKDS_API_KEY" not in service.get("environment", {}), name


def test_our_containers_are_not_root_and_write_only_their_data(compose: dict[str, Any]) -> None:
    for name in OURS:
        service = compose["services"][name]
        assert service["user"] == "10001:10001"
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["volumes"] == ["data:/data", "./datasets:/datasets:ro"]
        assert service["environment"]["DETKDS_HOME"] == "/data"
        assert service["environment"]["DETKDS_DATA_ROOTS"] == "/datasets"
        assert service["environment"]["DETKDS_CACHE"] == "/data/cache", "a cache in /tmp is another one in every container"


def test_redis_keeps_its_messages_behind_a_password(compose: dict[str, Any]) -> None:
    command = compose["services"]["redis"]["command"]
    settings = dict(zip(command[1::2], command[2::2], strict=True))
    assert settings == {"--requirepass": SECRETS["REDIS_PASSWORD"], "--appendonly": "yes", "--maxmemory-policy": "noeviction"}


def test_our_services_use_this_postgres_and_this_redis(compose: dict[str, Any]) -> None:
    for name in OURS:
        environment = compose["services"][name]["environment"]
        assert environment["DETKDS_DATABASE_URL"] == f"postgresql+psycopg://detkds:{SECRETS['POSTGRES_PASSWORD']}@postgres:5432/detkds"
        assert environment["DETKDS_BROKER_URL"] == f"redis://:{SECRETS['REDIS_PASSWORD']}@redis:6379/0"


@pytest.mark.parametrize("missing", SECRETS)
def test_without_a_secret_nothing_starts(missing: str) -> None:
    set_ones = {name: value for name, value in SECRETS.items() if name != missing}
    with pytest.raises(KeyError, match=missing):
        compose_file.interpolate(compose_file.read(MAIN), set_ones)


def test_the_example_names_every_variable_and_no_other() -> None:
    example = compose_file.env_file(ROOT / ".env.example")
    named = compose_file.variables(MAIN)
    images = {"DETKDS_POSTGRES_IMAGE", "DETKDS_REDIS_IMAGE"}  # commented: a copy of .env would hold on to those of an old release
    assert set(example) == set(named) - images | {"COMPOSE_PROFILES"}
    for name, value in example.items():
        if name == "COMPOSE_PROFILES":
            continue
        if named[name] == ":-":
            assert f"${{{name}:-{value}}}" in MAIN.read_text(), f"the example's {name} is not the default"
        else:
            assert value == "", f"{name}: a secret has no example value"
    commented = set(re.findall(r"^# (\w+)=", (ROOT / ".env.example").read_text(), re.MULTILINE))
    beyond = {name for path in FILES[1:] for name in compose_file.variables(path)}
    assert beyond <= set(example) | commented
    assert commented <= beyond | images | {"COMPOSE_FILE"}


def test_artifacts_in_s3_are_reached_by_those_who_use_them_and_by_no_trainer(compose: dict[str, Any]) -> None:
    """The overlay names services of the main file; a trainer gets no secret of theirs (`trainer_environment`)."""
    overlay = compose_file.interpolate(compose_file.read(ROOT / "docker/s3.yml"), S3)["services"]
    assert set(overlay) == {name for name in compose["services"] if name not in ("postgres", "redis", "migrate")}
    for name, service in overlay.items():
        assert service == {"networks": ["internal", "front"], "environment": S3}, name
    further = compose_file.interpolate(compose_file.read(ROOT / "docker/s3-worker-host.yml"), S3)["services"]
    assert further == {name: {"environment": S3} for name in WORKERS}
    for name in OURS:
        assert compose["services"][name]["environment"]["DETKDS_ARTIFACTS"] == "/data/artifacts"


def test_images_are_built_from_what_there_is(compose: dict[str, Any]) -> None:
    dockerfile = (ROOT / "docker/Dockerfile").read_text()
    targets = set(re.findall(r"^FROM \S+ AS (\S+)$", dockerfile, re.MULTILINE))
    for service in compose["services"].values():
        if "build" in service:
            assert (ROOT / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
            assert service["build"]["target"] in targets
    for source in re.findall(r"^COPY (\S+) \S+$", dockerfile, re.MULTILINE):
        assert (ROOT / source).exists(), source
    stages = dict(re.findall(r"^FROM \S+ AS (\S+)$(.*?)(?=^FROM|\Z)", dockerfile, re.MULTILINE | re.DOTALL))
    assert "torch" not in stages["services"], "api and evolver need no torch"
    assert "detkds_core[s3]" in stages["services"]
    for name in ("services", "worker", "worker-cpu"):
        assert stages[name].rstrip().endswith("USER detkds")
    for name in ("services", "worker-base"):
        assert "--no-deps deepforest" in stages[name], "who makes the data set `trees` needs its photographs"
    for name in ("worker", "worker-cpu"):
        assert "detkds_core[torch,s3]" in stages[name]
        assert re.search(rf"^FROM worker-base AS {name}$", dockerfile, re.MULTILINE)


def test_the_cpu_image_has_torch_without_cuda() -> None:
    """Installed first, from an index without CUDA; then nothing asks for another one, since 2.14.1+cpu is 2.14.1 to pip."""
    dockerfile = (ROOT / "docker/Dockerfile").read_text()
    cpu = dockerfile.split("AS worker-cpu")[1]
    assert re.search(r"^ARG TORCH_INDEX=https://download\.pytorch\.org/whl/cpu$", cpu, re.MULTILINE)
    first, second = re.findall(r"pip install (.*?)(?: && |\n)", cpu)
    assert first == "--constraint constraints.txt --no-deps --index-url ${TORCH_INDEX} torch torchvision"
    assert second == '--constraint constraints.txt "./libs/detkds_core[torch,s3]" ./services/worker'
    assert "NVIDIA" not in cpu
    (pin,) = re.findall(r"^torch(==\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert SpecifierSet(pin).contains(pin.removeprefix("==") + "+cpu")


def test_commands_name_programs_and_modules_that_exist(compose: dict[str, Any]) -> None:
    for name in OURS:
        program, flag, module = compose["services"][name]["command"][:3]
        assert shutil.which(program, path=str(Path(sys.executable).parent)), name
        assert flag == ("-A" if program == "celery" else "-m")
        assert importlib.util.find_spec(module) is not None, name
        if flag == "-m" and importlib.util.find_spec(module).submodule_search_locations:  # type: ignore[union-attr]
            assert importlib.util.find_spec(f"{module}.__main__") is not None, f"{name}: python -m {module}"


def test_a_worker_host_runs_the_same_worker(compose: dict[str, Any]) -> None:
    worker = compose_file.interpolate(compose_file.read(ROOT / "docker/worker-host.yml"), SECRETS | PLACES)["services"]["worker"]
    ours = compose["services"]["worker"]
    for key in (
        "image",
        "command",
        "user",
        "read_only",
        "tmpfs",
        "cap_drop",
        "security_opt",
        "init",
        "shm_size",
        "stop_grace_period",
        "deploy",
    ):
        assert worker[key] == ours[key], key
    assert worker["healthcheck"] == ours["healthcheck"]
    assert worker["environment"]["DETKDS_DATABASE_URL"] == ours["environment"]["DETKDS_DATABASE_URL"].replace("@postgres:", "@10.0.0.1:")
    assert worker["environment"]["DETKDS_BROKER_URL"] == ours["environment"]["DETKDS_BROKER_URL"].replace("@redis:", "@10.0.0.1:")
    assert worker["environment"]["OMP_NUM_THREADS"] == ours["environment"]["OMP_NUM_THREADS"]
    same = ("DETKDS_QUOTA_RUNNING", "DETKDS_DISK_FREE_GIB", "DETKDS_LEASE_SECONDS", "DETKDS_CACHE", "DETKDS_KEEP_CACHE_DAYS")
    for name in (*same, "DETKDS_DETECTORS"):
        assert worker["environment"][name] == ours["environment"][name]
    assert worker["environment"]["DETKDS_WORKER_NAME"] == "second/gpu-0"
    folder = {"type": "bind", "bind": {"create_host_path": False}}  # what is relative would be made, empty, below docker/
    assert worker["volumes"] == [
        {**folder, "source": "/srv/detkds", "target": "/data"},
        {**folder, "source": "/srv/datasets", "target": "/datasets", "read_only": True},
    ]


@pytest.mark.parametrize("missing", ["DETKDS_DATASETS", "DETKDS_SHARED_DATA", "DETKDS_HOST_NAME", "DETKDS_PRIVATE_ADDRESS"])
def test_a_worker_host_needs_its_folders_address_and_name(missing: str) -> None:
    set_ones = {name: value for name, value in (SECRETS | PLACES).items() if name != missing}
    with pytest.raises(KeyError, match=missing):
        compose_file.interpolate(compose_file.read(ROOT / "docker/worker-host.yml"), set_ones)
