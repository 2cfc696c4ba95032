"""What is remembered: tables, state machines, migrations, and all SQL, a module a domain. No torch."""

from detkds_core.store import datasets, distillations, events, jobs, leases, results, searches
from detkds_core.store.session import Store

__all__ = ["Store", "datasets", "distillations", "events", "jobs", "leases", "results", "searches"]
