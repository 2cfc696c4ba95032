"""The report's page, its tables and its pictures."""

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from PIL import Image, ImageColor

from detkds_core.report import (
    Box,
    CandidatePoint,
    ImagePanel,
    Interval,
    ReportData,
    Row,
    Verdict,
    compare,
    false_rejects,
    gate_lines,
    insight,
    text_table,
    write_report,
)
from detkds_core.report.charts import effects_chart, fitness_chart
from detkds_core.report.page import render
from detkds_core.report.pictures import RIGHT, WIDTH, WRONG, draw_detections, draw_truth, iou, matches

ROWS = [
    Row("teacher", "teacher", (0,), (56.2,), (78.0,), (63.1,), 4_830_000, 150),
    Row("student alone", "alone", (0, 1, 2), (25.0, 26.0, 27.0), (45.0, 46.0, 47.0), (24.0, 25.0, 26.0), 612_000, 150),
    Row("searched policy", "searched", (0, 1, 2), (31.0, 32.0, 33.0), (51.0, 52.0, 53.0), (30.0, 31.0, 32.0), 612_000, 150),
]
CANDIDATES = [
    CandidatePoint(0, "reference", "none", 25.0, name="no distillation"),
    CandidatePoint(1, "stage1", "6·l1(global)", 27.5, island="global", operator="seed"),
    CandidatePoint(2, "stage1", "0.1·pear(logits)", None, island="logits", operator="sample", failure="not finite", state="INFEASIBLE"),
    CandidatePoint(3, "stage2", "6·l1(global) + 2·l1(fgbg)", 29.25, operator="combine"),
]
TRUTH = [Box((10, 10, 50, 50), "3"), Box((60, 60, 100, 100), "7")]


def report(**changes):
    panel = ImagePanel(
        Image.new("RGB", (128, 128), "gray"),
        "image <17>",
        TRUTH,
        alone=[Box((10, 10, 50, 50), "8", 0.9)],
        distilled=[Box((11, 10, 51, 50), "3", 0.8), Box((60, 60, 100, 100), "7", 0.1)],
    )
    fields = {
        "title": "Digits <b>",
        "dataset": "digits",
        "pair": "GFL R18 → GFL R18",
        "rows": ROWS,
        "formula": "6·l1(global) + 2·l1(fgbg)",
        "policy": {
            "terms": [{"knowledge": "fgbg", "transforms": ["catt", "none", "norm_C"], "distance": "l1", "weight": 2.0, "background": 0.25}]
        },
        "candidates": CANDIDATES,
        "panels": [panel],
        "evidence": {"dataset digest": "abc123", "torch": "2.14.1"},
    }
    return ReportData(**(fields | changes))


class Page(HTMLParser):
    """The page's text, tags and the addresses it points to."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.sources, self.words, self.open = [], [], [], []
        self.feed(html)
        self.text = " ".join("".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.sources += [value for name, value in attributes if name in ("src", "srcset", "href")]
        if tag not in ("meta", "img", "source", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data + " ")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp("demo") / "new" / "report.html"
    write_report(path, report())
    return Page(path.read_text(encoding="utf-8"))


def test_stands_alone_and_is_well_formed(page):
    assert page.open == []
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert len(page.sources) == 2 + 3  # the chart in light and dark, and one image three times
    for source in page.sources:
        Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))).verify()


def test_says_what_was_measured(page):
    assert "Distillation beat the student alone beyond noise: +6.0 AP" in page.text
    assert "teacher 56.2 78.0 63.1 4.83 M 150 1 (0)" in page.text
    assert "student alone 26.0 ±2.5 46.0 ±2.5 25.0 ±2.5 612 k 150 3 (0, 1, 2)" in page.text
    assert "fgbg catt → norm_C l1 2 background 0.25" in page.text
    assert "4 candidates, 1 of them references: 3 measured, 1 infeasible." in page.text
    assert "3 29.2 – stage 2 together combine 6·l1(global) + 2·l1(fgbg) 1 27.5 – stage 1 global seed" in page.text
    assert "logits 1 0 1 infeasible – –" in page.text
    assert "ground truth · 2 objects" in page.text
    assert "student alone · 0 of 2 found, 1 wrong" in page.text
    assert "distilled student · 1 of 2 found, 0 wrong" in page.text  # the second detection is below the threshold
    assert "dataset digest abc123" in page.text


def test_every_candidate_is_counted_as_the_ledger_has_it():
    """One refused and one double are no infeasible ones; and what was trained longer stands above what has a higher AP."""
    candidates = [
        CandidatePoint(0, "reference", "none", 30.0, name="none", rungs={15: 8.0, 120: 30.0}),
        CandidatePoint(1, "stage1", "l1(global)", 9.0, island="global", operator="seed", rungs={15: 9.0}),
        CandidatePoint(2, "stage1", "l2(global)", 8.5, island="global", operator="seed", rungs={15: 6.0, 120: 8.5}),
        CandidatePoint(3, "stage1", "100·l2(global)", None, island="global", operator="mutate", state="REJECTED"),
        CandidatePoint(4, "stage1", "2·l2(global)", None, island="global", operator="mutate", state="DUPLICATE"),
    ]
    page = Page(render(report(candidates=candidates, searched_on="200 selection images, with seed 0")))
    assert "5 candidates, 1 of them references: 3 measured, 1 refused, 1 double. All" in page.text
    assert "are measured on 200 selection images, with seed 0, which" in page.text
    assert "those after different numbers of iterations (15 to 120) do not compare" in page.text
    assert "global 4 2 1 refused, 1 double 7.5 8.5 120 l2(global)" in page.text  # the mean of 9 and 6, after 15 iterations
    assert "0 30.0 120 reference none none 2 8.5 120 stage 1 global seed l2(global) 1 9.0 15" in page.text.replace("  ", " ")


def test_the_audit_of_the_gates_is_a_rate_with_its_interval():
    """1 of 4: 25 %, by Wilson 4.56 to 69.94 %."""
    funnel = {"audited": 4, "falsely_rejected": 1, "false_reject_rate": 0.25, "false_reject_interval": [0.0456, 0.6994]}
    said = "25 % (95 % interval 5 to 70 %): 1 of 4 that were refused and trained all the same is among the best third"
    assert false_rejects(funnel) == said
    assert f"False-reject rate of the gates: {said}." in Page(render(report(funnel=funnel))).text
    nobody = {"audited": 0, "falsely_rejected": 0, "false_reject_rate": None, "false_reject_interval": None}
    assert "False-reject rate of the gates: not known: none was audited." in Page(render(report(funnel=nobody))).text
    older = {"audited": 1, "falsely_rejected": 0}
    assert false_rejects(older) == "0 of 1 that was refused and trained all the same is among the best third"
    assert "False-reject" not in Page(render(report())).text
    assert "The gates" not in Page(render(report(funnel=funnel))).text, "not of searches that did not tell them apart"


AUDIT = {"audited": 4, "falsely_rejected": 1, "false_reject_rate": 0.25, "false_reject_interval": [0.0456, 0.6994]}
UNKNOWN = {"audited": 0, "falsely_rejected": 0, "false_reject_rate": None, "false_reject_interval": None}
GATES = {
    "finite": {"refused": 0, **UNKNOWN, "seconds": 0.002},
    "duplicate": {"refused": 3, **UNKNOWN, "seconds": 0.048},
    "descent": {"refused": 1200, **AUDIT, "seconds": 130.4},
}


def test_each_gate_has_its_count_its_audit_and_its_cost():
    """The look itself: 139.95 less 0.002, 0.048 and 130.4 s."""
    funnel = {**AUDIT, "gates": GATES, "look_seconds": 139.95}
    lines = [
        ("finite", "0", "0", "–", "< 0.01"),
        ("duplicate", "3", "0", "–", "0.05"),
        ("descent", "1,200", "4", "1: 25 % (5 to 70 %)", "130"),
        ("the look itself", "", "", "", "9.50"),
        ("all", "1,203", "4", "1: 25 % (5 to 70 %)", "140"),
    ]
    assert gate_lines(funnel) == lines
    text = Page(render(report(funnel=funnel))).text
    assert "descent 1,200 4 1: 25 % (5 to 70 %) 130" in text
    assert "the look itself 9.50" in text
    without = {gate: {**one, "seconds": None} for gate, one in GATES.items()}
    assert gate_lines({**AUDIT, "gates": without, "look_seconds": None}) == [
        (*line[:4], "–") for line in lines if line[0] != "the look itself"
    ]
    assert gate_lines({**AUDIT, "gates": without, "look_seconds": 139.95})[-1][-1] == "140", "in all it is known"
    assert gate_lines(AUDIT) == []


def test_a_distiller_of_the_policy_is_told_as_a_term_is():
    policy = {"terms": [], "distillers": [{"name": "fgd", "settings": {"alpha": 0.00012345}, "weight": 0.742103, "balanced": True}]}
    page = Page(render(report(policy=policy)))
    assert "fgd a distiller with parts of its own 0.7421 alpha 0.0001234, balanced" in page.text
    assert "No term" not in page.text


def test_names_from_outside_are_escaped(page):
    assert "b" not in page.open
    assert "Digits <b>" in page.text
    assert "image <17>" in page.text


def test_what_was_not_measured_is_left_out(tmp_path):
    write_report(
        tmp_path / "report.html", report(candidates=[], panels=[], evidence={}, policy={"terms": []}, formula="none", rows=ROWS[:2])
    )
    bare = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert bare.sources == []
    assert "The search " not in bare.text
    assert "Validation images" not in bare.text
    assert "No distilled student was measured." in bare.text
    assert "No term: the student learns from the annotations alone." in bare.text


def test_a_search_without_any_feasible_candidate(tmp_path):
    write_report(tmp_path / "report.html", report(candidates=[CANDIDATES[2]]))
    assert "No candidate could be measured." in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_the_chosen_row_has_a_longer_lower_bound():
    """Two searched policies of the same mean as good as equal: t(2) at 1 - 0.025 / 2 below, at 97.5 % above, times 1 / sqrt(3)."""
    rows = [Row(name, "searched", (0, 1, 2), (31.0, 32.0, 33.0), *[(50.0, 50.0, 50.0)] * 2, 612_000, 150) for name in ("a", "b")]
    first, second = text_table(rows).splitlines()[2:]
    assert first.startswith("a  32.0 (28.4 to 34.5)  50.0 ±0.0")
    assert second.startswith("b            32.0 ±2.5  50.0 ±0.0")
    judged = [replace(rows[0], interval=Interval(32.0, 30.0, 33.5)), rows[1]]
    assert "32.0 (30.0 to 33.5)" in text_table(judged)


def test_a_report_whose_searched_policy_did_not_win_says_why(tmp_path):
    pkd = Row("PKD", "reference", (0, 1, 2), (30.9, 32.2, 33.0), *[(50.0, 50.0, 50.0)] * 2, 612_000, 150)
    write_report(tmp_path / "report.html", report(rows=[*ROWS, pkd]))
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "The best hand-designed policy" in page.text
    assert "do not differ beyond noise" in page.text
    assert "So the result is PKD." in page.text
    assert "searched policy − student alone +6.0 +6.0 to +6.0 < 0.001 better +6.0, +6.0, +6.0 3 not drawn" in page.text


def test_the_verdict_of_the_service_goes_over_that_of_the_rows(tmp_path):
    write_report(tmp_path / "report.html", report(verdict=Verdict("As the service says.", None, None, returned="searched")))
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "As the service says." in page.text
    assert "Seed by seed" not in page.text


def test_what_the_search_teaches_is_shown(tmp_path):
    def candidate(index):
        knowledge = "global" if index % 2 else "logits"
        term = {"knowledge": knowledge, "transforms": ["none"], "distance": "l1", "weight": 1.0}
        return {
            "index": index,
            "policy": {"terms": [term]},
            "stage": "stage1",
            "ap": 25.0 + 3 * (index % 2) + index / 10,
            "cost": {"seconds": 1.5},
        }

    rows = [{"index": 0, "policy": {"terms": []}, "stage": "reference", "ap": 24.0}, *map(candidate, range(1, 13))]
    rows.append({"index": 13, "policy": {"terms": []}, "stage": "stage1", "rejected": {"gate": "descent", "detail": "<grew>"}})
    write_report(tmp_path / "report.html", report(insight=insight(rows)))
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "Of 13 of 14 candidates that were measured" in page.text
    assert "global 6 +4.6" in page.text  # mean of 28.1, 28.3 .. 29.1 less 24
    assert "descent 1 (7 %) 13: <grew>" in page.text
    assert "stage 1 13 12 18 seconds" in page.text
    assert len(page.sources) == 2 + 2 + 3  # the search, the effects, the images
    assert "What the search teaches" not in Page(render(report())).text


def test_text_table():
    assert text_table(ROWS[1:]).splitlines() == [
        "                        AP       AP50       AP75  parameters  images        seeds",
        "---------------------------------------------------------------------------------",
        "student alone    26.0 ±2.5  46.0 ±2.5  25.0 ±2.5       612 k     150  3 (0, 1, 2)",
        "searched policy  32.0 ±2.5  52.0 ±2.5  31.0 ±2.5       612 k     150  3 (0, 1, 2)",
    ]


def test_chart_is_transparent_and_the_same_every_time():
    first = fitness_chart(CANDIDATES, "light")
    assert first == fitness_chart(CANDIDATES, "light")
    assert first != fitness_chart(CANDIDATES, "dark")
    assert Image.open(io.BytesIO(first)).convert("RGBA").getpixel((0, 0))[3] == 0
    with pytest.raises(ValueError, match="nothing to draw"):
        fitness_chart([CANDIDATES[2]], "light")
    with pytest.raises(ValueError, match="nothing to draw"):
        effects_chart([], "light")


def test_iou_by_hand():
    # 10 x 10 and the same moved by 5: 50 shared of 150
    assert iou(Box((0, 0, 10, 10), "a"), Box((5, 0, 15, 10), "a")) == pytest.approx(1 / 3)
    assert iou(Box((0, 0, 10, 10), "a"), Box((20, 0, 30, 10), "a")) == 0.0
    assert iou(Box((3, 3, 3, 3), "a"), Box((3, 3, 3, 3), "a")) == 0.0


def test_what_nobody_counted_or_said_is_no_figure():
    unknown = Row("teacher", "teacher", (None,), (56.2,), (78.0,), (63.1,), 0, 150)
    assert text_table([unknown]).splitlines()[-1].split() == ["teacher", "56.2", "78.0", "63.1", "–", "150", "1"]
    assert compare(unknown, unknown) is None, "seeds that are not known are not the same"


def test_an_object_is_found_once_and_only_by_its_class():
    here = (0, 0, 10, 10)
    detections = [Box(here, "3", 0.9), Box(here, "3", 0.8), Box(here, "4", 0.7), Box((6, 0, 16, 10), "5", 0.6)]
    assert matches(detections, [Box(here, "3"), Box(here, "5")]) == [True, False, False, False]  # the last has IoU 0.25
    assert matches([], [Box(here, "3")]) == []


def test_boxes_are_drawn_where_they_are():
    panel = ImagePanel(Image.new("RGB", (WIDTH, 300), "black"), "", [Box((20, 60, 120, 160), "3")], [], [])
    detections = [Box((20, 60, 120, 160), "3", 0.9), Box((200, 60, 300, 160), "3", 0.5), Box((200, 200, 300, 290), "3", 0.2)]
    drawn = draw_detections(panel, detections, threshold=0.3)
    picture = Image.open(io.BytesIO(drawn.png)).convert("RGB")
    assert picture.size == (WIDTH, 300)
    assert (drawn.found, drawn.objects, drawn.wrong) == (1, 1, 1)

    def close(place, colour):
        return max(abs(a - b) for a, b in zip(picture.getpixel(place), ImageColor.getrgb(colour), strict=True)) < 24

    assert close((70, 160), RIGHT)  # lower edge of the right one
    assert close((250, 160), WRONG)
    assert close((250, 245), "black")  # below the threshold
    assert close((70, 110), "black")  # inside of a box


def test_a_label_at_the_edge_stays_inside(tmp_path):
    Image.new("L", (64, 32)).save(tmp_path / "grey.png")
    edge = ImagePanel(tmp_path / "grey.png", "", [Box((60, 0, 64, 32), "a long name of a class")], [], [])
    picture = Image.open(io.BytesIO(draw_truth(edge).png)).convert("RGB")
    assert picture.size == (WIDTH, WIDTH // 2)
    label = [x for x in range(WIDTH) if sum(picture.getpixel((x, WIDTH // 2 - 3))) > 600]
    assert min(label) < WIDTH - 100  # the tag was moved to the left of its box


def test_colours_of_the_key_are_those_of_the_boxes(page, tmp_path):
    write_report(tmp_path / "report.html", report())
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert re.findall(r'class="key" style="border-color:(#\w+)"', html) == [RIGHT, WRONG]


def test_every_column_is_seen_on_a_screen_and_on_a_phone(browser, tmp_path):
    """Five seeds, intervals that are not even, and the longest name of a policy, which is shown as it is written."""
    aps = ((20.0, 21.0, 22.0, 23.0, 29.0), (45.0, 46.0, 47.0, 48.0, 49.0), (24.0, 25.0, 26.0, 27.0, 28.0))
    rows = [
        Row(name, role, (1, 2, 3, 4, 5), *aps, 41_612_000, 5000, interval=Interval(23.0, 18.25, 26.5))
        for name, role in (
            ("student alone", "alone"),
            ("student, detkds_faster_rcnn", "reference"),
            ("student, searched policy", "searched"),
        )
    ]
    write_report(tmp_path / "report.html", report(rows=rows))
    browser.go((tmp_path / "report.html").as_uri())
    assert "student, detkds_faster_rcnn" in browser.text
    hidden = "[...document.querySelectorAll('.scroll')].filter(one => one.scrollWidth > one.clientWidth).map(one => one.innerText)"
    assert browser.run(hidden) == []
    browser.size(400, 900)
    assert browser.run("document.documentElement.scrollWidth") <= 400
    assert browser.run(hidden) == [""], "the picture of the search alone can be moved; its text would be too small to read"
    labels = "[...document.querySelector('tbody tr').cells].map(cell => getComputedStyle(cell, '::before').content)"
    assert browser.run(labels)[-1] == '"seeds"'
