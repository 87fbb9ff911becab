"""The RFM's Triton kernels against their formulas, under the interpreter or on a device."""

import pytest
import torch

from expertsteer import RFM, ops

triton = pytest.importorskip("triton")
import triton.language as tl  # noqa: E402

from expertsteer.ops import triton_tiles  # noqa: E402
from expertsteer.ops.rfm import triton_agop, triton_laplace  # noqa: E402
from helpers.rfm_kernels import (  # noqa: E402
    assert_exact_structure,
    assert_laplace,
    assert_near,
    assert_padding,
    exact_laplace,
    exact_rows,
    problem,
)
from helpers.triton_checks import (  # noqa: E402
    DEVICE,
    INTERPRETED,
    needs_device,
    run_interpreted,
    starts_the_interpreter,
)

SIZES = [(1, 1, 1), (2, 2, 3), (3, 17, 2), (1, 63, 1), (2, 65, 2), (1, 130, 3)]  # B, n, C
RAGGED = (65, [1, 40, 65])  # n, sizes
LEAST_TESTS = 70  # of those that need a device


@pytest.mark.slow
@starts_the_interpreter
def test_kernels_under_the_interpreter():
    run_interpreted(__file__, LEAST_TESTS)


def same_bits(call):
    first, second = call(), call()
    assert all(torch.equal(a, b) for a, b in zip(first, second))


@needs_device
@pytest.mark.parametrize("tile", triton_laplace.GRAM_TILES, ids=str)
@pytest.mark.parametrize(("batch", "n", "outputs"), SIZES)
def test_laplace_is_its_formula(batch, n, outputs, tile):
    _, gram, bandwidth, _ = problem(batch, n, outputs)
    got = triton_laplace.laplace(gram, bandwidth, distances=True, config=tile)
    assert_laplace(got, exact_laplace(gram, bandwidth))
    assert_exact_structure(*got)
    pair = triton_laplace.laplace(gram, bandwidth, config=tile)
    assert all(torch.equal(a, b) for a, b in zip(pair, got))


@needs_device
@pytest.mark.parametrize("tile", triton_laplace.GRAM_TILES, ids=str)
def test_laplace_ignores_the_padding(tile):
    n, sizes = RAGGED
    _, gram, bandwidth, _ = problem(len(sizes), n, 1)
    alone = [
        triton_laplace.laplace(g[None, :s, :s], b[None], distances=True, config=tile)
        for g, b, s in zip(gram, bandwidth, sizes)
    ]
    for b, size in enumerate(sizes):
        gram[b, size:], gram[b, :, size:] = float("nan"), float("inf")
    for dtype in (torch.int32, torch.int64):
        counts = torch.tensor(sizes, dtype=dtype, device=DEVICE)
        got = triton_laplace.laplace(gram, bandwidth, counts, distances=True, config=tile)
        assert_exact_structure(*got)
        assert_padding(got[0], got[1:], sizes)
        for b, size in enumerate(sizes):
            for matrix, expected in zip(got, alone[b]):
                assert torch.equal(matrix[b, :size, :size], expected[0])


@needs_device
def test_laplace_is_symmetric_and_keeps_nan_where_the_gram_matrix_is_not():
    _, gram, bandwidth, _ = problem(1, 40, 1)
    rough = gram + 1e-4 * torch.rand_like(gram)
    assert_exact_structure(*triton_laplace.laplace(rough, bandwidth, distances=True))
    gram[0, 3, 7] = float("nan")
    kernel, _ = triton_laplace.laplace(gram, bandwidth)
    assert bool(kernel[0, 3, 7].isnan()) and int(kernel.isnan().sum()) == 2


@needs_device
@pytest.mark.parametrize("tile", triton_laplace.POINT_TILES, ids=str)
@pytest.mark.parametrize(("batch", "n", "outputs"), SIZES)
def test_laplace_from_points_is_laplace_from_their_gram_matrix(batch, n, outputs, tile):
    points, _, bandwidth, _ = problem(batch, n, outputs)
    metric = torch.randn(6, 6, device=DEVICE) / 6
    left = points @ (metric @ metric.T)
    norms = (left * points).sum(dim=2)
    expected = exact_laplace(left.double() @ points.double().mT, bandwidth)
    some = n // 2 + 1
    arguments = (left[:, :some], points, norms[:, :some], norms, bandwidth)
    rectangle = triton_laplace.laplace_points(*arguments, config=tile)
    assert_laplace(rectangle, [matrix[:, :some] for matrix in expected])


@needs_device
@pytest.mark.parametrize("tile", triton_agop.ROW_TILES, ids=str)
@pytest.mark.parametrize(("batch", "n", "outputs"), SIZES)
def test_gradient_rows_are_their_formula(batch, n, outputs, tile):
    _, gram, bandwidth, alpha = problem(batch, n, outputs)
    weights = exact_laplace(gram, bandwidth)[1].float()
    for right in (gram, torch.randn(batch, n, 9, device=DEVICE)):
        for centre in (False, True):
            where = torch.full((batch,), centre, device=DEVICE)
            got, sums = triton_agop.rows_and_sums(weights, alpha, right, where, config=tile)
            expected = exact_rows(weights, alpha, right, False)
            scale = float(expected.abs().max())
            expected = exact_rows(weights, alpha, right, centre)
            torch.testing.assert_close(got.double(), expected, rtol=0, atol=3e-6 * scale + 1e-30)
            assert_near(sums, weights.double() @ alpha.double())


@needs_device
@pytest.mark.parametrize("tile", triton_agop.PRODUCT_TILES, ids=str)
@pytest.mark.parametrize(("batch", "n", "outputs"), SIZES)
def test_the_symmetric_product_is_its_formula(batch, n, outputs, tile):
    rows = torch.randn(batch, outputs * n, n, device=DEVICE)
    got = triton_agop.symmetric_product(rows, config=tile)
    assert_near(got, rows.double().mT @ rows.double())
    assert torch.equal(got, got.mT)


@needs_device
@pytest.mark.parametrize(
    "tiles", list(zip(triton_agop.ROW_TILES, triton_agop.PRODUCT_TILES)), ids=str
)
@pytest.mark.parametrize("centre", [False, True])
def test_agop_ignores_the_padding(centre, tiles):
    n, sizes = RAGGED
    _, gram, bandwidth, alpha = problem(len(sizes), n, 2)
    weights = exact_laplace(gram, bandwidth)[1].float()
    counts = torch.tensor(sizes, device=DEVICE)
    padded = [t.clone() for t in (weights, alpha, gram)]
    for b, size in enumerate(sizes):
        for tensor in padded:
            tensor[b, size:] = float("nan")
        padded[0][b, :, size:] = padded[2][b, :, size:] = float("nan")
    where = torch.full((len(sizes),), centre, device=DEVICE)
    rows, sums = triton_agop.rows_and_sums(*padded, where, counts, config=tiles[0])
    following = triton_agop.symmetric_product(rows.flatten(1, 2), counts, config=tiles[1])
    assert torch.equal(following, following.mT)
    for b, s in enumerate(sizes):
        for zero in (rows[b, :, s:], sums[b, s:], following[b, s:], following[b, :, s:]):
            assert bool((zero == 0).all())
        parts = weights[b : b + 1, :s, :s], alpha[b : b + 1, :s], gram[b : b + 1, :s, :s]
        expected = exact_rows(*parts, centre)
        assert_near(rows[b : b + 1, :, :s, :s], expected, 1e-5)
        assert_near(following[b, :s, :s], sum(r.mT @ r for r in expected[0]), 1e-5)
    step, carry = triton_agop.agop(padded[2], *padded[:2], where, counts)
    for got, part in zip((step, carry.rows, carry.sums), (following, rows, sums)):
        assert_near(got.nan_to_num(), part.nan_to_num().double(), 1e-5)


@needs_device
def test_a_recurrence_on_the_kernels_is_the_recurrence():
    _, gram, bandwidth, _ = problem(2, 50, 1)
    labels = torch.randn(2, 50, 2, device=DEVICE)
    exact, ridge = gram.double(), 0.1 * torch.eye(50, device=DEVICE)
    for _ in range(3):
        kernel, weights = triton_laplace.laplace(gram, bandwidth)
        alpha = torch.linalg.solve(kernel + ridge, labels)
        gram = triton_agop.agop(gram, weights, alpha)[0]
        kernel, weights, _ = exact_laplace(exact, bandwidth)
        alpha = torch.linalg.solve(kernel + ridge.double(), labels.double())
        exact = sum(r.mT @ r for r in exact_rows(weights, alpha, exact, False).unbind(1))
        assert_near(gram, exact, 1e-3)
        divisor = exact.diagonal(dim1=1, dim2=2).mean(dim=1).view(-1, 1, 1)
        gram, exact = gram / divisor.float(), exact / divisor


@needs_device
@pytest.mark.parametrize("regime", ["gram", "feature"])
@pytest.mark.parametrize("outputs", [1, 2])
def test_a_whole_machine_runs_on_the_kernels(regime, outputs):
    points = torch.randn(40, 8, device=DEVICE)
    labels = (points[:, :outputs] * points[:, 1 : outputs + 1] > 0).float()
    fast = RFM(backend="triton", regime=regime, center_grads=True).fit(points, labels)
    exact = RFM(backend="reference", center_grads=True).fit(points.double(), labels.double())
    assert float(fast.direction_.double() @ exact.direction_) > 1 - 1e-4
    new = torch.randn(9, 8, device=DEVICE)
    assert_near(fast.predict(new), exact.predict(new.double()), 1e-4)


@needs_device
def test_two_runs_give_equal_bits():
    points, gram, bandwidth, alpha = problem(2, 130, 2)
    norms = points.square().sum(dim=2)
    same_bits(lambda: triton_laplace.laplace(gram, bandwidth, distances=True))
    same_bits(lambda: triton_laplace.laplace_points(points, points, norms, norms, bandwidth))
    _, weights = triton_laplace.laplace(gram, bandwidth)
    every = torch.ones(2, dtype=torch.bool, device=DEVICE)
    same_bits(lambda: triton_agop.agop(gram, weights, alpha, every)[0])


@needs_device
def test_an_empty_batch_is_served():
    empty = torch.zeros(0, 5, 5, device=DEVICE)
    kernel, weights = triton_laplace.laplace(empty, empty[:, 0, 0])
    assert kernel.shape == weights.shape == (0, 5, 5)
    assert triton_agop.agop(empty, empty, empty[:, :, :2])[1].rows.shape == (0, 2, 5, 5)


@triton.jit
def upper_tile_kernel(indices, rows, columns, BLOCK: tl.constexpr):
    here = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row, column = triton_tiles.upper_tile(tl.load(indices + here))
    tl.store(rows + here, row)
    tl.store(columns + here, column)


@needs_device
def test_every_upper_tile_is_visited_once():
    column = torch.cat([torch.arange(1, 1025), torch.arange(65536 - 1024, 65536)])
    start = column * (column + 1) // 2  # the indices about which a rounded root would err
    indices = torch.stack([start - 1, start, start + column // 2, start + column], dim=1).flatten()
    indices = indices.clamp(max=2**31 - 1).to(DEVICE, torch.int32)
    rows, columns = torch.empty_like(indices), torch.empty_like(indices)
    upper_tile_kernel[(len(indices) // 1024,)](indices, rows, columns, BLOCK=1024)
    assert bool(((rows >= 0) & (rows <= columns)).all())
    assert torch.equal(columns.long() * (columns.long() + 1) // 2 + rows, indices.long())


def test_the_choice_of_a_tile_depends_on_the_shape_alone():
    for tiles in (triton_agop.ROW_TILES, triton_agop.PRODUCT_TILES, triton_laplace.POINT_TILES):
        areas = [tile.rows * tile.columns for tile in tiles]
        assert areas == sorted(areas) and len(set(tiles)) == len(tiles)
        assert triton_tiles.choose_tile(tiles, 17, 17, 1) == tiles[0]
        assert triton_tiles.choose_tile(tiles, 4096, 4096, 1) == tiles[-1]
        assert triton_tiles.choose_tile(tiles, 130, 130, 1000) == tiles[-1]


def test_a_backend_that_cannot_serve_says_why():
    cpu = torch.device("cpu")
    with pytest.raises(ops.BackendError, match="float64 is not torch.float32|is not a GPU"):
        ops.choose("laplace", "triton", cpu, torch.float64)
    if not INTERPRETED:
        with pytest.raises(ops.BackendError, match="TRITON_INTERPRET=1"):
            ops.choose("laplace", "triton", cpu, torch.float32)
