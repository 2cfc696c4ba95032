"""Tables and pictures: what a search found, and how sure that is."""

from .statistics import Interval, mean_interval, paired_difference

__all__ = ["Interval", "mean_interval", "paired_difference"]
