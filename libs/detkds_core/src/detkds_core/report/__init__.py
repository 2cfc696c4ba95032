"""Tables and pictures: what a search found, and how sure that is."""

from .data import Box, CandidatePoint, ImagePanel, ReportData, Row
from .page import write_report
from .statistics import Interval, mean_interval, paired_difference
from .text import text_table
from .verdict import Comparison, Verdict, compare, verdict

__all__ = [
    "Box",
    "CandidatePoint",
    "Comparison",
    "ImagePanel",
    "Interval",
    "ReportData",
    "Row",
    "Verdict",
    "compare",
    "mean_interval",
    "paired_difference",
    "text_table",
    "verdict",
    "write_report",
]
