"""What a user hands to other processes: small, without weights, and the same there."""

import pickle
import pkgutil
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

import mmblocks
from mmblocks import (
    GREEDY,
    BatchBuilder,
    ByteTokenizer,
    GridGrammar,
    Sampling,
    TextEmbedding,
    TextGrammar,
    TokenizerFile,
    image,
    text,
)
from mmblocks.connectors import AveragePool, ConnectorChain, MLPProjector, PixelShuffle
from mmblocks.embedders import (
    EncoderEmbedder,
    EVE1PatchEmbedding,
    EVE2PatchEmbedding,
    FuyuPatchEmbedding,
    LinearPatchEmbedding,
    NEOPatchEmbedding,
    RenderedTextEmbedding,
    StructuredEmbedder,
)
from mmblocks.encoders import (
    EVACLIP,
    ChannelFusion,
    EVACLIPText,
    EVACLIPVision,
    NativeResolution,
    OpenClipEncoder,
    TiledEncoder,
    TimmEncoder,
)
from mmblocks.generation import (
    ClassifierFree,
    ModalSampling,
    MutualInformation,
    ThreeWay,
    VectorBlock,
    VectorGrammar,
    VisualContrastive,
)
from mmblocks.public import GROUPS
from mmblocks.sequence.batches import Batch, Placed
from mmblocks.sequence.masks import Causal, Dense, Intervals, visible
from mmblocks.support.pickling import weightless
from mmblocks.tokenizers import DiffusersAutoencoder
from mmblocks.training import EVE1_STAGES, TokenizerRecipe
from mmblocks.vocabulary import EMU3, EMU35, CodeIds, chameleon_format
from tests.shared import loading
from tests.shared.tiny import TOKENIZER

MEGABYTE = 2**20
METHODS = ("layout", "preprocess", "preprocess_canvas", "render", "tokenize")
NEED_ARGUMENTS = ("VisualTokenizer", "DiffusersAutoencoder")
TOKENIZERS = [
    name
    for name in GROUPS["tokenizers"]
    if hasattr(getattr(mmblocks.tokenizers, name), "preprocess") and name not in NEED_ARGUMENTS
]
TOWER = {"image_size": (28, 28), "patch_size": 14, "dim": 16, "num_layers": 2, "num_heads": 2, "mlp_dim": 16}
PHOTO = Image.effect_noise((90, 57), 60).convert("RGB")


class Refused(nn.Parameter):
    """A weight that may not be written."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise AssertionError("weights are written")


def heavy(module: Any) -> Any:
    """The module with weights that may not be written."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = Refused(parameter.data, requires_grad=parameter.requires_grad)
    return module


def travelled(value: Any) -> Any:
    content = pickle.dumps(value)
    assert len(content) < MEGABYTE
    return pickle.loads(content)


def same(one: Any, other: Any) -> bool:
    """Equal throughout, whatever tensors are in it."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def eva(**options: Any) -> EVACLIPVision:
    return EVACLIPVision(tower=TOWER | options)


def dynamic() -> TimmEncoder:
    return TimmEncoder(name="vit_tiny_patch16_224", any_size=True)


EMBEDDERS: dict[str, tuple[Callable[[], Any], tuple[int, int]]] = {
    "eve1": (lambda: EVE1PatchEmbedding(dim=4096), (56, 84)),
    "eve2": (lambda: EVE2PatchEmbedding(dim=3584), (64, 96)),
    "neo": (lambda: NEOPatchEmbedding(dim=4096), (64, 96)),
    "fuyu": (lambda: FuyuPatchEmbedding(dim=4096), (60, 90)),
    "linear": (lambda: LinearPatchEmbedding(dim=64, patch_size=1), (3, 5)),
    "rendered": (lambda: RenderedTextEmbedding(dim=64), (16, 48)),
    "structured": (lambda: StructuredEmbedder(embedder=NEOPatchEmbedding(dim=8), dim=8, max_size=(9, 9)), (64, 96)),
    "encoder": (lambda: EncoderEmbedder(encoder=eva(), connector=MLPProjector(in_dim=16, dim=8)), (28, 28)),
    "class token": (lambda: EncoderEmbedder(encoder=eva(), connector=MLPProjector(in_dim=16, dim=8), class_token=True), (28, 28)),
    "chain": (
        lambda: EncoderEmbedder(
            encoder=eva(image_size=(56, 56)), connector=ConnectorChain(parts=[PixelShuffle(), AveragePool(num_tokens=1)])
        ),
        (56, 56),
    ),
    "tiles": (lambda: EncoderEmbedder(encoder=TiledEncoder(encoder=eva()), connector=MLPProjector(in_dim=16, dim=8)), (28, 56)),
    "native": (
        lambda: EncoderEmbedder(encoder=NativeResolution(encoder=dynamic(), multiple=16), connector=PixelShuffle()),
        (32, 64),
    ),
    "fused": (
        lambda: EncoderEmbedder(encoder=ChannelFusion(encoders={"one": eva(), "two": dynamic()}), connector=PixelShuffle()),
        (32, 64),
    ),
    "user's own": (loading.Colours, (5, 7)),
}
ENCODERS: dict[str, Callable[[], Any]] = {
    "eva-clip": lambda: EVACLIP(
        vision=EVACLIPVision(tower=TOWER, embed_dim=8),
        text=EVACLIPText(embed_dim=8, vocab_size=64, context_length=8, dim=16, num_heads=2, num_layers=1),
    ),
    "eva": eva,
    "timm": lambda: TimmEncoder(name="vit_giant_patch14_clip_224"),
    "timm of convolutions": lambda: TimmEncoder(name="resnet152"),
    "open_clip": lambda: OpenClipEncoder(name="ViT-bigG-14"),
    "tiles": lambda: TiledEncoder(encoder=eva()),
    "native": lambda: NativeResolution(encoder=dynamic(), multiple=16),
    "diffusers": lambda: DiffusersAutoencoder(kind="AutoencoderKL", arguments={"sample_size": 32}),
}


def every_class() -> Iterator[type]:
    for found in pkgutil.walk_packages(mmblocks.__path__, "mmblocks."):
        if not found.name.endswith("__main__") and "triton" not in found.name:
            for value in list(vars(import_module(found.name)).values()):
                if isinstance(value, type) and value.__module__ == found.name:
                    yield value


def test_every_method_for_workers_leaves_the_weights() -> None:
    found = {(cls, name) for cls in every_class() if issubclass(cls, nn.Module) for name in METHODS if name in vars(cls)}
    assert len(found) > 35
    assert [f"{cls.__name__}.{name}" for cls, name in found if not isinstance(vars(cls)[name], weightless)] == []


@pytest.mark.parametrize("name", EMBEDDERS)
def test_a_builder_for_any_embedder(name: str) -> None:
    make, size = EMBEDDERS[name]
    embedder = heavy(make())
    words = heavy(TextEmbedding(vocab_size=256, dim=8))
    builder = BatchBuilder(tokenizer=ByteTokenizer(), inputs={"text": words, "vision": embedder})
    samples = [[text("a"), image(torch.rand(3, *size))], [image(torch.rand(3, *size)), text("bcd")]]
    wanted = builder(samples)
    there = travelled(builder)
    assert same(there(samples), wanted)
    assert same(travelled(there)(samples, pack=10_000), builder(samples, pack=10_000))
    assert same(travelled(weightless(embedder.layout))(*size), embedder.layout(*size))
    with pytest.raises(AssertionError, match="weights are written"):
        pickle.dumps(embedder)  # the test would see them
    if hasattr(embedder, "preprocess") and name != "fused":  # whose encoders see each its own size
        assert same(travelled(embedder.preprocess)(PHOTO), embedder.preprocess(PHOTO))


def test_layouts_are_remembered_by_each_process_for_itself() -> None:
    calls: list[tuple[int, int]] = []

    class Counted(loading.Colours):
        def layout(self, height: int, width: int) -> Any:
            calls.append((height, width))
            return super().layout(height, width)

    builder = BatchBuilder(inputs={"vision": Counted()})
    pixels = torch.rand(3, 2, 3)
    builder([[image(pixels)], [image(pixels)]])
    builder([[image(pixels)]])
    assert calls == [(2, 3)]
    own = loading.model().batch_builder(TOKENIZER)
    before = len(pickle.dumps(own))
    own([loading.Samples()[index] for index in range(7)])
    assert len(pickle.dumps(own)) == before


def test_a_model_of_one_gigabyte() -> None:
    model = loading.model()
    for embedder in (model.inputs["vision"].patch, model.inputs["colours"].project):
        embedder.weight = nn.Parameter(torch.empty(2**27))  # never touched, so it takes no memory
    samples = [loading.Samples()[3]]
    builder = model.batch_builder(TOKENIZER)
    assert same(travelled(builder)(samples), builder(samples))


@pytest.mark.parametrize("name", TOKENIZERS)
def test_preprocess_of_any_tokenizer_in_its_published_size(name: str) -> None:
    with torch.device("meta"):
        tokenizer = heavy(getattr(mmblocks.tokenizers, name)())
    assert same(travelled(tokenizer.preprocess)(PHOTO), tokenizer.preprocess(PHOTO))


@pytest.mark.parametrize("name", ENCODERS)
def test_preprocess_of_any_encoder(name: str) -> None:
    with torch.device("meta"):
        encoder = heavy(ENCODERS[name]())
    assert same(travelled(encoder.preprocess)(PHOTO), encoder.preprocess(PHOTO))


def test_other_methods_for_workers() -> None:
    strips = heavy(RenderedTextEmbedding(dim=64))
    assert same(travelled(strips.render)("a line"), strips.render("a line"))
    stem = heavy(EVE1PatchEmbedding(dim=64))
    assert same(travelled(stem.preprocess_canvas)(PHOTO), stem.preprocess_canvas(PHOTO))
    tower = heavy(EVACLIPText(embed_dim=8, dim=16, num_heads=2, num_layers=1))
    ids = tower.tokenize("a photo")
    assert same(travelled(tower.tokenize)("a photo"), ids)


def test_text_tokenizers(tmp_path: Any) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "seven": 1, "<unk>": 2}, unk_token="<unk>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.save(str(tmp_path / "tokenizer.json"))
    for tokenizer in (ByteTokenizer(["<end>"]), TokenizerFile(tmp_path)):
        there = travelled(BatchBuilder(tokenizer=tokenizer))
        assert same(there([[text("a seven")]]), BatchBuilder(tokenizer=tokenizer)([[text("a seven")]]))
        assert there.tokenizer.vocab_size == tokenizer.vocab_size


def no_further_than(distance: int, queries: Any, keys: Any) -> Tensor:
    return visible(queries, keys) & (queries.order[:, :, None] - keys.order[:, None, :] < distance)


def test_samples_batches_and_masks() -> None:
    builder = loading.model().batch_builder(TOKENIZER)
    for index in range(7):
        sample = loading.Samples()[index]
        assert same([vars(segment) for segment in travelled(sample)], [vars(segment) for segment in sample])
        batch = builder([sample, sample])
        assert same(travelled(batch), batch) and type(travelled(batch)) is Batch
        pieces = [segment.piece(TOKENIZER, builder.layouts) for segment in sample]
        assert same(travelled(pieces), pieces)
    table = batch.table
    ones = torch.ones(1, 2, 2)
    for mask in (Causal(), Intervals(table.order, table.order + 1), Dense(ones.bool()), Placed([ones], ones[0, 0].long())):
        assert same(travelled(mask), mask)
    for rule in (visible, partial(no_further_than, 4)):
        assert same(travelled(rule)(table, table), rule(table, table))


SETTINGS = [
    EMU3,
    EMU35,
    chameleon_format(),
    CodeIds(sizes=(4096,) * 8, first=32000),
    GREEDY,
    Sampling(temperature=0.7, top_k=5),
    ModalSampling(text=GREEDY, image=Sampling(top_p=0.9)),
    ClassifierFree(scale=3.0),
    ThreeWay(scale=3.0, image_scale=2.0),
    VisualContrastive(),
    MutualInformation(),
    VectorBlock(begin=1, end=2, size=(2, 2), head="flow", input="latent"),
    TokenizerRecipe(),
    *EVE1_STAGES,
]
GRAMMARS = [
    TextGrammar(300, stop=(3,)),
    GridGrammar(EMU3, size=(9, 9)),
    GridGrammar(EMU35, size="first", num_images=8, stop=(151850,)),
    GridGrammar(chameleon_format(), vocab_size=65536),
    VectorGrammar(VectorBlock(begin=1, end=2, size=(2, 2), head="flow", input="latent"), vocab_size=300),
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: type(settings).__name__)
def test_settings(settings: Any) -> None:
    assert travelled(settings) == settings


@pytest.mark.parametrize("grammar", GRAMMARS, ids=lambda grammar: type(grammar).__name__)
def test_grammars(grammar: Any) -> None:
    there, state = travelled(grammar), grammar.start(())
    for _ in range(12):
        allowed = grammar.allowed(state)
        assert there.allowed(state) == allowed
        state = grammar.advance(state, allowed[0][0])
        assert travelled(state) == state


@pytest.mark.parametrize(("context", "num_workers"), [("fork", 2), ("spawn", 1), ("forkserver", 1)])
# Python warns of a fork beside other threads, such as torch's, from 3.12 on; workers start none of the operations that they hold.
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_workers_make_the_same_batches(context: str, num_workers: int) -> None:
    builder, samples = heavy(loading.model()).batch_builder(TOKENIZER), loading.Samples()
    options = {"num_workers": num_workers, "multiprocessing_context": context}
    wanted = list(DataLoader(samples, batch_size=2, collate_fn=builder))
    made = list(DataLoader(samples, batch_size=2, collate_fn=builder, **options))
    assert len(made) == 4 and same(made, wanted)
    assert torch.equal(loading.model()(made[2]).hidden, loading.model()(wanted[2]).hidden)
