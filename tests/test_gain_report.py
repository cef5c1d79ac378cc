"""The page escapes what it is given, loads nothing, and leaves nothing out."""

from __future__ import annotations

import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from rich.console import Console

from keft_jax.gain.cells import Cell, Split
from keft_jax.gain.charts import nice_ticks
from keft_jax.gain.console import entries_abreast, span_of_gains
from keft_jax.gain.network import MAX_NODES, draw_network, list_edges, measure
from keft_jax.gain.report import Drawn, plot, print_table, write_report
from keft_jax.gain.stats import summarise
from keft_jax.gain.variants import VARIANTS

HOSTILE = "<script>alert('x')</script>\"><img src=x onerror=y> & [/bold] $x$ ${1}"
ROWS = {"majority": 0.3, "none": 0.3, "dictionary": 0.35, "shuffled": 0.3, "random": 0.3}
ROWS |= {"mine": 0.4, "true": 0.9}


def make_cells(split, seeds=5, n=60, rows=ROWS):
    rng = np.random.default_rng(0)
    return [
        Cell(
            row,
            seed,
            {split: {"hits@1": (rng.random(n) < p).astype(np.float32)}},
            {split: [HOSTILE] * n},
            [{"step": t, "select": p * (t + 100) / 200} for t in range(0, 120, 20)],
            {"seconds": 3.2, "steps": 100},
        )
        for row, p in rows.items()
        for seed in range(seeds)
    ]


@pytest.fixture(scope="module", params=["test", HOSTILE])
def made(request):
    split, n = request.param, 60
    masks = {"covered": np.arange(n) < 30, HOSTILE: np.arange(n) > 10}
    splits = [Split(split, np.arange(n).astype(str), np.full(n, HOSTILE), masks)]
    cells = [c for c in make_cells(split) if (c.row, c.seed) != ("mine", 4)]
    summary = summarise(cells, splits, "hits@1", task="kgqa", draws=200)
    summary["leaks"] = {
        f"shared texts/{split}": {"value": 0.2, "verdict": "leak", "note": HOSTILE},
        "embeddings": {"value": None, "verdict": "not applicable", "note": HOSTILE},
    }
    summary["coverage"] = {split: {"linked": 0.9}}
    summary |= {"step_time_ratio": 1.2, "kg_hash": "abc", "config_hash": HOSTILE}
    return split, cells, summary


@pytest.fixture(scope="module")
def page(made, tmp_path_factory):
    split, cells, summary = made
    examples = {split: [{"text": HOSTILE, "gold": [HOSTILE], "pattern": HOSTILE}] * 60}
    nodes = [(HOSTILE, 0.9, "mention"), ("b", 0.2, "answer"), ("c", 0.1, "other")]
    edges = [(0, 1, HOSTILE, 0.8), (1, 2, "r", 0.1), (1, 1, "loop", 0.5)]
    drawn = [Drawn(HOSTILE, [HOSTILE], {"true": HOSTILE, "none": "b"}, nodes, edges, HOSTILE)]
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(path, summary, cells, examples, drawn, {"name": HOSTILE, "deep": {"x": HOSTILE}})
    return path.read_text("utf-8")


class Reader(HTMLParser):
    """Collects tags and text, and checks that what is opened is closed."""

    VOID = frozenset({"meta", "br", "circle", "line", "rect"})

    def __init__(self):
        super().__init__()
        self.tags, self.open, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def read(page):
    reader = Reader()
    reader.feed(page)
    assert not reader.open
    return reader


def test_hostile_text_stays_text(page, read):
    assert "<script" not in page and "<img" not in page
    assert not {tag for tag, _ in read.tags} & {"script", "img", "iframe", "object", "embed"}
    assert not [a for _, attrs in read.tags for a in attrs if a.startswith("on")]
    assert HOSTILE in "".join(read.text)


def test_page_loads_nothing(page, read):
    assert not re.search(r"https?:|url\(|@import|//[a-z]", page)
    assert not [t for t, a in read.tags if t == "link" or {"src", "href", "xlink:href"} & set(a)]


def test_page_holds_every_section_and_row(read):
    text = "".join(read.text)
    for heading in ("scored", "helped", "learned", "changed", "looked at", "audit", "cost"):
        assert heading in text, heading
    for row in ROWS:
        assert row in text
    assert "The knowledge helps: +" in text
    assert "Still rising at the last step: majority, none" in text
    assert "found a leak" in text
    assert "1.20 times" in text
    assert text.count("; 4 seeds, and its difference over these") == 1


def test_page_is_written_whole(made, tmp_path):
    _, cells, summary = made
    write_report(tmp_path / "r.html", summary, cells, {}, [], {})
    assert [p.name for p in tmp_path.iterdir()] == ["r.html"]
    assert (tmp_path / "r.html").read_text("utf-8").endswith("</html>")


NO_BETTER = "The knowledge does no better than dictionary; it is +"
CANNOT = "This table cannot tell whether the knowledge helps: +"


@pytest.mark.parametrize(
    ("seeds", "change", "sentence", "flag"),
    [
        (1, {}, "No verdict", ""),
        (5, {}, "The knowledge helps: +", ""),
        (5, {"random": None}, CANNOT, "lacks the control random"),
        (5, {"true": 0.7, "dictionary": 1.0}, NO_BETTER, "but dictionary does better"),
        (5, {"true": 0.0, "none": 0.5}, "The knowledge hurts: −", ""),
    ],
)
def test_verdict_leads_the_page(seeds, change, sentence, flag, tmp_path):
    split = Split("test", np.arange(60).astype(str), np.full(60, ""))
    rows = {row: p for row, p in (ROWS | change).items() if p is not None}
    cells = make_cells("test", seeds, rows=rows)
    summary = summarise(cells, [split], "hits@1", task="kgqa", draws=200)
    write_report(tmp_path / "r.html", summary, cells, {}, [], {})
    page = (tmp_path / "r.html").read_text("utf-8")
    lead = re.search(r'class="lead">([^<]*)<', page)
    assert lead and lead[1].startswith(sentence)
    assert flag in page


def test_table_on_a_terminal(made):
    split, _, summary = made
    console = Console(width=300, file=io.StringIO())
    print_table(summary, console)
    text = console.file.getvalue()
    assert split in text and "verdict: helps" in text and "leak: shared texts" in text
    assert "Still rising at the last step: majority, none" in text
    for row in ROWS:
        assert row in text


def test_a_table_fits_eighty_columns():
    split = Split("test", np.arange(60).astype(str), np.full(60, ""))
    longest = max(VARIANTS, key=len)
    rows = dict.fromkeys(("none", "true", longest), 0.5)
    rows |= {"true": 1.0, "none": 0.0}
    cells = make_cells("test", 5, rows=rows)
    summary = summarise(cells, [split], "hits@1", task="kgqa", draws=200)
    text = {}
    for width in (80, 300):
        console = Console(width=width, file=io.StringIO())
        print_table(summary, console)
        lines = console.file.getvalue().splitlines()
        end = next(i for i, line in enumerate(lines) if line.startswith("  verdict"))
        text[width] = [line.rstrip() for line in lines[:end]]
    assert any("+100.0" in line for line in text[80])
    assert text[80] == text[300]  # nothing is cut off


def test_plot_is_a_png(made, tmp_path):
    _, cells, summary = made
    plot(summary, cells, tmp_path / "gain.png")
    assert (tmp_path / "gain.png").read_bytes().startswith(b"\x89PNG")


def test_a_legend_is_no_wider_than_its_figure():
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    names = ["none", "true", *(f"true-corrupt-{share}" for share in (10, 30, 50, 70))]
    assert entries_abreast(names[:2], 9) == 2
    abreast = entries_abreast(names, 9)
    assert 2 < abreast < len(names)
    figure = Figure(figsize=(9, 3), dpi=100)
    canvas = FigureCanvasAgg(figure)
    lines = [Line2D([], []) for _ in names]
    legend = figure.legend(lines, names, frameon=False, ncols=abreast)
    canvas.draw()
    assert legend.get_window_extent().width <= 900


def test_a_baseline_far_off_leaves_room_for_the_controls():
    def gain(mean, half):
        return {"mean": mean, "interval": [mean - half, mean + half]}

    versus = {"majority": gain(0.7, 0.1), "none": gain(0.02, 0.01), "random": gain(-0.01, 0.01)}
    left, right = span_of_gains(versus, ["none", "random"], 100)
    assert left < -2 and 3 < right < 20
    assert span_of_gains(versus, [], 100)[1] > 80  # no curves: nothing to tell them by
    near = {**versus, "majority": gain(0.05, 0.01)}
    assert span_of_gains(near, ["none", "random"], 100)[1] > 6


def boxes_of(svg):
    """Boxes of the names of entities in a drawing, by the module's own measure of text."""
    found = []
    for x, y, name in re.findall(r'/><text x="([\d.-]+)" y="([\d.-]+)">([^<]*)</text></g>', svg):
        half = measure(name, 13) / 2
        found.append((float(x) - half, float(y) - 12, float(x) + half, float(y) + 3))
    return found


@pytest.mark.parametrize("n", [1, 2, 3, 8, 16, 40])
@pytest.mark.parametrize("shape", ["star", "chain", "alone", "dense"])
def test_names_in_a_drawing_neither_overlap_nor_leave_it(n, shape):
    rng = np.random.default_rng(n)
    nodes = [(f"Some entity {i}", float(rng.random()), "other") for i in range(n)]
    pairs = {
        "star": [(0, i) for i in range(1, n)],
        "chain": [(i, i + 1) for i in range(n - 1)],
        "alone": [],
        "dense": [(i, j) for i in range(n) for j in range(i)],
    }[shape]
    svg = draw_network(nodes, [(a, b, "relation", float(rng.random())) for a, b in pairs])
    boxes = boxes_of(svg)
    assert len(boxes) == min(n, MAX_NODES)
    width, height = map(int, re.match(r'<svg viewBox="0 0 (\d+) (\d+)"', svg).groups())
    for a in boxes:
        assert a[0] >= 0 and a[1] >= 0 and a[2] <= width and a[3] <= height
    for i, a in enumerate(boxes):
        for b in boxes[:i]:
            assert not (a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3])


def test_mentions_and_answers_are_drawn_first():
    nodes = [(f"n{i}", 0.9, "other") for i in range(40)] + [("asked", 0.0, "mention")]
    svg = draw_network(nodes, [(40, 0, "r", 0.5), (39, 40, "far", 0.9)])
    assert ">asked<" in svg
    assert [e[2] for _, e in list_edges(nodes, [(40, 0, "r", 0.5), (39, 40, "far", 0.9)])] == ["r"]


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-0.03, 0.97), (0.2, 0.2), (3e-5, 9e-5)])
def test_ticks_are_round_and_span(low, high):
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low and ticks[-1] >= high and 2 <= len(ticks) <= 9
    assert np.allclose(np.diff(ticks), ticks[1] - ticks[0])
