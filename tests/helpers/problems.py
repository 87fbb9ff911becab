"""Labels that products of coordinates decide: problems that a linear machine cannot solve."""

import torch


def problem(n=60, d=20, outputs=1, seed=0, dtype=torch.float64):
    """Rows ``[n, d]`` and labels ``[n]``, or ``[n, outputs]`` of several."""
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(n, d, generator=generator, dtype=torch.float64)
    y = torch.stack([X[:, c] * X[:, c + 1] + X[:, 2] > 0 for c in range(outputs)], dim=1)
    return X.to(dtype), (y[:, 0] if outputs == 1 else y).to(dtype)
