"""DeepFashion with the published recipes of the ASEN papers.

Source: Ma et al., "Fine-Grained Fashion Similarity Learning by Attribute-Specific Embedding Network", AAAI 2020;
`:asen_v2` follows the authors' repository. Where to get the data: data_builders/deepfashion/README.md.

Command:

    python main.py --config configs/deepfashion.py           # ASEN
    python main.py --config configs/deepfashion.py:asen_v2   # or :csn :triplet :no_spatial :no_channel

Result: not measured here. Published test MAP, in percent, where chance is 3.38: ASEN 8.74; ASEN v2 8.67 (the authors'
README history); CSN 8.01; triplet network 7.36.

Time: not measured here; the recipe has 200 epochs of 100,000 triplets (ASEN v2: 50 epochs), for a GPU.
"""

from ml_collections import ConfigDict

from configs import variants


def get_config(variant: str = 'asen') -> ConfigDict:
    """The recipe of `variant`."""
    return variants.for_dataset('deepfashion', variant)
