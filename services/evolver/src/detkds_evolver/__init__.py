"""Drives every search: proposals become jobs, outcomes become proposals, the best are confirmed, a result is written."""
