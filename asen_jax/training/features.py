"""The features of a frozen trunk: computed once, before the first step, and kept on disk."""

import functools
import math
import os
import tempfile
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float
from ml_collections import ConfigDict
from tqdm import tqdm

from asen_jax import processes, sharding
from asen_jax.data.batches import eval_batches
from asen_jax.data.prefetch import prefetch
from asen_jax.data.prepared import Records
from asen_jax.models.apply import extract_features
from asen_jax.signals import StopRequest, stopped


def compute_features(
    config: ConfigDict,
    records: Records,
    graphdef: nnx.GraphDef,
    arrays: tuple[dict, dict],
    mesh: jax.sharding.Mesh,
    folder: Path,
    stop: StopRequest,
) -> Float[np.ndarray, 'photos 2 h w c']:
    """The features of every train photo and of its mirror image, float16, in an unnamed file in `folder`.

    `arrays` are the network's parameters and batch statistics. The file vanishes with the process. Raises StoppedError after a
    signal.
    """
    whole = sharding.replicated(mesh)
    extract = jax.jit(functools.partial(extract_features, graphdef), out_shardings=whole)
    arrays = jax.device_put(arrays, whole)
    count, features = records.splits['train'], np.zeros((0, 2, 0, 0, 0), np.float16)

    def started():
        for batch in eval_batches(records, 'train', np.arange(count), config):
            both = [batch['image'][:, :, ::step] for step in (1, -1)]
            outputs = [extract(*arrays, sharding.put_batch(mesh, images)) for images in both]
            yield batch['index'][batch['mask']], outputs

    with tqdm(total=count, desc='compute features', unit='photo', disable=None) as bar:
        for index, outputs in prefetch(started(), 1):
            if not len(features):
                shape = (count, 2, *outputs[0].shape[1:])
                with tempfile.TemporaryFile(dir=folder) as file:
                    if hasattr(os, 'posix_fallocate'):  # a full disk is an error here, and would kill the process later
                        os.posix_fallocate(file.fileno(), 0, 2 * math.prod(shape))
                    features = np.memmap(file, np.float16, 'w+', shape=shape)
            for mirrored, output in enumerate(outputs):
                features[index, mirrored] = np.asarray(output)[: len(index)]
            bar.update(len(index))
            if number := processes.agree(stop.signal_number or 0):
                raise stopped(number, 'before the first step; run the same command to start.')
    return features
