"""Operations of the steps of a fit, a product of two numbers counting two: what both the
predictions and the check on this machine are computed from."""

from __future__ import annotations

COMPONENTS = 32
KRYLOV = 16 * (2 * 6 + 1)  # columns that meet every row of a layer, in the search for components


def information(n: int, expert: tuple[int, int], target: tuple[int, int]) -> float:
    """Of all pairs, of models of ``(layers, width)``."""
    columns = expert[0] * expert[1] + target[0] * target[1]
    projection = n * columns * (2 * KRYLOV + 2 * COMPONENTS)
    return projection + 2 * n * expert[0] * target[0] * COMPONENTS**2


def alignment(n: int, expert: int, target: int) -> float:
    """Of one pair of layers of these widths: the expert's principal axes, and the rotation."""
    small, large = sorted((n, expert))
    axes = 2 * small**2 * large + 10 * small**3
    return axes + 2 * n * target * (expert + 2 * target) + 20 * target**3
