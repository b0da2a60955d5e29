"""Certificates: what a rule withstands in the worst case, found, proven and unavoidable."""

from flwr_robust.certificates.certificate import Certificate, certify

__all__ = ["Certificate", "certify"]
