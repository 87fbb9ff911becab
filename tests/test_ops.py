"""One body over all backends: each is the reference, to the rounding of its type."""

import pytest
import torch

from expertsteer import ops
from expertsteer.ops import native, products, reference

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
SHAPES = [(1, 1, 1), (2, 3, 17), (1, 5, 63), (3, 4, 257), (2, 7, 1024)]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(params=DEVICES)
def device(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device(request.param)


@pytest.fixture(params=["reference", "native"])
def backend(request, device):
    if request.param == "native":
        reason = native.why_not(device, torch.float32)
        if reason and device.type == "cuda":
            pytest.skip(reason)
    return request.param


def steer_inputs(shape, dtype, device):
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    hidden = (10 * torch.randn(shape, dtype=torch.float64)).to(dtype).to(device)
    delta = torch.randn(shape[2], dtype=torch.float64).to(wide).to(device)
    mask = (torch.rand(shape[:2]) < 0.5).to(device)
    return hidden, delta, mask


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_steer_add_rounds_the_wide_sum_once(backend, device, dtype, shape, masked):
    hidden, delta, mask = steer_inputs(shape, dtype, device)
    exact = (hidden.to(delta.dtype) + delta).to(dtype)
    expected = torch.where(mask.unsqueeze(-1), exact, hidden) if masked else exact
    out = ops.steer_add(hidden.clone(), delta, mask if masked else None, backend=backend)
    assert torch.equal(out, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_half_precision_value_survives_and_rounds_like_torch(backend, device, dtype):
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    hidden = every.reshape(1, 256, 256).to(device)
    for shift in (0.0, 2.0**-25, 0.1, -3.7, 6e4):
        delta = torch.full((256,), shift, device=device)
        out = ops.steer_add(hidden.clone(), delta, backend=backend)
        expected = (hidden.float() + delta).to(dtype)
        nan = torch.isnan(expected)
        assert torch.equal(torch.isnan(out), nan)
        assert torch.equal(out[~nan].view(torch.int16), expected[~nan].view(torch.int16))


def test_unselected_rows_keep_their_bits_even_when_not_finite(backend, device):
    hidden, delta, mask = steer_inputs((2, 3, 17), torch.float32, device)
    hidden[~mask] = float("nan")
    out = ops.steer_add(hidden.clone(), delta, mask, backend=backend)
    assert bool(torch.isnan(out[~mask]).all()) and bool(torch.isfinite(out[mask]).all())


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_strides_are_served(backend, device, dtype):
    hidden, delta, mask = steer_inputs((4, 6, 34), dtype, device)
    delta = delta[:17].contiguous()
    views = {
        "columns": hidden[:, :, :17],
        "rows": hidden[::2, 1::2, 17:],
        "transposed": hidden[:, :, :17].transpose(0, 1),
        "scattered": hidden[:, :, ::2],
    }
    for name, view in views.items():
        chosen = mask[::2, 1::2] if name == "rows" else mask
        chosen = chosen.T if name == "transposed" else chosen
        expected = reference.steer_add(view, delta, chosen)
        kept = hidden.clone()
        out = ops.steer_add(view, delta, chosen, backend=backend)
        assert torch.equal(out, expected), name
        hidden.copy_(kept)


def test_native_works_in_place_and_steps_aside_for_autograd():
    hidden, delta, _ = steer_inputs((2, 3, 17), torch.float32, torch.device("cpu"))
    assert ops.steer_add(hidden, delta, backend="native") is hidden
    leaf = torch.zeros(2, 3, 17, requires_grad=True)
    out = ops.steer_add(leaf, delta, backend="native")
    out.sum().backward()
    assert torch.equal(leaf.grad, torch.ones(2, 3, 17)) and bool((leaf == 0).all())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": torch.zeros(3, 4)}, "hidden must be"),
        ({"delta": torch.zeros(5)}, r"delta must be contiguous, of shape \(4,\)"),
        ({"delta": torch.zeros(4).double()}, "torch.float32"),
        ({"mask": torch.zeros(2, 2, dtype=torch.bool)}, r"mask must be bool of shape \(2, 3\)"),
        ({"mask": torch.zeros(2, 3)}, "mask must be bool"),
        ({"backend": "fast"}, "backend must be one of"),
        ({"backend": "triton"}, "does not implement steer_add"),
    ],
)
def test_steer_add_refuses_what_it_cannot_serve(change, message):
    arguments = {"hidden": torch.zeros(2, 3, 4), "delta": torch.zeros(4), "mask": None} | change
    with pytest.raises(ValueError, match=message):
        ops.steer_add(**arguments)


def test_an_explicit_backend_is_never_replaced(monkeypatch):
    monkeypatch.setattr(native, "_C", None)
    monkeypatch.setattr(native, "MISSING", "the extension was not built")
    with pytest.raises(ops.BackendError, match="'native' cannot serve steer_add: the extension"):
        ops.steer_add(torch.zeros(1, 1, 2), torch.zeros(2), backend="native")
    with pytest.warns(RuntimeWarning, match="not built.*'reference'"):
        ops.steer_add(torch.zeros(1, 1, 2), torch.zeros(2))


def test_auto_takes_no_kernel_to_a_device_it_was_never_run_on():
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert ops.choose("steer_add", "auto", cpu, torch.float32) is native.steer_add
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
