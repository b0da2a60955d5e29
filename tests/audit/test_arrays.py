"""The reader of arrays that anyone may have written; `tests/adversary/test_folder.py` plays the attacks against it."""

from __future__ import annotations

import numpy as np

from flwr_robust.audit.arrays import read_arrays


def test_what_savez_wrote_is_what_load_reads(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, allow_pickle=False, names=np.array(["w"]), **{"0": np.ones((2, 3), np.float16)})
    with np.load(path) as held:
        found = read_arrays(path)
        assert list(found) == held.files
        for name in held.files:
            assert found[name].dtype == held[name].dtype
            assert found[name].tobytes() == held[name].tobytes()
