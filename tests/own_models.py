"""Models of users, small, for images (1, H, W): one for each thing that a model may hold."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class Block(nn.Module):
    """Two convolutions and a way around them, with a norm of one's choice."""

    def __init__(self, norm):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(4, 4, 3, padding=1, bias=False),
            norm(),
            nn.ReLU(),
            nn.Conv2d(4, 4, 3, padding=1, bias=False),
            norm(),
        )

    def forward(self, x):
        return torch.relu(x + self.body(x))


def _residual(shape, classes, norm):
    stem = [nn.Conv2d(shape[0], 4, 3, padding=1, bias=False), norm(), nn.ReLU()]
    return nn.Sequential(*stem, Block(norm), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, classes))


def batchnorm(shape, classes):
    """A residual network with BatchNorm: statistics, and an integer that counts."""
    return _residual(shape, classes, lambda: nn.BatchNorm2d(4))


def groupnorm(shape, classes):
    """The same with GroupNorm: no buffers."""
    return _residual(shape, classes, lambda: nn.GroupNorm(2, 4))


def dropout_mlp(shape, classes):
    """Dropout between two layers, and a smooth activation."""
    body = nn.Sequential(nn.Linear(shape[1] * shape[2], 13), nn.Tanh(), nn.Dropout(0.3))
    return nn.Sequential(nn.Flatten(), body, nn.Linear(13, classes))


def dropout_cnn(shape, classes):
    """Two convolutions, dropout of channels and of units, and two linear layers."""
    return nn.Sequential(
        nn.Conv2d(shape[0], 3, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(3, 4, 3, padding=1),
        nn.Dropout2d(0.2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * (shape[1] // 4) * (shape[2] // 4), 9),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(9, classes),
    )


class Transformer(nn.Module):
    """One layer of attention over the rows of an image, with dropout."""

    def __init__(self, shape, classes):
        super().__init__()
        self.embed = nn.Linear(shape[0] * shape[2], 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.2, batch_first=True)
        self.head = nn.Linear(8, classes)

    def forward(self, x):
        return self.head(self.layer(self.embed(x.transpose(1, 2).flatten(2))).mean(1))


class Lstm(nn.Module):
    """An LSTM over the rows of an image."""

    def __init__(self, shape, classes):
        super().__init__()
        self.lstm = nn.LSTM(shape[0] * shape[2], 8, batch_first=True)
        self.head = nn.Linear(8, classes)

    def forward(self, x):
        return self.head(self.lstm(x.transpose(1, 2).flatten(2))[0][:, -1])


class Tokens(nn.Module):
    """An embedding of grey levels."""

    def __init__(self, shape, classes):
        super().__init__()
        self.embedding = nn.Embedding(17, 6)
        self.head = nn.Linear(6 * shape[1] * shape[2], classes)

    def forward(self, x):
        return self.head(self.embedding((x * 16).long().flatten(1)).flatten(1))


def frozen(shape, classes):
    """A first layer that stays."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(shape[1] * shape[2], 12), nn.Tanh(), nn.Linear(12, classes))
    model[1].requires_grad_(False)
    return model


def shared(shape, classes):
    """One layer in two places; its arrays are in the state dict twice."""
    middle = nn.Linear(12, 12)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(shape[1] * shape[2], 12), middle, nn.Tanh(), middle, nn.Linear(12, classes)
    )


class Buffers(nn.Module):
    """Buffers of every type: some of floats that are not statistics, a mask and a counter that change, an empty one."""

    def __init__(self, shape, classes):
        super().__init__()
        self.head = nn.Linear(shape[1] * shape[2], classes)
        self.register_buffer("centre", torch.full((shape[1] * shape[2],), 0.25))
        self.register_buffer("seen", torch.zeros(shape[1] * shape[2], dtype=torch.bool))
        self.register_buffer("count", torch.tensor(0))
        self.register_buffer("running_mean", torch.tensor(0.0))
        self.register_buffer("nothing", torch.zeros(0, 3))
        self.drawn = torch.randn(classes)  # not in the state dict, and another one for another seed

    def forward(self, x):
        x = x.flatten(1)
        if self.training:
            self.seen |= (x > 0.9).any(0)
            self.count += len(x)
            self.running_mean.lerp_(x.mean(), 0.1)
        return self.head(functional.dropout(x - self.centre, 0.1, self.training)) + self.drawn


class Overflowing(Buffers):
    """A statistic that is infinite after batches of much ink."""

    def forward(self, x):
        if self.training and float(x.sum()) > 125:
            self.running_mean.fill_(torch.inf)
        return super().forward(x)


class Doubles(nn.Module):
    """Learnt in float64."""

    def __init__(self, shape, classes):
        super().__init__()
        self.head = nn.Linear(shape[1] * shape[2], classes, dtype=torch.float64)

    def forward(self, x):
        return self.head(x.flatten(1).double())


class Mixed(Doubles):
    """Learnt in float64 and in float32."""

    def __init__(self, shape, classes):
        super().__init__(shape, classes)
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return super().forward(x * self.scale)


class Named(nn.Module):
    """A parameter with the name of a statistic."""

    def __init__(self, shape, classes):
        super().__init__()
        self.running_mean = nn.Parameter(torch.zeros(shape[1] * shape[2]))
        self.head = nn.Linear(shape[1] * shape[2], classes)

    def forward(self, x):
        return self.head(x.flatten(1) - self.running_mean)
