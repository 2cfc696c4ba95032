"""Python client of the DetKDS service, and the `detkds` command."""

from detkds_client.client import Client
from detkds_client.connection import ProblemError, ServiceUnreachable, find_url

__all__ = ["Client", "ProblemError", "ServiceUnreachable", "find_url"]
