"""Figures of the papers' test splits, in percent, to compare with; docs/results.md says where each comes from."""

# dataset -> network -> MAP, or triplet accuracy for Zappos50k
PUBLISHED = {
    'fashionai': {'ASEN': 61.02, 'ASEN v2': 60.3, 'CSN': 53.52, 'triplet': 38.52},
    'darn': {'ASEN': 53.31, 'CSN': 50.86, 'triplet': 40.14},
    'deepfashion': {'ASEN': 8.74, 'ASEN v2': 8.67, 'CSN': 8.01, 'triplet': 7.36},
    'zappos50k': {'ASEN': 90.79, 'CSN': 89.27, 'triplet': 76.28},
}
