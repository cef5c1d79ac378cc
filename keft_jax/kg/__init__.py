"""The host side of the knowledge graph: numpy, no jax."""

from keft_jax.kg.store import KG

__all__ = ["KG"]
