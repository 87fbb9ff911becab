"""`ops.steer` refuses a malformed call by the name of the argument."""

import pytest
import torch

from expertsteer import ops
from helpers.steer_calls import case

BAD = {
    "operation": ("subtract", "operation must be one of .*came 'subtract'"),
    "hidden": (torch.zeros(3, 4), r"hidden must be \[batch, tokens, width\]"),
    "table": (torch.zeros(3, 5), r"table must be \[rows, 4\]"),
    "table empty": (torch.zeros(0, 4), "at least row 0"),
    "table double": (torch.zeros(3, 4).double(), "table must be contiguous and torch.float32"),
    "table strided": (torch.zeros(4, 3).T, "table must be contiguous"),
    "rows": (torch.zeros(2, 1), "rows must be .* of torch.int32"),
    "rows long": (torch.zeros(2, 1).long(), "rows must be .* of torch.int32"),
    "rows batch": (torch.zeros(3, 1, dtype=torch.int32), r"rows must be \[2 or 1, vectors\]"),
    "rows none": (torch.zeros(2, 0, dtype=torch.int32), r"rows must be \[2 or 1, vectors\]"),
    "rows high": (torch.tensor([[1], [3]]).int(), r"rows must lie within .* 0..2, came 1..3"),
    "rows low": (torch.tensor([[-1]]).int(), "rows must lie within"),
    "strengths": (torch.zeros(2, 1).half(), "strengths must be .* of torch.float32"),
    "strengths count": (torch.zeros(2, 2), "one number per vector"),
    "mask": (torch.zeros(2, 3), "mask must be bool"),
    "mask shape": (torch.zeros(2, 2, dtype=torch.bool), r"mask must be bool of shape \(2, 3\)"),
    "gates": (None, "gates and thresholds belong together"),
    "gates shape": (torch.zeros(3, dtype=torch.int32), r"gates must be \[2 or 1\]"),
    "gates high": (torch.tensor([9]).int(), "gates must lie within"),
    "thresholds": (torch.zeros(2).double(), "thresholds must be"),
    "inverse_norms": (torch.ones(2), "inverse_norms must be contiguous"),
    "rows elsewhere": (torch.zeros(2, 1, dtype=torch.int32, device="meta"), "rows must be on cpu"),
    "hidden whole": (torch.zeros(2, 3, 4, dtype=torch.int32), "floating-point"),
    "backend": ("fast", "backend must be one of"),
    "backend of others": ("triton", "does not implement steer"),
}


@pytest.mark.parametrize("name", BAD)
def test_malformed_calls_name_the_argument(name):
    value, message = BAD[name]
    arguments = case((2, 3, 4), torch.float32, table_rows=3)
    with pytest.raises(ValueError, match=message):
        ops.steer(**arguments | {name.split()[0]: value})
