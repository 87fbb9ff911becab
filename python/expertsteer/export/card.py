"""The model card of an exported checkpoint: what it is made of, what was added, how to check it."""

from __future__ import annotations

import json

from ..folding.permanent import CHECKPOINTS
from ..support.artifact_files import to_json
from ..support.numbers import setting, short
from ..support.text import clean, code, json_line, markdown
from ..support.versions import package_versions
from ..vectors.vectors import SteeringVectors
from .checkpoint_files import CheckpointExport
from .source import SourceCheckpoint

_LICENCE_FIELDS = ("license", "license_name", "license_link")


def checkpoint_card(
    export: CheckpointExport, vectors: SteeringVectors, source: SourceCheckpoint, base_card: str
) -> str:
    """Markdown with the front matter that the Hub reads.

    Args:
        export: what is being written.
        vectors: what was added.
        source: the checkpoint it was made of.
        base_card: the card of the source; its licence fields are repeated, empty where none.
    """
    licence = _licence(base_card)
    base = source.hub_id
    head = [
        "---",
        *([f"base_model: {base}"] if base else []),
        *licence,
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "tags:",
        "- expertsteer",
        "- activation-steering",
        "---",
    ]
    name = base or source.folder.resolve().name
    revision = f" at revision {code(source.revision)}" if source.revision else ""
    layers = ", ".join(map(str, export.layers))
    form = CHECKPOINTS[export.family]
    lines = [
        *head,
        "",
        f"# {markdown(name)}, steered",
        "",
        f"{code(name)}{revision} with steering vectors written into its weights by "
        "[expertsteer](https://arxiv.org/abs/2505.12313). It loads in plain transformers "
        "without a plugin. A server with code of its own for this family may ignore the biases: "
        "compare one greedy completion with that of transformers.",
        "",
        "| | |",
        "|---|---|",
        f"| base model | {code(name)} |",
        f"| steered layers (from 0) | {layers} |",
        f"| strength | {setting(export.strength)} |",
        f"| fingerprint of the vectors | `{vectors.fingerprint}` |",
        f"| written | {form} (`{export.family}` to `{export.written_as}`) |",
        f"| tensors with new values | {len(export.changed)} of {export.tensors} |",
        "",
        "At each steered layer `strength * scale * vector` is added to the hidden states of all "
        "tokens. It is the bias of the layer's last linear; biases that the format asks for "
        "elsewhere are zero. All other weights have the bytes of the base model.",
        "",
        "| layer | scale | norm of what is added |",
        "|---|---|---|",
        *(
            f"| {i} | {short(float(vectors.scales[i]), 6)} | "
            f"{short(abs(export.strength) * float(vectors.displacement(i).norm()), 6)} |"
            for i in export.layers
        ),
        "",
        "## Licence",
        "",
        "The licence of the base model applies to this checkpoint"
        + (", and its terms are in the files beside this one." if licence else "; see its card."),
        "",
        "## How to check it",
        "",
        "The logits equal those of the base model while it is steered, to rounding:",
        "",
        "```python",
        "import expertsteer as es, torch",
        "from transformers import AutoModelForCausalLM",
        "",
        f"base = AutoModelForCausalLM.from_pretrained({json.dumps(name)}).eval()",
        'made = AutoModelForCausalLM.from_pretrained("<this folder>").eval()',
        'vectors = es.SteeringVectors.from_pretrained("<folder of the vectors>")',
        f'assert vectors.fingerprint == "{vectors.fingerprint}"',
        "tokens = torch.tensor([[3, 5, 7, 9]])",
        f"with torch.no_grad(), es.attach(base, vectors, strength={export.strength!r}):",
        "    print((made(tokens).logits - base(tokens).logits).abs().max())",
        "```",
        "",
        "## Where the vectors come from",
        "",
        "```json",
        json_line(to_json({"exported_with": package_versions()} | vectors.metadata)),
        "```",
        "",
    ]
    return "\n".join(lines)


def _licence(card: str) -> list[str]:
    """The licence fields of a card's front matter, line by line."""
    if not card.startswith("---"):
        return []
    lines = card.split("---", 2)[1].splitlines()
    return [clean(line).rstrip() for line in lines if line.partition(":")[0] in _LICENCE_FIELDS]
