"""FashionAI with the published recipes of the ASEN papers.

Source: Ma et al., "Fine-Grained Fashion Similarity Learning by Attribute-Specific Embedding Network", AAAI 2020;
`:asen_v2` follows the authors' repository. Where to get the data: data_builders/fashionai/README.md.

Command:

    python main.py --config configs/fashionai.py             # ASEN
    python main.py --config configs/fashionai.py:asen_v2     # or :csn :triplet :no_spatial :no_channel

Result: not measured here. Published test MAP, in percent, where chance is 15.79: ASEN 61.02 [recalled] as the plain
mean over attributes, 59.96 weighted by queries as we do; ASEN v2 60.3 (the authors' README history); CSN 53.52
[recalled]; triplet network 38.52 [recalled]. [recalled] figures are quoted from memory of the paper.

Time: not measured here; the recipe has 200 epochs of 100,000 triplets (ASEN v2: 50 epochs), for a GPU.
"""

from ml_collections import ConfigDict

from configs import variants


def get_config(variant: str = 'asen') -> ConfigDict:
    """The recipe of `variant`."""
    return variants.for_dataset('fashionai', variant)
