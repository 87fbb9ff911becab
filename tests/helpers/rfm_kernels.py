"""Problems for the RFM's kernels, their formulas in double precision, and how results compare."""

import torch

from helpers.triton_checks import DEVICE


def problem(batch, n, outputs):
    """Centred points, two of them equal, their Gram matrix, bandwidths and coefficients."""
    points = torch.randn(batch, n, 6)
    if n > 3:
        points[:, 3] = points[:, 2]
    points = points - points.mean(dim=1, keepdim=True)
    gram = points @ points.mT
    tensors = (
        points,
        (gram + gram.mT) / 2,
        torch.rand(batch) + 0.5,
        torch.randn(batch, n, outputs),
    )
    return tuple(t.to(DEVICE) for t in tensors)


def exact_laplace(gram, bandwidth, eps=1e-10):
    """K, W and D in double precision, by their formulas."""
    gram, bandwidth = gram.double(), bandwidth.double().view(-1, 1, 1)
    norms = gram.diagonal(dim1=1, dim2=2)
    squared = norms[:, :, None] + norms[:, None, :] - 2 * gram
    squared.diagonal(dim1=1, dim2=2).zero_()
    distance = squared.clamp(min=0).sqrt()
    kernel = torch.exp(-distance / bandwidth)
    apart = distance >= eps * bandwidth
    return kernel, torch.where(apart, kernel / (bandwidth * distance), 0.0), distance


def exact_rows(weights, alpha, right, centre):
    """``T_c right`` in double precision, T formed."""
    weights, alpha, right = weights.double(), alpha.double(), right.double()
    per_output = alpha.mT  # [B, C, n]
    diagonal = torch.diag_embed(per_output @ weights.mT)
    rows = (diagonal - weights[:, None] * per_output[:, :, None, :]) @ right[:, None]
    return rows - rows.mean(dim=(1, 2), keepdim=True) if centre else rows


def assert_near(got, expected, tolerance=2e-6):
    scale = float(expected.abs().max()) if expected.numel() else 0.0
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=tolerance * scale + 1e-30)


def assert_laplace(got, expected):
    kernel, weights, *distance = got
    # Equal points are at distance sqrt(rounding) in any precision: there W means nothing.
    apart = expected[2] > 1e-2
    torch.testing.assert_close(kernel.double(), expected[0], rtol=0, atol=3e-3)
    torch.testing.assert_close(kernel[apart].double(), expected[0][apart], rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(weights[apart].double(), expected[1][apart], rtol=1e-3, atol=1e-6)
    if distance:
        torch.testing.assert_close(distance[0].double(), expected[2], rtol=1e-4, atol=3e-3)


def assert_exact_structure(kernel, weights, *distance):
    for matrix in (kernel, weights, *distance):
        assert torch.equal(matrix, matrix.mT)
    assert bool((kernel.diagonal(dim1=1, dim2=2) == 1).all())
    for matrix in (weights, *distance):
        assert bool((matrix.diagonal(dim1=1, dim2=2) == 0).all())


def assert_padding(kernel, rest, sizes):
    """K is the identity there and everything else zero."""
    for b, size in enumerate(sizes):
        identity = torch.eye(kernel.shape[1], device=kernel.device)
        assert torch.equal(kernel[b, size:], identity[size:])
        for matrix in rest:
            assert bool((matrix[b, size:] == 0).all()) and bool((matrix[b, :, size:] == 0).all())
