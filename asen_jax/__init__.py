"""Attribute-specific fashion similarity (ASEN) in JAX/Flax; `Embedder` embeds any photos."""

import importlib

__all__ = ['Embedder']


def __getattr__(name: str):
    """`asen_jax.Embedder`, imported on first use: importing JAX takes seconds, and record builders do not need it."""
    if name == 'Embedder':
        return importlib.import_module('asen_jax.embedder').Embedder
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
