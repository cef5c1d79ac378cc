"""A run as a folder that transformers loads, with everything else beside it.

    OUT/config.json, model.safetensors     the text encoder, with its pooler or masked-LM head; the
                                           whole of a model that reads labels off [CLS] and no graph
    OUT/tokenizer.json, vocab.txt, ...     the tokenizer
    OUT/knowledge/parameters.safetensors   all other parameters, by path
    OUT/knowledge/config.json, labels.json, tokenizer.json, vectors.npy, kg/    as in a run

`keft_jax.load(OUT)` gives the trained model back, with the same parameters bit for bit. A model
that reads no graph comes without one, and a student without what was there for its teacher.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy
from jax.sharding import Mesh

from keft_jax.config import Config, KeftError, KnowledgeConfig, MeshConfig
from keft_jax.data.tokenize import save_for_transformers
from keft_jax.data.vocabulary import Vocabulary
from keft_jax.files import write_atomic
from keft_jax.kg.embeddings import write_embeddings
from keft_jax.kg.store import KG
from keft_jax.link import load_links
from keft_jax.models.functional import paths
from keft_jax.models.pretrained import Labels, flat, load_weights, save_weights
from keft_jax.sharding import make_mesh
from keft_jax.train.parts import Parts, assemble, load_parts, load_run_config, save_parts
from keft_jax.train.run import load_run

logger = logging.getLogger(__name__)

POOLED = ("label", "relation", "types")
"""Targets that task.pooling chooses the head of."""
KNOWLEDGE, PARAMETERS = "knowledge", "parameters.safetensors"


def export(run: str | os.PathLike[str], out: str | os.PathLike[str]) -> None:
    """Writes the best parameters of a run's directory as `out`, whole or not at all.

    Raises KeftError where `run` is no run on text, and where `out` is there and not an empty
    folder.
    """
    if _is_link_prediction(run):
        raise KeftError(
            f"{run}: a run of link prediction, which has no text encoder; add --embeddings to "
            "write its vectors"
        )
    folder = Path(os.path.abspath(out))
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise KeftError(f"--out {out}: is there already; name another folder, or remove this one")
    parts, params = load_run(run, make_mesh(MeshConfig(data=1)))
    part = folder.parent / f".{folder.name}.new-{secrets.token_hex(4)}"
    try:
        part.mkdir(parents=True)
        _write(parts, params, part)
        os.rename(part, folder)  # an empty folder in the way is replaced
    except OSError as error:
        raise KeftError(
            f"--out {out}: cannot write there ({error.strerror}); name another"
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def export_embeddings(run: str | os.PathLike[str], out: str | os.PathLike[str]) -> None:
    """Writes the vectors of a run of link prediction as `out`, for `kg.embeddings.read_embeddings`
    and anyone else. Raises KeftError as `export`."""
    if not _is_link_prediction(run):
        raise KeftError(
            f"{run}: a run on text, whose rows mean nothing without its encoder; leave out "
            "--embeddings to export both"
        )
    write_embeddings(Path(out), load_links(run).embeddings)


def _is_link_prediction(run: str | os.PathLike[str]) -> bool:
    return load_run_config(Path(run)).task.kind == "link_prediction"


def _write(trained: Parts, params: Any, folder: Path) -> None:
    parts = _alone(trained)
    tokenizer, encoder = parts.knowledge.vocabulary.tokenizer, parts.config.encoder
    pieces, labels = tokenizer.get_vocab_size(), _labels(parts)
    written = save_weights(params, encoder, pieces, folder, labels)
    save_for_transformers(tokenizer, folder, encoder.max_length)
    save_parts(parts, folder / KNOWLEDGE)
    needed = flat(parts.model.abstract())
    others = {
        path: np.asarray(jax.device_get(leaf))
        for path, leaf in flat(params).items()
        if path not in written and path in needed
    }
    write_atomic(folder / KNOWLEDGE / PARAMETERS, safetensors.numpy.save(others))


def _alone(parts: Parts) -> Parts:
    """The same model without what was there for its training alone."""
    config, distill = parts.config, parts.config.objective.distill
    # Without a way from its states to the teacher's; whatever it was trained by is still told.
    bare = replace(distill, width=0)
    config = replace(config, objective=replace(config.objective, distill=bare))
    if not _is_text_only(config) or config.task.kind == "kgqa":
        if not distill.width:
            return parts
        ours = parts.knowledge
        return assemble(
            config, ours.kg, ours.vocabulary, parts.labels, ours.vectors, ours.attributes
        )
    kg, tokenizer = KG.from_triples([]), parts.knowledge.vocabulary.tokenizer
    known = KnowledgeConfig(kg=config.knowledge.kg, link=config.knowledge.link)
    config = replace(config, knowledge=known)
    return assemble(config, kg, Vocabulary(tokenizer, kg.names, kg.relations), parts.labels)


def _is_text_only(config: Config) -> bool:
    return config.fusion.kind == "none" and config.knowledge.text == "none"


def _labels(parts: Parts) -> Labels | None:
    """Of a model that is a BertForSequenceClassification; None where it is more or other."""
    task = parts.config.task
    if not _is_text_only(parts.config) or parts.task.term not in POOLED:
        return None
    if task.reads == "cls":
        return Labels(parts.labels, several=task.kind == "typing")
    logger.warning(
        "task.pooling = %r: transformers' BertForSequenceClassification reads [CLS] alone, so what "
        "transformers loads is the text encoder without its labels; train with task.pooling=cls",
        task.pooling,
    )
    return None


def is_export(folder: Path) -> bool:
    return (folder / KNOWLEDGE / PARAMETERS).is_file()


def load_export(path: str | os.PathLike[str], mesh: Mesh | None = None) -> tuple[Parts, Any]:
    """The parts and parameters of an exported run, on `mesh` (None: all devices, whole on each).
    Its word table is zero behind the tokenizer's pieces, where nothing reads it. Raises KeftError.
    """
    folder = Path(path)
    parts = load_parts(folder / KNOWLEDGE)
    mesh = make_mesh(MeshConfig()) if mesh is None else mesh
    abstract, file = parts.model.abstract(), folder / KNOWLEDGE / PARAMETERS
    try:
        others = safetensors.numpy.load_file(file)
    except (safetensors.SafetensorError, OSError) as error:
        raise KeftError(f"{file}: cannot be read ({error}); export the run again") from error
    found = flat(load_weights(folder, abstract, classifier=True)) | others
    for name, struct in flat(abstract).items():
        if name not in found or found[name].shape != struct.shape:
            there = f"has the shape {found[name].shape}" if name in found else "is not there"
            raise KeftError(
                f"{folder}: parameter {name} {there}, {struct.shape} expected; export the run again"
            )
    params = jax.tree.map(lambda name: found[name], paths(abstract))
    return parts, jax.device_put(params, parts.model.shardings(mesh))
