"""All config fields with their defaults, the published ASEN recipe for FashionAI; asen_jax/fields.py lists them."""

from asen_jax.fields import default_config as get_config

__all__ = ['get_config']
