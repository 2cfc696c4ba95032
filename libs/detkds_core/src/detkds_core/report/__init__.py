"""Tables and pictures: what a search found, and how sure that is."""

from detkds_core.report.confirmed import SEARCHED, confirmed_rows, row_names, rung_means
from detkds_core.report.data import Box, CandidatePoint, ImagePanel, ReportData, Row
from detkds_core.report.insight import insight
from detkds_core.report.page import render, write_report
from detkds_core.report.statistics import Interval, mean_interval, paired_difference
from detkds_core.report.text import GATE_HEADINGS, false_rejects, gate_lines, text_table
from detkds_core.report.verdict import Comparison, Verdict, ap_interval, compare, verdict

__all__ = [
    "GATE_HEADINGS",
    "SEARCHED",
    "Box",
    "CandidatePoint",
    "Comparison",
    "ImagePanel",
    "Interval",
    "ReportData",
    "Row",
    "Verdict",
    "ap_interval",
    "compare",
    "confirmed_rows",
    "false_rejects",
    "gate_lines",
    "insight",
    "mean_interval",
    "paired_difference",
    "render",
    "row_names",
    "rung_means",
    "text_table",
    "verdict",
    "write_report",
]
