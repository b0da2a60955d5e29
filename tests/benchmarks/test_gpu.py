"""The GPU benchmark, tried on the CPU."""

import json
import subprocess
import sys

import pytest
import torch

ALONE = """
import sys
for absent in ("flwr", "matplotlib", "numba", "ray", "rich", "scipy", "sklearn", "torchvision", "typer"):
    sys.modules[absent] = None
from benchmarks.gpu import main
main(sys.argv[1:])
"""


def run(*arguments):
    return subprocess.run([sys.executable, "-c", ALONE, *arguments], capture_output=True, text=True, check=False)


def test_it_needs_torch_and_numpy_alone(tmp_path):
    results = tmp_path / "gpu.json"
    done = run("--device", "cpu", "--sizes", "10x50", "11x60", "--rounds", "1", "--results", str(results))
    assert done.returncode == 0, done.stderr
    figures = json.loads(results.read_text())["figures"]
    assert [(figure["n"], figure["d"], figure["f"]) for figure in figures] == [(10, 50, 2), (11, 60, 2)]
    for figure in figures:
        assert {"copy", "X X^T", "our Gram", "median()", "krum(f={f})"} <= set(figure["seconds"])
        assert all(seconds > 0 for seconds in figure["seconds"].values())
    assert "x copy" in done.stdout
    assert "10 x 50, f = 2" in done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(tmp_path):
    done = run("--results", str(tmp_path / "gpu.json"))
    assert done.returncode == 2
    assert "no GPU" in done.stderr
    assert not (tmp_path / "gpu.json").exists()


@pytest.mark.gpu
def test_rules_stay_on_the_gpu_and_agree_with_the_cpu():
    from flwr_robust import aggregate

    x = torch.randn(11, 5000, generator=torch.Generator().manual_seed(0))
    x[9:] += 2
    for rule in ("median()", "trimmed_mean(f=2)", "meamed(f=2)", "krum(f=2)", "nnm(f=2) | geometric_median()"):
        there, here = aggregate(x.cuda(), rule), aggregate(x, rule)
        assert there.value.is_cuda
        torch.testing.assert_close(there.value.cpu(), here.value, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(there.weights.cpu(), here.weights, rtol=1e-5, atol=1e-6)
