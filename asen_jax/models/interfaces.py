"""What a network, a trunk, and a head take and return, and what each says about itself."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Key, Shaped, UInt8
from ml_collections import ConfigDict

from asen_jax.models.layers import Numerics, Roles


class Output(NamedTuple):
    """What a network returns for n photos under k conditions each, and a head, without the axis k, under one each."""

    embedding: Float[Array, '*n_k d']
    heatmap: Float[Array, '*n_k h w'] | None = None  # the spatial attention, if there is one
    extras: dict[str, Shaped[Array, 'n ...']] | None = None  # what only some losses need, by name


class Train(NamedTuple):
    """How a network runs in training: with batch statistics and dropout."""

    key: Key[Array, '']  # decides which channels are dropped
    remat: bool = False  # gradients compute each block of the trunk a second time instead of keeping what is inside it


@runtime_checkable  # the tests check it
class Conditions(Protocol):
    """A module that makes the condition of every attribute: a vector that tells a head which attribute is meant."""

    def __call__(self) -> Float[Array, 'a e']: ...


@runtime_checkable  # the tests check it
class Head(Protocol):
    """A module that makes embeddings from a trunk's features."""

    def project(self, x: Float[Array, 'n h w c'], roles: Roles) -> Any:
        """The part that is the same under every condition, as the head's call takes it."""
        ...

    def __call__(self, projected: Any, condition: Float[Array, '#n e']) -> Output:
        """The output under one condition for all photos, or under one for each; the embedding is not yet normalized.

        It is called once per condition by `jax.vmap`, so batch norm and dropout belong into `project`.
        """
        ...


@runtime_checkable  # the tests check it
class Trunk(Protocol):
    """A module that makes features from pixels; with `roles`, it trains (see layers.py)."""

    out_dim: int  # channels of the features

    def normalize(self, images: UInt8[Array, 'n h w 3']) -> Float[Array, 'n h w 3']:
        """The pixels as the trunk expects them."""
        ...

    def __call__(
        self, x: Float[Array, 'n h w 3'], roles: Roles = (), remat: bool = False
    ) -> Float[Array, 'n h2 w2 c']: ...


@runtime_checkable  # the tests check it
class Network(Protocol):
    """A module from photos to embeddings. One whose trunk may be frozen also has `features(images)`, and takes these as images."""

    conditions: Conditions

    def __call__(
        self,
        images: UInt8[Array, 'n h w 3'] | Float[Array, 'n h w c'],
        conditions: Float[Array, '#n k e'],
        mode: Train | None = None,
    ) -> Output:
        """Every photo under k conditions: the same for all photos, or each its own; it evaluates without a `mode`."""
        ...


class TorchLayout(NamedTuple):
    """How the PyTorch original of a network names its tensors, all below `embeddingnet.`."""

    # config.model -> {path of our module: name of theirs}; the trunk's own modules follow below `trunk`
    names: Callable[[ConfigDict], Mapping[str, str]]
    # tensors without the prefix -> the config fields that they determine and the number of attributes; None for others' tensors
    recognize: Callable[[Mapping[str, np.ndarray]], tuple[dict[str, Any], int] | None]
    # (config.model, number of attributes) -> their tensors that are constants of our network
    constants: Callable[[ConfigDict, int], dict[str, np.ndarray]] = lambda options, num_attributes: {}
    linear_tables: tuple[str, ...] = ()  # our tables that they store as linear layers, [dimensions, attributes]


class NetworkKind(NamedTuple):
    """What a network says about itself."""

    paper: str  # for model cards
    build: Callable[[ConfigDict, int, Numerics, nnx.Rngs], Network]  # of config.model and the number of attributes
    torch: TorchLayout | None = None
    extras: tuple[str, ...] = ()  # names in `Output.extras`
    # config.model -> {name of a module of the network: the trunk that it is}, for their pretrained weights
    trunks: Callable[[ConfigDict], Mapping[str, str]] = lambda options: {'trunk': options.trunk}
    # config.model -> whether what the network computes depends on the attributes' order, beyond rows that are matched by name
    is_ordered: Callable[[ConfigDict], bool] = lambda options: False


class Pretrained(NamedTuple):
    """The weights of a trunk that init.trunk=imagenet names."""

    about: str  # their source and license, for model cards
    find: Callable[[ConfigDict], Path | None]  # of config.model: the file, if it is on this machine
    remedy: str  # what to do without it
    hub: str = ''  # the repository on the Hugging Face Hub that has them, too


class TrunkKind(NamedTuple):
    """What a trunk says about itself."""

    build: Callable[[ConfigDict, Numerics, nnx.Rngs], Trunk]  # of config.model
    pretrained: Pretrained
    torch_names: Mapping[str, str]  # our names of modules -> those in PyTorch's files, where they differ
    torch_unused: str  # a regular expression for tensors of these files beyond the trunk's last features
    in_original: bool = False  # whether the PyTorch originals of the networks have this trunk
