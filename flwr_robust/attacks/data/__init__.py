"""Data attacks, one per file."""

from flwr_robust.attacks.data.backdoor import Backdoor
from flwr_robust.attacks.data.dynamic_label_flip import DynamicLabelFlip
from flwr_robust.attacks.data.label_flip import LabelFlip
from flwr_robust.attacks.data.pixel_invert import PixelInvert
from flwr_robust.attacks.data.pixel_noise import PixelNoise
from flwr_robust.attacks.data.random_label import RandomLabel
from flwr_robust.attacks.data.targeted_flip import TargetedFlip

__all__ = [
    "Backdoor",
    "DynamicLabelFlip",
    "LabelFlip",
    "PixelInvert",
    "PixelNoise",
    "RandomLabel",
    "TargetedFlip",
]
