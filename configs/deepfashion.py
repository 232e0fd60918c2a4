"""DeepFashion with the published recipes (ASEN, AAAI 2020; `:asen_v2` as in the authors' repository).

python main.py --config configs/deepfashion.py            # ASEN
python main.py --config configs/deepfashion.py:asen_v2    # or :csn :triplet :no_spatial :no_channel
"""

import ml_collections

from configs import variants


def get_config(variant: str = 'asen') -> ml_collections.ConfigDict:
    """The recipe of `variant`."""
    return variants.for_dataset('deepfashion', variant)
