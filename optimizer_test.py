"""The assignment's check of optimizer.py: python optimizer_test.py [--reference FILE], or pytest.

1,000 steps of AdamW on a small regression, from the course's seeds; the expected weight is the
course's file. Fall 2025's was computed with clipping (max_grad_norm 0.9), fall 2024's without.
"""

import argparse
import sys
import unittest
from pathlib import Path
from typing import Any

if sys.flags.safe_path:  # python -P and PYTHONSAFEPATH leave a command's own folder out
    sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
import torch

from optimizer import AdamW

REFERENCE = "optimizer_test.npy"
SHARED = Path(__file__).resolve().parent.parent / "shared" / "reference"
CLIPPING = {"fall2025": 0.9, "fall2024": None}
STEPS = 1000


def trained_weight(max_grad_norm: float | None) -> torch.Tensor:
    """The (2, 3) weight after training y = (x0 + x1, -x2) on x uniform in [0, 1)³."""
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2, bias=False)
    # fall 2024's AdamW has no such parameter
    clipping: dict[str, Any] = {} if max_grad_norm is None else {"max_grad_norm": max_grad_norm}
    optimizer = AdamW(model.parameters(), lr=1e-3, weight_decay=1e-4, correct_bias=True, **clipping)
    for _ in range(STEPS):
        x = torch.tensor(rng.uniform(size=3), dtype=torch.float32)
        target = torch.stack((x[0] + x[1], -x[2]))
        loss = (model(x) - target).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.weight.detach()


def load_reference(path: Path) -> torch.Tensor:
    return torch.tensor(np.load(path, allow_pickle=False), dtype=torch.float32)


def differences(reference: torch.Tensor) -> dict[str, float]:
    """Largest absolute difference from the reference, with each edition's clipping."""
    return {
        edition: (trained_weight(clipping) - reference).abs().max().item()
        for edition, clipping in CLIPPING.items()
    }


def check(edition: str, *paths: Path) -> None:
    """Compare with each of these files that exists. Raises SkipTest if none does."""
    paths = tuple(path for path in paths if path.exists())
    if not paths:
        raise unittest.SkipTest(f"no reference of {edition} is here: bash setup.sh downloads it")
    actual = trained_weight(CLIPPING[edition])
    for path in paths:
        torch.testing.assert_close(actual, load_reference(path), atol=1e-5, rtol=1e-3)


def test_without_clipping() -> None:
    name = "optimizer_test-fall2024.npy"
    check("fall2024", Path(name), SHARED / name)


def test_with_clipping() -> None:
    name = "optimizer_test-fall2025.npy"  # setup.sh gets this one under the course's own name
    check("fall2025", Path(REFERENCE), Path(name), SHARED / name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reference", type=Path, default=Path(REFERENCE))
    path = parser.parse_args().reference
    if not path.exists():
        sys.exit(f"{path} is missing: get it with bash setup.sh")
    try:
        reference = load_reference(path)
    except Exception as error:  # numpy has no specific error for an invalid file
        sys.exit(f"{path} is no reference data ({type(error).__name__})")
    for edition, clipping in CLIPPING.items():
        if torch.allclose(trained_weight(clipping), reference, atol=1e-5, rtol=1e-3):
            print(f"{path} matches AdamW with max_grad_norm={clipping} ({edition})")
            print("Optimizer test passed!")
            return
    sys.exit(f"Optimizer test failed; largest differences: {differences(reference)}")


if __name__ == "__main__":
    main()
