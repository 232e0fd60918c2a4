"""ASEN and ASEN v2 in PyTorch, for comparison: the published parameter names, and one forward pass per role.

Written from the paper's equations (Ma et al., AAAI 2020) and the names in a published checkpoint, so that
`asen_jax.weights.torch_names` can read its state dict. The trunk is ResNet-50 up to layer3, without the unused classifier.
"""

import contextlib
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# The original passes anchor, negative, positive; photos are stored as anchor, positive, negative.
ROLE_ORDER = (0, 2, 1)
NUM_ATTRIBUTES = 8  # FashionAI's
LEARNING_RATE, MARGIN = 1e-4, 0.2  # the published ones


class Batch(NamedTuple):
    """Triplets in host memory."""

    images: np.ndarray  # uint8 [b, 3, h, w, 3]
    attribute: np.ndarray  # [b]


class Bottleneck(nn.Module):
    """relu(bn(conv1x1(relu(bn(conv3x3(relu(bn(conv1x1(x)))))))) + shortcut(x)); the stride is on the 3x3."""

    def __init__(self, in_dim: int, dim: int, stride: int):
        super().__init__()
        out_dim = 4 * dim
        self.conv1, self.bn1 = nn.Conv2d(in_dim, dim, 1, bias=False), nn.BatchNorm2d(dim)
        self.conv2, self.bn2 = nn.Conv2d(dim, dim, 3, stride, padding=1, bias=False), nn.BatchNorm2d(dim)
        self.conv3, self.bn3 = nn.Conv2d(dim, out_dim, 1, bias=False), nn.BatchNorm2d(out_dim)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or in_dim != out_dim:
            self.downsample = nn.Sequential(nn.Conv2d(in_dim, out_dim, 1, stride, bias=False), nn.BatchNorm2d(out_dim))

    def forward(self, x):
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class Trunk(nn.Module):
    """ResNet-50 up to layer3: [n, 3, h, w] -> [n, 1024, h / 16, w / 16]; kernels from N(0, sqrt(2 / (k*k*out)))."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, padding=3, bias=False), nn.BatchNorm2d(64)
        self.relu, self.maxpool = nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, padding=1)
        self.layer1 = self._stage(64, 64, 1, 3)
        self.layer2 = self._stage(256, 128, 2, 4)
        self.layer3 = self._stage(512, 256, 2, 6)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode='fan_out', nonlinearity='relu')

    @staticmethod
    def _stage(in_dim: int, dim: int, stride: int, num_blocks: int) -> nn.Sequential:
        return nn.Sequential(
            Bottleneck(in_dim, dim, stride), *(Bottleneck(4 * dim, dim, 1) for _ in range(num_blocks - 1))
        )

    def forward(self, x):
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return self.layer3(self.layer2(self.layer1(x)))


def attend(features, scores):
    """sum over positions of features * softmax(scores): [n, c, h, w] and [n, h, w] -> [n, c]."""
    weights = F.softmax(scores.flatten(1), dim=1)
    return torch.bmm(features.flatten(2), weights[:, :, None])[:, :, 0]


class Asen(nn.Module):
    """v1: spatial attention from a 1x1 convolution and tanh, one-hot attributes, and a final linear layer."""

    def __init__(self, num_attributes: int):
        super().__init__()
        self.num_attributes = num_attributes
        self.backbonenet, self.relu = Trunk(), nn.ReLU()
        self.conv1, self.conv2 = nn.Conv2d(1024, 512, 1), nn.Conv2d(512, 1, 1)
        self.mask_fc1 = nn.Linear(num_attributes, 512, bias=False)
        self.mask_fc2 = nn.Linear(num_attributes, 1024, bias=False)
        self.fc1, self.fc2 = nn.Linear(2048, 512), nn.Linear(512, 1024)
        self.feature_fc = nn.Linear(1024, 1024)

    def project(self, x):
        """What does not depend on the attribute: the trunk's features, and the photo's side of the comparison."""
        features = self.backbonenet(x)
        return features, torch.tanh(self.conv1(features))

    def under(self, projected, attribute):
        """The unit vectors of projected photos [n] under `attribute` [n]."""
        features, image = projected
        one_hot = F.one_hot(attribute, self.num_attributes).to(image.dtype)
        rows = torch.tanh(self.mask_fc1(one_hot))
        pooled = attend(features, torch.tanh(self.conv2(image * rows[:, :, None, None]))[:, 0])
        hidden = self.relu(self.fc1(torch.cat([pooled, self.relu(self.mask_fc2(one_hot))], dim=1)))
        return l2_normalize(self.feature_fc(pooled * torch.sigmoid(self.fc2(hidden))))


class AsenV2(nn.Module):
    """v2: one attribute table, a scaled dot product as spatial score, batch norm after the 1x1 convolution, no final layer."""

    def __init__(self, num_attributes: int):
        super().__init__()
        self.num_attributes = num_attributes
        self.backbonenet, self.relu = Trunk(), nn.ReLU()
        self.attr_embedding = nn.Embedding(num_attributes, 512)
        self.attr_transform1, self.attr_transform2 = nn.Linear(512, 512), nn.Linear(512, 512)
        self.conv1, self.img_bn1 = nn.Conv2d(1024, 512, 1), nn.BatchNorm2d(512)
        self.fc1, self.fc2 = nn.Linear(1536, 512), nn.Linear(512, 1024)

    def project(self, x):
        """What does not depend on the attribute: the trunk's features, and the photo's side of the comparison."""
        features = self.backbonenet(x)
        return features, torch.tanh(self.img_bn1(self.conv1(features)))

    def under(self, projected, attribute):
        """The unit vectors of projected photos [n] under `attribute` [n]."""
        features, image = projected
        embedded = self.attr_embedding(attribute)
        rows = torch.tanh(self.attr_transform1(embedded))
        pooled = attend(features, (image * rows[:, :, None, None]).sum(1) / math.sqrt(image.shape[1]))
        hidden = self.relu(self.fc1(torch.cat([pooled, self.relu(self.attr_transform2(embedded))], dim=1)))
        return l2_normalize(pooled * torch.sigmoid(self.fc2(hidden)))


def l2_normalize(x):
    """x / ||x||, without an epsilon."""
    return x / x.norm(dim=1, keepdim=True)


class Network(nn.Module):
    """The network that is trained; it holds `embeddingnet`, as the names in a checkpoint require."""

    def __init__(self, name: str, num_attributes: int, memory_format=torch.contiguous_format):
        super().__init__()
        self.embeddingnet = {'asen': Asen, 'asen_v2': AsenV2}[name](num_attributes)
        self.memory_format = memory_format
        self.to(memory_format=memory_format)

    def normalize_pixels(self, images):
        """uint8 [n, h, w, 3] -> (pixel / 255 - mean) / std as [n, 3, h, w] in the network's type and memory layout."""
        like = self.embeddingnet.backbonenet.conv1.weight
        mean, std = (torch.tensor(values, dtype=like.dtype, device=like.device) for values in (MEAN, STD))
        pixels = (images.to(like.dtype) / 255.0 - mean) / std
        return pixels.permute(0, 3, 1, 2).contiguous(memory_format=self.memory_format)

    def forward(self, images, attribute):
        """Vectors [n, d] of photos under `attribute` [n]."""
        net = self.embeddingnet
        return net.under(net.project(self.normalize_pixels(images)), attribute)

    def embed_all(self, images):
        """Vectors [n, a, d] under every attribute, from one pass through the trunk."""
        net = self.embeddingnet
        projected = net.project(self.normalize_pixels(images))
        numbers = torch.arange(net.num_attributes, device=images.device)
        return torch.stack([net.under(projected, number.expand(len(images))) for number in numbers], dim=1)

    def triplet_loss(self, images, attribute, margin: float):
        """mean(max(0, margin - cos(anchor, positive) + cos(anchor, negative))) of [n, 3, h, w, 3], one role at a time."""
        vectors = {role: self(images[:, role], attribute) for role in ROLE_ORDER}
        near, far = (F.cosine_similarity(vectors[0], vectors[role]) for role in (1, 2))
        return (margin - near + far).clamp(min=0).mean()


def make_network(name: str, device: str = 'cpu', channels_last: bool = False) -> Network:
    """The network on its device, always with the same random weights."""
    torch.manual_seed(0)
    return Network(name, NUM_ATTRIBUTES, torch.channels_last if channels_last else torch.contiguous_format).to(device)


def fill(network: Network, make_tensor) -> None:
    """Set every tensor of the network's state dict to `make_tensor(name, shape)`."""
    arrays = {name: make_tensor(name, tuple(tensor.shape)) for name, tensor in network.state_dict().items()}
    network.load_state_dict({name: torch.from_numpy(np.asarray(array)) for name, array in arrays.items()})


def numpy_state(network: Network) -> dict[str, np.ndarray]:
    """A copy of the network's state dict."""
    return {name: tensor.detach().cpu().numpy().copy() for name, tensor in network.state_dict().items()}


def make_calls(name: str, batch: Batch, device: str, best: bool, precision: str) -> dict[str, Callable]:
    """Functions by name: a train step and an evaluation to time, what they compute to check them, and their FLOPs.

    The step is the original's: three forward passes, one backward pass, Adam. Evaluation runs the trunk once for all
    attributes. The photos are copied to the device beforehand. At its best, PyTorch has channels last, and on a GPU also compiled
    passes in `precision`.
    """
    if device == 'cuda' and not torch.cuda.is_available():
        raise RuntimeError('--device is cuda, but PyTorch sees no GPU; install its CUDA build, or use --device cpu.')
    network = make_network(name, device, channels_last=best)
    images, attribute = torch.from_numpy(batch.images).to(device), torch.from_numpy(batch.attribute).to(device)
    photos = images.flatten(0, 1)
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
    wait = torch.cuda.synchronize if device == 'cuda' else lambda: None
    compute_loss, compute_vectors = network.triplet_loss, network.embed_all
    if best and device == 'cuda':
        torch.set_float32_matmul_precision('highest' if precision == 'float32' else 'high')
        compute_loss, compute_vectors = torch.compile(compute_loss), torch.compile(compute_vectors)
    torch.backends.cudnn.allow_tf32 = not (best and precision == 'float32')
    lower = torch.autocast(device, torch.bfloat16, enabled=precision == 'bfloat16')

    def train_step() -> dict[str, float]:
        network.train()
        optimizer.zero_grad()
        with lower:
            loss = compute_loss(images, attribute, MARGIN)
        loss.backward()
        optimizer.step()
        wait()
        return {'loss': float(loss.detach())}

    def exact_train_step() -> dict[str, float]:
        with exact_float32():
            metrics = train_step()
        gradients = [parameter.grad for parameter in network.parameters()]
        return metrics | {'gradient_norm': float(torch.nn.utils.get_total_norm(gradients))}

    def embed() -> None:
        vectors_on_device()

    def vectors_on_device():
        network.eval()
        with torch.inference_mode(), lower:
            found = compute_vectors(photos)
        wait()
        return found

    def vectors() -> np.ndarray:
        with exact_float32():
            return vectors_on_device().cpu().numpy()

    calls = {'train_step': train_step, 'exact_train_step': exact_train_step, 'embed': embed, 'vectors': vectors}
    flops = {f'{call}_flops': lambda call=call: count_flops(calls[call]) for call in ('train_step', 'embed')}
    return calls | flops | {'weights': lambda: numpy_state(network)}


def count_flops(call: Callable) -> int:
    """The FLOPs of a call's convolutions and products, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


@contextlib.contextmanager
def exact_float32():
    """Turns off TF32 in convolutions, PyTorch's default on a GPU, and restores the setting afterwards."""
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def gradients(network: Network, images, attribute, margin: float, replay=None):
    """One step's gradients by name, and for each ReLU a mask of the outputs above zero.

    With `replay`, the masks of another run, each ReLU passes exactly the elements that it passed in that run.
    """
    signs, replay = [], iter(replay) if replay else None

    def watch(module, inputs, output):
        signs.append(output > 0)
        return inputs[0] * next(replay) if replay else None

    relus = [module for module in network.train().modules() if isinstance(module, nn.ReLU)]
    hooks = [relu.register_forward_hook(watch) for relu in relus]
    for relu in relus:
        relu.inplace = False  # the hook needs the input
    network.zero_grad()
    network.triplet_loss(images, attribute, margin).backward()
    for hook in hooks:
        hook.remove()
    return {name: parameter.grad.cpu().numpy().copy() for name, parameter in network.named_parameters()}, signs


def gradients_of_both_types(network: Network, images: np.ndarray, attribute: np.ndarray, margin: float):
    """Gradients by name of three runs, the number of ReLU outputs that flip, and the number of ReLU outputs.

    An output flips if it is above zero in only one of float32 and float64. The third run is float64 with the ReLU masks of
    float32, which leaves only rounding error between it and the first.
    """
    device = next(network.parameters()).device
    batch = torch.from_numpy(images).to(device), torch.from_numpy(attribute).to(device)
    with exact_float32():
        single, on = gradients(network.float(), *batch, margin)
        double, on_in_double = gradients(network.double(), *batch, margin)
        replayed, _ = gradients(network, *batch, margin, replay=on)
    flips = sum(int((one != other).sum()) for one, other in zip(on, on_in_double, strict=True))
    runs = {'PyTorch float32': single, 'PyTorch float64': double, "float64, float32's ReLUs": replayed}
    return runs, flips, sum(output.numel() for output in on)
