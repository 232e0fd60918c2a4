"""Attribute-specific fashion similarity (ASEN) in JAX/Flax."""
