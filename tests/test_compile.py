"""Compiling ahead of time: names of slices, what a program's text says, bytes by part, seconds at
the least. Where libtpu is installed, a real compilation too."""

import json
import math
import os
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from keft_jax import cli
from keft_jax.aot import compiler, program
from keft_jax.aot.chips import CHIPS, GIB, parse_topology
from keft_jax.aot.compiler import DoesNotFitError, captured_stderr, compile_lowered
from keft_jax.aot.memory import split_memory
from keft_jax.aot.roofline import Roofline, estimate, links
from keft_jax.bench.collectives import (
    Collective,
    count_bytes,
    find_as_large,
    find_collectives,
    find_gathered,
)
from keft_jax.bench.flops import PEAKS, count_step
from keft_jax.bench.hlo import parse
from keft_jax.bench.run import first_batches, given_of, prepare
from keft_jax.config import KeftError, MeshConfig
from keft_jax.options import load_config, override
from keft_jax.sharding import make_mesh, on_mesh, platform
from keft_jax.train.rows import RowTable
from keft_jax.train.state import State

ROOT = Path(__file__).resolve().parents[1]
SCALE = str(ROOT / "configs/scale.py")
TINY = (
    *("--encoder.layers=2", "--encoder.width=32", "--encoder.heads=2", "--encoder.mlp=64"),
    *("--graph.width=16", "--graph.heads=2", "--knowledge.nodes=8", "--knowledge.edges=8"),
    *("--knowledge.entity_rows=4096", "--data.buckets=16", "--data.vocab_size=200"),
)

# A loop of 12 turns with two all-reduces, one of them over pairs; a collective that runs beside two
# fusions; a reduction within and between slices; all-gathers of a moment, of rows of a batch, and
# of what the program gives back.
HLO = """\
HloModule jit_on, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%cond (c: (s32[], bf16[8])) -> pred[] {
  %limit = s32[]{:T(128)} constant(12)
  %c = (s32[], bf16[8]) parameter(0)
  %i = s32[] get-tuple-element(%c), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

%beside (p: f32[2]) -> f32[8] {
  %p = f32[2] parameter(0)
  ROOT %g.1 = f32[8] all-gather(%p), channel_id=7, replica_groups=[1,4]<=[4], \
backend_config={"async_collective_fusion_config":{"flag_start":"2"}}
}

%start (q: f32[2]) -> (f32[2], f32[8]) {
  %q = f32[2] parameter(0)
  %g.0 = f32[8] all-gather(%q), channel_id=7, replica_groups=[1,4]<=[4], \
backend_config={"async_collective_fusion_config":{"flag_start":"-1"}}
  ROOT %cc = (f32[2], f32[8]) custom-call(%g.0), custom_call_target="AsyncCollectiveStart"
}

%body (s: (s32[], bf16[8])) -> (s32[], bf16[8]) {
  %s = (s32[], bf16[8]) parameter(0)
  %x = bf16[8]{0} get-tuple-element(%s), index=1
  %y = f32[8] fusion(%x), kind=kCustom, calls=%beside
  %r.1 = bf16[8]{0} all-reduce(%x), replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, \
to_apply=%add, metadata={op_name="jit(on)/transpose(jvp())/while/body/dot_general"}
  %r.2 = bf16[8]{0} all-reduce(%r.1), replica_groups={{0,1},{2,3}}, to_apply=%add
  ROOT %t = (s32[], bf16[8]) tuple(%i, %r.2)
}

ENTRY %main (m: f32[4,8], n: f32[16]) -> (f32[16,8], f32[16]) {
  %m = f32[4,8]{1,0} parameter(0), metadata={op_name="state.opt_state[1].mu[\\'w\\']"}
  %n = f32[16]{0} parameter(1), metadata={op_name="batch.tokens"}
  %copy = f32[4,8]{1,0} copy(%m)
  %whole = f32[16,8]{1,0} all-gather(%copy), replica_groups=[2,4]<=[8], dimensions={0}
  %rows = f32[64]{0} all-gather(%n), replica_groups=[2,4]<=[8], dimensions={0}
  %st = (f32[2], f32[8]) fusion(%n), kind=kCustom, calls=%start
  %w = (s32[], bf16[8]) while(%init), condition=%cond, body=%body
  %scattered = f32[4]{0} reduce-scatter(%n), replica_groups=[2,4]<=[8], to_apply=%add
  %send = (f32[4], u32[], token[]) send(%scattered, %after), channel_id=2, is_host_transfer=true, \
frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}
  %used = f32[16,8]{1,0} add(%whole, %whole)
  %out = f32[64]{0} copy(%rows)
  ROOT %tuple = (f32[16,8], f32[64]) tuple(%used, %out)
}
"""


@pytest.mark.parametrize("kind", CHIPS)
def test_every_slice_on_offer_is_known_with_its_chips(kind):
    chip = CHIPS[kind]
    assert chip.kind in PEAKS
    for size in chip.sizes:
        one = parse_topology(f"{kind}:{size}")
        assert one.chips == math.prod(map(int, size.split("x")))
        assert parse_topology(f"{kind}:{size}", 3).chips == 3 * one.chips
    assert 0 < chip.dcn < chip.ici < chip.hbm


@pytest.mark.parametrize(
    ("name", "slices", "says"),
    [
        ("v5e-16x16", 1, "did you mean v5e:16x16?"),
        ("v5e:3x7", 1, "2x2, 2x4, 4x4"),
        ("v9:2x2", 1, "v4: 2x2x1"),
        ("v5p:16x16", 1, "v5p: 2x2x1"),
        ("v5e:2x2", 0, "--slices = 0"),
        ("", 1, "as v5e:16x16"),
    ],
)
def test_another_name_is_refused_with_those_that_are_known(name, slices, says):
    with pytest.raises(KeftError) as caught:
        parse_topology(name, slices)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_collectives_count_once_a_turn_and_once_beside_other_work():
    found = find_collectives(HLO)
    told = sorted((one.kind, one.bytes, one.count, one.group) for one in found)
    assert told == [
        ("all-gather", 8, 1, 4),
        ("all-gather", 64, 1, 4),
        ("all-gather", 128, 1, 4),
        ("all-reduce", 16, 12, 2),
        ("all-reduce", 16, 12, 4),
        ("dcn-all-reduce", 16, 1, 0),
        ("reduce-scatter", 64, 1, 4),
    ]
    assert count_bytes(found)["all-reduce"] == 2 * 12 * 16
    assert any("transpose(" in one.source for one in found)
    assert parse(HLO).runs()[1] == 0


def test_a_loop_whose_length_is_not_told_counts_once_and_is_reported():
    hidden = HLO.replace("direction=LT", "direction=NE")
    assert parse(hidden).runs()[1] == 1
    assert count_bytes(hidden)["all-reduce"] == 2 * 16
    stated = '%w = (s32[], bf16[8]) while(%init), backend_config={"known_trip_count":{"n":"5"}}, '
    assert count_bytes(hidden.replace("%w = (s32[], bf16[8]) while(%init), ", stated))[
        "all-reduce"
    ] == (5 * 2 * 16)


def test_gathers_of_the_state_and_of_what_is_given_back_are_found():
    found = find_gathered(parse(HLO), ("state.opt_state", "state.tables"))
    assert found == ["state.opt_state[1].mu['w']", "(output)"]
    assert find_gathered(
        parse(HLO.replace("%copy)", "%used)").replace("%rows)", "%n)")), ("",)
    ) == ["batch.tokens"]


def test_a_gather_in_a_loop_of_what_was_cast_and_laid_out_anew_is_found():
    mesh = make_mesh(MeshConfig(data=4))
    cut, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())

    def step(state, batch):
        carried = state["mu"].astype(jnp.bfloat16), state["nu"], batch

        def turn(carried, _):
            mu, nu, x = carried
            mu = jax.lax.with_sharding_constraint(mu.T, whole)
            return (mu.T, nu, jnp.tanh(x @ mu.astype(x.dtype))), None

        (_, nu, x), _ = jax.lax.scan(turn, carried, length=3)
        return nu * 2, x

    array = jax.ShapeDtypeStruct((32, 32), "float32", sharding=cut)
    jitted = jax.jit(step, out_shardings=(cut, cut))
    text = jitted.lower({"mu": array, "nu": array}, array).compile().as_text()
    assert find_gathered(parse(text), ("state",)) == ["state['mu']"]
    found = find_collectives(text)
    assert len(find_as_large(found, 32 * 32)) == len([o for o in found if o.kind == "all-gather"])
    assert find_as_large(found, 32 * 32 + 1) == []


def test_seconds_are_work_over_speed():
    topology = parse_topology("v5e:16x16", 2)
    chip = topology.chip
    moved = [
        Collective("all-reduce", (), 200, count=10, group=4),
        Collective("dcn-all-reduce", (), 500, count=2),
    ]
    got = estimate(topology, "bfloat16", 197e12, 819e9, moved)
    assert got == Roofline(1.0, 1.0, 2000 * 1.5 / chip.ici, 1000 / chip.dcn)
    assert got.overlapped == 1.0
    assert got.one_by_one == pytest.approx(2.0, abs=1e-5)


@pytest.mark.parametrize(
    ("kind", "name", "group", "factor"),
    [
        ("all-reduce", "v5e:4x4", 16, 2 * 15 / 16),
        ("all-gather", "v5e:4x4", 4, 3),
        ("reduce-scatter", "v5e:4x4", 0, 15 / 16),
        ("collective-permute", "v5e:4x4", 0, 1),
        ("all-to-all", "v5e:4x4", 16, 15 / 16 * (4 / 3 + 4 / 3)),  # no wrap-around links
        ("all-to-all", "v5e:16x16", 256, 255 / 256 * 8),
        ("ragged-all-to-all", "v5p:4x4x8", 128, 127 / 128 * 4),
    ],
)
def test_bytes_over_links(kind, name, group, factor):
    one = Collective(kind, (), 1, group=group)
    assert links(one, parse_topology(name)) == pytest.approx(factor)


def test_memory_by_part_is_what_one_counts_by_hand():
    mesh = make_mesh(MeshConfig(data=2, fsdp=4))

    def array(shape, *axes):
        return jax.ShapeDtypeStruct(shape, "float32", sharding=NamedSharding(mesh, P(*axes)))

    table = array((64, 8), ("data", "fsdp"))
    state = State(
        step=array(()),
        params={"w": array((16, 8), "fsdp"), "b": array((8,))},
        opt_state={"mu": array((16, 8), "fsdp")},
        key=array((2,)),
        tables={"nodes/rows": RowTable(table, {"mu": table, "nu": table})},
    )
    batch = array((24, 5), ("data", "fsdp"))
    parts = 4 * (4 * 8 + 8), 4 * 4 * 8, 8 * 8 * 4, 2 * 8 * 8 * 4, 3 * 5 * 4
    small = 4 + 8
    analysis = types.SimpleNamespace(
        argument_size_in_bytes=sum(parts) + small + 100,
        output_size_in_bytes=1000,
        alias_size_in_bytes=990,
        temp_size_in_bytes=7,
        generated_code_size_in_bytes=5,
    )
    got = split_memory(state, {}, batch, analysis)
    names = ("parameters", "optimizer moments", "tables", "moments of tables", "batch")
    assert {name: got[name] for name in names} == dict(zip(names, parts, strict=True))
    assert (got["outputs"], got["temporaries"], got["program"]) == (10, 7, 5)
    assert sum(got.values()) == analysis.argument_size_in_bytes + 10 + 7 + 5
    assert "frozen" not in got


class Lowered:
    def __init__(self, message):
        self.message = message

    def compile(self, options):
        os.write(2, b"W1122 Involuntary full rematerialization. The compiler cannot\nelse\n")
        if self.message:
            raise jax.errors.JaxRuntimeError(self.message)
        folder = Path(options["xla_dump_to"])
        (folder / "module_0000.jit_on.after_optimizations.txt").write_text("HloModule jit_on")
        return "program"


def test_what_does_not_fit_says_by_how_much():
    told = (
        "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory "
        "required for HLO temporaries (16.65G) exceeds available HBM (15.75G). HLO module: jit_on."
    )
    with pytest.raises(DoesNotFitError, match=r"needs 16\.65 GiB .* 15\.75, 0\.90 too few") as no:
        compile_lowered(Lowered(told), parse_topology("v5e:2x2"))
    assert (no.value.exit_code, no.value.needed) == (1, 16.65 * GIB)
    with pytest.raises(jax.errors.JaxRuntimeError, match="another"):
        compile_lowered(Lowered("another error"), parse_topology("v5e:2x2"))


def test_what_the_partitioner_writes_below_python_is_seen():
    compiled, text, complaints = compile_lowered(Lowered(""), parse_topology("v5e:2x2"))
    assert (compiled, text) == ("program", "HloModule jit_on")
    assert complaints == ["W1122 Involuntary full rematerialization. The compiler cannot"]
    with captured_stderr() as lines:
        os.write(2, b"one\ntwo")
        assert lines == []
    assert lines == ["one", "two"]


def test_without_libtpu_one_line_names_the_extra(monkeypatch, capfd):
    monkeypatch.setattr(compiler.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr("sys.argv", ["keft", "compile", "--config", SCALE, "--topology", "v5e:2x2"])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code != 0
    told = capfd.readouterr().err.splitlines()
    assert len(told) == 1
    assert "'.[aot]'" in told[0]


def test_what_is_traced_knows_the_platform_it_is_for():
    assert platform() == "cpu"
    device = types.SimpleNamespace(platform="tpu")
    mesh = types.SimpleNamespace(devices=np.array([device]))
    with on_mesh(mesh):
        assert platform() == "tpu"
        with on_mesh(None):  # inside shard_map
            assert platform() == "tpu"
    assert platform() == "cpu"
    models = (ROOT / "keft_jax/models").glob("*.py")
    asked = [file.name for file in models if "default_backend" in file.read_text()]
    assert asked == [], "models ask sharding.platform()"


def test_the_recipe_has_the_rows_and_texts_it_is_asked_for():
    config = load_config(f"{SCALE}:100m,16,4")
    assert config.knowledge.entity_rows == 100_000_000
    assert (config.optim.batch, config.mesh.fsdp) == (32 * 16, 4)
    assert config.optim.tables == "rows"
    for wrong in ("7m", "5m,x", "5m,1,1,1"):
        with pytest.raises(KeftError, match="ROWS"):
            load_config(f"{SCALE}:{wrong}")


def test_what_is_lowered_has_the_shapes_of_what_is_run(monkeypatch):
    monkeypatch.setattr(program, "make_devices", lambda topology: jax.devices())
    teacher = ("--objective.distill.teacher=synthetic", "--objective.distill.weight=1")
    options = (*TINY, *teacher, "--optim.batch=16", "--mesh.fsdp=2")
    config = override(load_config(SCALE), options)
    lowered = program.lower(config, parse_topology("v5e:2x4"))
    _same_as_run(config, lowered.batch, lowered.flops)
    assert lowered.flops["teacher"] > 0
    leaves = jax.tree.leaves(lowered.frozen["teacher"])
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)
    assert lowered.state.tables["nodes/rows"].value.shape == (4096, 16)
    assert lowered.mesh.shape["data"] == 4


def test_packed_texts_have_the_rows_of_what_is_run():
    options = (*TINY, "--optim.batch=64", "--optim.accumulate=2", "--data.pack=64")
    config = override(load_config(SCALE), options)
    mesh = make_mesh(config.mesh)
    parts, one, times = program.make_batch(config, mesh)
    batch = program.stretch(one, times, mesh)
    assert batch.packing.slot.shape == (16, 64)
    _same_as_run(config, batch, count_step(parts, one, times=times))


def _same_as_run(config, batch, flops):
    parts, examples = prepare(config)
    real = first_batches(parts, examples)[0]
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), real)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), batch) == shapes
    useful = count_step(parts, real, given_of(parts, abstract=True))
    assert flops["total"] == pytest.approx(useful["total"], rel=0.05)


@pytest.fixture(scope="module")
def libtpu():
    pytest.importorskip("libtpu", reason="libtpu (the extra aot) is not installed")


# The other kind of chip has sparse cores, which gathers are offloaded to.
@pytest.mark.parametrize("topology", ["v5e:2x2", "v5p:2x2x1"])
def test_a_step_compiles_for_chips_that_are_not_there(libtpu, capsys, topology):
    options = (*TINY, "--optim.batch=16", "--mesh.fsdp=2", "--mesh.rows=all_to_all")
    config = override(load_config(SCALE), options)
    from keft_jax.aot.run import compile_ahead

    out = json.loads(json.dumps(compile_ahead(config, topology)))
    assert out["fits"] and out["chips"] == 4
    assert out["mesh"] == {"data": 2, "fsdp": 2, "tensor": 1}
    assert out["memory"]["tables"] == 4096 * 16 * 4 // 4
    assert out["memory"]["moments of tables"] == 2 * out["memory"]["tables"]
    assert {"all-to-all", "all-reduce"} <= {one["kind"] for one in out["collectives"]}
    assert (out["gathers"], out["moves_a_table"], out["rematerialized"]) == ([], [], 0)
    assert 0 < out["mfu"]["one_by_one"] <= out["mfu"]["overlapped"] <= 1
    assert "TFLOPs/s" in capsys.readouterr().out


def test_the_partitioner_of_libtpu_is_heard(libtpu):
    topology = parse_topology("v5e:2x4")
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2), compiler.make_devices(topology))

    def resharded(x):
        x = jax.lax.with_sharding_constraint(
            jnp.tanh(x), NamedSharding(mesh, P("data", ("fsdp", "tensor"), None))
        )
        x = jnp.sin(x) @ jnp.ones((16, 16))
        x = jax.lax.with_sharding_constraint(
            x, NamedSharding(mesh, P(None, "tensor", ("data", "fsdp")))
        )
        return jnp.cos(x)

    before, after = (("data", "fsdp", "tensor"), ("tensor", "fsdp", "data"))
    jitted = jax.jit(
        resharded,
        in_shardings=NamedSharding(mesh, P(before)),
        out_shardings=NamedSharding(mesh, P(after)),
    )
    lowered = jitted.lower(jax.ShapeDtypeStruct((16, 16, 16), "float32"))
    assert len(compile_lowered(lowered, topology)[2]) > 0
