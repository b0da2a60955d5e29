"""What a rule may state of itself: proven bounds of its error.

n rows are given, f of them faulty and h = n - f honest; H are the honest ones, m_H their mean, A the rule's value.
Three measures compare the error with how far the honest rows spread, for the worst rows of both kinds:

    kappa:   ||A - m_H||^2 <= kappa (1 / h) sum_(i in H) ||x_i - m_H||^2
    rho:     ||A - m_H||   <= rho max_(i in H) ||x_i - m_H||
    lambda:  ||A - m_H||^2 <= lambda max_(i, j in H) ||x_i - x_j||^2

kappa is that of (f, kappa)-robustness: Allouah, Farhadkhani, Guerraoui, Gupta, Pinot, Stephan (AISTATS 2023). rho is
Peng, Li, Vlaski, Ling's (JMLR 2025), lambda that of (f, lambda)-resilient averaging: Farhadkhani et al. (ICML 2022), in
the squared form of Xu, Yan, Zheng, Huang (Byz-DeSGD).
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["MEASURES", "Bound"]

MEASURES = ("kappa", "rho", "lambda")
"""The names of the measures."""


@dataclass(frozen=True)
class Bound:
    """An upper bound that is proven for a rule.

    Attributes
    ----------
    measure : str
        ``kappa``, ``rho`` or ``lambda``.
    value : float
        The bound; infinity where none can exist.
    source : str
        Where the proof stands.
    exact : bool
        Whether the bound is reached, for some rows.
    """

    measure: str
    value: float
    source: str
    exact: bool = False
