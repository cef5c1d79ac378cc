"""A config turned into a run's directory: the whole of train.py.

    config.json, tokenizer.json, labels.json, kg/, inputs.json    what the run was made from
    checkpoints/, best/                                           see checkpoint.py
    metrics.jsonl, events.out.*                                   see metrics.py
    summary.json                                                  written last: the run is finished

The same command again goes on where the run stopped, by a kill at any moment too, and ends with
bit-identical parameters; on a finished run it prints the results.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import logging
import os
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
from jax.sharding import Mesh

from keft_jax.config import Config, KeftError, KgeConfig, MeshConfig, config_hash, to_json
from keft_jax.data.features import Dataset
from keft_jax.data.triples import TripleDataset
from keft_jax.distributed import exchange, is_first, on_first, refuse_unlike, stop_signals
from keft_jax.files import write_atomic
from keft_jax.kg.embeddings import Embeddings, read_embeddings
from keft_jax.models.pretrained import start_digest
from keft_jax.sharding import fetch, make_mesh, own_device
from keft_jax.train.checkpoint import BestParams, Checkpoints, abstract_like, load_params
from keft_jax.train.console import Display, introduce, print_summary
from keft_jax.train.coverage import count_shared, cover, fingerprint, refuse_selection_on_test
from keft_jax.train.evaluator import NotFiniteError
from keft_jax.train.given import Given, make_given, make_triple_given
from keft_jax.train.linked import score_entities
from keft_jax.train.loop import Fit, Hooks, P, Scalars, Trainer, fit, make_plan, pick
from keft_jax.train.metrics import MetricsFile, TensorBoard
from keft_jax.train.parts import (
    AnyParts,
    Parts,
    build_any,
    generate,
    load_parts,
    load_run_config,
)
from keft_jax.train.ranking import by_relation
from keft_jax.train.start import take_over
from keft_jax.train.state import State
from keft_jax.train.triple_parts import TripleParts, load_triples, vectors_of
from keft_jax.train.vectors import is_run, resolve
from keft_jax.train.watchdog import watch
from keft_jax.train.weigh import scale_of
from keft_jax.train.workdir import (
    claim,
    refuse_other_inputs,
    refuse_other_run,
    refuse_unshared,
)

logger = logging.getLogger(__name__)

VERSIONS = ("keft_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def train(config: Config, workdir: str | os.PathLike[str], *, quiet: bool = False) -> dict:
    """Trains, evaluates the best parameters on the test splits, and writes the run's directory.

    Gives the content of summary.json, or {"stopped": step} after SIGTERM or control-C, when the
    state is saved. Data and config are checked before anything is written. Of several processes all
    call this; the first one writes and speaks. Raises KeftError.
    """
    with contextlib.ExitStack() as stack:
        # One that ends leaves the others waiting: what asks for it is kept from the start on.
        alone = jax.process_count() == 1
        stopping = None if alone else stack.enter_context(stop_signals())
        return _train(config, Path(workdir), quiet or not is_first(), stopping)


def _train(config: Config, folder: Path, quiet: bool, stopping: Callable[[], bool] | None) -> dict:
    console = rich.console.Console(stderr=True, quiet=quiet, emoji=False)
    config = resolve(config)
    # Before anything that all do together, which what they were given decides on.
    refuse_unlike({"config": config_hash(config), **versions()})
    on_first(lambda: refuse_other_run(config, folder))
    summary = read_summary(folder)
    if summary is not None:
        console.print(f"{folder}: finished already; these are its results", highlight=False)
        print_summary(summary, quiet=quiet)
        return summary
    on_first(lambda: generate(config))
    parts, splits = build_any(config)
    given = load_given(parts)
    examples: Any = parts.training(splits)
    train_set = parts.given(examples)
    select = parts.ready(splits.select) if len(splits.select) else None
    tests: dict[str, Any] = {}
    for name, test in splits.tests.items():
        tests[name] = parts.dataset(test)  # an error in them shows before hours of training
        refuse_selection_on_test(config.data.select, splits.select, name, test)
    shared = {
        name: count_shared(config.data.unlabelled, splits.unlabelled, name, split)
        for name, split in (("data.select", splits.select), *splits.tests.items())
    }
    make_plan(config, train_set, config.seed)
    zeros: Any = defaultdict(lambda: np.zeros(1, np.int32))
    metric = config.eval.metric or parts.task.metrics[0]
    pick(parts.task.summarise(zeros), metric)  # the names are known without an evaluation
    trainer: Trainer[Any] = Trainer(parts, given)
    inputs = {
        "data.train": fingerprint(splits.train),
        "data.unlabelled": fingerprint(splits.unlabelled) if len(splits.unlabelled) else "",
        "data.select": fingerprint(splits.select) if select is not None else "",
        **parts.inputs(),
        "encoder.pretrained": start_digest(config),
        "objective.distill.teacher": identify(*given.teacher) if given.teacher else "",
        **given.inputs(),
    }
    refuse_unlike(inputs)

    def begin() -> None:
        refuse_other_inputs(inputs, folder)
        write_atomic(folder / "inputs.json", json.dumps(inputs, indent=2))
        if not (folder / "config.json").is_file():
            parts.save(folder)
        elif (folder / "config.json").read_text() != to_json(config):  # in free fields
            write_atomic(folder / "config.json", to_json(config))

    with contextlib.ExitStack() as stack:
        on_first(lambda: stack.enter_context(claim(folder)))
        refuse_unshared(folder)
        on_first(begin)
        covers = {"train": cover(train_set, parts)}
        introduce(console, trainer, covers["train"], select, folder)
        stack.enter_context(watch(config.watch, folder, logger.error))
        result = _fit(trainer, train_set, select, folder, console, stopping)
        if result.interrupted:
            step = int(result.state.step)
            console.print(
                f"stopped at step {step} of {config.optim.steps}, everything is saved; the same "
                f"command with --workdir {folder} goes on from there",
                highlight=False,
                soft_wrap=True,
            )
            return {"stopped": step}
        step, params = load_params(folder / "best", _abstract_params(parts, trainer.mesh))
        scores, slices = {}, {}
        for name, test in tests.items():
            dataset: Any = parts.given(test)
            rows = trainer.evaluate(params, dataset)
            scores[name] = parts.task.summarise(rows)
            covers[name] = cover(dataset, parts)
            if len(splits.unlabelled):
                covers[name]["unlabelled"] = shared[name]
            if isinstance(parts, Parts) and parts.linked is not None:
                scores[name] |= score_entities(parts, params, train_set, dataset)
            if isinstance(parts, TripleParts):
                slices[name] = by_relation(rows, parts.relations)
        summary = {
            "task": config.task.kind,
            "metric": metric,
            "row": config.knowledge.row,
            "seed": config.seed,
            "scores": scores,
            "select": result.progress.select,
            "steps": int(result.state.step),
            "best_step": step,
            **scale_of(params),
            "curve": result.progress.curve,
            "coverage": covers,
            **({"relations": slices} if slices else {}),
            "parameters": parts.model.size(),
            "config_hash": config_hash(config),
            "kg_hash": parts.kg_hash,
            "versions": versions(),
            "device": f"{trainer.mesh.size} x {jax.devices()[0].device_kind}",
            "processes": jax.process_count(),
            "seconds": result.seconds,
            "compilations": trainer.compilations,
        }
        text = json.dumps(summary, indent=2, ensure_ascii=False)
        on_first(lambda: write_atomic(folder / "summary.json", text))
    print_summary(summary, quiet=quiet)
    return summary


def read_summary(folder: Path) -> dict | None:
    """Of a finished run, as the first process finds it; None where it is not finished."""
    file = folder / "summary.json"
    text = exchange(file.read_text() if is_first() and file.is_file() else "")[0]
    return json.loads(text) if text else None


def _fit(
    trainer: Trainer,
    train_set: Dataset | TripleDataset,
    select: Dataset | TripleDataset | None,
    folder: Path,
    console: rich.console.Console,
    stopping: Callable[[], bool] | None,
) -> Fit:
    """`fit` from the last good checkpoint, with everything that is kept on disk. stopping: whether
    signals asked to stop, where they are kept already."""
    config = trainer.parts.config

    def warn(message: str) -> None:
        console.print(message, highlight=False, soft_wrap=True)

    checkpoints = Checkpoints(folder / "checkpoints", config.checkpoint.keep, warn)
    best = BestParams(folder / "best", warn)
    with contextlib.ExitStack() as stack:
        stack.callback(best.close)
        stack.callback(checkpoints.close)
        abstract = jax.eval_shape(trainer.init, jax.random.key(config.seed))
        state, progress = checkpoints.restore(abstract_like(abstract, trainer.shardings)) or (
            None,
            None,
        )
        first = 0 if state is None else int(state.step)
        best.tidy(needed=progress is not None and progress.best is not None)
        if first:
            warn(f"resumed from step {first} of {config.optim.steps}")
        if stopping is None:
            stopping = stack.enter_context(stop_signals())
        file: MetricsFile | None = None
        outs: list[MetricsFile | TensorBoard | Display] = []
        if is_first():
            file = MetricsFile(folder / "metrics.jsonl", first)
            display = Display(console, first, config.optim.steps)
            outs = [file, TensorBoard(folder, first), display]
            for out in outs:
                stack.callback(out.close)

        def log(step: int, scalars: Scalars) -> None:
            for out in outs:
                out.log(step, scalars)

        def save(state: State, progress: Any) -> None:
            refuse_not_finite(state)
            if file is not None:
                file.flush()
            # A checkpoint that knows of better parameters is written after them.
            best.wait()
            checkpoints.save(int(state.step), state, progress)

        def poll() -> None:
            best.poll()
            checkpoints.poll()

        result = fit(
            trainer,
            train_set,
            select,
            seed=config.seed,
            state=state,
            progress=progress,
            hooks=Hooks(log=log, save=save, save_best=best.save, stopping=stopping, poll=poll),
        )
        if select is None and not result.interrupted:
            best.save(int(result.state.step), result.best_params)
        return result


def load_run(path: str | os.PathLike[str], mesh: Mesh | None = None) -> tuple[Parts, Any]:
    """The parts of a text run's directory, finished or stopped, and its best parameters, on `mesh`
    (None: all devices, whole on each). Raises KeftError."""
    return _with_best(load_parts(Path(path)), path, mesh)


def load_triple_run(
    path: str | os.PathLike[str], mesh: Mesh | None = None
) -> tuple[TripleParts, Any]:
    """As `load_run`, of a run of link prediction."""
    folder = Path(path)
    return _with_best(load_triples(load_run_config(folder), folder), path, mesh)


def _with_best(parts: P, path: str | os.PathLike[str], mesh: Mesh | None) -> tuple[P, Any]:
    mesh = make_mesh(MeshConfig()) if mesh is None else mesh
    _, params = load_params(Path(path) / "best", _abstract_params(parts, mesh))
    return parts, params


def _abstract_params(parts: AnyParts, mesh: Mesh) -> Any:
    return abstract_like(parts.model.abstract(), parts.model.shardings(mesh))


def load_given(parts: AnyParts) -> Given:
    """What the config names beside the data: the teachers, the vectors that rows of entities and
    relations start as, and the run that all starts from. Raises KeftError."""

    def guide(path: str) -> tuple[KgeConfig, Any, Embeddings]:
        run, params = load_triple_run(path, own_device())
        return run.config.kge, jax.device_get(params["scorer"]), vectors_of(run, params)

    if isinstance(parts, TripleParts):
        return make_triple_given(parts, load_vectors)
    given = make_given(parts, load_teacher(parts), load_vectors, guide)
    start = parts.config.optim.start
    return take_over(given, *load_run(start, own_device())) if start else given


def load_vectors(path: str | os.PathLike[str]) -> Embeddings:
    """Of the directory of a run of link prediction, or a folder of embeddings. Raises KeftError."""
    if not is_run(path):
        return read_embeddings(Path(path))
    return vectors_of(*load_triple_run(path, own_device()))


def load_teacher(parts: Parts) -> tuple[Parts, Any] | None:
    """The run that teaches. Raises KeftError where its numbers mean other things than here. A
    teacher that reads no graph may have another one, or none."""
    settings = parts.config.objective.distill
    if not settings.active:
        return None
    where = f"objective.distill.teacher = {settings.teacher!r}"
    teacher, params = load_run(settings.teacher, make_mesh(parts.config.mesh))
    text = teacher.config.knowledge.text != "none"
    reads = text or teacher.config.fusion.kind != "none"
    answers = parts.config.task.kind == "kgqa"  # its outputs are of entities
    for thing, of, needed in (
        ("task.kind", lambda p: p.config.task.kind, True),
        ("tokenizer", lambda p: p.knowledge.vocabulary.tokenizer.to_str(), True),
        ("list of labels", lambda p: p.labels, True),
        ("knowledge.text", lambda p: p.config.knowledge.text, True),  # of the batch's texts
        ("knowledge.text_facts", lambda p: p.config.knowledge.text_facts, text),
        ("knowledge.text_tokens", lambda p: p.config.knowledge.text_tokens, text),
        ("knowledge.name_pieces", lambda p: p.config.knowledge.name_pieces, reads or answers),
        ("list of entities", lambda p: list(p.knowledge.vocabulary.entities), reads or answers),
        ("list of relations", lambda p: p.knowledge.vocabulary.relations, reads),
        ("knowledge.row", lambda p: p.config.knowledge.row, reads),
        ("knowledge.vectors", _vectors, reads),
        ("knowledge.attributes", lambda p: p.inputs().get("knowledge.attributes"), reads),
    ):
        if needed and of(parts) != of(teacher):
            raise KeftError(
                f"{where}: its {thing} is another than this config's, so its outputs mean other "
                "things; train the teacher on the same data and graph, or set this config's to it"
            )
    longest, rows = parts.config.data.buckets[-1], teacher.config.encoder.max_length
    if longest > rows:
        raise KeftError(
            f"{where}: reads {rows} tokens at most (its encoder.max_length) and data.buckets has "
            f"{longest}; shorten the bucket"
        )
    ours, its = settings.width or parts.config.encoder.width, teacher.config.encoder.width
    if settings.hidden and ours != its:
        raise KeftError(
            f"objective.distill.width = {settings.width}: the states that objective.distill.hidden "
            f"compares have {its} numbers in the teacher and {ours} here; set it to {its}"
        )
    return teacher, params


def _vectors(parts: Parts) -> tuple[str, str]:
    vectors = parts.knowledge.vectors
    content = b"" if vectors is None else np.ascontiguousarray(vectors).tobytes()
    return parts.config.knowledge.vectors, hashlib.sha256(content).hexdigest()


def identify(parts: Parts, params: Any) -> str:
    """sha256 of a run's config and its best parameters: equal only where all its outputs are."""
    out = hashlib.sha256(config_hash(parts.config).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        array = fetch(leaf)
        out.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        out.update(array.tobytes())
    return out.hexdigest()


@jax.jit
def _all_finite(tree: Any) -> jax.Array:
    return jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(tree)]).all()


def refuse_not_finite(state: State) -> None:
    if not _all_finite(state.model_params):
        raise NotFiniteError(
            f"step {int(state.step)}: the parameters are not numbers any more after it; lower "
            "optim.learning_rate. Checkpoints stay as they were"
        )


def versions() -> dict[str, str]:
    out = {}
    for name in VERSIONS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            out[name] = importlib.metadata.version(name)
    return out
