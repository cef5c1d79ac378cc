"""`train.py --dry-run`: what a run would be and cost, and what its first batch says."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import rich.console

from keft_jax.config import Config, to_json
from keft_jax.data.batch import Batch
from keft_jax.train.checkpoint import abstract_like
from keft_jax.train.console import introduce
from keft_jax.train.coverage import cover
from keft_jax.train.loop import Trainer, make_plan
from keft_jax.train.parts import Parts, build_any
from keft_jax.train.run import load_given

SHOWN, FACTS = 4, 6
"""Examples shown, and facts of each."""


def dry_run(config: Config) -> dict[str, Any]:
    """Prints the resolved config, sizes, costs of a step and some examples; compiles the step and
    writes nothing (a generator in the config still makes the data files that are missing)."""
    console = rich.console.Console(highlight=False, soft_wrap=True, emoji=False)
    parts, splits = build_any(config)
    config = parts.config
    given = load_given(parts)
    examples: Any = parts.training(splits)
    train: Any = parts.given(examples)
    select = parts.ready(splits.select) if len(splits.select) else None
    trainer: Trainer[Any] = Trainer(parts, given)
    length, indices = make_plan(config, train, config.seed).batch(0)
    batch: Any = train.batch(length, indices)
    console.print(to_json(config), markup=False)
    introduce(console, trainer, cover(train, parts), select, "(dry run: nothing is written)")
    costs = measure(trainer, batch)
    for name, value in costs.items():
        console.print(f"{name:<32}{value:>12,.1f}")
    console.print("\nthe first batch begins:")
    if isinstance(parts, Parts):
        batch = parts.knowledge.show(batch, *train.row)
    for place, index in enumerate(indices[:SHOWN]):
        example = train.source(index)
        shown = (
            describe(parts, example, batch, place)
            if isinstance(parts, Parts)
            else (f"  {example.where}")
        )
        console.print(shown, markup=False)
    return costs


def compile_step(trainer: Trainer, batch: Batch) -> Any:
    """The training step, compiled for batches of this shape without making a state."""
    abstract = jax.eval_shape(trainer.init, jax.random.key(0))
    state = abstract_like(abstract, trainer.shardings)
    step: Any = trainer.train_step
    return step.lower(state, trainer.frozen(), trainer.put(batch)).compile()


def measure(trainer: Trainer, batch: Batch, compiled: Any = None) -> dict[str, float]:
    """Memory and arithmetic of one step, from the arrays' sizes and from the compiler."""
    parts, frozen = trainer.parts, trainer.frozen()
    abstract = jax.eval_shape(trainer.init, jax.random.key(0))
    compiled = compiled or compile_step(trainer, batch)
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis() or {}

    def megabytes(tree: Any) -> float:
        leaves = jax.tree.leaves(tree)
        return sum(np.prod(x.shape) * x.dtype.itemsize for x in leaves) / 1e6

    out = {
        "parameters (millions)": parts.model.size() / 1e6,
        "parameters (MB)": megabytes(abstract.params),
        "gradients (MB)": megabytes(abstract.params),
        "optimizer moments (MB)": megabytes(abstract.opt_state),
        "teacher, names, graph (MB)": megabytes(frozen),
        "batch (MB)": megabytes(batch),
    }
    if memory is not None:  # not every backend can say
        out |= {
            "arguments, a device (MB)": memory.argument_size_in_bytes / 1e6,
            "temporaries, a device (MB)": memory.temp_size_in_bytes / 1e6,
            "peak, a device, about (MB)": (
                memory.argument_size_in_bytes
                + memory.output_size_in_bytes
                - memory.alias_size_in_bytes
                + memory.temp_size_in_bytes
            )
            / 1e6,
        }
    if "flops" in cost:
        out["GFLOPs a step and device"] = cost["flops"] / 1e9
    if "bytes accessed" in cost:
        out["memory traffic a step (MB)"] = cost["bytes accessed"] / 1e6
    return out


def describe(parts: Parts, example: Any, batch: Batch, place: int) -> str:
    """An example as the model is given it: pieces, linked mentions and facts, from the arrays."""
    knowledge, tokenizer = parts.knowledge, parts.knowledge.vocabulary.tokenizer
    ids = batch.tokens[place, : batch.length[place]]
    entity = batch.graph.nodes["entity"][place]
    names, relations = knowledge.kg.names, knowledge.vocabulary.relations
    lines = [f"  {example.where}  {' '.join(str(tokenizer.id_to_token(int(i))) for i in ids)}"]
    answers = [*example.answers[:FACTS], *["..."][: len(example.answers) > FACTS]]
    right = example.label if example.label is not None else " | ".join(answers)
    lines.append(f"    right: {right}")
    mentions = batch.mentions
    for start, end, node in zip(
        mentions.start[place], mentions.end[place], mentions.node[place], strict=True
    ):
        if node >= 0:
            text = tokenizer.decode([int(i) for i in ids[start:end]])
            lines.append(f"    {text!r} is {names[int(entity[node])]}")
    graph, real = batch.graph, int(batch.graph.n_edge[place, 0])
    relation = graph.edges["relation"][place, :real]
    forward = np.flatnonzero(relation < len(relations))
    for edge in forward[:FACTS]:
        head = names[int(entity[graph.senders[place, edge]])]
        tail = names[int(entity[graph.receivers[place, edge]])]
        lines.append(f"    {head} -[{relations[int(relation[edge])]}]-> {tail}")
    if len(forward) > FACTS:
        lines.append(f"    and {len(forward) - FACTS} facts more")
    return "\n".join(lines)
