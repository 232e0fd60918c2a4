"""An embedder without a network, which is all that the files need to be tested."""

import hashlib
import itertools
from pathlib import Path

import numpy as np

from asen_jax.embedder import Embedded, Embedder


class FakeEmbedder(Embedder):
    """A photo's vector follows from its bytes; a photo that begins with `broken` cannot be read."""

    attributes, batch_size, heatmap_shape, fingerprint = ('color',), 2, (1, 2), ''

    def __init__(self, stop_at=None, dim=4, fingerprint='fake', crop_to_bbox=False):
        self.stop_at, self.dim, self.fingerprint, self.crop_to_bbox = stop_at, dim, fingerprint, crop_to_bbox
        self.read = []

    def stream(self, batches, heatmaps=False):
        for path, _ in itertools.chain.from_iterable(batches):
            if Path(path).name == self.stop_at:
                raise KeyboardInterrupt
            self.read.append(Path(path).name)
            data = Path(path).read_bytes()
            if data.startswith(b'broken'):
                yield Embedded(why='not a photo')
                continue
            vectors = np.resize(np.frombuffer(hashlib.sha256(data).digest(), np.uint32), (1, self.dim)).astype(
                np.float32
            )
            yield Embedded(vectors, vectors[..., None, :2] if heatmaps else None)
