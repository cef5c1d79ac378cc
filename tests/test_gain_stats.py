"""Intervals that hold, verdicts by their rules, cells that survive the disk, runs that merge."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from keft_jax.config import ROWS, Config, FusionConfig, KeftError, TaskConfig
from keft_jax.gain import audit as audits
from keft_jax.gain.baselines import char_ngram, fit_char_ngram, majority_per_pattern, score_single
from keft_jax.gain.bootstrap import MAX_GROUPS, Estimate, group_clusters
from keft_jax.gain.cells import Cell, Split, Table, find_difference, load_table, merge, table_hash
from keft_jax.gain.cells import _pack as pack
from keft_jax.gain.cells import _write_npz as write_npz
from keft_jax.gain.rows import BASELINES, COLOURS, NOTES, REFERENCES, describe_row, order_rows
from keft_jax.gain.stats import summarise
from keft_jax.gain.variants import VARIANTS
from keft_jax.gain.verdict import judge
from keft_jax.tasks.anchors import EntityTyping
from keft_jax.tasks.classification import Classification
from keft_jax.tasks.kgqa import KGQA

CONFIG = Config(task=TaskConfig(kind="classification"), fusion=FusionConfig(kind="none"))


def make_split(n, clusters=None, name="test", **slices):
    cluster = np.array([f"c{i % (clusters or n)}" for i in range(n)])
    return Split(name, cluster, np.full(n, "p"), slices)


def make_cells(values, split="test"):
    """{row: [values of seed 0, of seed 1, ...]} -> cells"""
    return [
        Cell(row, seed, {split: {"hits@1": np.asarray(v, np.float32)}})
        for row, seeds in values.items()
        for seed, v in enumerate(seeds)
    ]


def summary_of(values, split=None, **options):
    n = len(next(iter(values.values()))[0])
    options = {"task": "kgqa", "draws": 2_000} | options
    return summarise(make_cells(values), [split or make_split(n)], "hits@1", **options)


# --- intervals -----------------------------------------------------------------------------------


def test_interval_over_examples_is_the_analytic_one():
    rng = np.random.default_rng(0)
    right = (rng.random(900) < 0.3).astype(float)
    got = summary_of({"true": [right], "none": [0 * right]}, draws=10_000)["gain"]
    half = 1.96 * right.std(ddof=1) / 30
    assert got["mean"] == pytest.approx(right.mean())
    assert got["interval"] == pytest.approx([right.mean() - half, right.mean() + half], abs=0.003)


def test_clusters_widen_the_interval_by_the_design_effect():
    rng = np.random.default_rng(1)
    right = np.tile((rng.random(200) < 0.5).astype(float), 4)  # four copies in each cluster
    values = {"true": [right], "none": [0 * right]}
    width = [
        float(
            np.ptp(summary_of(values, make_split(800, clusters), draws=5_000)["gain"]["interval"])
        )
        for clusters in (800, 200)
    ]
    assert width[1] / width[0] == pytest.approx(2.0, rel=0.08)


def test_seeds_enter_the_interval_from_five_on():
    n = 400
    shift = [0.2, 0.4, 0.6, 0.5, 0.3]
    values = {
        "true": [(np.arange(n) / n < s).astype(float) for s in shift],
        "none": [np.zeros(n)] * 5,
    }
    five = summary_of(values)["splits"]["test"]
    four = summary_of({row: v[:4] for row, v in values.items()})["splits"]["test"]
    assert five["interval_over"] == "examples and seeds"
    assert four["interval_over"] == "examples"
    t_half = 2.776 * np.std(shift, ddof=1) / np.sqrt(5)
    assert 0.8 * t_half < np.ptp(five["gain"]["interval"]) / 2 < 1.5 * t_half


def test_intervals_cover_the_truth_with_seeds_and_examples_crossed():
    rng = np.random.default_rng(2)
    hits = 0
    for trial in range(60):
        seed, example = 0.2 * rng.normal(size=(5, 1)), rng.normal(size=(1, 60))
        noise = rng.normal(size=(5, 60))
        values = {"true": list(3 + seed + example + noise), "none": [np.full(60, 3.0)] * 5}
        low, high = summary_of(values, draws=400, seed=trial)["gain"]["interval"]
        hits += low <= 0 <= high
    assert hits >= 54


def test_pairing_beats_two_separate_intervals():
    rng = np.random.default_rng(3)
    none = [(rng.random(400) < 0.5).astype(float)] * 5
    true = [np.maximum(v, rng.random(400) < 0.05) for v in none]
    got = summary_of({"true": true, "none": none})
    low, high = got["gain"]["interval"]
    assert low > 0
    assert high - low < 0.5 * np.ptp(got["scores"]["true"]["interval"])


def test_a_difference_that_never_varies_keeps_the_rule_of_three():
    ones = [np.ones(60)] * 5
    got = summary_of({"true": ones, "none": [np.zeros(60)] * 5})
    assert got["gain"]["interval"] == pytest.approx([0.95, 1.0])
    assert summary_of({"true": ones, "none": ones})["kind"] == "cannot tell"


def test_slices_are_means_over_their_own_examples():
    rng = np.random.default_rng(4)
    mask = rng.random(300) < 0.2
    true = [rng.random(300) for _ in range(5)]
    split = make_split(300, 100, covered=mask, nobody=np.zeros(300, bool))
    got = summary_of({"true": true, "none": [np.zeros(300)] * 5}, split)
    assert list(got["slices"]) == ["covered"]
    assert got["slices"]["covered"]["n"] == mask.sum()
    assert got["slices"]["covered"]["gain"]["mean"] == pytest.approx(np.mean(true, 0)[mask].mean())
    low, high = got["slices"]["covered"]["gain"]["interval"]
    assert np.ptp(got["gain"]["interval"]) < high - low


def test_equal_arguments_give_equal_numbers_in_any_order():
    rng = np.random.default_rng(5)
    cells = make_cells({row: [rng.random(50) for _ in range(5)] for row in ("true", "none")})
    one, two = (
        summarise(order, [make_split(50)], "hits@1", task="kgqa", draws=200)
        for order in (cells, cells[::-1])
    )
    assert json.dumps(one) == json.dumps(two)


def test_many_clusters_are_dealt_into_groups():
    names = np.array([f"c{i // 2}" for i in range(4 * MAX_GROUPS)])
    groups = group_clusters(names, np.random.default_rng(0))
    assert len(np.unique(groups)) == MAX_GROUPS
    assert (groups[::2] == groups[1::2]).all(), "a cluster stays whole"


def test_rows_that_still_rise_are_named():
    curves = {
        "none": [[0.1, 0.2, 0.3]] * 5,  # rising
        "random": [[0.1, 0.2, 0.3]] * 2 + [[0.1, 0.4, 0.3]] * 3,  # past its best in most seeds
        "dictionary": [[0.1, 0.295, 0.3]] * 5,  # by less than a point
        "shuffled": [[0.3]] * 5,  # nothing to compare
        "true": [[0.1, 0.9, 0.9]] * 5,  # as good before
    }
    cells = make_cells({row: [np.ones(20)] * 5 for row in (*curves, "majority")})
    for cell in cells:
        scores = curves[cell.row][cell.seed] if cell.row in curves else []
        cell.curve.extend({"step": t, "select": v} for t, v in enumerate(scores))
    got = summarise(cells, [make_split(20)], "hits@1", task="kgqa", draws=200)
    assert got["not_converged"] == ["none"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda v: v[:-1], "shape"),
        (lambda v: np.where(np.arange(len(v)) == 0, np.nan, v), "1 values are not finite"),
    ],
)
def test_values_that_do_not_fit_are_refused(spoil, message):
    values = {"true": [np.ones(20)], "none": [spoil(np.ones(20))]}
    with pytest.raises(KeftError, match=message):
        summarise(make_cells(values), [make_split(20)], "hits@1", task="kgqa")


def test_top_level_is_the_stable_interface():
    rng = np.random.default_rng(7)
    got = summary_of({row: [rng.random(40) for _ in range(3)] for row in ("true", "none")})
    assert (got["task"], got["metric"], got["split"], got["seeds"]) == ("kgqa", "hits@1", "test", 3)
    assert set(got["scores"]["none"]) == {"mean", "interval", "values"}
    assert {"mean", "interval"} <= set(got["gain"])
    assert got["verdict"] == "no verdict: 3 seeds, 5 are needed"
    assert got["splits"]["test"]["gain"] == got["gain"]
    json.dumps(got, allow_nan=False)


# --- verdicts ------------------------------------------------------------------------------------


def estimate(low, high, seeds=5, clusters=100, variance=(0.001, 0.5)):
    return Estimate((low + high) / 2, (low, high), [0.0] * seeds, seeds >= 5, clusters, variance)


ABOVE, SAME, OPEN, BELOW = (0.1, 0.2), (-0.005, 0.008), (-0.02, 0.04), (-0.2, -0.1)


@pytest.mark.parametrize(
    ("sides", "kind"),
    [
        ((ABOVE, ABOVE, ABOVE, ABOVE), "helps"),
        ((ABOVE, OPEN, ABOVE, ABOVE), "cannot tell"),
        ((ABOVE, ABOVE, SAME, ABOVE), "no difference"),
        ((SAME, SAME, SAME, SAME), "no difference"),
        ((OPEN, OPEN, OPEN, OPEN), "cannot tell"),
        ((BELOW, OPEN, OPEN, OPEN), "hurts"),
        ((BELOW, BELOW, ABOVE, ABOVE), "hurts"),
        ((ABOVE, BELOW, ABOVE, ABOVE), "cannot tell"),
        ((OPEN, BELOW, SAME, ABOVE), "cannot tell"),
        ((SAME, BELOW, SAME, ABOVE), "no difference"),
    ],
)
def test_verdict_follows_the_hardest_control(sides, kind):
    estimates = {row: estimate(*side) for row, side in zip(REFERENCES, sides, strict=True)}
    got = judge(estimates, REFERENCES)
    assert got["kind"] == kind and got["verdict"].startswith(kind)
    assert got["missing"] == []
    assert (got["needed_n"] is not None) == (kind == "cannot tell" and BELOW not in sides)


def test_verdict_names_the_control_that_does_as_well_or_better():
    sides = {"none": ABOVE, "dictionary": BELOW, "shuffled": SAME, "random": ABOVE}
    got = judge({row: estimate(*side) for row, side in sides.items()}, REFERENCES)
    assert got["verdict"] == "cannot tell: helps over none, but dictionary does better"
    assert got["rivals"] == ["dictionary"]
    assert "-15.0 points [-20.0, -10.0] over dictionary; +15.0 points" in got["why"]
    sides["dictionary"] = SAME
    got = judge({row: estimate(*side) for row, side in sides.items()}, REFERENCES)
    assert got["verdict"] == "no difference: dictionary and shuffled do as well"
    assert got["rivals"] == ["dictionary", "shuffled"]
    sides["none"] = BELOW
    got = judge({row: estimate(*side) for row, side in sides.items()}, REFERENCES)
    assert got["kind"] == "hurts" and got["rivals"] == []


@pytest.mark.parametrize("lacking", REFERENCES[1:])
def test_no_help_without_every_control(lacking):
    estimates = {row: estimate(*ABOVE) for row in REFERENCES if row != lacking}
    got = judge(estimates, REFERENCES)
    assert got["verdict"] == f"cannot tell: the table lacks {lacking}"
    assert got["missing"] == [lacking] and got["needed_n"] is None
    assert got["why"].startswith("+15.0 points [+10.0, +20.0] over none")


def test_verdict_names_what_is_missing():
    got = judge({"none": estimate(*ABOVE)}, REFERENCES)
    assert got["missing"] == ["dictionary", "shuffled", "random"]
    assert got["verdict"] == "cannot tell: the table lacks dictionary, shuffled and random"
    assert judge({"none": estimate(*BELOW)}, REFERENCES)["kind"] == "hurts"
    assert judge({"dictionary": estimate(*ABOVE)}, REFERENCES)["kind"] == "no verdict"


def test_no_verdict_below_five_seeds_or_ten_clusters():
    assert judge({"none": estimate(*ABOVE, seeds=1)}, ["none"])["verdict"] == (
        "no verdict: 1 seed, 5 are needed"
    )
    assert judge({"none": estimate(*ABOVE, clusters=4)}, ["none"])["kind"] == "no verdict"


def test_a_text_model_that_does_as_well_is_named():
    estimates = {"none": estimate(*ABOVE), "char_ngram": estimate(*OPEN)}
    assert "not above char_ngram" in judge(estimates, ["none"], ["char_ngram"])["why"]


def test_needed_n_is_enough():
    got = judge({"none": estimate(-0.02, 0.04, clusters=100, variance=(0.0, 0.023))}, ["none"])
    # The mean of .01 must be 2.8 standard errors: .023 / n = (.01 / 2.8)^2.
    assert got["needed_n"] == pytest.approx(0.023 / (0.01 / 2.8) ** 2, rel=0.01)
    rng = np.random.default_rng(8)

    def table(n):
        none = [(rng.random(n) < 0.5).astype(float) for _ in range(5)]
        return {"none": none, "true": [np.maximum(v, rng.random(n) < 0.04) for v in none]}

    small = summary_of(table(60), reference_rows=["none"])
    if small["kind"] == "cannot tell":
        more = table(min(small["needed_n"] * 2, 20_000))
        assert summary_of(more, reference_rows=["none"])["kind"] != "cannot tell"


def test_a_control_below_the_majority_raises_a_flag():
    rng = np.random.default_rng(9)
    rows = {"true": 0.9, "none": 0.1, "dictionary": 0.31, "majority": 0.3}
    values = {r: [(rng.random(500) < p).astype(float) for _ in range(5)] for r, p in rows.items()}
    controls = summary_of(values)["controls"]
    assert controls["none"]["flag"] and "majority" in controls["none"]["note"]
    assert not controls["dictionary"]["flag"]
    assert "true" not in controls and "majority" not in controls


def test_every_row_of_the_config_is_described_and_ordered():
    assert set(ROWS) | set(BASELINES) == set(COLOURS) == set(NOTES) - set(VARIANTS)
    assert set(VARIANTS) < set(NOTES)
    assert order_rows(["true", "mine", *ROWS])[-2:] == ["mine", "true"]
    assert describe_row("mine") == ""


# --- disk ----------------------------------------------------------------------------------------


def make_table(seeds, rows=("none", "true"), data="d1", kg="k1", **config):
    rng = np.random.default_rng(0)
    cells = [
        Cell(
            row,
            seed,
            {"te/st\n": {"hits@1": rng.random(6).astype(np.float32), "f1": np.ones(6, "f4")}},
            {"te/st\n": ["Québec", "", "<b>", "北京", "a\nb", '"']},
            [{"step": 1, "select": 0.1}],
            {"seconds": 1.5, "steps": 3},
        )
        for row in rows
        for seed in seeds
    ]
    config = dataclasses.asdict(dataclasses.replace(CONFIG, **config))
    manifest = {"task": "kgqa", "metric": "hits@1", "config": json.loads(json.dumps(config))}
    manifest |= {"data_hash": {"test": data}, "kg_hash": kg, "rows": 2}
    return Table(cells, [make_split(6, 3, "te/st\n", covered=np.arange(6) < 3)], manifest)


def test_cells_and_splits_survive_the_disk(tmp_path):
    table = make_table([0, 1])
    table.save(tmp_path)
    back = load_table(tmp_path)
    assert back.manifest == table.manifest
    for cell in table.cells:
        twin = next(c for c in back.cells if (c.row, c.seed) == (cell.row, cell.seed))
        assert (twin.choice, twin.curve, twin.info) == (cell.choice, cell.curve, cell.info)
        for metric, values in cell.metrics["te/st\n"].items():
            np.testing.assert_array_equal(twin.metrics["te/st\n"][metric], values)
            assert twin.metrics["te/st\n"][metric].dtype == np.float32
    split = back.splits[0]
    assert split.name == "te/st\n" and list(split.slices) == ["covered"]
    np.testing.assert_array_equal(split.cluster, table.splits[0].cluster)
    np.testing.assert_array_equal(split.slices["covered"], table.splits[0].slices["covered"])
    assert not [p for p in tmp_path.rglob("*") if p.name.endswith(".part")]


def test_a_table_may_go_on_where_its_files_lie_elsewhere():
    here = make_table([0]).manifest
    there = make_table([0]).manifest
    there["config"]["data"]["source"] = "elsewhere"
    there["config"]["encoder"]["pretrained"] = "elsewhere/model"
    assert find_difference(here, there) is None
    there["data_hash"] = {"test": "of other files"}
    assert find_difference(here, there)[0].startswith("data_hash")


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 half a zip", None])
def test_a_damaged_cell_is_named(tmp_path, damage):
    path = make_table([0]).cells[0].save(tmp_path)
    path.write_bytes(path.read_bytes()[:-40] if damage is None else damage)
    with pytest.raises(KeftError, match=path.name):
        Cell.load(path)


@pytest.mark.parametrize("row", ["../../out", "a/b", "", "none\n", "a.b", None])
def test_a_row_that_leads_out_of_its_folder_is_refused(tmp_path, row):
    path = tmp_path / "cells" / "none-0.npz"
    head = {"row": row, "seed": 0, "curve": [], "info": {}, "choice": {}}
    write_npz(path, {"": pack(head)})
    with pytest.raises(KeftError, match=r"none-0\.npz: row"):
        Cell.load(path)
    with pytest.raises(KeftError, match="row"):
        Cell(row, 0, {}).save(tmp_path / "other")
    write_npz(path, {"": pack(head | {"row": "none", "seed": "../0"})})
    with pytest.raises(KeftError, match=r"none-0\.npz: seed"):
        Cell.load(path)
    write_npz(path, {"x": np.zeros(1)})
    with pytest.raises(KeftError, match=r"none-0\.npz: no cell"):
        Cell.load(path)
    assert [p.name for p in tmp_path.iterdir()] == ["cells"]


def test_a_pickle_is_not_read(tmp_path):
    np.savez(tmp_path / "x.npz", names=np.array([{"a": 1}], dtype=object))
    with pytest.raises(KeftError, match=r"x\.npz"):
        Cell.load(tmp_path / "x.npz")


def test_merge_joins_seeds_and_rows(tmp_path):
    make_table([0, 1]).save(tmp_path / "a")
    other = make_table([2], rows=("none", "true", "random"), name="other", seed=7)
    other.save(tmp_path / "b")
    table = merge([tmp_path / "a", tmp_path / "b"])
    assert len(table.cells) == 7
    assert len(merge([tmp_path / "a", tmp_path / "a"]).cells) == 4, "equal cells count once"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": "d2"}, r"data_hash\.test: 'd1' in .*'d2' in"),
        ({"kg": "k2"}, "kg_hash: 'k1' in .*'k2' in"),
        ({"optim": dataclasses.replace(CONFIG.optim, steps=5)}, r"optim\.steps: 1000 in .*5 in"),
    ],
)
def test_merge_refuses_what_differs_and_names_it(tmp_path, change, message):
    make_table([0]).save(tmp_path / "a")
    make_table([1], **change).save(tmp_path / "b")
    with pytest.raises(KeftError, match=message):
        merge([tmp_path / "a", tmp_path / "b"])


def test_merge_refuses_two_results_of_one_cell(tmp_path):
    make_table([0]).save(tmp_path / "a")
    table = make_table([0])
    table.cells[0].metrics["te/st\n"]["hits@1"][0] += 1
    table.save(tmp_path / "b")
    with pytest.raises(KeftError, match=r"row none, seed 0: .* disagree"):
        merge([tmp_path / "a", tmp_path / "b"])


def test_table_hash_looks_past_seeds_and_rows_only():
    config = dataclasses.asdict(CONFIG)
    seeds = config | {"seed": 9, "gain": config["gain"] | {"seeds": 2, "rows": ("none", "true")}}
    steps = config | {"optim": config["optim"] | {"steps": 2}}
    assert table_hash(config) == table_hash(seeds) != table_hash(steps)


# --- baselines -----------------------------------------------------------------------------------


def test_majority_counts_every_right_answer_of_a_pattern():
    got = majority_per_pattern(
        ["a", "a", "a", "b"], [("x", "y"), ("y",), "z", "x"], ["a", "b", "unseen"]
    )
    assert got == ["y", "x", "x"]
    with pytest.raises(KeftError, match="majority"):
        majority_per_pattern(["a"], [()], ["a"])


def test_a_single_answer_has_every_metric():
    got = score_single(["x", "y", "q"], [("x", "z", "x"), ("y",), ("x",)])
    want = {
        **{key: [1, 1, 0] for key in ("hits@1", "mrr", "precision", "hit")},
        "accuracy": [0, 1, 0],
        "recall": [0.5, 1, 0],
        **{key: [2 / 3, 1, 0] for key in ("set_f1", "f1")},
        "said": [1, 1, 1],
        "gold": [2, 1, 1],
    }
    assert got.keys() == want.keys()
    assert got.keys() >= {*KGQA.metrics, *Classification.metrics, *EntityTyping.metrics}
    for metric, values in want.items():
        np.testing.assert_allclose(got[metric], values, rtol=1e-6)
    precision, recall = got["precision"], got["recall"]
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-9)
    np.testing.assert_allclose(got["set_f1"], f1, rtol=1e-6)


def test_char_ngram_reads_parts_of_words():
    rng = np.random.default_rng(0)
    stems = {"warm": ("sun", "heat"), "cold": ("frost", "snow")}
    letters = np.array(list("abcdefghij"))

    def draw(n):
        labels = [str(label) for label in rng.choice(list(stems), n)]
        texts = []
        for label in labels:
            stem, ending = rng.choice(stems[label]), "".join(rng.choice(letters, 3))
            texts.append(f"{''.join(rng.choice(letters, 5))} {stem}{ending}")
        return texts, labels

    train, select, test = draw(150), draw(60), draw(100)
    model = fit_char_ngram(*train, *select)
    predicted = model.predict(test[0])
    assert np.mean([a == b for a, b in zip(predicted, test[1], strict=True)]) > 0.95
    assert predicted == char_ngram(*train, *select, test[0]), "no randomness"
    assert model.predict([]) == []
    assert model.settings["train"] == 150


def test_char_ngram_is_tuned_for_the_metric_of_the_table():
    texts, answers = ["a b", "a c", "d e", "d f"] * 3, ["x", "x", "x", "y"] * 3
    seen = []

    def measure(said, right):
        seen.append(right)
        return said.count("y") / len(said)

    model = fit_char_ngram(texts, answers, ["d f", "a q"], ["y", "x"], measure)
    assert model.settings["select"] == measure(model.predict(["d f", "a q"]), [])
    assert seen[0] == [("y",), ("x",)] and model.settings["select"] > 0


def test_char_ngram_without_a_hint_falls_back_to_the_majority():
    answers = [("x", "z"), ("y",), ("x",), ()]
    assert char_ngram(["a b", "c d", "e f", "g"], answers, [], [], ["★★★", ""]) == ["x", "x"]
    assert char_ngram([" ", " "], ["x", "x"], [" "], ["x"], ["q"]) == ["x"]


# --- audit ---------------------------------------------------------------------------------------


def test_near_duplicates_are_those_of_brute_force():
    rng = np.random.default_rng(0)
    words = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta"]
    train = [" ".join(rng.choice(words, 12)) for _ in range(60)]
    test = [t[: rng.integers(1, 4)] + t[rng.integers(1, 4) :] for t in train[:40]]
    test += [" ".join(rng.choice(words, 12)) for _ in range(20)]

    def jaccard(a, b):
        a, b = audits._trigrams(a), audits._trigrams(b)
        return len(a & b) / len(a | b)

    brute = [max(jaccard(a, b) for b in train) >= audits.NEAR - 1e-9 for a in test]
    assert 0 < sum(brute) < len(test)
    assert audits.find_near_duplicates(train, test).tolist() == brute


def test_mutual_information_of_a_copy_is_its_entropy():
    bit = np.array([True, False] * 50)
    assert audits.mutual_information(bit, bit.astype(int)) == pytest.approx(1.0)
    assert audits.mutual_information(bit, np.zeros(100, int)) == pytest.approx(0.0)


def test_audit_finds_planted_leaks_and_no_others():
    n = 200
    rng = np.random.default_rng(0)
    labels = [str(label) for label in rng.choice(["founded by", "born in"], n)]

    def texts(k):
        return ["".join(rng.choice(list("abcdefghijklmnop "), 40)) for _ in range(k)]

    train = audits.Audited("train", texts(300), [(i,) for i in range(300)])
    clean = audits.Audited(
        "clean",
        texts(n),
        [(1000 + i,) for i in range(n)],
        labels,
        covered=rng.random(n) < 0.7,
        node_texts=["a person or a place"] * n,
        gold_edge=np.zeros(n, bool),
    )
    leaky = audits.Audited(
        "leaky",
        [*train.texts[:20], *texts(n - 20)],
        [(i,) for i in range(n)],
        labels,
        covered=np.array([label == "born in" for label in labels]),
        node_texts=[f"this was {label} that" for label in labels],
        gold_edge=np.ones(n, bool),
    )
    got = audits.audit(
        train, [clean, leaky], task="classification", reused=["leaky"], vocab_from_test=True
    )
    assert all({"value", "verdict", "note"} == set(check) for check in got.values())
    assert got["selection"]["verdict"] == got["vocabulary"]["verdict"] == "leak"
    names = {key.split("/")[0]: got[key]["verdict"] for key in got if key.endswith("/clean")}
    assert set(names.values()) <= {"ok", "not applicable"}, names
    for check in ("shared texts", "near duplicates", "label in node text", "gold fact as edge"):
        assert got[f"{check}/leaky"]["verdict"] == "leak", check
    for check in ("shared topics", "coverage and label"):
        assert got[f"{check}/leaky"]["verdict"] == "look", check


def test_a_given_vocabulary_is_not_vouched_for():
    train, test = audits.Audited("train", ["q"]), audits.Audited("test", ["r"])
    got = audits.audit(train, [test], task="kgqa", selected_on="dev", vocab_from_test=None)
    assert got["unlabelled texts/test"]["verdict"] == "not applicable"
    without_labels = audits.audit(train, [test], task="kgqa", unlabelled=["R ", "s"])
    found = without_labels["unlabelled texts/test"]
    assert (found["value"], found["verdict"]) == (1.0, "look")
    assert got["vocabulary"]["verdict"] == "not applicable"
    assert got["vocabulary"]["note"].startswith("not known")
    assert got["selection"]["verdict"] == "ok" and got["selection"]["value"] == "dev"


def test_answers_in_the_graph_are_the_task_not_a_leak():
    train = audits.Audited("train", ["q"])
    test = audits.Audited("test", ["r", "s"], answer_in_graph=np.array([True, False]))
    got = audits.audit(train, [test], task="kgqa")
    assert got["answer in graph/test"]["verdict"] == "ok"
    assert got["answer in graph/test"]["value"] == 0.5
    assert got["label in node text/test"]["verdict"] == "not applicable"
