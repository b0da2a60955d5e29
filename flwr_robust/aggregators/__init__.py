"""Aggregation rules, one per file."""

from flwr_robust.aggregators.bulyan import Bulyan
from flwr_robust.aggregators.caf import CAF
from flwr_robust.aggregators.centered_clipping import CenteredClipping
from flwr_robust.aggregators.cge import CGE
from flwr_robust.aggregators.clip_mean import ClipMean
from flwr_robust.aggregators.clipped_clustering import ClippedClustering
from flwr_robust.aggregators.clustering import Clustering
from flwr_robust.aggregators.dnc import DnC
from flwr_robust.aggregators.faba import FABA
from flwr_robust.aggregators.flame import FLAME
from flwr_robust.aggregators.fltrust import FLTrust
from flwr_robust.aggregators.foolsgold import FoolsGold
from flwr_robust.aggregators.generalised_krum import GeneralisedKrum
from flwr_robust.aggregators.geometric_median import GeometricMedian
from flwr_robust.aggregators.krum import Krum
from flwr_robust.aggregators.lfighter import LFighter
from flwr_robust.aggregators.meamed import Meamed
from flwr_robust.aggregators.mean import Mean
from flwr_robust.aggregators.median import Median
from flwr_robust.aggregators.minimum_diameter import MinimumDiameter
from flwr_robust.aggregators.mixtailor import MixTailor
from flwr_robust.aggregators.monna import Monna
from flwr_robust.aggregators.multi_krum import MultiKrum
from flwr_robust.aggregators.norm_bound import NormBound
from flwr_robust.aggregators.phocas import Phocas
from flwr_robust.aggregators.reweighted_geometric_median import ReweightedGeometricMedian
from flwr_robust.aggregators.sign_majority import SignMajority
from flwr_robust.aggregators.signguard import SignGuard
from flwr_robust.aggregators.smea import SMEA
from flwr_robust.aggregators.trimmed_mean import TrimmedMean

__all__ = [
    "CAF",
    "CGE",
    "FABA",
    "FLAME",
    "SMEA",
    "Bulyan",
    "CenteredClipping",
    "ClipMean",
    "ClippedClustering",
    "Clustering",
    "DnC",
    "FLTrust",
    "FoolsGold",
    "GeneralisedKrum",
    "GeometricMedian",
    "Krum",
    "LFighter",
    "Meamed",
    "Mean",
    "Median",
    "MinimumDiameter",
    "MixTailor",
    "Monna",
    "MultiKrum",
    "NormBound",
    "Phocas",
    "ReweightedGeometricMedian",
    "SignGuard",
    "SignMajority",
    "TrimmedMean",
]
