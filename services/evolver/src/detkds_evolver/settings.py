"""Settings of the evolver, from the environment (`DETKDS_*`)."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from detkds_core import logs
from detkds_core.store.artifacts import place_of, secrets


class Settings(BaseSettings):
    """Which database holds the searches, whom to ring, and how often to look."""

    model_config = SettingsConfigDict(env_prefix="DETKDS_")

    home: Path = Path("~/.detkds")
    database_url: SecretStr | None = None  # None: SQLite at home/detkds.sqlite
    broker_url: SecretStr | None = None  # None: nobody is rung, workers ask the database
    evolver_poll_seconds: float = Field(default=0.5, gt=0)  # between two looks for something to do
    evolver_lease_seconds: float = Field(default=6.0, gt=0)  # of being the one evolver that works; what the death of one costs
    log_format: logs.LogFormat | None = None  # None: text on a terminal, else JSON
    artifacts: str | None = None  # where workers leave files: a folder, or s3://bucket/prefix; None: home/artifacts
    keep_days: float = Field(default=0.0, ge=0)  # files of jobs that ended without a result; 0: for ever
    reap_seconds: float = Field(default=10.0, gt=0)  # between two sweeps for lost workers

    @model_validator(mode="after")
    def resolve(self) -> Settings:
        self.home = self.home.expanduser().resolve()
        self.artifacts = place_of(self.artifacts, self.home)
        return self

    def configure_logs(self) -> None:
        """Write this process's log as the settings say, without their passwords and those of the artifacts."""
        ours = [secret.get_secret_value() for secret in (self.database_url, self.broker_url) if secret]
        logs.configure(self.log_format, [*ours, *secrets()])

    @property
    def url(self) -> str:
        """The database's URL."""
        return self.database_url.get_secret_value() if self.database_url else f"sqlite:///{self.home / 'detkds.sqlite'}"
