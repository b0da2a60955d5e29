"""One strategy per rule: its parameters are those of the rule, followed by the options of every robust strategy.

Each names its condition on n and f. n is the number of replies. f is the declared f: how many faulty clients the
operator expects among them at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Unpack

from flwr_robust import aggregators as rules
from flwr_robust.flower.options import Options
from flwr_robust.flower.strategy import RobustStrategy

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

KrumVariant = Literal["paper", "byzfl", "byzantine_momentum"]
Linkage = Literal["average", "complete", "single"]


class Mean(RobustStrategy):
    """The plain mean: not robust, and hard to beat where clients' data differ much.

    It needs n >= 1, with ``most`` n >= 1 / most. See `flwr_robust.aggregators.mean`.

    Parameters
    ----------
    weighted : bool
        Weigh replies by their clamped numbers of examples instead of equally.
    clamp : float
        With ``weighted``: a number of examples above this multiple of the median is lowered to it; >= 1.
    most : float, optional
        With ``weighted``: the largest share of the weight that one client holds; in (0, 1).
    **options
        As for `RobustStrategy`.

    Examples
    --------
    >>> Mean(weighted=True)
    Mean(weighted=True)
    """

    def __init__(
        self, *, weighted: bool = False, clamp: float = 2.0, most: float | None = None, **options: Unpack[Options]
    ) -> None:
        super().__init__(rules.Mean(weighted=weighted, clamp=clamp, most=most), **options)


class Median(RobustStrategy):
    """The median of every coordinate.

    It needs n >= 2f + 1; weighted, n > (1 + clamp) f, or with ``most`` n >= f / most. See
    `flwr_robust.aggregators.median`.

    Parameters
    ----------
    f : int, optional
        Declared number of faulty clients; it only bounds n.
    weighted : bool
        Weigh replies by their clamped numbers of examples instead of equally.
    clamp : float
        With ``weighted``: a number of examples above this multiple of the median is lowered to it; >= 1.
    most : float, optional
        With ``weighted``: the largest share of the weight that the f heaviest clients hold (one if f is 0); in (0, 1).
    **options
        As for `RobustStrategy`.

    Examples
    --------
    >>> Median(f=2)
    Median(f=2)
    >>> Median(f=2).min_train_nodes
    5
    """

    def __init__(
        self,
        *,
        f: int | None = None,
        weighted: bool = False,
        clamp: float = 2.0,
        most: float | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(rules.Median(f=f, weighted=weighted, clamp=clamp, most=most), **options)


class TrimmedMean(RobustStrategy):
    """The mean of every coordinate without its f smallest and its f largest values.

    It needs n >= 2f + 1, and either ``f`` or ``fraction``. See `flwr_robust.aggregators.trimmed_mean`.

    Parameters
    ----------
    f : int, optional
        Values dropped at each side of every coordinate, the declared number of faulty clients.
    fraction : float, optional
        Fixes f as floor(fraction * clients asked); in [0, 0.5).
    weighted : bool
        Average the values left by the clients' clamped numbers of examples instead of equally.
    clamp : float
        With ``weighted``: a number of examples above this multiple of the median is lowered to it; >= 1.
    most : float, optional
        With ``weighted``: the largest share of the weight that the f heaviest clients hold (one if f is 0); in (0, 1).
    **options
        As for `RobustStrategy`.

    Examples
    --------
    >>> TrimmedMean(f=2)
    TrimmedMean(f=2)
    >>> TrimmedMean(f=2).min_train_nodes
    5
    """

    def __init__(
        self,
        *,
        f: int | None = None,
        fraction: float | None = None,
        weighted: bool = False,
        clamp: float = 2.0,
        most: float | None = None,
        **options: Unpack[Options],
    ) -> None:
        rule = rules.TrimmedMean(f=f, fraction=fraction, weighted=weighted, clamp=clamp, most=most)
        super().__init__(rule, **options)


class Meamed(RobustStrategy):
    """The mean of the n - f values of every coordinate that are nearest to its median.

    It needs n >= 2f + 1. See `flwr_robust.aggregators.meamed`.

    Parameters
    ----------
    f : int
        Declared number of faulty clients; as many values of every coordinate are left out.
    **options
        As for `RobustStrategy`.

    Examples
    --------
    >>> Meamed(f=2)
    Meamed(f=2)
    >>> Meamed(f=2).min_train_nodes
    5
    """

    def __init__(self, *, f: int, **options: Unpack[Options]) -> None:
        super().__init__(rules.Meamed(f=f), **options)


class Phocas(RobustStrategy):
    """The mean of the n - f values of every coordinate that are nearest to its trimmed mean.

    It needs n >= 2f + 1. See `flwr_robust.aggregators.phocas`.

    Parameters
    ----------
    f : int
        Declared number of faulty clients; the trimmed mean drops f values per side.
    **options
        As for `RobustStrategy`.

    Examples
    --------
    >>> Phocas(f=2)
    Phocas(f=2)
    >>> Phocas(f=2).min_train_nodes
    5
    """

    def __init__(self, *, f: int, **options: Unpack[Options]) -> None:
        super().__init__(rules.Phocas(f=f), **options)


class Krum(RobustStrategy):
    """The one update that is closest to its nearest others.

    It needs n >= 2f + 3. See `flwr_robust.aggregators.krum`.

    Parameters
    ----------
    f : int
        Declared number of faulty clients.
    variant : str
        Whose definition of the scores to use: "paper", "byzfl" or "byzantine_momentum".
    strict : bool
        Whether n >= 2f + 3 is required; if False, n >= f + 3.
    **options
        As for `RobustStrategy`.

    Examples
    --------
    >>> Krum(f=2, message="delta")
    Krum(f=2, message='delta')
    >>> Krum(f=2, message="delta").min_train_nodes
    7
    """

    def __init__(
        self, *, f: int, variant: KrumVariant = "paper", strict: bool = True, **options: Unpack[Options]
    ) -> None:
        super().__init__(rules.Krum(f=f, variant=variant, strict=strict), **options)


class MultiKrum(RobustStrategy):
    """The mean of the m updates that are closest to their nearest others.

    It needs n >= 2f + 3 and n >= m. See `flwr_robust.aggregators.multi_krum`.

    Parameters
    ----------
    f : int
        Declared number of faulty clients.
    m : int, optional
        How many updates are averaged; n - f when not given.
    variant : str
        Whose definition of the scores to use, as for `Krum`.
    strict : bool
        As for `Krum`.
    weighted : bool
        Average the updates chosen by the clients' clamped numbers of examples instead of equally.
    clamp : float
        With ``weighted``: a number of examples above this multiple of the median is lowered to it; >= 1.
    most : float, optional
        With ``weighted``: the largest share of the weight that the f heaviest clients hold (one if f is 0); in (0, 1).
    **options
        As for `RobustStrategy`.

    Examples
    --------
    >>> MultiKrum(f=2, m=4)
    MultiKrum(f=2, m=4)
    >>> MultiKrum(f=2, m=4).min_train_nodes
    7
    """

    def __init__(
        self,
        *,
        f: int,
        m: int | None = None,
        variant: KrumVariant = "paper",
        strict: bool = True,
        weighted: bool = False,
        clamp: float = 2.0,
        most: float | None = None,
        **options: Unpack[Options],
    ) -> None:
        rule = rules.MultiKrum(f=f, m=m, variant=variant, strict=strict, weighted=weighted, clamp=clamp, most=most)
        super().__init__(rule, **options)


class GeneralisedKrum(RobustStrategy):
    """Krum with distances in the p-norm.

    It needs n >= 2f + 3. See `flwr_robust.aggregators.generalised_krum`.

    Parameters
    ----------
    f : int
        Declared number of faulty clients.
    p : float or "inf"
        Which norm: 1 <= p <= 100, or "inf" for the largest difference.
    **options
        As for `RobustStrategy`.

    Examples
    --------
    >>> GeneralisedKrum(f=2, p="inf")
    GeneralisedKrum(f=2, p='inf')
    >>> GeneralisedKrum(f=2, p="inf").min_train_nodes
    7
    """

    def __init__(self, *, f: int, p: float | Literal["inf"] = 2, **options: Unpack[Options]) -> None:
        super().__init__(rules.GeneralisedKrum(f=f, p=p), **options)


class Bulyan(RobustStrategy):
    """Bulyan: select n - 2f updates one by one, then average every coordinate around its median.

    It needs n >= 4f + 3. See `flwr_robust.aggregators.bulyan`.

    Parameters
    ----------
    f : int
        Declared number of faulty clients.
    selection : str
        The defence string whose value selects.
    aggregation : str, optional
        The defence string that aggregates the updates selected; the average around their median when not given.
    **options
        As for `RobustStrategy`.

    Examples
    --------
    >>> Bulyan(f=2)
    Bulyan(f=2)
    >>> Bulyan(f=2).min_train_nodes
    11
    """

    def __init__(
        self, *, f: int, selection: str = "krum", aggregation: str | None = None, **options: Unpack[Options]
    ) -> None:
        super().__init__(rules.Bulyan(f=f, selection=selection, aggregation=aggregation), **options)


class GeometricMedian(RobustStrategy):
    """The point whose summed distance to the updates is least; with a start and a number of steps, RFA.

    It needs n >= 2f + 1; weighted, n > (1 + clamp) f, or with ``most`` n >= f / most. See
    `flwr_robust.aggregators.geometric_median`.

    Parameters
    ----------
    f : int, optional
        Declared number of faulty clients; it only bounds n.
    tolerance : float
        Stop when the least subgradient, whose length lies in [0, 1], is no longer; >= 1e-8.
    nu : float
        Smoothing of the steps from ``mean`` or ``zero``, as a multiple of the radius of the updates; > 0.
    iterations : int, optional
        Do this many steps; from the medoid, fewer where the tolerance is met before.
    maximum : int
        Without ``iterations``: give up after this many steps, with the outcome NOT_CONVERGED.
    weighted : bool
        Weigh replies by their clamped numbers of examples instead of equally.
    clamp : float
        With ``weighted``: a number of examples above this multiple of the median is lowered to it; >= 1.
    start : str
        ``medoid``, the update of least summed distance to the others. With ``iterations``, for RFA's smoothed steps:
        ``mean``, which far updates move without bound, or ``zero``, the model that was sent.
    most : float, optional
        With ``weighted``: the largest share of the weight that the f heaviest clients hold (one if f is 0); in (0, 1).
    **options
        As for `RobustStrategy`.

    Examples
    --------
    >>> GeometricMedian(f=2, iterations=3)
    GeometricMedian(f=2, iterations=3)
    >>> GeometricMedian(f=2, iterations=3).min_train_nodes
    5
    """

    def __init__(
        self,
        *,
        f: int | None = None,
        tolerance: float = 1e-6,
        nu: float = 1e-6,
        iterations: int | None = None,
        maximum: int = 1000,
        weighted: bool = False,
        clamp: float = 2.0,
        start: Literal["medoid", "mean", "zero"] = "medoid",
        most: float | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(
            rules.GeometricMedian(
                f=f,
                tolerance=tolerance,
                nu=nu,
                iterations=iterations,
                maximum=maximum,
                weighted=weighted,
                clamp=clamp,
                start=start,
                most=most,
            ),
            **options,
        )


class ReweightedGeometricMedian(RobustStrategy):
    """A geometric median whose weights then fade with the distance from it; to repeat published results.

    It needs n >= 2f + 1. See `flwr_robust.aggregators.reweighted_geometric_median`.

    Parameters
    ----------
    f : int, optional
        Declared number of faulty clients; it only bounds n.
    times : int
        How often the weights fade; with 0 it is the geometric median.
    scale : float
        The distance at which a weight fades by 1 / e; > 0, in the units of the updates.
    tolerance : float
        As for `GeometricMedian`.
    maximum : int
        Give up after this many steps of one search, with the outcome NOT_CONVERGED.
    **options
        As for `RobustStrategy`.

    Examples
    --------
    >>> ReweightedGeometricMedian(f=2, scale=0.5)
    ReweightedGeometricMedian(f=2, scale=0.5)
    """

    def __init__(
        self,
        *,
        f: int | None = None,
        times: int = 2,
        scale: float = 1.0,
        tolerance: float = 1e-6,
        maximum: int = 1000,
        **options: Unpack[Options],
    ) -> None:
        rule = rules.ReweightedGeometricMedian(f=f, times=times, scale=scale, tolerance=tolerance, maximum=maximum)
        super().__init__(rule, **options)


class MinimumDiameter(RobustStrategy):
    """The mean of the n - f updates that lie closest together (MDA).

    It needs n >= 2f + 1, and 2^f <= maximum_subsets. See `flwr_robust.aggregators.minimum_diameter`.

    Parameters
    ----------
    f : int
        Declared number of faulty clients, and of updates left out.
    maximum_subsets : int
        Refuse if the search could look at more subsets than this per step.
    **options
        As for `RobustStrategy`.

    Examples
    --------
    >>> MinimumDiameter(f=2)
    MinimumDiameter(f=2)
    >>> MinimumDiameter(f=2).min_train_nodes
    5
    """

    def __init__(self, *, f: int, maximum_subsets: int = 2**20, **options: Unpack[Options]) -> None:
        super().__init__(rules.MinimumDiameter(f=f, maximum_subsets=maximum_subsets), **options)


class MixTailor(RobustStrategy):
    """In every round another rule, drawn from a pool, so that no attack can be fitted to it.

    It needs an n that fits at least one member of the pool. See `flwr_robust.aggregators.mixtailor`.

    Parameters
    ----------
    f : int
        Declared number of faulty clients, also for every member whose text does not give it.
    pool : "paper" or sequence of str
        The paper's pool, or the members' defence strings.
    **options
        As for `RobustStrategy`.

    Examples
    --------
    >>> MixTailor(f=2, pool=["median", "krum"])
    MixTailor(f=2, pool=['median', 'krum'])
    >>> MixTailor(f=2, pool=["median", "krum"]).min_train_nodes
    5
    """

    def __init__(
        self,
        *,
        f: int,
        pool: Literal["paper"] | Sequence[str] = "paper",
        **options: Unpack[Options],
    ) -> None:
        super().__init__(rules.MixTailor(f=f, pool=pool), **options)


class Monna(RobustStrategy):
    """The mean of the n - f updates nearest to the server's own (MoNNA).

    It needs n >= 2f + 1, and a ``trusted_fn`` for the server's own update. See `flwr_robust.aggregators.monna`.

    Parameters
    ----------
    f : int
        Declared number of faulty clients, and of updates left out.
    **options
        As for `RobustStrategy`; ``trusted_fn`` must be given.

    Examples
    --------
    >>> def own(server_round, arrays):  # in practice: train on the server's own data
    ...     return arrays.to_numpy_ndarrays()
    >>> Monna(f=2, trusted_fn=own)
    Monna(f=2, trusted_fn=own)
    >>> Monna(f=2, trusted_fn=own).min_train_nodes
    5
    """

    def __init__(self, *, f: int, **options: Unpack[Options]) -> None:
        super().__init__(rules.Monna(f=f), **options)


class FABA(RobustStrategy):
    """The mean after f removals of the update farthest from the mean of those left.

    It needs n >= 2f + 1; weighted, n > (1 + clamp) f, or with ``most`` n >= f / most. See
    `flwr_robust.aggregators.faba`.

    Parameters
    ----------
    f : int
        Declared number of faulty clients, and of removals.
    weighted : bool
        Take means by the clients' clamped numbers of examples instead of equally.
    clamp : float
        With ``weighted``: a number of examples above this multiple of the median is lowered to it; >= 1.
    most : float, optional
        With ``weighted``: the largest share of the weight that the f heaviest clients hold (one if f is 0); in (0, 1).
    **options
        As for `RobustStrategy`.

    Examples
    --------
    >>> FABA(f=2)
    FABA(f=2)
    >>> FABA(f=2).min_train_nodes
    5
    """

    def __init__(
        self,
        *,
        f: int,
        weighted: bool = False,
        clamp: float = 2.0,
        most: float | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(rules.FABA(f=f, weighted=weighted, clamp=clamp, most=most), **options)


class CenteredClipping(RobustStrategy):
    """The last aggregate, moved by the clipped differences of the updates to it.

    It needs n >= 2f + 1; weighted, n > (1 + clamp) f, or with ``most`` n >= f / most. Momentum messages
    suit it best. See `flwr_robust.aggregators.centered_clipping`.

    Parameters
    ----------
    tau : float or "median"
        Radius beyond which a difference is shortened; > 0, in the units of the updates. "median" takes the median
        distance.
    steps : int
        Steps per round.
    f : int, optional
        Declared number of faulty clients; it only bounds n, and weights.
    weighted : bool
        Average differences by the clients' clamped numbers of examples instead of equally.
    clamp : float
        With ``weighted``: a number of examples above this multiple of the median is lowered to it; >= 1.
    most : float, optional
        With ``weighted``: the largest share of the weight that the f heaviest clients hold (one if f is 0); in (0, 1).
    **options
        As for `RobustStrategy`.

    Examples
    --------
    >>> CenteredClipping(tau=0.1, f=2, message="momentum")
    CenteredClipping(tau=0.1, f=2, message='momentum')
    >>> CenteredClipping(tau=0.1, f=2, message="momentum").min_train_nodes
    5
    """

    def __init__(
        self,
        *,
        tau: float | Literal["median"],
        steps: int = 1,
        f: int | None = None,
        weighted: bool = False,
        clamp: float = 2.0,
        most: float | None = None,
        **options: Unpack[Options],
    ) -> None:
        rule = rules.CenteredClipping(tau=tau, steps=steps, f=f, weighted=weighted, clamp=clamp, most=most)
        super().__init__(rule, **options)


class ClipMean(RobustStrategy):
    """The mean of the updates, none longer than the median one.

    It needs n >= 2f + 1; weighted, n > (1 + clamp) f, or with ``most`` n >= f / most. See
    `flwr_robust.aggregators.clip_mean`.

    Parameters
    ----------
    f : int, optional
        Declared number of faulty clients; it only bounds n, and weights.
    weighted : bool
        Average by the clients' clamped numbers of examples instead of equally.
    clamp : float
        With ``weighted``: a number of examples above this multiple of the median is lowered to it; >= 1.
    most : float, optional
        With ``weighted``: the largest share of the weight that the f heaviest clients hold (one if f is 0); in (0, 1).
    **options
        As for `RobustStrategy`.

    Examples
    --------
    >>> ClipMean(f=2)
    ClipMean(f=2)
    >>> ClipMean(f=2).min_train_nodes
    5
    """

    def __init__(
        self,
        *,
        f: int | None = None,
        weighted: bool = False,
        clamp: float = 2.0,
        most: float | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(rules.ClipMean(f=f, weighted=weighted, clamp=clamp, most=most), **options)


class NormBound(RobustStrategy):
    """The mean of the updates, none longer than c.

    It needs n >= 2f + 1. See `flwr_robust.aggregators.norm_bound`.

    Parameters
    ----------
    c : float
        The largest norm, in the units of the updates; > 0.
    f : int, optional
        Declared number of faulty clients; it only bounds n.
    **options
        As for `RobustStrategy`.

    Examples
    --------
    >>> NormBound(c=1.0, f=2)
    NormBound(c=1.0, f=2)
    >>> NormBound(c=1.0, f=2).min_train_nodes
    5
    """

    def __init__(self, *, c: float, f: int | None = None, **options: Unpack[Options]) -> None:
        super().__init__(rules.NormBound(c=c, f=f), **options)


class DnC(RobustStrategy):
    """Divide and conquer: the mean of the updates that never stand out along the direction of greatest variance.

    It needs n >= 2f + 1 and n > floor(c f). See `flwr_robust.aggregators.dnc`.

    Parameters
    ----------
    f : int
        Declared number of faulty clients.
    c : float
        Updates left out per iteration, as a multiple of f; > 0.
    iterations : int
        How many times coordinates are drawn.
    sub_dimension : int
        How many coordinates are drawn each time.
    **options
        As for `RobustStrategy`.

    Examples
    --------
    >>> DnC(f=2, iterations=3)
    DnC(f=2, iterations=3)
    >>> DnC(f=2, iterations=3).min_train_nodes
    5
    """

    def __init__(
        self,
        *,
        f: int,
        c: float = 1.0,
        iterations: int = 5,
        sub_dimension: int = 10_000,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(rules.DnC(f=f, c=c, iterations=iterations, sub_dimension=sub_dimension), **options)


class Clustering(RobustStrategy):
    """The mean of the larger of two clusters of update directions.

    It needs n >= 3. There is no f: the rule keeps a majority. See `flwr_robust.aggregators.clustering`.

    Parameters
    ----------
    linkage : str
        Distance of two clusters: "average", "complete" or "single".
    **options
        As for `RobustStrategy`.

    Examples
    --------
    >>> Clustering(linkage="single")
    Clustering(linkage='single')
    >>> Clustering(linkage="single").min_train_nodes
    3
    """

    def __init__(self, *, linkage: Linkage = "average", **options: Unpack[Options]) -> None:
        super().__init__(rules.Clustering(linkage=linkage), **options)


class ClippedClustering(RobustStrategy):
    """The larger of two clusters of directions, updates clipped to the median of all norms so far.

    It needs n >= 3. There is no f: the rule keeps a majority. See `flwr_robust.aggregators.clipped_clustering`.

    Parameters
    ----------
    linkage : str
        Distance of two clusters: "average", "complete" or "single".
    **options
        As for `RobustStrategy`.

    Examples
    --------
    >>> ClippedClustering(linkage="complete")
    ClippedClustering(linkage='complete')
    >>> ClippedClustering(linkage="complete").min_train_nodes
    3
    """

    def __init__(self, *, linkage: Linkage = "average", **options: Unpack[Options]) -> None:
        super().__init__(rules.ClippedClustering(linkage=linkage), **options)


class SignGuard(RobustStrategy):
    """The clipped mean of the updates of usual length whose signs are similar to most others.

    It needs n >= 1. There is no f: the rule keeps a majority at most. See `flwr_robust.aggregators.signguard`.

    Parameters
    ----------
    lower : float
        Updates shorter than this multiple of the median norm are left out; in [0, 1].
    upper : float
        Updates longer than this multiple of the median norm are left out; >= 1.
    share : float
        Share of the coordinates whose signs are counted; in (0, 1].
    **options
        As for `RobustStrategy`.

    Examples
    --------
    >>> SignGuard(share=0.5)
    SignGuard(share=0.5)
    """

    def __init__(
        self,
        *,
        lower: float = 0.1,
        upper: float = 3.0,
        share: float = 0.1,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(rules.SignGuard(lower=lower, upper=upper, share=share), **options)


class LFighter(RobustStrategy):
    """The mean of the better of two clusters of classification heads, against flipped labels.

    It needs n >= 2, and a model with a weight matrix for its last layer. See `flwr_robust.aggregators.lfighter`.

    Parameters
    ----------
    head : str, optional
        Name of the last layer's weight matrix (classes, features); the model's last matrix when not given.
    start : str
        ``kmeans++``, as published, or ``farthest``: where the search for two clusters starts.
    starts : int
        With ``kmeans++``: how many starts are drawn; >= 1.
    **options
        As for `RobustStrategy`.

    Examples
    --------
    >>> LFighter(head="head.weight")
    LFighter(head='head.weight')
    """

    def __init__(
        self,
        *,
        head: str | None = None,
        start: Literal["kmeans++", "farthest"] = "kmeans++",
        starts: int = 1,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(rules.LFighter(head=head, start=start, starts=starts), **options)


class SMEA(RobustStrategy):
    """The mean of the n - f updates that spread least along any direction.

    It needs n >= 2f + 1, and no more than ``maximum`` subsets. See `flwr_robust.aggregators.smea`.

    Parameters
    ----------
    f : int
        Declared number of faulty clients.
    maximum : int
        Refuse if there are more subsets than this, binomial(n, f).
    **options
        As for `RobustStrategy`.

    Examples
    --------
    >>> SMEA(f=2)
    SMEA(f=2)
    >>> SMEA(f=2).min_train_nodes
    5
    """

    def __init__(self, *, f: int, maximum: int = 100_000, **options: Unpack[Options]) -> None:
        super().__init__(rules.SMEA(f=f, maximum=maximum), **options)


class CAF(RobustStrategy):
    """The mean after a filter that weighs updates down along the direction of largest variance.

    It needs n >= 2f + 1. See `flwr_robust.aggregators.caf`.

    Parameters
    ----------
    f : int
        Declared number of faulty clients; the filter may remove a weight of 2f.
    **options
        As for `RobustStrategy`.

    Examples
    --------
    >>> CAF(f=2)
    CAF(f=2)
    >>> CAF(f=2).min_train_nodes
    5
    """

    def __init__(self, *, f: int, **options: Unpack[Options]) -> None:
        super().__init__(rules.CAF(f=f), **options)


class CGE(RobustStrategy):
    """The mean of the updates without the f longest.

    It needs n >= 2f + 1. See `flwr_robust.aggregators.cge`.

    Parameters
    ----------
    f : int
        Declared number of faulty clients, and of updates left out.
    **options
        As for `RobustStrategy`.

    Examples
    --------
    >>> CGE(f=2)
    CGE(f=2)
    >>> CGE(f=2).min_train_nodes
    5
    """

    def __init__(self, *, f: int, **options: Unpack[Options]) -> None:
        super().__init__(rules.CGE(f=f), **options)


class SignMajority(RobustStrategy):
    """Every coordinate moves by the same step, in the direction that most updates want (signSGD).

    It needs n >= 2f + 1. See `flwr_robust.aggregators.sign_majority`.

    Parameters
    ----------
    scale : float
        Size of every coordinate of the step, in the units of the updates; > 0.
    f : int, optional
        Declared number of faulty clients; it only bounds n.
    **options
        As for `RobustStrategy`.

    Examples
    --------
    >>> SignMajority(scale=0.01, f=2)
    SignMajority(scale=0.01, f=2)
    >>> SignMajority(scale=0.01, f=2).min_train_nodes
    5
    """

    def __init__(self, *, scale: float = 1.0, f: int | None = None, **options: Unpack[Options]) -> None:
        super().__init__(rules.SignMajority(scale=scale, f=f), **options)


class FLTrust(RobustStrategy):
    """The mean of the updates, scaled to the length of the server's own and weighted by their cosine to it.

    It needs n >= 1, and a ``trusted_fn`` for the server's own update. There is no f. See
    `flwr_robust.aggregators.fltrust`.

    Parameters
    ----------
    **options
        As for `RobustStrategy`; ``trusted_fn`` must be given.

    Examples
    --------
    >>> def own(server_round, arrays):  # in practice: train on the server's own data
    ...     return arrays.to_numpy_ndarrays()
    >>> FLTrust(trusted_fn=own)
    FLTrust(trusted_fn=own)
    """

    def __init__(self, **options: Unpack[Options]) -> None:
        super().__init__(rules.FLTrust(), **options)


class FoolsGold(RobustStrategy):
    """The mean in which an update counts less the more similar its direction is to another's, as with sybils.

    It needs n >= 1. There is no f. Momentum messages suit it best. See `flwr_robust.aggregators.foolsgold`.

    Parameters
    ----------
    confidence : float
        How steeply the weight falls with likeness; > 0.
    **options
        As for `RobustStrategy`.

    Examples
    --------
    >>> FoolsGold(message="momentum")
    FoolsGold(message='momentum')
    """

    def __init__(self, *, confidence: float = 1.0, **options: Unpack[Options]) -> None:
        super().__init__(rules.FoolsGold(confidence=confidence), **options)


class FLAME(RobustStrategy):
    """The clipped mean of the densest majority of directions, with optional noise.

    It needs n >= 1. There is no f: the rule keeps a majority. See `flwr_robust.aggregators.flame`.

    Parameters
    ----------
    noise : float
        Standard deviation of the noise as a multiple of the median norm; >= 0.
    **options
        As for `RobustStrategy`.

    Examples
    --------
    >>> FLAME(noise=0.001)
    FLAME(noise=0.001)
    """

    def __init__(self, *, noise: float = 0.0, **options: Unpack[Options]) -> None:
        super().__init__(rules.FLAME(noise=noise), **options)
