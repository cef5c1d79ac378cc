"""Imports go down only, and the graph's side knows no accelerator."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ORDER = (
    ("config", "files", "memory", "parquet"),
    ("kg",),
    ("sharding", "distributed"),
    ("data",),
    ("models",),
    ("tasks",),
    ("train",),
    ("explain", "predict", "export", "link"),
    ("gain",),
    ("bench", "init", "doctor"),
    ("aot",),
    ("__init__",),
    ("options", "cli", "cli_data", "cli_run"),
)
"""Lowest first; a module may import its own layer and those before it."""
HEIGHT = {name: height for height, names in enumerate(ORDER) for name in names}
MODULES = sorted((ROOT / "keft_jax").rglob("*.py"))


def layer(dotted: str) -> str:
    """`keft_jax.data.batch` -> `data`."""
    parts = dotted.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imports(tree: ast.AST):
    """(line, full dotted name) of every import, those inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            for alias in node.names:
                # `from keft_jax import kg` names a module, `from keft_jax.kg import KG` does not.
                whole = node.module == "keft_jax" and alias.name in HEIGHT
                yield node.lineno, f"keft_jax.{alias.name}" if whole else str(node.module)


def faults(name: str, source: str) -> list[str]:
    """What a module of that dotted name must not import."""
    own, out = layer(name), []
    for line, target in imports(ast.parse(source)):
        package = target.split(".")[0]
        if own in ("kg", "config", "files") and package in ("jax", "jaxlib", "flax", "jraph"):
            out.append(f"{name}:{line}: {target} on the graph's side")
        if package != "keft_jax":
            continue
        if HEIGHT[layer(target)] > HEIGHT[own]:
            out.append(f"{name}:{line}: {target} lies above it")
        if own == "models" and layer(target) == "data" and target != "keft_jax.data.batch":
            out.append(f"{name}:{line}: {target}; models know the batch alone")
    return out


@pytest.mark.parametrize("file", MODULES, ids=lambda f: f.relative_to(ROOT).as_posix())
def test_imports_go_down(file):
    name = ".".join(file.relative_to(ROOT).with_suffix("").parts)
    name = "keft_jax" if name == "keft_jax.__init__" else name
    assert layer(name) in HEIGHT, f"{name}: give it a place in ORDER"
    assert faults(name, file.read_text()) == []


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("keft_jax.data.features", "from keft_jax.models.heads import Names"),
        ("keft_jax.kg.store", "def f():\n    import jax.numpy as jnp"),
        ("keft_jax.config", "from jax import Array"),
        ("keft_jax.kg.store", "from keft_jax import data"),
        ("keft_jax.train.loop", "import keft_jax"),
        ("keft_jax.models.graph", "from keft_jax.data.features import Knowledge"),
    ],
)
def test_an_upward_import_is_found(name, source):
    assert len(faults(name, source)) == 1
