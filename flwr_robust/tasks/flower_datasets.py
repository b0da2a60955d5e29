"""The partitioners of flwr-datasets as one partition: ``flwr_datasets(partitioner="PathologicalPartitioner", ...)``.

A partitioner of flwr-datasets splits the rows of a table. It gets one with a shuffled row per training sample: its
number, its class (``label``) and who it came from (``owner``), if the task says so. The shuffle is that of
``FederatedDataset``, drawn from the run's seed. So is the partitioner's own seed.

    pip install 'flwr-robust[datasets]'
"""

from __future__ import annotations

import contextlib
import inspect
import io
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from flwr_robust.core.fields import Choice, Dictionary
from flwr_robust.errors import ConfigurationError, UnknownNameError, check_choice, extra
from flwr_robust.tasks.data import DataWarning
from flwr_robust.tasks.partition import Indices, Partition, partitions

__all__ = ["FlwrDatasets"]

_PARTITIONERS = (
    "ContinuousPartitioner",
    "DirichletPartitioner",
    "DistributionPartitioner",
    "ExponentialPartitioner",
    "GroupedNaturalIdPartitioner",
    "IidPartitioner",
    "InnerDirichletPartitioner",
    "LinearPartitioner",
    "NaturalIdPartitioner",
    "PathologicalPartitioner",
    "ShardPartitioner",
    "SizePartitioner",
    "SquarePartitioner",
)
_BY_NUMBER = ("ExponentialPartitioner", "IidPartitioner", "LinearPartitioner", "SizePartitioner", "SquarePartitioner")
_BY_OWNER = ("GroupedNaturalIdPartitioner", "NaturalIdPartitioner")
_SET = ("num_partitions", "seed")  # by the run


@partitions.register("flwr_datasets")
@dataclass(frozen=True)
class FlwrDatasets(Partition):
    """A partitioner of flwr-datasets that splits samples; those that split columns or call functions are left out.

    Every sample belongs to at most one client; some partitioners leave samples over. No client is empty, or an error
    says so.

    Attributes
    ----------
    partitioner : str
        The class in ``flwr_datasets.partitioner``.
    options : dict, optional
        Its parameters by name. ``num_partitions`` and ``seed`` follow from the run. ``partition_by`` is "label", or
        "owner", which is the default for `NaturalIdPartitioner` and `GroupedNaturalIdPartitioner`.
    """

    partitioner: Annotated[str, Choice(_PARTITIONERS)]
    options: Annotated[Mapping[str, Any] | None, Dictionary((("num_classes_per_partition", 2),))] = None

    def __hash__(self) -> int:
        return hash(repr(self.drawn_from()))

    def drawn_from(self) -> tuple[object, ...]:
        """Return all fields, the options in the order of their names."""
        return self.partitioner, sorted((self.options or {}).items())

    @property
    def reads_classes(self) -> bool:
        """Say whether the partitioner reads the column of the classes."""
        column = (self.options or {}).get("partition_by", "owner" if self._by_owner else "label")
        return self.partitioner not in _BY_NUMBER and column == "label"

    def split(self, labels: NDArray[np.integer], clients: int, generator: np.random.Generator) -> list[Indices]:
        """Split without owners."""
        return self.split_owned(labels, None, clients, generator)

    def split_owned(
        self,
        labels: NDArray[np.integer],
        owners: NDArray[np.integer] | None,
        clients: int,
        generator: np.random.Generator,
    ) -> list[Indices]:
        """Hand a table of the samples to the partitioner, and read its parts."""
        with extra("datasets"):
            import datasets
            from flwr_datasets import partitioner as found

        make = getattr(found, self.partitioner)
        rows = generator.permutation(len(labels))
        columns = {"row": rows, "label": labels[rows]}
        if owners is not None:
            columns["owner"] = owners[rows]
        values = self._values(inspect.signature(make).parameters, clients, int(generator.integers(2**31)))
        self._check_column(values.get("partition_by"), owners is not None)
        with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings(record=True) as said:  # progress bars
            warnings.simplefilter("always")
            try:
                splitter = make(**values)
                splitter.dataset = datasets.Dataset.from_dict(columns).with_format("numpy")
                count = splitter.num_partitions
                parts = [np.asarray(splitter.load_partition(k)[:]["row"], np.int64) for k in range(count)]
            except Exception as error:  # another library's classes may raise anything
                raise ConfigurationError(
                    f"{self.name}: {self.partitioner} refuses options={self.options!r} with clients={clients} "
                    f"({type(error).__name__}: {' '.join(str(error).split())}); correct them"
                ) from error
        for warning in said:
            if warning.category is UserWarning:  # not what one library tells another's developers
                told = " ".join(str(warning.message).split())
                warnings.warn(f"{self.name}: {self.partitioner} says: {told}", DataWarning, stacklevel=3)
        return self._checked(parts, len(labels), clients)

    def _values(self, parameters: Mapping[str, inspect.Parameter], clients: int, seed: int) -> dict[str, Any]:
        """Return the partitioner's arguments; refuse options that it does not know, or that it lacks."""
        options = dict(self.options or {})
        allowed = [name for name in parameters if name not in _SET]
        for name in options:
            if name not in allowed:
                raise UnknownNameError(f"option of {self.partitioner}", name, allowed)
        run = {"num_partitions": clients, "seed": seed, "partition_by": "owner" if self._by_owner else "label"}
        values = {name: value for name, value in run.items() if name in parameters} | options
        missing = [n for n, p in parameters.items() if p.default is inspect.Parameter.empty and n not in values]
        if missing:
            raise ConfigurationError(
                f"{self.name}: {self.partitioner} needs {', '.join(missing)}; write "
                f"{self.name}(partitioner={self.partitioner!r}, options={{{missing[0]!r}: ...}})"
            )
        if "distribution_array" in values:  # the one option that must be an array
            values["distribution_array"] = np.asarray(values["distribution_array"])
        return values

    @property
    def _by_owner(self) -> bool:
        return self.partitioner in _BY_OWNER

    def _check_column(self, column: object, owned: bool) -> None:
        if column is None:
            return
        check_choice(f"{self.name}: {self.partitioner}", "partition_by", column, ("label", "owner"))
        if column == "owner" and not owned:
            raise ConfigurationError(
                f"{self.name}: {self.partitioner} needs owners, and the task does not say who its training samples "
                f"came from: store owners_train in the .npz, or give owners to task_of"
            )

    def _checked(self, parts: list[Indices], samples: int, clients: int) -> list[Indices]:
        """Return the parts; refuse another number of them, empty ones, and samples that are held twice."""
        if len(parts) != clients:
            raise ConfigurationError(
                f"{self.name}: {self.partitioner} makes {len(parts)} parts of these data; got clients={clients}: set "
                f"clients={len(parts)}, or change its options"
            )
        if empty := [client for client, part in enumerate(parts) if len(part) == 0]:
            raise ConfigurationError(
                f"{self.name}: {self.partitioner} leaves clients {empty[:5]} without samples; take fewer clients, or "
                f"change its options"
            )
        if np.bincount(np.concatenate(parts), minlength=samples).max() > 1:
            raise ConfigurationError(
                f"{self.name}: {self.partitioner} gives a sample to several clients; take another partitioner"
            )
        return parts
