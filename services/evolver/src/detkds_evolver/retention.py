"""What is kept for how long: files of jobs that ended without a result, uploads that nobody finished, what killed writers left half,
what was deleted."""

from __future__ import annotations

import logging
import time

from detkds_core.store import Store, checkpoints, jobs
from detkds_core.store.artifacts import ArtifactError, Artifacts

log = logging.getLogger("detkds.evolver")

AT_ONCE = 5  # jobs whose files are removed in one step: the evolver drives searches, and S3 takes a moment for each
UPLOAD_DAYS = 7.0  # without a new part; then an upload is given up
SWEEP_SECONDS = 3600.0  # between two looks for what writers left unfinished
AWAY_SECONDS = 600.0  # that artifacts which cannot be reached are left alone


class Retention:
    """Removes, in small steps, what nobody will ask for. keep_days: of files of jobs without a result; 0: for ever."""

    def __init__(self, store: Store, artifacts: Artifacts, keep_days: float) -> None:
        self.store, self.artifacts, self.keep_days = store, artifacts, keep_days
        self.not_before = 0.0  # time.monotonic()
        self.sweep_at = 0.0

    def step(self) -> None:
        """A few removals. Artifacts that cannot be reached stop nothing: they are tried again later."""
        now = time.monotonic()
        if now < self.not_before:
            return
        try:
            self.prune()
            self.give_up_uploads()
            if now >= self.sweep_at:
                self.sweep_at = now + SWEEP_SECONDS
                self.artifacts.sweep()
                self.remove_needless()
        except ArtifactError as error:
            log.warning("old files stay for now", extra={"reason": str(error)})
            self.not_before = now + AWAY_SECONDS

    def prune(self) -> None:
        """Files first, the mark in the database after: a kill in between costs a removal of what is gone already."""
        if self.keep_days == 0:
            return
        with self.store.read() as session:
            old = jobs.prunable(session, days=self.keep_days, limit=AT_ONCE)
        for job_id in old:
            self.artifacts.remove(job_id)
            with self.store.begin() as session:
                jobs.mark_pruned(session, job_id)

    def remove_needless(self) -> None:
        """Files of checkpoints that were deleted, and parts of those that are decided.

        The API removes them itself, after the row has changed: these are of the moments when it was killed in between, when the artifacts
        could not be reached, or when a part was still on its way.
        """
        there = {tuple(name.split("/")[:2]) for folder in ("checkpoints", "uploads") for name in self.artifacts.names(folder)}
        identities = {identity for _, identity in there}
        with self.store.read() as session:
            gone, decided = set(checkpoints.deleted(session, identities)), set(checkpoints.decided(session, identities))
        for folder, identity in sorted(there):
            if identity in gone or (folder == "uploads" and identity in decided):
                self.artifacts.remove(f"{folder}/{identity}")

    def give_up_uploads(self) -> None:
        with self.store.read() as session:
            old = checkpoints.abandoned(session, days=UPLOAD_DAYS, limit=AT_ONCE)
        for checkpoint_id in old:
            self.artifacts.remove(f"uploads/{checkpoint_id}")
            with self.store.begin() as session:
                checkpoints.refuse(session, checkpoint_id, f"no part came for {UPLOAD_DAYS:.0f} days; upload it again")
