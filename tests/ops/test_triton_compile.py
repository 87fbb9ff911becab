"""Every RFM kernel in every configuration, compiled ahead of time: no spills, no stack."""

import pytest

pytest.importorskip("triton")
from expertsteer.ops import triton_tiles  # noqa: E402
from expertsteer.ops.rfm import triton_agop, triton_laplace  # noqa: E402
from helpers.triton_checks import compiled_usage, compiles  # noqa: E402

pytestmark = compiles
PRECISIONS = ("tf32x3", "ieee")


def signature(pointers, integers, eps=False):
    """Arguments of a kernel in order: ``sizes`` is 64-bit, the other pointers are to float32."""
    types = {name: "*i64" if name == "sizes" else "*fp32" for name in pointers.split()}
    return types | dict.fromkeys(integers.split(), "i32") | ({"eps": "fp32"} if eps else {})


def compilations(precisions):
    """Every kernel in every configuration, with its types and constants, all arguments present."""
    types = signature("gram bandwidth sizes kernel weights distances", "n", eps=True)
    for tile in triton_laplace.GRAM_TILES:
        yield triton_laplace.laplace_kernel, types, {"BLOCK": tile.rows}, tile
    for precision in precisions:
        dot = {"BLOCK_K": triton_tiles.BLOCK_K, "PRECISION": precision}
        pointers = "left right left_norms right_norms bandwidth kernel weights"
        types = signature(pointers, "m n d", eps=True)
        for tile in triton_laplace.POINT_TILES:
            yield triton_laplace.laplace_points_kernel, types, dot | tile.blocks, tile
        types = signature("weights alpha right sizes rows_out row_sums", "n m outputs")
        for tile in triton_agop.ROW_TILES:
            yield triton_agop.gradient_rows_kernel, types, dot | tile.blocks, tile
        types = signature("rows sizes out", "rows_count n")
        for tile in triton_agop.PRODUCT_TILES:
            yield triton_agop.symmetric_product_kernel, types, dot | {"BLOCK": tile.rows}, tile


def usage_of(kernel, types, constants, tile, architecture, aligned, folder):
    # What triton assumes at run time of pointers, and of sizes that are multiples of 16.
    every = types | dict.fromkeys(constants, "constexpr")
    places = [
        (place,)
        for place, name in enumerate(kernel.arg_names)
        if every[name].startswith("*") or (aligned and every[name] == "i32")
    ]
    attributes = dict.fromkeys(places, [["tt.divisibility", 16]])
    return compiled_usage(
        kernel, types, constants, architecture, folder, options=tile.options, attributes=attributes
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("aligned", "precisions"),
    # The aligned variants use fewer registers and copy asynchronously; ieee runs on older devices.
    [(False, PRECISIONS), (True, ("tf32x3",))],
    ids=["any size", "multiples of 16"],
)
@pytest.mark.parametrize("architecture", [80, 90, 100])
def test_every_configuration_compiles_without_spills(
    architecture, aligned, precisions, fresh_cache
):
    spilling = []
    for kernel, types, constants, tile in compilations(precisions):
        usage = usage_of(kernel, types, constants, tile, architecture, aligned, fresh_cache)
        what = kernel.__name__, str(tile), constants.get("PRECISION")
        print(architecture, aligned, *what, usage)
        if usage["LOCAL"] or usage["STACK"] or not 0 < usage["REG"] <= 255:
            spilling.append((*what, usage))
    assert not spilling


def test_the_kernels_compile_without_their_optional_arguments(fresh_cache):
    for kernel, types, constants, tile in compilations(("tf32x3",)):
        if tile.rows == 32:
            absent = {name: None for name in ("sizes", "distances") if name in types}
            usage = usage_of(kernel, types, constants | absent, tile, 90, False, fresh_cache)
            assert usage["LOCAL"] == usage["STACK"] == 0, (kernel.__name__, usage)
