"""CSN as its authors train it, in PyTorch: writes the figures that tests/training/test_csn_original.py compares ours with.

    pip install torch
    python benchmarks/torch_csn.py tests/golden/csn_original.npz

ResNet-18 up to layer3, average pooling, a linear layer to 64, one mask per attribute, Euclidean distance, and three Adam
steps on the triplet loss and the two norms. Written from the paper's equations (Veit et al., CVPR 2017) and the constants of the
authors' repository; weights and photos are those of tests/golden/recipe.py.
"""

import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.golden import recipe

NUM_ATTRIBUTES, DIM, SIZE = 4, 64, 112
ATTRIBUTES = np.array([0, 1, 2, 3])
MARGIN, EMBEDDING_NORM, MASK_NORM, LEARNING_RATE = 0.2, 5e-3, 5e-4, 5e-5 * 0.985
ROLE_ORDER = (0, 1, 2)  # photos are stored as anchors, negatives, positives


class Block(nn.Module):
    """relu(bn(conv3x3(relu(bn(conv3x3(x))))) + shortcut(x))."""

    def __init__(self, in_dim: int, dim: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(in_dim, dim, 3, stride, padding=1, bias=False), nn.BatchNorm2d(dim)
        self.conv2, self.bn2 = nn.Conv2d(dim, dim, 3, padding=1, bias=False), nn.BatchNorm2d(dim)
        self.downsample = None
        if stride != 1:
            self.downsample = nn.Sequential(nn.Conv2d(in_dim, dim, 1, stride, bias=False), nn.BatchNorm2d(dim))

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class Trunk(nn.Module):
    """ResNet-18 up to layer3: [n, 3, h, w] -> [n, 256, h / 16, w / 16]."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, padding=3, bias=False), nn.BatchNorm2d(64)
        stages = (
            nn.Sequential(Block(dim // max(stride, 1), dim, stride), Block(dim, dim, 1)) for dim, stride in STAGES
        )
        self.layer1, self.layer2, self.layer3 = stages

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, padding=1)
        return self.layer3(self.layer2(self.layer1(x)))


STAGES = ((64, 1), (128, 2), (256, 2))


class Net(nn.Module):
    """The trunk, its pooled projection, and the masks, under the names that asen_jax.weights.torch_names reads."""

    def __init__(self, learned: bool):
        super().__init__()
        self.learned = learned
        self.embeddingnet = nn.Module()
        self.embeddingnet.embeddingnet, self.embeddingnet.embed_fc = Trunk(), nn.Linear(256, DIM)
        self.embeddingnet.masks = nn.Embedding(NUM_ATTRIBUTES, DIM)

    def forward(self, images, attribute):
        features = self.embeddingnet.embeddingnet(images).mean(dim=(2, 3))
        unmasked = self.embeddingnet.embed_fc(features)
        rows = self.embeddingnet.masks(attribute)
        rows = F.relu(rows) if self.learned else rows
        return unmasked * rows, unmasked, rows


def make_net(learned: bool) -> Net:
    """The network with the recipe's weights; each fixed mask selects its own section of the vector."""
    net = Net(learned)
    state = {name: recipe.make_tensor(1, name, tuple(tensor.shape)) for name, tensor in net.state_dict().items()}
    if not learned:
        owner = np.arange(DIM) // (DIM // NUM_ATTRIBUTES)
        state['embeddingnet.masks.weight'] = (owner == np.arange(NUM_ATTRIBUTES)[:, None]).astype(np.float32)
        net.embeddingnet.masks.weight.requires_grad_(False)
    net.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in state.items()})
    return net


def loss_of(net: Net, images, attribute):
    """The triplet loss on distances plus both norms; one forward pass per role."""
    parts = [net(images[role], attribute) for role in ROLE_ORDER]
    anchor, negative, positive = (part[0] for part in parts)
    far, near = (F.pairwise_distance(anchor, other) for other in (negative, positive))
    triplet = F.margin_ranking_loss(far, near, torch.ones_like(far), margin=MARGIN)
    embedding = sum(unmasked.norm(2) for _, unmasked, _ in parts) / 3 / len(attribute) ** 0.5
    mask = sum(rows.norm(1) for _, _, rows in parts) / 3 / len(attribute)
    return triplet + EMBEDDING_NORM * embedding + MASK_NORM * mask


def figures(learned: bool) -> dict[str, np.ndarray]:
    """Vectors in eval mode, the losses of three steps, and the gradient norms of the first."""
    net, attribute = make_net(learned), torch.from_numpy(ATTRIBUTES)
    photos = recipe.normalize(recipe.make_images(1001, 12, SIZE)).transpose(0, 3, 1, 2).reshape(3, 4, 3, SIZE, SIZE)
    images = torch.from_numpy(np.ascontiguousarray(photos))
    with torch.no_grad():
        net.eval()
        result = {'embeddings': net(images[0], attribute)[0].numpy()}
    net.train()
    optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr=LEARNING_RATE)
    losses = []
    for step in range(3):
        loss = loss_of(net, images, attribute)
        optimizer.zero_grad()
        loss.backward()
        losses.append(loss.item())
        if step == 0:
            norms = {name: p.grad.norm().item() for name, p in net.named_parameters() if p.grad is not None}
        optimizer.step()
    return result | {
        'losses': np.array(losses),
        'grad_names': np.array([*norms]),
        'grad_norms': np.array([*norms.values()]),
    }


if __name__ == '__main__':
    made = {
        f'{kind}_{name}': array for kind in ('fixed', 'learned') for name, array in figures(kind == 'learned').items()
    }
    np.savez(sys.argv[1], **made)
    print(f'wrote {sys.argv[1]}: losses {made["fixed_losses"]} (fixed masks), {made["learned_losses"]} (learned)')
