"""From photos to a search, with a trained network.

python examples/search_photos.py runs/synthetic data/records/synthetic/photos/labels.csv PHOTO.jpg sleeve_length
"""

import sys

from asen_jax import Embedder
from asen_jax.search.gallery import Gallery
from asen_jax.search.indexing import index_photos

workdir, photos, query, attribute = sys.argv[1:]
embedder = Embedder.load(workdir)
index_photos(embedder, photos, 'gallery')
for match in Gallery.open('gallery').search(embedder.embed([query])[0], {attribute: 1.0}, k=5):
    print(f'{match.score:.3f}  {match.path}  {match.metadata}')
