"""Pre-aggregators, one per file; listing this folder finds them."""

from typing import TYPE_CHECKING, Any

from flwr_robust.rule import preaggregators

globals().update({cls.__name__: cls for cls in preaggregators.members().values()})
__all__ = sorted(cls.__name__ for cls in preaggregators.members().values())

if TYPE_CHECKING:

    def __getattr__(name: str) -> Any: ...
