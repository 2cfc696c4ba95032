"""The compose files say what they must, by rules of the compose specification and of ours."""

import importlib.util
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from . import compose_file

ROOT = compose_file.ROOT
MAIN = ROOT / "docker-compose.yml"
FILES = [MAIN, *(ROOT / f"docker/{name}.yml" for name in ("first-host", "worker-host", "s3", "s3-worker-host"))]
SECRETS = {"POSTGRES_PASSWORD": "p" * 16, "REDIS_PASSWORD": "r" * 16, "DETKDS_API_KEY": "k" * 16}
PLACES = {"DETKDS_PRIVATE_ADDRESS": "10.0.0.1", "DETKDS_SHARED_DATA": "/srv/detkds", "DETKDS_HOST_NAME": "second"}
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
    "stop_grace_period": str,
    "deploy": dict,
    "profiles": list,
}
HEALTH_KEYS = {"test", "interval", "timeout", "start_period", "retries"}
OURS = ("migrate", "api", "evolver", "worker")


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


def test_each_worker_reserves_one_gpu_of_its_own(compose: dict[str, Any]) -> None:
    reserved = []
    for name, service in compose["services"].items():
        if name.startswith("worker"):
            (device,) = service["deploy"]["resources"]["reservations"]["devices"]
            assert device["capabilities"] == ["gpu"], name  # mandatory; without it compose refuses the file
            assert device["driver"] == "nvidia"
            assert "count" not in device, "count and device_ids exclude one another"
            reserved += device["device_ids"]
        else:
            assert "deploy" not in service, name
    assert reserved == ["0", "1", "2", "3"]


def test_workers_differ_only_in_gpu_name_and_profile(compose: dict[str, Any]) -> None:
    def common(name: str) -> dict[str, Any]:
        kept = {key: value for key, value in compose["services"][name].items() if key not in ("deploy", "profiles")}
        environment = {key: value for key, value in kept["environment"].items() if key != "DETKDS_WORKER_NAME"}
        return kept | {"environment": environment}

    names = [compose["services"][name]["environment"]["DETKDS_WORKER_NAME"] for name in ("worker", "worker-1", "worker-2", "worker-3")]
    assert names == ["gpu-0", "gpu-1", "gpu-2", "gpu-3"]
    assert "profiles" not in compose["services"]["worker"]
    for name in ("worker-1", "worker-2", "worker-3"):
        assert common(name) == common("worker")


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
    assert set(example) == set(named)
    for name, value in example.items():
        if named[name] == ":-":
            assert f"${{{name}:-{value}}}" in MAIN.read_text(), f"the example's {name} is not the default"
        else:
            assert value == "", f"{name}: a secret has no example value"
    commented = set(re.findall(r"^# (\w+)=", (ROOT / ".env.example").read_text(), re.MULTILINE))
    beyond = {name for path in FILES[1:] for name in compose_file.variables(path)}
    assert beyond <= set(example) | commented
    assert commented <= beyond


def test_artifacts_in_s3_are_reached_by_those_who_use_them_and_by_no_trainer(compose: dict[str, Any]) -> None:
    """The overlay names services of the main file; a trainer gets no secret of theirs (`trainer_environment`)."""
    overlay = compose_file.interpolate(compose_file.read(ROOT / "docker/s3.yml"), S3)["services"]
    assert set(overlay) == {name for name in compose["services"] if name not in ("postgres", "redis", "migrate")}
    for name, service in overlay.items():
        assert service == {"networks": ["internal", "front"], "environment": S3}, name
    (worker,) = compose_file.interpolate(compose_file.read(ROOT / "docker/s3-worker-host.yml"), S3)["services"].values()
    assert worker == {"environment": S3}
    for name in OURS:
        assert compose["services"][name]["environment"]["DETKDS_ARTIFACTS"] == "/data/artifacts"


def test_images_are_built_from_what_there_is(compose: dict[str, Any]) -> None:
    dockerfile = (ROOT / "docker/Dockerfile").read_text()
    targets = set(re.findall(r"^FROM \S+ AS (\w+)$", dockerfile, re.MULTILINE))
    for service in compose["services"].values():
        if "build" in service:
            assert (ROOT / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
            assert service["build"]["target"] in targets
    for source in re.findall(r"^COPY (\S+) \S+$", dockerfile, re.MULTILINE):
        assert (ROOT / source).exists(), source
    services_image, worker_image = dockerfile.split("FROM base AS services")[1].split("FROM base AS worker")
    assert "torch" not in services_image.split("FROM")[0].replace("no torch", ""), "api and evolver need no torch"
    assert "detkds_core[torch,s3]" in worker_image
    assert "detkds_core[s3]" in services_image
    assert services_image.rstrip().endswith("USER detkds")
    assert worker_image.rstrip().endswith("USER detkds")


def test_commands_name_programs_and_modules_that_exist(compose: dict[str, Any]) -> None:
    for name in OURS:
        program, flag, module = compose["services"][name]["command"][:3]
        assert shutil.which(program, path=str(Path(sys.executable).parent)), name
        assert flag == ("-A" if program == "celery" else "-m")
        assert importlib.util.find_spec(module) is not None, name
        if flag == "-m" and importlib.util.find_spec(module).submodule_search_locations:  # type: ignore[union-attr]
            assert importlib.util.find_spec(f"{module}.__main__") is not None, f"{name}: python -m {module}"


def test_a_worker_host_runs_the_same_worker(compose: dict[str, Any]) -> None:
    (worker,) = compose_file.interpolate(compose_file.read(FILES[2]), SECRETS | PLACES)["services"].values()
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
    for name in ("DETKDS_QUOTA_RUNNING", "DETKDS_DISK_FREE_GIB", "DETKDS_LEASE_SECONDS"):
        assert worker["environment"][name] == ours["environment"][name]
    assert worker["environment"]["DETKDS_WORKER_NAME"] == "second/gpu-0"
    assert worker["volumes"] == ["/srv/detkds:/data", "./datasets:/datasets:ro"]
