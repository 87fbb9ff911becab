"""The information between all layer pairs as a heat map in the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.color import Color
from rich.console import Group
from rich.style import Style
from rich.text import Text
from torch import Tensor

from ..pairing.layer_pairs import LayerPairing
from ..support.numbers import fixed, short

MOST_NUMBERS = 12  # columns that still show numbers; beyond, two characters of shade each
SHADES = " ░▒▓█"
COLD, HOT = (247, 251, 255), (8, 48, 107)  # the ends of the PNG's colours
CHOSEN = Style(color="#c4502b", bold=True)


def heat_map_text(pairing: LayerPairing) -> Group:
    """Rows are expert layers, columns target layers, the chosen pairs in brackets or diamonds.

    Colours say the same as the numbers or shades, so nothing is lost where there are none.

    Raises:
        ValueError: pairs that were chosen without a matrix.
    """
    if pairing.matrix is None:
        raise ValueError("the pairing holds no information matrix: its pairs were given by hand")
    matrix = pairing.matrix.double()
    numbers = matrix.shape[1] <= MOST_NUMBERS
    width = 7 if numbers else 2
    chosen = {(p.expert_layer, p.target_layer) for p in pairing}
    label = max(6, *(len(str(layer)) for layer in pairing.expert_axis))
    lines = [Text(" " * label + " target layer"), _column_labels(pairing, label, width)]
    for layer, row, heat in zip(pairing.expert_axis, matrix, _heat(matrix)):
        line = Text(f"{layer:>{label}} ")
        for target, value, share in zip(pairing.target_axis, row.tolist(), heat.tolist()):
            line.append(*_cell(value, share, (layer, target) in chosen, numbers))
        lines.append(line)
    lines[1].plain = "expert".ljust(label) + lines[1].plain[label:]
    return Group(*lines, _legend(pairing, matrix, numbers))


def _heat(matrix: Tensor) -> Tensor:
    """Entries from 0 (lowest) to 1 (highest)."""
    low, high = matrix.min(), matrix.max()
    return (matrix - low) / (high - low).clamp(min=1e-300)


def _column_labels(pairing: LayerPairing, label: int, width: int) -> Text:
    """Every layer's number where there is room, else every second or fourth."""
    step = 1 if width > 2 else 2 if max(pairing.target_axis) < 100 else 4
    line = " " * (label + 1)
    align = "^" if width > 2 else "<"
    for layer in pairing.target_axis[::step]:
        line += f"{layer:{align}{width * step}}"
    return Text(line.rstrip())


def _cell(value: float, share: float, chosen: bool, numbers: bool) -> tuple[str, Style]:
    rgb = [round(c + share * (h - c)) for c, h in zip(COLD, HOT)]
    background = Style(bgcolor=Color.from_rgb(*rgb), color="white" if share > 0.5 else "black")
    if numbers:
        text = f"[{fixed(value)}]" if chosen else fixed(value)
        return f"{text:^7}", background + CHOSEN if chosen else background
    if chosen:
        return "◆ ", background + CHOSEN
    shade = SHADES[min(len(SHADES) - 1, int(share * len(SHADES)))]
    return shade * 2, background + Style(color=Color.from_rgb(*rgb))


def _legend(pairing: LayerPairing, matrix: Tensor, numbers: bool) -> Text:
    mark = "[ ]" if numbers else "◆"
    text = f"{mark} the {len(pairing)} pairs by rule {pairing.rule!r}; mutual information "
    text += f"{fixed(float(matrix.min()))} to {fixed(float(matrix.max()))} nats"
    if not numbers:
        text += f", from {SHADES[1]} (low) to {SHADES[-1]} (high)"
    if pairing.floor is not None:
        above = int((matrix > pairing.floor).sum())
        text += f"; {above} of {matrix.numel()} pairs above what chance gives"
    if not numbers:
        chosen = (f"{p.expert_layer} → {p.target_layer}: {fixed(p.nats)}" for p in pairing)
        text += f"\nexpert layer → target layer: nats   {',  '.join(chosen)}"
    if pairing.expert_auc:
        aucs = zip(pairing.expert_axis, pairing.expert_auc)
        told = ",  ".join(f"{layer}: {fixed(auc)}" for layer, auc in aucs)
        text += f"\nexpert layer: AUC between the classes on held-out rows   {told}"
    if "effect" in pairing.settings:
        text += f"\n{_measured(pairing.settings)}"
    for expert in dict.fromkeys(e for e, _, _ in pairing.effects):
        told = ",  ".join(f"{t}: {short(x)}" for e, t, x in pairing.effects if e == expert)
        text += f"\nexpert layer {expert}, target layer: held-out effect   {told}"
    return Text(text)


def _measured(settings: Mapping[str, Any]) -> str:
    """What the effect is; any values, since the file may have been edited."""
    text = f"effect ({settings.get('unit', '')}): {settings['effect']}"
    text += f"; held out: {settings['held_out']}" if "held_out" in settings else ""
    text += f"; at budget {settings['budget']}" if "budget" in settings else ""
    return text + (f"; {settings['why']}" if "why" in settings else "")
