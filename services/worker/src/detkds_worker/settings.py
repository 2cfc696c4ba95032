"""Settings of the worker, from the environment (`DETKDS_*`)."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from detkds_core import logs
from detkds_core.catalogue import OWN_FAULTS
from detkds_core.store.artifacts import filled_folder, place_of, secrets


class Settings(BaseSettings):
    """Where jobs come from, what trains them, and how long each may take."""

    model_config = SettingsConfigDict(env_prefix="DETKDS_", env_ignore_empty=True)

    home: Path = Path("~/.detkds")
    database_url: SecretStr | None = None  # None: SQLite at home/detkds.sqlite
    broker_url: SecretStr | None = None  # None: no Celery, the local loop asks the database
    artifacts: str | None = None  # checkpoints, logs, specs: a folder, or s3://bucket/prefix; None: home/artifacts; the API's is the same
    trainer: Annotated[tuple[str, ...], NoDecode] = (sys.executable, "-m", "detkds_worker.trainer")  # SPEC and OUT_DIR are appended
    lease_seconds: float = Field(default=30.0, gt=0)  # + 10 s of the reaper: what a killed worker costs
    poll_seconds: float = Field(default=0.5, gt=0)  # local loop only: between two looks at an empty queue
    stop_grace_seconds: float = Field(default=5.0, ge=0)  # from SIGTERM to SIGKILL of a trainer
    deadline_seconds: float = Field(default=7 * 86400.0, gt=0)  # of one attempt; a job's spec may name a shorter one
    silence_seconds: float = Field(default=1800.0, gt=0)  # a trainer that says nothing for so long hangs
    worker_name: Annotated[str, Field(min_length=1, max_length=100)] | None = None  # None: host and device (`identity`)
    quota_running: int = Field(default=0, ge=0)  # jobs of one owner that may run at once; 0: any number
    disk_free_gib: float = Field(default=5.0, ge=0)  # where files of jobs are written; with less, no job is taken; 0: it is anyhow
    keep_cache_days: float = Field(default=14.0, ge=0)  # trunks, tokens and copies of checkpoints that no job used; 0: for ever
    log_format: logs.LogFormat | None = None  # None: text on a terminal, else JSON
    threads: int | None = Field(default=None, ge=1)  # of a trainer; None: OMP_NUM_THREADS, else half the cores this process may use

    @field_validator("trainer", mode="before")
    @classmethod
    def split_command(cls, value: object) -> object:
        return tuple(shlex.split(value)) if isinstance(value, str) else value

    @field_validator("trainer")
    @classmethod
    def names_a_program(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("DETKDS_TRAINER is empty; leave it unset, or name a command that takes SPEC and OUT_DIR")
        return value

    @model_validator(mode="after")
    def resolve(self) -> Settings:
        self.home = self.home.expanduser().resolve()
        self.artifacts = place_of(self.artifacts, self.home)
        # Two logical cores are mostly one that computes: on 2 of them a second thread made a step slower (172 ms against 99 ms).
        self.threads = self.threads or int(os.environ.get("OMP_NUM_THREADS") or max(1, len(os.sched_getaffinity(0)) // 2))
        return self

    def configure_logs(self) -> None:
        """Write this process's log as the settings say, without their passwords and those of the artifacts."""
        ours = [secret.get_secret_value() for secret in (self.database_url, self.broker_url) if secret]
        logs.configure(self.log_format, [*ours, *secrets()])

    @property
    def filled_folder(self) -> Path:
        """Where room is needed for jobs."""
        assert self.artifacts is not None
        return filled_folder(self.artifacts, self.home)

    @property
    def url(self) -> str:
        """The database's URL."""
        return self.database_url.get_secret_value() if self.database_url else f"sqlite:///{self.home / 'detkds.sqlite'}"


def stop_on_faulty_detectors() -> None:
    """End a worker at its start, before it takes jobs that name what it lacks, and say why (exit code 2)."""
    for fault in OWN_FAULTS:
        print(f"detkds_worker: {fault}", file=sys.stderr)
    if OWN_FAULTS:
        sys.exit(2)
