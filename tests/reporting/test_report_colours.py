"""The colours of a report can be read on either page: the contrasts that WCAG 2 asks for."""

import re
from importlib.resources import files

import pytest
import torch

from expertsteer.reporting import charts, pairs

pytest.importorskip("matplotlib")


def palettes():
    css = (files("expertsteer.reporting") / "page.css").read_text("utf-8")
    light, dark = re.findall(r":root \{(.*?)\}", css, re.S)[:2]
    read = [dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", part)) for part in (light, dark)]
    return {"light": read[0], "dark": read[0] | read[1]}


def contrast(a, b):
    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        parts = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def test_numbers_stand_out_from_their_cells_on_either_page():
    maps = pairs._maps()
    for share in torch.linspace(0, 1, 51).tolist():
        cells = [colours(share) for colours in maps]
        name = charts._VARIABLES[pairs._letters(cells)]
        for cell, letters in zip(cells, name.removeprefix("on-")):
            cell = "#" + "".join(f"{round(255 * c):02x}" for c in cell[:3])
            assert contrast(cell, {"w": "#ffffff", "b": "#000000"}[letters]) >= 4.5, share


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_letters_and_lines_stand_out(mode):
    colours = palettes()[mode]
    for sheet in ("paper", "sheet"):
        for letters in ("ink", "muted", "link", "good", "bad", "dear"):
            assert contrast(colours[letters], colours[sheet]) >= 4.5, (letters, sheet)
    for tone in ("good", "bad", "dear"):
        for letters in ("ink", tone):
            assert contrast(colours[letters], colours[f"{tone}-sheet"]) >= 4.5, (letters, tone)
    for line in ("accent", *(f"c{i}" for i in range(1, 9))):
        assert contrast(colours[line], colours["paper"]) >= 3, line
