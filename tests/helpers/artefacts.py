"""One small artefact of each kind, and what tells two of them apart."""

import torch

import expertsteer as es
from expertsteer.states.manifest import Manifest
from expertsteer.states.shards import Shards

METADATA = {
    "target": {"name": "some/model", "num_layers": 4, "hidden_size": 6, "architecture": "Llama"},
    "expert": {"name": "other/model", "revision": "abc"},
    "pairing": {"rule": "lowest", "pairs": [{"expert_layer": 0, "target_layer": 1, "nats": 0.5}]},
    "figures": {"validation_auc": [0.9]},
    "method": "rfm",
    "note": "ä text with 1 and 0.25",
}


def drawn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def vectors():
    return es.SteeringVectors({1: drawn(6), 3: drawn(6, seed=1)}, {1: 2.5, 3: 1.25}, METADATA)


def states():
    labels, keys = torch.arange(8) % 2, torch.arange(8) * 7
    return es.HiddenStates(drawn(3, 8, 5), labels, keys=keys, model={"name": "m", "num_layers": 3})


def pairing():
    pairs = (es.LayerPair(0, 1, 0.5), es.LayerPair(2, 0, 0.25))
    return es.LayerPairing(pairs, "lowest", drawn(3, 2), floor=drawn(3, 2, seed=1))


def alignment():
    return es.align(states(), states(), "ridge", pairing=[(0, 1), (2, 2)])


# kind: (make one, read it)
ARTEFACTS = {
    "steering_vectors": (vectors, es.SteeringVectors.from_pretrained),
    "hidden_states": (states, es.HiddenStates.from_pretrained),
    "layer_pairing": (pairing, es.LayerPairing.from_pretrained),
    "alignment": (alignment, es.Alignment.from_pretrained),
}


def manifest(examples=10, shard_examples=4):
    contrast = {"name": "c.jsonl", "sha256": "00ff", "examples": examples, "positive": 5}
    about = {"name": "m", "fingerprint": "12", "num_layers": 3}
    kept = {"layers": (0, 2), "position": "last", "max_length": None, "dtype": "bfloat16"}
    return Manifest(about, contrast, **kept, width=5, tokens="ab", shard_examples=shard_examples)


def captured(folder):
    made = Shards(folder, manifest())
    made.write_manifest()
    for shard in range(3):
        count = made.manifest.count(shard)
        column = torch.arange(count)
        hidden = drawn(2, count, 5, seed=shard, dtype=torch.bfloat16)
        made.write(shard, hidden, labels=column % 2, keys=column * 3, pairs=column // 2)


def told(value):
    """Everything that a loaded thing holds, to be compared."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), list(value.shape), value.double().numpy().tobytes().hex()
    if isinstance(value, dict):
        return {str(k): told(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [told(v) for v in value]
    return told(vars(value)) if hasattr(value, "__dataclass_fields__") else repr(value)
