"""Whole models come from the Hub by their ids: the model, its tokenizers and its front, each from where it is published."""

import base64
import itertools

import pytest
import torch
from PIL import Image

from mmblocks import Pipeline, TokenizerFile
from mmblocks.models import EVE1, EVE2, NEO, Emu3, Emu3GenFront
from mmblocks.models.chat_fronts import NEO_FRONT
from mmblocks.models.emu3.front import EMU3_CHAT
from mmblocks.tokenizers import Emu3VQ
from mmblocks.vocabulary.tiktoken_files import _letters
from tests.pipelines.test_emu_fronts import TOKENIZER as EMU_TOKENIZER
from tests.pipelines.test_emu_fronts import painter
from tests.pipelines.test_omnigen_front import FRONT as SMALL
from tests.pipelines.test_omnigen_front import autoencoder, omnigen
from tests.pipelines.test_omnigen_front import tokenizer as omnigen_tokenizer
from tests.shared.tiny_tokenizers import byte_level, saved

PICTURE = Image.new("RGB", (700, 530), (200, 30, 0))
ASKS = [{"role": "user", "content": [PICTURE, "what is this?"]}]


def published(block, folder, **options) -> dict[str, bytes]:
    block.to_upstream(folder, **options)
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def tiktoken_file() -> bytes:
    """As many tokens as Emu3's text has, single bytes in the published order first: digits are 15 to 24."""
    single = [bytes([byte]) for byte in _letters()]
    letters = range(97, 123)
    several = (bytes(token) for length in (2, 3, 4) for token in itertools.product(letters, repeat=length))
    tokens = [*single, *itertools.islice(several, 151643 - 256)]
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens))


@pytest.fixture(scope="module")
def emu3_files(tmp_path_factory) -> dict[str, bytes]:
    torch.manual_seed(0)
    model = Emu3(vocab_size=184622, dim=8, num_layers=1, num_heads=1, mlp_dim=8)
    return published(model, tmp_path_factory.mktemp("emu3"), layout="emu3") | {"emu3.tiktoken": tiktoken_file()}


@pytest.fixture(scope="module")
def tokenizer_files(tmp_path_factory) -> dict[str, bytes]:
    torch.manual_seed(0)
    sizes = {"channels": 32, "multipliers": (1, 1, 1, 1), "num_blocks": 1}
    return published(Emu3VQ(**sizes), tmp_path_factory.mktemp("vq"), layout="emu3")


def test_emu3_gen_draws(hub, emu3_files, tokenizer_files) -> None:
    hub.commit("BAAI/Emu3-Gen", emu3_files | {"modeling_emu3.py": b"raise RuntimeError"})
    hub.commit("BAAI/Emu3-VisionTokenizer", tokenizer_files)
    pipe = Pipeline.from_pretrained("BAAI/Emu3-Gen")
    assert pipe.front == Emu3GenFront()
    (picture,) = pipe.generate_image("a cat 3*4 <|image start|>", size=(16, 24), seed=0)
    assert picture.size == (24, 16)
    assert not any(path.endswith(".py") for path in hub.paths())


def test_emu3_chat_answers(hub, emu3_files, tokenizer_files) -> None:
    hub.commit("BAAI/Emu3-Chat", emu3_files)
    hub.commit("BAAI/Emu3-VisionTokenizer", tokenizer_files)
    pipe = Pipeline.from_pretrained("BAAI/Emu3-Chat", dtype=torch.bfloat16)
    assert pipe.front == EMU3_CHAT
    assert next(pipe.components.model.parameters()).dtype == torch.bfloat16
    assert next(pipe.components.image_tokenizer.parameters()).dtype == torch.float32  # half precision changes codes
    assert isinstance(pipe.chat([{"role": "user", "content": "hello"}], max_tokens=3, seed=0).text, str)


READERS = {
    "BAAI/EVE-7B-v1.0": (EVE1, {"vision_dim": 16}, ["<s>", "</s>"]),
    "BAAI/EVE-7B-HD-v2.0": (EVE2, {"vision_dim": 16, "num_kv_heads": 1}, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]),
    "Paranioar/NEO1_0-2B-SFT": (
        NEO,
        {"vision": {"hidden_dim": 16}, "num_prebuffer_layers": 1},
        ["<|im_start|>", "<|im_end|>", "<img>", "</img>"],
    ),
}


@pytest.mark.parametrize("name", READERS)
def test_models_that_read_answer(name, hub, tmp_path) -> None:
    cls, arguments, specials = READERS[name]
    made = byte_level(specials)
    model = cls(vocab_size=made.get_vocab_size(), dim=16, num_layers=2, num_heads=2, mlp_dim=16, **arguments)
    hub.commit(name, published(model, tmp_path / "files") | {"tokenizer.json": made.to_str().encode()})
    pipe = Pipeline.from_pretrained(name)
    small = Image.new("RGB", (64, 48), (0, 90, 0))
    reply = pipe.chat([{"role": "user", "content": [small, "what is this?", small]}], max_tokens=4, seed=0)
    assert isinstance(reply.text, str)


def test_another_part_is_taken_from_elsewhere(hub, emu3_files, tokenizer_files, tmp_path) -> None:
    hub.commit("BAAI/Emu3-Gen", emu3_files)
    hub.commit("someone/better-tokenizer", tokenizer_files)
    pipe = Pipeline.from_pretrained(
        "BAAI/Emu3-Gen", image_tokenizer="someone/better-tokenizer", text_tokenizer=TokenizerFile.of(byte_level([]))
    )
    assert not any("emu3.tiktoken" in path for path in hub.paths())
    pipe = Pipeline.from_pretrained("BAAI/Emu3-Gen", front=NEO_FRONT, image_tokenizer="someone/better-tokenizer")
    assert pipe.abilities == ("chat", "training_samples")


def files_of(folder) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_parts_that_are_folders_of_one_repository(hub, tmp_path) -> None:
    made = painter("emu")
    made.to_diffusers(tmp_path / "emu" / "pretrain")
    hub.commit("BAAI/Emu", files_of(tmp_path / "emu") | {"Emu-instruct.pt": b"not read"})
    pipe = Pipeline.from_pretrained("BAAI/Emu", text_tokenizer=EMU_TOKENIZER)
    assert pipe.abilities == ("chat", "generate_image", "edit")
    assert all(torch.equal(pipe.components.decoder.state_dict()[key], value) for key, value in made.decoder.state_dict().items())
    assert not any("instruct" in path for path in hub.paths() if "resolve" in path)

    omnigen().to_upstream(tmp_path / "omnigen" / "transformer", layout="omnigen-diffusers")
    autoencoder().to_upstream(tmp_path / "omnigen" / "vae")
    saved(omnigen_tokenizer(), tmp_path / "omnigen" / "tokenizer")
    hub.commit("Shitao/OmniGen-v1-diffusers", files_of(tmp_path / "omnigen"))
    pipe = Pipeline.from_pretrained("Shitao/OmniGen-v1-diffusers")
    pipe.front = SMALL
    assert pipe.generate_image("a cat", seed=0)[0].size == (48, 32)


def test_a_repository_without_a_text_tokenizer_says_so(hub, emu3_files, tokenizer_files) -> None:
    hub.commit("BAAI/Emu3-Gen", {name: content for name, content in emu3_files.items() if name != "emu3.tiktoken"})
    hub.commit("BAAI/Emu3-VisionTokenizer", tokenizer_files)
    with pytest.raises(FileNotFoundError, match=r"BAAI/Emu3-Gen holds no text tokenizer; accepted: .*text_tokenizer="):
        Pipeline.from_pretrained("BAAI/Emu3-Gen")
