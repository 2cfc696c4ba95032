"""The words of the store: states and kinds, one spelling in the code, the database and the API."""

from __future__ import annotations

from typing import Literal

JobState = Literal["QUEUED", "RUNNING", "SUCCEEDED", "FAILED", "CANCELLED", "LOST", "DEAD", "PAUSED"]
SearchState = Literal["QUEUED", "RUNNING", "CONFIRMING", "SUCCEEDED", "FAILED", "CANCELLED", "PAUSED"]
DistillationState = Literal["QUEUED", "RUNNING", "SUCCEEDED", "FAILED", "CANCELLED", "DEAD", "PAUSED"]
CandidateState = Literal["PROPOSED", "MEASURED", "INFEASIBLE", "REJECTED", "DUPLICATE"]
TrialState = CandidateState
ConfirmationState = Literal["PROPOSED", "MEASURED", "INFEASIBLE"]
JobKind = Literal["evaluate", "confirm", "distill"]
CheckpointState = Literal["UPLOADING", "READY", "REFUSED"]
DatasetState = Literal["CHECKING", "READY", "REFUSED"]
ResultKind = Literal["search", "distill"]
Role = Literal["searched", "alone", "reference"]
Scope = Literal["read", "run", "admin"]  # of an API key, each with all before it
EVOLVER = "evolver"  # the duty (`leases`) of driving the searches
