"""Message attacks, one per file."""

from flwr_robust.attacks.message.alie import ALIE
from flwr_robust.attacks.message.constant import Constant
from flwr_robust.attacks.message.fang_krum import FangKrum
from flwr_robust.attacks.message.fang_median import FangMedian
from flwr_robust.attacks.message.fang_trimmed_mean import FangTrimmedMean
from flwr_robust.attacks.message.gaussian import Gaussian
from flwr_robust.attacks.message.inf import Infinite
from flwr_robust.attacks.message.ipm import IPM
from flwr_robust.attacks.message.mean_reversal import MeanReversal
from flwr_robust.attacks.message.mimic import Mimic
from flwr_robust.attacks.message.min_max import MinMax
from flwr_robust.attacks.message.min_sum import MinSum
from flwr_robust.attacks.message.model_based import ModelBased
from flwr_robust.attacks.message.multiples import Multiples
from flwr_robust.attacks.message.nan import NotANumber
from flwr_robust.attacks.message.optimised import Optimised
from flwr_robust.attacks.message.pool import Pool
from flwr_robust.attacks.message.scale import Scale
from flwr_robust.attacks.message.sign_flip import SignFlip
from flwr_robust.attacks.message.sybil import Sybil
from flwr_robust.attacks.message.tailored import Tailored
from flwr_robust.attacks.message.zero import Zero

__all__ = [
    "ALIE",
    "IPM",
    "Constant",
    "FangKrum",
    "FangMedian",
    "FangTrimmedMean",
    "Gaussian",
    "Infinite",
    "MeanReversal",
    "Mimic",
    "MinMax",
    "MinSum",
    "ModelBased",
    "Multiples",
    "NotANumber",
    "Optimised",
    "Pool",
    "Scale",
    "SignFlip",
    "Sybil",
    "Tailored",
    "Zero",
]
