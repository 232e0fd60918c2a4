"""Attribute-specific fashion similarity (ASEN) in JAX/Flax; `Embedder` gives vectors of any photos."""

import importlib

__all__ = ['Embedder']


def __getattr__(name: str):
    """`asen_jax.Embedder`, imported when it is asked for: JAX takes seconds, and builders of records do without."""
    if name == 'Embedder':
        return importlib.import_module('asen_jax.search.embedder').Embedder
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
