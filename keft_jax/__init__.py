"""keft_jax: give a text model a knowledge graph, train both in one sharded JAX step, and prove what
the knowledge was worth.

    kg = keft_jax.KG.load("my-kg")
    model = keft_jax.load("runs/quickstart-1a2b3c4d")
    model.predict(["What is the capital of Togo?"], kg=kg)
"""

from typing import TYPE_CHECKING, Any

from keft_jax.config import Config, KeftError

if TYPE_CHECKING:
    from keft_jax.kg import KG
    from keft_jax.kg.verbalise import Injected, inject_knowledge
    from keft_jax.link import LinkPredictor
    from keft_jax.predict import Predictor, load

__version__ = "0.1.0"
__all__ = [
    "KG",
    "Config",
    "Injected",
    "KeftError",
    "LinkPredictor",
    "Predictor",
    "inject_knowledge",
    "load",
]

_WHERE = {
    "KG": "keft_jax.kg",
    "Injected": "keft_jax.kg.verbalise",
    "inject_knowledge": "keft_jax.kg.verbalise",
    "LinkPredictor": "keft_jax.link",
    "Predictor": "keft_jax.predict",
    "load": "keft_jax.predict",
}


def __getattr__(name: str) -> Any:
    """Imported on first use: reading a graph needs no jax, and jax takes a second."""
    if name not in _WHERE:
        raise AttributeError(f"module 'keft_jax' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_WHERE[name]), name)
