"""Settings of the HTTP service, from the environment (`DETKDS_*`)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from detkds_api.gate import LOOPBACK
from detkds_core import logs
from detkds_core.catalogue.pairs import CHECKPOINTS
from detkds_core.roots import read_roots
from detkds_core.store.artifacts import filled_folder, place_of, secrets


class Settings(BaseSettings):
    """Where the service listens, what it remembers in, and which folders it may read."""

    model_config = SettingsConfigDict(env_prefix="DETKDS_", env_ignore_empty=True)

    home: Path = Path("~/.detkds")
    database_url: SecretStr | None = None  # None: SQLite at home/detkds.sqlite
    host: str = "127.0.0.1"
    port: int = 8350
    broker_url: SecretStr | None = None  # only asked whether it answers (`GET /ready`): the evolver rings, not this service
    log_format: logs.LogFormat | None = None  # None: text on a terminal, else JSON
    api_key: SecretStr | None = None  # asked from every client; needed before listening beyond loopback
    requests_a_minute: int | None = Field(default=600, ge=1)  # of every key but the operator's; None: any number
    quota_active: int | None = Field(default=None, ge=1)  # searches and distillations of one owner that may wait or run at once
    quota_iterations: int | None = Field(default=None, ge=1)  # student iterations that one request of an owner may ask for
    quota_running: int = Field(default=0, ge=0)  # jobs of one owner that may run at once, to which the workers hold; 0: any number
    quota_streams: int | None = Field(default=32, ge=1)  # streams of events that one owner may have open at once, of each process
    stream_seconds: float = Field(default=60.0, gt=0, le=3600)  # after which a stream of events ends, to be resumed; its key is asked anew
    priority_max: int = Field(default=0, ge=-100, le=100)  # the highest that a key without scope `admin` may ask for
    disk_free_gib: float = Field(default=5.0, ge=0)  # where files of jobs are written; with less, no new work is taken; 0: it is anyhow
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = ()  # further Host names, comma separated; "*" for any
    checkpoint_hosts: Annotated[tuple[str, ...], NoDecode] = ()  # that checkpoints are fetched from: `host` or `host:port`, comma separated
    data_roots: Annotated[tuple[Path, ...], NoDecode] = ()  # folders of data sets and checkpoints, separated as in PATH
    cache: Path | None = None  # where built-in data sets are kept; None: XDG_CACHE_HOME/detkds, shared by every home
    artifacts: str | None = None  # where workers leave checkpoints: a folder, or s3://bucket/prefix; None: home/artifacts

    @field_validator("allowed_hosts", "checkpoint_hosts", mode="before")
    @classmethod
    def split_hosts(cls, value: object) -> object:
        return tuple(name.strip() for name in value.split(",") if name.strip()) if isinstance(value, str) else value

    @field_validator("checkpoint_hosts")
    @classmethod
    def hosts_alone(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for one in value:
            if "/" in one or "@" in one or "*" in one:
                raise ValueError(f"DETKDS_CHECKPOINT_HOSTS: {one!r} is no host; write download.example.org or download.example.org:8443")
        return tuple(one.lower().removesuffix(":443") for one in value)

    @field_validator("data_roots", mode="before")
    @classmethod
    def split_roots(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        roots, faults = read_roots(value)
        if faults:
            raise ValueError("; ".join(faults))
        return roots

    @field_validator("api_key")
    @classmethod
    def long_enough(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and len(value.get_secret_value()) < 16:
            raise ValueError("DETKDS_API_KEY needs at least 16 characters; make one with: openssl rand -hex 32")
        return value

    @model_validator(mode="after")
    def resolve(self) -> Settings:
        """Absolute folders, and no listening beyond loopback without a key: an open job service is code execution for everybody."""
        self.home = self.home.expanduser().resolve()
        self.cache = (self.cache or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "detkds").expanduser().resolve()
        self.artifacts = place_of(self.artifacts, self.home)
        self.data_roots = tuple(root.expanduser().resolve() for root in self.data_roots)
        if self.host not in LOOPBACK and self.api_key is None:
            raise ValueError(
                f"DETKDS_HOST={self.host} would open this service to the network without a key; "
                "set DETKDS_API_KEY (openssl rand -hex 32), or listen on 127.0.0.1"
            )
        return self

    def configure_logs(self) -> None:
        """Write this process's log as the settings say, without their secrets and those of the artifacts."""
        ours = [secret.get_secret_value() for secret in (self.api_key, self.database_url, self.broker_url) if secret]
        logs.configure(self.log_format, [*ours, *secrets()])

    @property
    def url(self) -> str:
        """The database's URL."""
        return self.database_url.get_secret_value() if self.database_url else f"sqlite:///{self.home / 'detkds.sqlite'}"

    @property
    def artifacts_place(self) -> str:
        """Where workers leave checkpoints: a folder, or `s3://bucket/prefix`."""
        return self.artifacts or str(self.home / "artifacts")

    @property
    def filled_folder(self) -> Path:
        """Where room is needed for jobs."""
        return filled_folder(self.artifacts_place, self.home)

    @property
    def own_roots(self) -> tuple[Path, ...]:
        """The service's own folders of this machine whose checkpoints a request may name by path, beside those of `data_roots`."""
        return (CHECKPOINTS,) if self.artifacts_place.startswith("s3://") else (CHECKPOINTS, Path(self.artifacts_place))

    @property
    def cache_folder(self) -> Path:
        """Where built-in data sets are kept."""
        return self.cache or Path.home() / ".cache" / "detkds"

    @property
    def hosts(self) -> tuple[str, ...]:
        """Host names that requests may carry."""
        if self.host in LOOPBACK:
            return (*LOOPBACK, *self.allowed_hosts)
        # Behind a key a foreign name gains nothing, and a service on 0.0.0.0 cannot know all of its own names.
        return (*LOOPBACK, *self.allowed_hosts) if self.allowed_hosts else ("*",)
