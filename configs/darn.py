"""DARN with the published recipes (ASEN, AAAI 2020; `:asen_v2` as in the authors' repository).

python main.py --mode prepare --config configs/darn.py --darn_urls=darn_url.txt    # fetch the photos, then prepare
python main.py --config configs/darn.py            # ASEN
python main.py --config configs/darn.py:asen_v2    # or :csn :triplet :no_spatial :no_channel
"""

import ml_collections

from configs import variants


def get_config(variant: str = 'asen') -> ml_collections.ConfigDict:
    """The recipe of `variant`; photos that the web has lost are left out, and counted."""
    config = variants.for_dataset('darn', variant)
    config.data.missing = 'skip'
    return config
