"""Matrix-based Renyi information of order 2: the definition, and what it must keep to."""

import math
import warnings

import pytest
import torch

import expertsteer as es


def definition(x, y):
    """Eigenvalues of the normalised Gram matrices and of their entry-wise product."""

    def gram(states):
        distances = torch.cdist(states, states, compute_mode="donot_use_mm_for_euclid_dist")
        above = distances[torch.triu(torch.ones_like(distances), 1) > 0]
        return torch.exp(-distances.square() / (2 * above.median() ** 2))

    def entropy(matrix):
        return -torch.linalg.eigvalsh(matrix / matrix.trace()).square().sum().log()

    a, b = gram(x), gram(y)
    return entropy(a) + entropy(b) - entropy(a * b)


@pytest.mark.parametrize(("n", "layers"), [(9, (1, 1)), (63, (2, 3)), (257, (3, 1))])
def test_all_pairs_at_once_are_the_definition(make_states, n, layers):
    x = make_states(layers=layers[0], examples=n, seed=1).states
    y = make_states(layers=layers[1], examples=n, width=300, seed=2).states
    found = es.mutual_information(x, y, "renyi2")
    for a in range(layers[0]):
        for b in range(layers[1]):
            assert float(found[a, b]) == pytest.approx(float(definition(x[a], y[b])), abs=2e-6)


def test_scale_turns_and_exchange_leave_it(make_states):
    x, y = make_states(layers=2, seed=1).states, make_states(layers=3, seed=2).states
    base = es.mutual_information(x, y, "renyi2")
    turned = 0.01 * x @ torch.linalg.qr(torch.randn(12, 12).double()).Q + 5
    torch.testing.assert_close(es.mutual_information(turned, y, "renyi2"), base, rtol=0, atol=1e-5)
    torch.testing.assert_close(es.mutual_information(y, x, "renyi2"), base.T)
    single = es.mutual_information(x.float(), y.float(), "renyi2")
    torch.testing.assert_close(single, base, rtol=0, atol=1e-5)


def test_dependence_stands_out_and_never_exceeds_the_bounds(make_states):
    x = make_states(layers=2, examples=200, seed=1).states
    other = torch.randn(1, 200, 12).double()
    with warnings.catch_warnings():  # the independent layer may be said to lie under its floor
        warnings.simplefilter("ignore", UserWarning)
        measured = es.mutual_information(x, torch.cat([x, other]), "renyi2", null=30, bootstrap=30)
    assert float(measured.z_score[0, 0]) > 10 and abs(float(measured.z_score[0, 2])) < 4
    assert bool((measured.nats >= -1e-6).all()) and bool((measured.nats < math.log(200)).all())
    assert float(measured.nats[0, 0]) > float(measured.nats[0, 1]) > float(measured.nats[0, 2])
    assert bool((measured.low <= measured.nats).all() & (measured.nats <= measured.high).all())


def test_the_order_of_a_noisy_chain_is_recovered():
    chain = [torch.randn(600, 6).double()]
    for _ in range(3):
        chain.append(chain[-1] + 0.7 * torch.randn(600, 6).double())
    nats = es.mutual_information(chain[0][None], torch.stack(chain[1:]), "renyi2")[0]
    assert bool((nats[:-1] > nats[1:]).all())


def test_bad_input_is_named(make_states):
    x = make_states().states
    flat = x.clone()
    flat[1] = 0.3
    for arguments, options, message in [
        ((x, flat), {}, r"y\[1\] is constant for more than half"),
        ((x, x), {"components": 4}, "components must be left out"),
        ((x, x), {"memory": 1e-5}, "memory must allow the .* GiB .* 80 examples"),
        ((x, x), {"backend": "native"}, "'auto' or 'reference'"),
    ]:
        with pytest.raises(ValueError, match=message):
            es.mutual_information(*arguments, "renyi2", **options)
