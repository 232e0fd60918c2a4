"""Zappos50k (UT-Zappos50K) with the triplet lists of Conditional Similarity Networks.

Source: Veit et al., "Conditional Similarity Networks", CVPR 2017 (the lists, and the recipe of `:csn_original`); Ma et
al., AAAI 2020 (ASEN). ASEN's paper says that it uses CSN's lists, but not the batch size, learning rate and number of
epochs on this dataset, so those of its other datasets are used. Where to get the data: data_builders/zappos50k/README.md.

Command:

    python main.py --config configs/zappos50k.py               # ASEN; or :asen_v2 :csn :triplet :no_spatial :no_channel
    python main.py --config configs/zappos50k.py:csn_original  # CSN with its own authors' recipe
    python main.py --config configs/zappos50k.py --config.data.zappos50k.resample_triplets=True  # if the lists are unavailable

Result: not measured here. Published triplet accuracy on test, in percent, where chance is 50: ASEN 90.79 [recalled]; CSN
89.27 [recalled]; triplet network 76.28 [recalled]. [recalled] figures are quoted from memory of the paper. Accuracies on
resampled lists are only approximately comparable.

Time: not measured here; the recipes have 200 epochs of 200,000 triplets (ASEN v2: 50 epochs), for a GPU.
"""

from ml_collections import ConfigDict

from asen_jax.errors import InputError
from configs import variants

CSN_ORIGINAL = 'csn_original'


def get_config(variant: str = 'asen') -> ConfigDict:
    """The recipe of `variant`."""
    if variant not in (*variants.VARIANTS, CSN_ORIGINAL):
        known = ', '.join((*variants.VARIANTS, CSN_ORIGINAL))
        raise InputError(f'No variant {variant!r}: write one of {known} after the colon of --config.')
    config = variants.for_dataset('zappos50k', 'csn' if variant == CSN_ORIGINAL else variant)
    config.data.image_size = 112
    config.data.triplets = 'fixed'
    config.data.num_triplets = 200_000
    if variant == CSN_ORIGINAL:
        config.name = f'zappos50k_{CSN_ORIGINAL}'
        _set_csn_original(config)
    return config


def _set_csn_original(config: ConfigDict) -> None:
    """The default options of github.com/andreasveit/conditional-similarity-networks."""
    config.model.trunk = 'resnet18'
    config.model.embed_dim = 64
    config.model.csn.masks = 'fixed'
    config.model.normalize = False
    config.train.distance = 'euclidean'
    config.train.loss = 'triplet,embedding_norm:5e-3,mask_norm:5e-4'
    config.train.batch_size = 256
    config.train.num_epochs = 200
    config.optim.decay_rate = 0.985
    config.optim.learning_rate = 4.925e-5  # 5e-5 * 0.985, because CSN counts epochs from 1
