"""From photos to a search, with a trained network.

python examples/search_photos.py WORKDIR PHOTOS PHOTO.jpg ATTRIBUTE
"""

import sys

from asen_jax import Embedder
from asen_jax.search.gallery import Gallery
from asen_jax.search.indexing import index_photos

workdir, photos, query, attribute = sys.argv[1:]
embedder = Embedder.load(workdir)
index_photos(embedder, photos, 'runs/gallery')
for match in Gallery.open('runs/gallery').search(embedder.embed([query])[0], {attribute: 1.0}, k=5):
    print(f'{match.score:.3f}  {match.path}  {match.metadata}')
