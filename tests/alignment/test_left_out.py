"""Ridge with its penalty chosen on groups left out: against fits without each group."""

import pytest
import torch

from expertsteer.alignment.left_out import left_out_ridge
from expertsteer.support.tensors import normal_draws

PENALTIES = (1e-3, 0.1, 3.0)


def problem(n, d, m=3, noise=0.5, seed=0):
    x = normal_draws(n, d, seed=seed, dtype=torch.float64)
    weight = normal_draws(d, m, seed=seed + 1, dtype=torch.float64)
    return x, x @ weight + noise * normal_draws(n, m, seed=seed + 2, dtype=torch.float64) + 5.0


def grouped(n):
    return torch.arange(n) // 3 * 7 - 4  # any numbers, the last group smaller


def refitted(x, y, groups, penalty):
    """Explained variance of rows by plain fits without their group, with the scales of all."""
    z = (x - x.mean(0)) / x.std(0, correction=0)
    share = penalty * float(torch.linalg.eigvalsh(z @ z.mT).clamp(min=0).sum())
    share /= min(len(x) - 1, x.shape[1])
    error = torch.zeros(y.shape[1], dtype=y.dtype)
    for group in groups.unique():
        out, rest = groups == group, groups != group
        centre, mean = z[rest].mean(0), y[rest].mean(0)
        a = z[rest] - centre
        gram = a.mT @ a + share * torch.eye(x.shape[1], dtype=x.dtype)
        said = (z[out] - centre) @ torch.linalg.solve(gram, a.mT @ (y[rest] - mean)) + mean
        error += (y[out] - said).square().sum(0)
    return float((1 - error / (y - y.mean(0)).square().sum(0)).mean())


@pytest.mark.parametrize(("n", "d"), [(20, 7), (14, 31), (23, 23)])
@pytest.mark.parametrize("single", [True, False])
def test_every_penalty_is_judged_as_by_fits_without_each_group(n, d, single):
    x, y = problem(n, d)
    groups = torch.arange(n) if single else grouped(n)
    found = left_out_ridge(x, [y], None if single else groups, PENALTIES)[0]
    expected = [refitted(x, y, groups, penalty) for penalty in PENALTIES]
    assert [share for _, share in found.curve] == pytest.approx(expected, abs=1e-9)
    assert found.explained == max(share for _, share in found.curve)
    assert dict(found.curve)[found.penalty] == found.explained


def test_the_map_is_the_ridge_solution_at_that_penalty():
    x, y = problem(40, 6)
    found = left_out_ridge(x, [y], penalties=[0.2])[0]
    z = (x - x.mean(0)) / x.std(0, correction=0)
    gram = z.mT @ z
    share = 0.2 * torch.linalg.eigvalsh(gram).mean()
    weight = torch.linalg.solve(gram + share * torch.eye(6, dtype=x.dtype), z.mT @ (y - y.mean(0)))
    torch.testing.assert_close(found.map(x), z @ weight + y.mean(0))


def test_units_of_either_side_do_not_matter_nor_an_enormous_dimension():
    x, y = problem(60, 8, noise=2.0)
    plain = left_out_ridge(x, [y])[0]
    a, b = torch.logspace(-3, 4, 8).double(), torch.tensor([1.0, 1e5, 1e-3]).double()
    scaled = left_out_ridge(x * a + 100, [y * b - 7])[0]
    assert scaled.penalty == plain.penalty
    assert scaled.explained == pytest.approx(plain.explained, abs=1e-9)
    torch.testing.assert_close((scaled.map(x * a + 100) + 7) / b, plain.map(x))


def test_rows_that_repeat_within_a_group_do_not_flatter():
    """Noise alone, each row four times: by single rows it looks known, by groups it does not."""
    x = normal_draws(60, 90, seed=0, dtype=torch.float64).repeat_interleave(4, 0)
    y = normal_draws(60, 20, seed=1, dtype=torch.float64).repeat_interleave(4, 0)
    groups = torch.arange(60).repeat_interleave(4)
    assert left_out_ridge(x, [y])[0].explained > 0.9
    assert left_out_ridge(x, [y], groups)[0].explained < 0.1


def test_sets_of_targets_are_chosen_for_by_themselves():
    x, y = problem(30, 5)
    noise = normal_draws(30, 4, seed=9, dtype=torch.float64)
    both = left_out_ridge(x, [y, noise])
    for together, target in zip(both, (y, noise)):
        alone = left_out_ridge(x, [target])[0]
        assert together.penalty == alone.penalty
        torch.testing.assert_close(together.map(x), alone.map(x))
    assert both[0].penalty < both[1].penalty


def test_columns_that_do_not_vary_are_kept_as_they_are():
    x, y = problem(20, 5)
    x[:, 2], y[:, 1] = 4.0, -3.0
    found = left_out_ridge(x.float(), [y.float()])[0]
    said = found.map(x.float())
    assert said.dtype == torch.float32 and bool(said.isfinite().all())
    torch.testing.assert_close(said[:, 1], torch.full((20,), -3.0))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"targets": []}, "targets"),
        ({"targets": [torch.zeros(4, 2)]}, "targets"),
        ({"groups": torch.zeros(5)}, "groups must number"),
        ({"groups": torch.zeros(6)}, "at least 2"),
        ({"penalties": [0.1, 0.0]}, "penalties"),
        ({"penalties": []}, "penalties"),
    ],
)
def test_bad_input_is_named(change, named):
    given = {"x": torch.randn(6, 3), "targets": [torch.randn(6, 2)]}
    with pytest.raises(ValueError, match=named):
        left_out_ridge(**given | change)
