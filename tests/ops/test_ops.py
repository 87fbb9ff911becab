"""One body over all backends: each is the reference, to the rounding of its type."""

import pytest
import torch

from expertsteer import ops
from expertsteer.ops import extension, products
from expertsteer.ops.information import native, reference
from expertsteer.ops.steering.native import steer


def test_an_explicit_backend_is_never_replaced(monkeypatch):
    monkeypatch.setattr(extension, "_C", None)
    monkeypatch.setattr(extension, "MISSING", "the extension was not built")
    arguments = torch.zeros(1, 2, 2), torch.ones(1)
    with pytest.raises(ops.BackendError, match="'native' cannot serve laplace: the extension"):
        ops.laplace(*arguments, backend="native")
    with pytest.warns(RuntimeWarning, match="not built.*'reference'"):
        ops.laplace(*arguments)


def test_auto_takes_no_kernel_to_a_device_it_was_never_run_on():
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert ops.choose("steer", "auto", cpu, torch.float32) is steer
    for operation in ops.operations():
        chosen = ops.choose(operation, "auto", gpu, torch.float32)
        proven = {ops.choose(operation, name, gpu, torch.float32) for name in plain(operation)}
        assert chosen in proven


def plain(operation):
    """The backends of an operation that are torch alone."""
    return set(ops.backends_of(operation)) & {"reference", "torch"}


def test_laplace_is_its_formula():
    points = torch.randn(2, 9, 4).double()
    points[:, 3] = points[:, 5]  # a duplicate: zero distance, zero weight
    length = torch.tensor([0.7, 2.0]).double()
    kernel, weights = ops.laplace(points @ points.mT, length)
    distance = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    expected = torch.exp(-distance / length.view(2, 1, 1))
    torch.testing.assert_close(kernel.tril(), expected.tril(), atol=1e-6, rtol=0)
    assert bool((weights.diagonal(dim1=1, dim2=2) == 0).all())
    assert bool((weights >= 0).all()) and torch.equal(weights, weights.mT)


def test_laplace_between_points_is_its_formula():
    left, right = torch.randn(2, 5, 4).double(), torch.randn(2, 7, 4).double()
    norms = [p.square().sum(-1) for p in (left, right)]
    length = torch.tensor([0.7, 2.0]).double()
    kernel, weights = ops.laplace_points(left, right, *norms, length)
    distance = torch.cdist(left, right, compute_mode="donot_use_mm_for_euclid_dist")
    torch.testing.assert_close(kernel, torch.exp(-distance / length.view(2, 1, 1)))
    torch.testing.assert_close(weights, kernel / distance / length.view(2, 1, 1))
    with pytest.raises(ValueError, match="left, right, left_norms"):
        ops.laplace_points(left, right[..., :3], *norms, length)


def test_agop_is_the_gram_matrix_of_gradients_by_autograd():
    points = torch.randn(7, 3).double()
    points = points - points.mean(0)
    length, alpha = 1.3, torch.randn(7, 2).double()

    def outputs(x):
        distance = (x[None] - points).square().sum(-1)
        safe = torch.where(
            distance > 1e-20, distance, 1.0
        ).sqrt()  # no gradient at the point itself
        kernel = torch.where(distance > 1e-20, torch.exp(-safe / length), 1.0)
        return kernel @ alpha

    jacobian = torch.stack([torch.autograd.functional.jacobian(outputs, p) for p in points])
    gradients = jacobian.transpose(0, 1)  # [C, n, d]
    metric = sum(g.mT @ g for g in gradients)
    gram = (points @ points.mT)[None]
    _, weights = ops.laplace(gram, torch.tensor([length]).double())
    for backend in ("reference", "native"):
        stepped, carry = ops.agop(gram, weights, alpha[None], backend=backend)
        torch.testing.assert_close(stepped[0], points @ metric @ points.mT)
        # M' X^T = X^T (B P), and new points seen through M' follow from those seen through M.
        unit = torch.eye(7).double()[None]
        torch.testing.assert_close(points.mT @ carry.apply(unit)[0], metric @ points.mT)
        new = torch.randn(4, 3).double()
        cross, square = carry.advance((new @ points.mT)[None])
        torch.testing.assert_close(cross[0], new @ metric @ points.mT)
        torch.testing.assert_close(square[0], (new @ metric @ new.mT).diagonal())


@pytest.mark.parametrize("backend", ["native", "torch"])
@pytest.mark.parametrize(("r", "s"), [(1, 1), (3, 5), (5, 3), (17, 17), (32, 32), (45, 32)])
def test_every_backend_gives_the_same_gaussian_information(r, s, backend):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 200, r, generator=generator, dtype=torch.float64)
    y = torch.randn(5, 200, s, generator=generator, dtype=torch.float64)
    shared = min(r, s)
    y[1, :, :shared] += 3 * x[0, :, :shared]  # strong
    y[2, :, :shared] = x[1, :, :shared] + 1e-4 * y[2, :, :shared]  # beyond single precision
    y[3, :, :shared] = x[2, :, :shared]  # determined: infinite but for the type
    got = ops.gaussian_information(x, y, backend=backend)
    expected = ops.gaussian_information(x, y, backend="reference")
    assert float(got[2, 3]) > 17 * shared < float(expected[2, 3])  # where rounding sets the value
    got[2, 3] = expected[2, 3] = 0
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("layers", "n", "r"), [(1, 3, 1), (3, 64, 7), (2, 65, 17), (4, 500, 32), (5, 6600, 33)]
)
def test_native_whitening_is_the_double_precision_one_rounded(layers, n, r):
    mixed = torch.randn(layers, n, r).double() @ torch.randn(layers, r, r).double()
    codes = 5 + mixed * torch.logspace(-4, 4, r).double()
    expected = reference.whiten(codes).mT
    assert float((native.whiten(codes) - expected).abs().max()) < 1e-6
    assert torch.equal(native.whiten(codes.mT.contiguous().mT), native.whiten(codes))


def test_dependent_components_are_refused_by_every_backend():
    x = torch.randn(3, 40, 4).double()
    x[1, :, 2] = 0
    assert native.whiten(x) is None
    for pair in ((x, x[:1]), (x[:1], x[..., :2]), (x[:1, :, :2], x)):
        for backend in ("native", "torch", "reference"):
            if all(bool((side.std(dim=1) > 0).all()) for side in pair):
                assert bool(ops.gaussian_information(*pair, backend=backend).isfinite().all())
                continue
            with pytest.raises(ValueError, match=r"components of layers \[1\]"):
                ops.gaussian_information(*pair, backend=backend)


@pytest.mark.parametrize(("n", "k"), [(1, 3), (7, 5), (199, 40), (501, 333)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gram_matrices_are_symmetric_products(n, k, dtype):
    rows = torch.randn(n, k, dtype=dtype)
    exact = rows.double() @ rows.double().mT
    for found in (products.gram(rows), products.gram(rows.mT.contiguous().mT)):
        torch.testing.assert_close(
            found.double(), exact, rtol=1e-5, atol=k * torch.finfo(dtype).eps * 9
        )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ops.laplace(torch.zeros(1, 2, 3), torch.ones(1)), "gram must be"),
        (lambda: ops.laplace(torch.zeros(1, 2, 2), torch.zeros(1)), "positive numbers"),
        (lambda: ops.agop(torch.zeros(1, 2, 2), torch.zeros(1, 2, 2), torch.zeros(1, 2)), "alpha"),
        (lambda: ops.gaussian_information(torch.zeros(1, 4, 2), torch.zeros(1, 4, 2)), "too few"),
        (lambda: ops.gaussian_information(torch.zeros(1, 4, 2), torch.zeros(4, 2)), "one n"),
    ],
)
def test_malformed_calls_name_the_argument(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 1), (16, 501, 77), (37, 5, 300)])
def test_products_with_rows_take_any_layout(m, n, k, dtype):
    a, b = torch.randn(m, k, dtype=dtype), torch.randn(n, k, dtype=dtype)
    expected = (a.double() @ b.double().mT).to(dtype)
    columns = b.mT.contiguous().mT  # the same entries, read along the other axis
    strided = torch.stack([b, -b], dim=2)[:, :, 0]
    for left in (a, a.mT.contiguous().mT):
        for right in (b, columns, strided):
            torch.testing.assert_close(
                products.times_rows(left, right), expected, rtol=1e-5, atol=1e-4
            )
