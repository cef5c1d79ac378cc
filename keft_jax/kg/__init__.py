"""The host side of the knowledge graph: numpy, no jax."""

from keft_jax.kg.describe import describe
from keft_jax.kg.io import Report, build_kg, read_triples
from keft_jax.kg.store import KG
from keft_jax.kg.subgraph import Budget, Subgraphs, extract, survival

__all__ = [
    "KG",
    "Budget",
    "Report",
    "Subgraphs",
    "build_kg",
    "describe",
    "extract",
    "read_triples",
    "survival",
]
