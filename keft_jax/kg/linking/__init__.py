"""From text to the entities that it names."""

from keft_jax.kg.linking.string import Mention, StringLinker, parse_brackets

__all__ = ["Mention", "StringLinker", "parse_brackets"]
