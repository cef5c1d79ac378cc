"""What keft bench says is true of the step it times."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from keft_jax import cli
from keft_jax.bench import flops, run, synthetic
from keft_jax.config import (
    Config,
    DataConfig,
    EncoderConfig,
    FusionConfig,
    GraphConfig,
    KeftError,
    KnowledgeConfig,
    MeshConfig,
    OptimConfig,
    TaskConfig,
)
from keft_jax.options import load_config_file
from tests import tiny

ROOT = Path(__file__).resolve().parents[1]
KEYS = {
    *("cpu_s_min", "cpu_s_median", "step_s_median", "step_s_p95", "tokens_per_s"),
    *("examples_per_s", "mfu", "flops_per_step", "peak_flops", "peak_known_by", "compile_s"),
    *("peak_rss_mib", "device_memory_mib", "versions", "device", "shapes", "graph_ratio_cpu"),
    *("graph_ratio_wall", "loss", "input", "name", "steps"),
}


def config(**sections) -> Config:
    base = Config(
        task=TaskConfig(kind="mlm"),
        data=DataConfig(buckets=(16,), vocab_size=300),
        knowledge=KnowledgeConfig(kg="synthetic", hops=1, nodes=8, edges=16, mentions=2),
        encoder=EncoderConfig(layers=1, width=16, heads=2, mlp=32, max_length=16),
        graph=GraphConfig(kind="gcn", layers=1, width=8, heads=2),
        fusion=FusionConfig(kind="mention_add", layers=(0,)),
        optim=OptimConfig(batch=4),
        mesh=MeshConfig(data=1),
    )
    return dataclasses.replace(base, **sections)


def prepared(c: Config):
    parts, examples = run.prepare(c)
    return parts, run.first_batches(parts, examples)


def test_the_last_line_is_the_whole_result(tmp_path, capsys):
    file = tiny.write_config(tmp_path / "bench.py", config())
    assert cli.run(["bench", "--config", str(file), "--steps", "3", "--warmup", "1"]) == 0
    told = capsys.readouterr().out.splitlines()
    out = json.loads(told[-1])
    assert set(out) >= KEYS
    assert any("useful FLOPs of a step = 3 x forward" in line for line in told[:-1])
    for name in ("cpu_s_min", "step_s_median", "mfu", "peak_flops", "compile_s", "peak_rss_mib"):
        assert out[name] > 0, name
    assert out["cpu_s_min"] <= out["cpu_s_median"] and out["step_s_median"] <= out["step_s_p95"]
    assert out["tokens_per_s"] == pytest.approx(4 * 16 / out["step_s_median"])
    assert out["examples_per_s"] == pytest.approx(4 / out["step_s_median"])
    assert out["mfu"] == pytest.approx(
        out["flops_per_step"] / out["step_s_median"] / out["peak_flops"]
    )
    shapes = out["shapes"]
    assert (shapes["batch"], shapes["length"], shapes["nodes"], shapes["edges"]) == (4, 16, 8, 16)
    assert shapes["real_nodes"] == 4 * 7 and shapes["real_edges"] == 4 * 16  # the budgets are full
    assert shapes["targets"] == 4 * round(0.15 * 14)
    assert out["graph_ratio_cpu"] > 0 and out["graph_ratio_wall"] > 0


def test_useful_flops_of_a_text_model_by_hand():
    parts, (batch, *_) = prepared(config(fusion=FusionConfig(kind="none")))
    tokens, d, f, v = 4 * 16, 16, 32, 300
    layer = 2 * tokens * (4 * d * d + 2 * d * f) + 2 * 2 * 4 * 16 * 16 * d
    predicted = 4 * 2  # 15 % of 14 open tokens
    head = predicted * (2 * d * d + 2 * d * v)
    assert flops.count_step(parts, batch)["total"] == 3 * (layer + head)


def test_padding_is_no_work():
    parts, (batch, *_) = prepared(config())
    whole = flops.count_step(parts, batch)
    half = dataclasses.replace(batch, length=batch.length // 2)
    short = flops.count_step(parts, half)
    assert short["encoder"] < whole["encoder"] / 2  # attention is quadratic
    assert short["head"] < whole["head"] and short["graph"] == whole["graph"]


@pytest.mark.parametrize("kind", ["kgqa", "classification"])
def test_other_tasks_have_their_own_head(kind):
    c = config(task=TaskConfig(kind=kind), fusion=FusionConfig(kind="cross_attention", layers=(0,)))
    parts, (batch, *_) = prepared(c)
    choices = parts.knowledge.kg.n_entities if kind == "kgqa" else 2
    assert flops.count_step(parts, batch)["head"] == 3 * 4 * (2 * 16 * 16 + 2 * 16 * choices)


def test_made_up_input_is_the_same_again_and_another_by_another_seed():
    (_, first), (_, again) = (synthetic.make_synthetic(config(), 3, 5) for _ in range(2))
    _, other = synthetic.make_synthetic(config(), 3, 6)
    assert first == again and first != other


def test_real_files_give_the_batches_of_training_and_the_host_s_rate(tmp_path):
    tiny.write_files(tmp_path)
    out = run.bench_host(tiny.config(tmp_path))["host_input"]
    assert out["examples"] == 40 and out["examples_per_cpu_s"] > 0
    _, batches = prepared(tiny.config(tmp_path))
    assert {b.tokens.shape for b in batches} == {(8, 16)}
    assert all((b.graph.n_node[:, 0] > 0).any() for b in batches)
    total = 1e6 / out["examples_per_cpu_s"]
    assert total == pytest.approx(np.sum([v for k, v in out.items() if k.endswith("_us")]))


@pytest.mark.parametrize("name", ["minilm_mlm", "minilm_gnn", "minilm_gnn_short", "base_mlm"])
def test_the_benches_are_configs(name):
    made = load_config_file(f"{ROOT}/configs/bench.py:{name}")
    assert made.task.kind == "mlm" and made.encoder.dropout == 0.1
    assert (made.fusion.kind != "none") == ("gnn" in name)


def test_what_cannot_be_timed_is_one_line(tmp_path):
    with pytest.raises(KeftError, match=r"data.train"):
        run.bench_host(config())
    tiny.write_files(tmp_path)
    with pytest.raises(KeftError, match=r"optim.batch = 64"):
        prepared(tiny.config(tmp_path, optim=OptimConfig(batch=64)))
    with pytest.raises(KeftError, match="minilm_mlm"):
        load_config_file(f"{ROOT}/configs/bench.py:nothing")
