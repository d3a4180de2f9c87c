"""Fronts of models of classes: names and numbers, the same images as the models' own methods, alone and beside others."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from mmblocks import Pipeline
from mmblocks.embedders import LinearPatchEmbedding
from mmblocks.generation import Generation
from mmblocks.heads import MARDiffusionHead
from mmblocks.models import MAR, VAR, ACDiT, ACDiTFront, LlamaGen, LlamaGenFront, MARFront, VARFront, VARImageModel
from mmblocks.models.class_fronts import LLAMAGEN_384_FRONT
from mmblocks.models.llamagen import label
from mmblocks.pipelines import Edit, GenerateImage, Settings, loading
from mmblocks.prompts.classes import class_index
from mmblocks.tokenizers import VARVQ, ConvVQ, DiffusersAutoencoder
from mmblocks.vocabulary import raster_format
from tests.shared.tiny_pipelines import pipeline as drawing

pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # diffusers' schedulers

CLASSES = ("cat, kitty", "Dog, hound", "crane, bird", "crane, machine", "ship")


def randomised(block: nn.Module, std: float = 0.2) -> nn.Module:
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=std)
    return block.eval()


def vae(channels: int) -> DiffusersAutoencoder:
    arguments = {"block_out_channels": [4], "norm_num_groups": 2, "latent_channels": channels, "scaling_factor": 0.2325}
    return DiffusersAutoencoder(kind="AutoencoderKL", arguments=arguments).eval()


def llamagen() -> Pipeline:
    sizes = {"dim": 16, "num_layers": 1, "num_heads": 2, "mlp_dim": 16}
    model = randomised(LlamaGen(vocab_size=8, num_classes=5, **sizes), std=1.0)
    front = LlamaGenFront(classes=CLASSES, image_size=(4, 6), grid=(2, 3))
    return Pipeline(front=front, model=model, image_tokenizer=ConvVQ(channels=(8,), num_codes=8, code_dim=4).eval())


def image_model() -> VARImageModel:
    torch.manual_seed(0)
    shared = {"num_codes": 10, "code_dim": 4, "scales": (1, 2, 4)}
    trunk = randomised(VAR(num_classes=5, dim=16, num_layers=1, num_heads=2, **shared), std=0.4)
    tokenizer = VARVQ(channels=32, multipliers=(1, 1), num_blocks=1, num_blends=2, **shared)
    return VARImageModel(tokenizer=tokenizer, trunk=trunk).eval()


def var() -> Pipeline:
    whole = image_model()
    front = VARFront(classes=CLASSES, image_size=(8, 8))
    return Pipeline(front=front, model=whole.trunk, image_tokenizer=whole.tokenizer)


def mar() -> Pipeline:
    halves = {f"{half}_{name}": value for half in ("encoder", "decoder") for name, value in (("layers", 1), ("heads", 2))}
    sizes = {"channels": 3, "grid": (2, 2), "num_classes": 5, "encoder_dim": 16, "decoder_dim": 16, "num_class_tokens": 2}
    head = randomised(MARDiffusionHead(dim=16, token_dim=3, width=8, num_blocks=1, steps=3))
    front = MARFront(classes=CLASSES, image_size=(2, 2), num_steps=3)
    return Pipeline(front=front, model=randomised(MAR(**sizes, **halves), std=1.0), decoder=head, image_tokenizer=vae(3))


def acdit(**options) -> ACDiT:
    sizes = {"dim": 24, "num_layers": 2, "num_heads": 2, "num_classes": 5, "mlp_ratio": 2.0}
    return randomised(ACDiT(**sizes, **{"latent_dim": 12, "grid": (1, 4, 4), "block_size": 4, **options}))


def acdit_of_patches() -> Pipeline:
    front = ACDiTFront(classes=CLASSES, image_size=(8, 8), num_steps=2, patch_size=2)
    return Pipeline(front=front, model=acdit(), image_tokenizer=vae(3))


KINDS = {"llamagen": llamagen, "var": var, "mar": mar, "acdit": acdit_of_patches}


def pipeline(kind: str) -> Pipeline:
    torch.manual_seed(0)
    return KINDS[kind]()


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_gives_the_same_image_at_any_batch(kind) -> None:
    pipe = pipeline(kind)
    assert pipe.abilities == ("generate_image",)
    wishes = [GenerateImage(" DOG", num_images=2, settings=Settings(seed=3)), GenerateImage(4, settings=Settings(seed=4))]
    together = pipe.run(wishes)
    height, width = pipe.front.image_size
    assert [[image.size for image in reply.images] for reply in together] == [[(width, height)] * 2, [(width, height)]]
    for wish, reply in zip(wishes, together, strict=True):
        (alone,) = pipe.run([wish], max_batch=1)
        assert [image.tobytes() for image in alone.images] == [image.tobytes() for image in reply.images]
    first, second = together[0].images
    assert first.tobytes() != second.tobytes()
    assert pipe.generate_image(1, seed=3)[0].tobytes() == pipe.generate_image("1", seed=3)[0].tobytes() == first.tobytes()
    assert pipe.generate_image(1, seed=3, size=(height, width))[0].tobytes() == first.tobytes()
    assert any(pipe.generate_image(other, seed=3)[0].tobytes() != first.tobytes() for other in (0, 2, 3, 4))


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def own(kind: str, pipe: Pipeline) -> torch.Tensor:
    """The image of class 1 by the model's own method, with the published settings spelled out."""
    parts, labels = pipe.components, torch.tensor([1])
    if kind == "llamagen":
        request = pipe.front.generate_image(parts, 1, size=None, negative_prompt=None)
        guidance = request.options.guidance
        assert (guidance.scale, guidance.normalise, request.options.sampling.top_k) == (4.0, False, 2000)
        ((_, made),) = parts.model.generate(
            [[label(1)]],
            request.grammar,
            Generation(generator=[3], guidance=guidance, sampling=request.options.sampling, input="code"),
            unconditional=[[label(5)]],
        )
        assert request.grammar.format == raster_format(2, 3, 8)
        return parts.image_tokenizer.decode(made.grid[None])
    if kind == "var":
        whole = image_model()
        return whole.generate(labels, guidance=4.0, sampling=pipe.front.sampling, generator=generator())
    if kind == "mar":
        options = {"num_steps": 3, "guidance": 4.0, "schedule": "constant", "temperature": 1.0}
        tokens = parts.model.sample(parts.decoder, labels, generator=generator(), **options)
        return parts.image_tokenizer.decode(parts.model.to_latents(tokens))
    blocks = parts.model.blocks.join(parts.model.sample(labels, num_steps=2, guidance=1.5, generator=generator()))
    latents = torch.stack(
        [blocks[0, row // 2, column // 2].view(2, 2, 3)[row % 2, column % 2] for row in range(8) for column in range(8)]
    )
    return parts.image_tokenizer.decode(latents.view(1, 8, 8, 3))


@pytest.mark.parametrize("kind", KINDS)
def test_images_are_those_of_the_model_s_own_method(kind) -> None:
    pipe = pipeline(kind)
    with torch.no_grad():
        wanted = own(kind, pipe)[0]
    (made,) = pipe.generate_image("hound", seed=3)
    assert made.tobytes() == (wanted * 255).to(torch.uint8).permute(1, 2, 0).numpy().tobytes()
    changed = pipe.generate_image("hound", seed=3, guidance=9.0)[0]
    assert changed.size == made.size


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_pipeline_is_the_same(kind, tmp_path) -> None:
    pipe = pipeline(kind)
    pipe.save_pretrained(tmp_path / "pipe")
    again = Pipeline.from_pretrained(tmp_path / "pipe")
    assert again.front == pipe.front and type(again.components.text_tokenizer).__name__ == "NoText"
    assert again.generate_image(2, seed=1)[0].tobytes() == pipe.generate_image(2, seed=1)[0].tobytes()


def test_classes_have_names_and_numbers() -> None:
    assert class_index("golden retriever", "imagenet-1k", 1000) == 207
    assert class_index("Tinca tinca", "imagenet-1k", 1000) == class_index("tench", "imagenet-1k", 1000) == 0
    assert class_index("kitty", CLASSES, 5) == class_index("cat, kitty", CLASSES, 5) == 0
    for prompt, said in (
        ("crane", "a name of the classes 2, 3"),
        ("dogg", "accepted of this model: 0 to 4, or the name of a class, such as 'dog'"),
        (5, "the class 5; accepted of this model: 0 to 4"),
        (-1, "the class -1"),
    ):
        with pytest.raises(ValueError, match=said):
            class_index(prompt, CLASSES, 5)
    with pytest.raises(ValueError, match="names more classes than the model's 4"):
        class_index("cat", CLASSES, 4)
    with pytest.raises(TypeError, match="prompt is a bool"):
        class_index(True, CLASSES, 5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda pipe: pipe.generate_image(""), "prompt is empty"),
        (lambda pipe: pipe.generate_image(7), "the class 7; accepted of this model: 0 to 4"),
        (lambda pipe: pipe.generate_image("zebra"), "prompt is 'zebra'; accepted of this model: 0 to 4, or the name"),
        (lambda pipe: pipe.generate_image(1, size=(1, 1)), r"size is \(1, 1\); accepted of this model"),
        (lambda pipe: pipe.generate_image(1, negative_prompt="dogs"), "negative_prompt is given"),
        (lambda pipe: pipe.chat([{"role": "user", "content": "hi"}]), "Front has no chat; accepted of this model: generate_image"),
        (lambda pipe: pipe.run([Edit(["x.png"], "night")]), "Front has no edit; accepted of this model: generate_image"),
    ],
)
def test_what_cannot_be_done_is_refused(kind, call, match) -> None:
    pipe, calls = pipeline(kind), []
    pipe.components.model.trunk.register_forward_hook(lambda *_: calls.append(1))
    with pytest.raises(ValueError, match=match):
        call(pipe)
    assert not calls


def test_parts_and_settings_that_do_not_fit_are_refused() -> None:
    for kind, guidance in (("var", -0.5), ("mar", 0.5), ("acdit", 0.5)):
        with pytest.raises(ValueError, match=f"guidance is {guidance}; accepted: "):
            pipeline(kind).generate_image(1, guidance=guidance)
    with pytest.raises(ValueError, match="accepted of this model: a number as guidance, seed"):
        pipeline("mar").generate_image(1, max_tokens=3)
    whole = pipeline("var").components
    with pytest.raises(TypeError, match="model is a VAR; accepted of this front: a LlamaGen"):
        Pipeline(front=LlamaGenFront(), model=whole.model, image_tokenizer=whole.image_tokenizer).generate_image(1)
    with pytest.raises(TypeError, match="image_tokenizer is a NoneType; accepted of this front: a VARVQ"):
        Pipeline(front=VARFront(), model=whole.model).generate_image(1)
    with pytest.raises(ValueError, match="decoder is None; accepted of this front: the per-token head"):
        Pipeline(front=MARFront(), model=pipeline("mar").components.model).generate_image(1)
    video = acdit(grid=(3, 2, 2), block_size=4, square_blocks=False, axis_shares=(2, 2, 2))
    with pytest.raises(ValueError, match="the model makes 3 frames"):
        Pipeline(front=ACDiTFront(), model=video, image_tokenizer=vae(3)).generate_image(1)
    with pytest.raises(TypeError, match="prompt is a int; accepted: a string"):
        drawing("gen").generate_image(3)


@pytest.mark.parametrize("name", ["llamagen-384", "var", "mar", "acdit"])
def test_folders_with_a_config_beside_the_weights(name, tmp_path) -> None:
    pipe = pipeline(name.removesuffix("-384"))
    parts = pipe.components
    parts.model.to_upstream(tmp_path / "folder")
    if name == "mar":  # one file holds both
        tensors = load_file(tmp_path / "folder" / "model.safetensors")
        layout = next(one for one in MARDiffusionHead.layouts if one.name == "mar")
        head = dict(layout.convert(parts.decoder.state_dict(), parts.decoder.config, to="theirs"))
        save_file(tensors | head, tmp_path / "folder" / "model.safetensors")
        config = json.loads((tmp_path / "folder" / "config.json").read_text()) | dict(layout.published_config(parts.decoder.config))
        (tmp_path / "folder" / "config.json").write_text(json.dumps(config))
    again = Pipeline.from_pretrained(tmp_path / "folder", front=name, image_tokenizer=parts.image_tokenizer)
    assert again.front == (LLAMAGEN_384_FRONT if name == "llamagen-384" else type(pipe.front)())
    again.front = pipe.front
    assert again.generate_image(1, seed=0)[0].tobytes() == pipe.generate_image(1, seed=0)[0].tobytes()
    if name == "mar":
        with pytest.raises(ValueError, match="image_tokenizer is not given, and is nowhere that is known"):
            Pipeline.from_pretrained(tmp_path / "folder", front=name)


def test_a_tokenizer_is_one_file_among_others(monkeypatch, tmp_path) -> None:
    calls = []

    class Recorded:
        @classmethod
        def from_pretrained(cls, place, **options):
            calls.append((place, options["subfolder"]))
            return LinearPatchEmbedding(dim=4, patch_size=1, channels=1)

    monkeypatch.setattr(loading, "block_class", lambda name: Recorded)
    Pipeline.from_pretrained(str(tmp_path), front="var")
    Pipeline.from_pretrained(tmp_path, front="acdit")
    wanted = [(str(tmp_path), None), ("FoundationVision/var/vae_ch160v4096z32.pth", None)]
    assert calls == [*wanted, (tmp_path, None), ("facebook/DiT-XL-2-256", "vae")]
