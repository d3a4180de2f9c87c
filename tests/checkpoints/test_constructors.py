"""Constructors take the arguments that they took when each had all of them in one list, with the same defaults and tensors.

To write the file again with the code of another checkout: PYTHONPATH=CHECKOUT python -m tests.checkpoints.test_constructors
"""

import hashlib
import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mmblocks import Block
from mmblocks.public import find

FILE = Path(__file__).parent / "constructors.json"
LLAMA = {"vocab_size": 64, "dim": 32, "num_layers": 2, "num_heads": 2, "mlp_dim": 48}
TOWER = {"image_size": 20, "patch_size": 10, "dim": 32, "num_layers": 3, "num_heads": 2, "mlp_dim": 16}
LAYERS = {"pixel_layer": 1, "shortcut_layer": 0, "semantic_layer": 2}
NETWORK = {"channels": 32, "multipliers": [1, 2], "num_blocks": 1, "latent_channels": 32}
HALVES = {f"{half}_{name}": count for half in ("encoder", "decoder") for name, count in (("dim", 16), ("layers", 1), ("heads", 2))}
CASES: list[tuple[str, dict[str, Any]]] = [
    *((name, LLAMA) for name in ("EVE1", "EVE2", "OmniGen", "NEO")),
    ("Orthus", {}),
    ("Orthus", {**LLAMA, "num_codes": 16}),
    ("EVE1PatchEmbedding", {"dim": 16}),
    ("EVE2PatchEmbedding", {"dim": 16}),
    ("EvaTower", {"num_layers": 2}),
    ("EvaTower", {"num_layers": 2, "swiglu": True, "attention_norm": True, "rope": True, "layer_scale": 0.1}),
    ("MAR", {"channels": 2, "grid": [2, 3], "num_classes": 5, **HALVES}),
    ("QFormer", {}),
    ("QFormerConnector", {"dim": 16, "in_dim": 8}),
    ("SEEDTokenizer", {}),
    ("TATok", {"num_layers": 2}),
    ("DualToken", {}),
    ("DualToken", {**TOWER, **LAYERS, **NETWORK, "attention_levels": [0], "code_dim": 8}),
    *((name, {}) for name in ("TiTok", "OneStageTiTok", "TATiTok", "FirstStageTiTok")),
    *((name, {}) for name in ("VQGAN", "ChameleonVQ", "IBQ", "LlamaGenVQ", "VARVQ", "ConvEncoder", "ConvDecoder")),
    *((name, NETWORK) for name in ("VQGAN", "ChameleonVQ", "IBQ", "ConvEncoder", "ConvDecoder")),
]


def described(name: str, given: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a Block, defaults included, and a checksum of its tensors' names and shapes."""
    with torch.device("meta"):
        block = find(name)(**{key: tuple(value) if isinstance(value, list) else value for key, value in given.items()})
    assert isinstance(block, Block)
    tensors = {key: list(tensor.shape) for key, tensor in block.state_dict().items()}
    checksum = hashlib.sha256(json.dumps(tensors, sort_keys=True).encode()).hexdigest()[:16]
    arguments = {key: value for key, value in block.config.items() if not isinstance(value, Block)}
    return {"name": name, "given": given, "arguments": json.loads(json.dumps(arguments)), "tensors": checksum}


@pytest.mark.parametrize("before", json.loads(FILE.read_text()), ids=lambda case: f"{case['name']}-{len(case['given'])}")
def test_arguments_defaults_and_tensors(before: dict[str, Any]):
    now = described(before["name"], before["given"])
    assert {key: now["arguments"][key] for key in before["arguments"]} == before["arguments"]
    assert now["tensors"] == before["tensors"]
    accepted = inspect.signature(find(before["name"])).parameters
    assert before["arguments"].keys() <= accepted.keys()


if __name__ == "__main__":
    FILE.write_text("[\n" + ",\n".join(json.dumps(described(name, given)) for name, given in CASES) + "\n]\n")
