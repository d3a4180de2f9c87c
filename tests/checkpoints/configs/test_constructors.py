"""Constructors take the arguments that they took when each had all of them in one list, with the same defaults and tensors.

To write the file again with the code of another checkout: PYTHONPATH=CHECKOUT python -m tests.checkpoints.configs.test_constructors
"""

import ast
import hashlib
import inspect
import json
from functools import partial
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch

import mmblocks
from mmblocks import Block
from mmblocks.configurable import parameters, together
from mmblocks.public import all_names, find
from mmblocks.trunks import llama_layer

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


def public_blocks() -> list[type[Block]]:
    """Those whose last arguments are passed on."""
    found = (find(name) for name in all_names())
    return [cls for cls in found if isinstance(cls, type) and issubclass(cls, Block) and passed_on(cls)]


def passed_on(cls: type[Block]) -> type[Any] | None:
    """The ``TypedDict`` of the ``**`` in a signature."""
    last = list(inspect.signature(cls.__init__).parameters.values())[-1]
    typed = last.kind is last.VAR_KEYWORD and cls.shorthand is not None
    return get_args(get_type_hints(cls.__init__)[last.name])[0] if typed else None


@pytest.mark.parametrize("cls", public_blocks(), ids=lambda cls: cls.__name__)
def test_what_is_passed_on_is_what_the_shorthand_takes(cls: type[Block]):
    own = inspect.signature(cls.__init__).parameters
    taken = {name: each.annotation for name, each in parameters(cls).items() if name not in own}
    assert get_type_hints(passed_on(cls)) == taken


def test_no_constructor_has_too_many_arguments():
    root = Path(mmblocks.__file__).parent
    functions = [
        (f"{file.relative_to(root)}: {cls.name}", function.args)
        for file in root.rglob("*.py")
        for cls in ast.walk(ast.parse(file.read_text()))
        if isinstance(cls, ast.ClassDef)
        for function in cls.body
        if isinstance(function, ast.FunctionDef) and function.name == "__init__"
    ]
    assert {name: len(args.kwonlyargs) for name, args in functions if len(args.kwonlyargs) > 12} == {}


def test_one_shorthand_of_several():
    def patches(*, patch_size: int = 16, merge_size: int = 2) -> None:
        """Sizes."""

    both = together(partial(llama_layer, rope_theta=1e6), patches)
    llama, sizes = both(num_heads=2, mlp_dim=8, merge_size=1)
    assert sizes == {"patch_size": 16, "merge_size": 1}
    assert (llama["num_heads"], llama["rope_theta"], llama["norm_eps"]) == (2, 1e6, 1e-5)
    assert inspect.signature(both).parameters["merge_size"].annotation is int
    with pytest.raises(TypeError, match="patch"):
        both(num_heads=2, mlp_dim=8, patch=3)
    with pytest.raises(ValueError, match="duplicate parameter name: 'patch_size'"):
        together(patches, patches)


def test_an_unknown_argument_is_refused_by_the_class_itself():
    with pytest.raises(
        TypeError, match=r"VQGAN has no argument 'chanels'; did you mean 'channels'. accepted: num_codes, .*channels"
    ):
        find("VQGAN")(chanels=32)


if __name__ == "__main__":
    FILE.write_text("[\n" + ",\n".join(json.dumps(described(name, given)) for name, given in CASES) + "\n]\n")
