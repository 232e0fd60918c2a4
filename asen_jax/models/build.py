"""Build the network of a config, as a static graph and plain dicts of arrays."""

import jax
from flax import nnx
from ml_collections import ConfigDict

from asen_jax.models.layers import numerics
from asen_jax.models.registry import network_kind


def build_model(config: ConfigDict, num_attributes: int) -> tuple[nnx.GraphDef, dict, dict]:
    """The network that `config.model` names: its graph, and parameters and batch statistics drawn from `config.seed`."""
    kind = network_kind(config.model.name)
    network = kind.build(config.model, num_attributes, numerics(config.precision), nnx.Rngs(config.seed))
    graphdef, params, batch_stats = nnx.split(network, nnx.Param, nnx.BatchStat)
    return graphdef, nnx.to_pure_dict(params), nnx.to_pure_dict(batch_stats)


def build_shapes(config: ConfigDict, num_attributes: int) -> tuple[nnx.GraphDef, dict, dict]:
    """`build_model` with shapes instead of arrays, for weights that come from a file: drawing random ones takes seconds."""
    graphs = []

    def build():
        graphdef, *arrays = build_model(config, num_attributes)
        graphs.append(graphdef)
        return arrays

    params, batch_stats = jax.eval_shape(build)
    return graphs[0], params, batch_stats
