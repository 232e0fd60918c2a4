"""DARN with the published recipes of the ASEN papers.

Source: Ma et al., "Fine-Grained Fashion Similarity Learning by Attribute-Specific Embedding Network", AAAI 2020;
`:asen_v2` follows the authors' repository. Where to get the data: data_builders/darn/README.md.

Command; the first line downloads the photos:

    python main.py --mode prepare --config configs/darn.py --darn_urls=darn_url.txt
    python main.py --config configs/darn.py                  # ASEN
    python main.py --config configs/darn.py:asen_v2          # or :csn :triplet :no_spatial :no_channel

Result: not measured here. Published test MAP, in percent, where chance is 31.26: ASEN 53.31 [recalled]; CSN 50.86
[recalled]; triplet network 40.14 [recalled]. [recalled] figures are quoted from memory of the paper. Many photos have
disappeared from the web since, so a figure measured today covers fewer queries and candidates.

Time: not measured here; the recipe has 200 epochs of 100,000 triplets (ASEN v2: 50 epochs), for a GPU.
"""

from ml_collections import ConfigDict

from configs import variants


def get_config(variant: str = 'asen') -> ConfigDict:
    """The recipe of `variant`; photos that are no longer on the web are skipped and counted."""
    config = variants.for_dataset('darn', variant)
    config.data.missing = 'skip'
    return config
