"""The commands. What takes long to import is imported by the command that needs it: `--help` and `list` answer at once."""

import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from mmblocks.checkpoints.hub import catalogue
from mmblocks.cli import reporting

OWN = "mmblocks"
"""The layout of ``save_pretrained``; ``checkpoints.convert.OWN``, which is not imported for it."""


def _not_empty(text: str) -> str:
    """An empty name would be the current folder: that of an unset variable of the shell."""
    if not text:
        raise typer.BadParameter("it is empty; accepted: a name, or . for the current folder")
    return text


def _path(text: str) -> Path:
    return Path(_not_empty(text))


app = typer.Typer(
    help="Building blocks for multimodal models.", no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False
)

Json = Annotated[bool, typer.Option("--json", help="Write one JSON value.")]
Source = Annotated[
    str,
    typer.Argument(
        help="A folder, a file, organisation/name on the Hub, or a name of `mmblocks list`.", callback=_not_empty, metavar="SOURCE"
    ),
]
Name = Annotated[str | None, typer.Option("--block", help="The class, where it is not told by the files.")]
LayoutName = Annotated[str | None, typer.Option("--layout", help="The layout of the source, where it is not told by the files.")]
Revision = Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit on the Hub.")]
Subfolder = Annotated[str | None, typer.Option("--subfolder", help="The part in this subfolder alone.")]
Arguments = Annotated[str, typer.Option("--arguments", help="Constructor arguments that no file holds, as a JSON object.")]
Force = Annotated[bool, typer.Option("--force", help="Replace what is there.")]
Device = Annotated[str, typer.Option("--device", help="Such as cpu or cuda.")]


@app.command("list")
def list_(pattern: Annotated[str, typer.Argument(help="Such as '*vq*'.")] = "*", as_json: Json = False) -> None:
    """Known published components."""
    entries = catalogue.list_pretrained(pattern)
    with reporting.one_sentence():
        if not entries:
            raise ValueError(f"nothing known fits {pattern!r}; accepted: a name, class or id, with * for any characters")
    rows = [[e.name, e.block, _count(e.num_parameters), e.id, e.license, e.paper] for e in entries]
    columns = ["name", "block", "parameters", "on the Hub", "licence", "arXiv"]
    reporting.show([vars(entry) for entry in entries], as_json, reporting.table("", columns, rows))


@app.command()
def info(source: Source, revision: Revision = None, subfolder: Subfolder = None, as_json: Json = False) -> None:
    """What a checkpoint holds, and which Blocks read it."""
    with reporting.one_sentence():
        from mmblocks.checkpoints import config
        from mmblocks.checkpoints.layouts import difference
        from mmblocks.cli import fitting

        contents = fitting.contents(source, revision, subfolder)
        found = contents.headers(None)
        if config.is_ours(contents.config):
            parts = config.places(contents.config)
            blocks = [{"block": contents.config[config.CLASS], "layout": OWN, "parts": parts}]
        else:
            fits = fitting.fits(contents)
            blocks = [{"block": f.block.__name__, "layout": f.layout.name, "num_parameters": f.num_parameters} for f in fits]
        listed = {key: f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}" for key, tensor in found.items()}
    count = sum(tensor.numel() for tensor in found.values())
    size = sum(tensor.nbytes for tensor in found.values())
    result = {"blocks": blocks, "num_elements": count, "num_bytes": size, "tensors": listed}
    lines = [line.rpartition(": ") for line in difference.group(listed)]
    rows = [[name, *about.split(" ", 1)] for name, _, about in lines]
    heads = [[block["block"], block["layout"], ", ".join(block.get("parts", ()))] for block in blocks]
    reporting.show(
        result,
        as_json,
        reporting.table(f"{source}: {len(found)} tensors, {count:,} elements, {size:,} bytes", ["tensor", "dtype", "shape"], rows),
        reporting.table("read by", ["block", "layout", "parts"], heads or [[None, None, None]]),
    )


@app.command()
def convert(
    source: Source,
    target: Annotated[Path, typer.Argument(help="The folder to write.", parser=_path, metavar="TARGET")],
    to: Annotated[str, typer.Option("--to", help="mmblocks, or the name of a layout of the Block.")] = OWN,
    block: Name = None,
    layout: LayoutName = None,
    revision: Revision = None,
    subfolder: Subfolder = None,
    dtype: Annotated[str | None, typer.Option("--dtype", help="Such as bfloat16.")] = None,
    max_shard_size: Annotated[str, typer.Option("--max-shard-size")] = "5GB",
    force: Force = False,
    as_json: Json = False,
) -> None:
    """From one layout to another, streamed, every tensor checked; called again after an interruption, it goes on."""
    with reporting.one_sentence(), reporting.progress("converting") as bar:
        from mmblocks.checkpoints import convert as converting
        from mmblocks.cli import loading

        cast = loading.dtype_of(dtype)
        cls = loading.block_class(source, block, revision, subfolder)
        options: dict[str, Any] = {"to": to, "layout": layout, "revision": revision, "subfolder": subfolder, "force": force}
        done = converting.convert(
            cls,
            source,
            target,
            dtype=cast,
            max_shard_size=max_shard_size,
            finished=lambda name, number, total: bar.at(number, total, name),
            **options,
        )
    origin = str(done.origin) if done.origin is not None else source
    result = {"block": type(done).__name__, "origin": origin, "target": str(target), "layout": to}
    reporting.show(result if as_json else f"{type(done).__name__} from {origin} -> {target} ({to})", as_json)


@app.command()
def verify(
    source: Source,
    block: Name = None,
    layout: LayoutName = None,
    revision: Revision = None,
    subfolder: Subfolder = None,
    arguments: Arguments = "{}",
    golden: Annotated[
        Path | None,
        typer.Option(
            "--golden",
            help="Numbers to compare with; golden.safetensors beside the weights if there is one.",
            parser=_path,
            metavar="PATH",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Whether all tensors are there, in their shapes, with their checksums, and finite; and give the numbers they gave."""
    with reporting.one_sentence():
        from mmblocks.checkpoints import finite
        from mmblocks.checkpoints.golden import compare_golden
        from mmblocks.cli import fitting, loading

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=f".* {finite.HOLD}$")  # said below, as an error
            loaded = loading.load(source, block, layout, revision, subfolder, arguments)
        broken = finite.not_finite(loaded, set(), was_read=True)
        if broken:
            raise ValueError(f"{source} holds numbers that are not finite in {', '.join(broken[:5])}")
        file = golden or fitting.golden_beside(source, revision, subfolder)
        found = compare_golden(loaded, file) if file is not None else None
        if found is not None and found.wrong:
            listed = "; ".join(f"{name} {problem}" for name, problem in found.wrong.items())
            raise ValueError(f"{source} does not give the numbers in {file}: {listed}")
    result = {
        "block": type(loaded).__name__,
        "num_tensors": len(loaded.state_dict()),
        "origin": loaded.origin and str(loaded.origin),
        "golden": found and found.differences,
    }
    text = f"{source} is a sound {type(loaded).__name__}"
    text += f", and gives the numbers in {file}" if found is not None else "; there are no golden numbers to compare it with"
    reporting.show(result if as_json else text, as_json)


@app.command()
def tokenize(
    source: Source,
    images: Annotated[
        Path,
        typer.Argument(help="A folder of images, or of .tar shards of them; or one such shard.", parser=_path, metavar="IMAGES"),
    ],
    target: Annotated[Path, typer.Argument(help="The folder to write shards of tokens to.", parser=_path, metavar="TARGET")],
    block: Name = None,
    layout: LayoutName = None,
    revision: Revision = None,
    arguments: Arguments = "{}",
    size: Annotated[int | None, typer.Option("--size", help="Scale and crop to squares of this side first.", min=1)] = None,
    clips: Annotated[bool, typer.Option("--clips", help="Each folder of frames, and each image that moves, is a clip.")] = False,
    shard_size: Annotated[int, typer.Option("--shard-size", help="Images, or clips, in one file.", min=1)] = 1000,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Images, or clips, to the codes, or latents, of a tokenizer; called again after an interruption, it goes on."""
    with reporting.one_sentence(), reporting.progress("tokenizing") as bar:
        from mmblocks.cli import loading, token_shards

        token_shards.check_places(images, target, clips=clips)
        where = loading.device_of(device)
        loaded = loading.load(source, block, layout, revision, None, arguments, where)
        result = token_shards.tokenize(loaded, images, target, size, shard_size, where, bar.at, clips=clips)
    count = f"{result['num_clips']} clips" if clips else f"{result['num_images']} images"
    reporting.show(result if as_json else f"{count} in {result['num_shards']} files in {target}", as_json)


@app.command()
def reconstruct(
    source: Source,
    image: Annotated[Path, typer.Argument(help="An image.", parser=_path, metavar="IMAGE")],
    target: Annotated[
        Path,
        typer.Argument(
            help="The picture to write: the image on the left, what is left of it on the right.", parser=_path, metavar="TARGET"
        ),
    ],
    block: Name = None,
    layout: LayoutName = None,
    revision: Revision = None,
    arguments: Arguments = "{}",
    size: Annotated[int | None, typer.Option("--size", help="Scale and crop to a square of this side first.", min=1)] = None,
    device: Device = "cpu",
    force: Force = False,
    as_json: Json = False,
) -> None:
    """An image through a tokenizer and back."""
    with reporting.one_sentence():
        from mmblocks.cli import loading, pictures

        reporting.check_target(target, force)
        pictures.check_places(image, target)
        where = loading.device_of(device)
        loaded = loading.load(source, block, layout, revision, None, arguments, where)
        psnr = pictures.reconstruct(loaded, image, target, size, where)
    reporting.show({"target": str(target), "psnr": psnr} if as_json else f"{target}: PSNR {psnr:.2f} dB", as_json)


@app.command()
def embed(
    source: Source,
    images: Annotated[Path, typer.Argument(help="A folder of images.", parser=_path, metavar="IMAGES")],
    target: Annotated[Path, typer.Argument(help="The .safetensors file to write.", parser=_path, metavar="TARGET")],
    block: Name = None,
    layout: LayoutName = None,
    revision: Revision = None,
    arguments: Arguments = "{}",
    batch_size: Annotated[int, typer.Option("--batch-size", min=1)] = 32,
    device: Device = "cpu",
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Images to the vectors of an encoder; called again after an interruption, it goes on."""
    with reporting.one_sentence():
        from mmblocks.cli import loading
        from mmblocks.encoders.image_folder import check_places, embed_folder, read_embeddings

        reporting.check_target(target, force)
        check_places(images, target)
        where = loading.device_of(device)
        loaded = loading.load(source, block, layout, revision, None, arguments, where)
        file = embed_folder(loaded, images, target, batch_size=batch_size, progress=reporting.ERR.is_terminal)
        shape = list(read_embeddings(file).embeddings.shape)
    result = {"target": str(target), "shape": shape}
    reporting.show(result if as_json else f"{target}: {shape[0]} vectors of {shape[1]} numbers", as_json)


@app.command()
def plan(
    source: Source,
    dtype: Annotated[str | None, typer.Option("--dtype", help="Of the model; that of its files if none is named.")] = None,
    batch: Annotated[int, typer.Option("--batch", help="Prompts at once; guidance doubles them.", min=1)] = 1,
    seq: Annotated[int, typer.Option("--seq", help="Tokens of a prompt, and what the cache has room for.", min=1)] = 2048,
    devices: Annotated[str | None, typer.Option("--devices", help="Sizes of devices, such as 24GB,24GB, to place it on.")] = None,
    block: Name = None,
    layout: LayoutName = None,
    revision: Revision = None,
    subfolder: Subfolder = None,
    arguments: Arguments = "{}",
    as_json: Json = False,
) -> None:
    """The memory that each part of a model takes, before it does."""
    with reporting.one_sentence():
        from mmblocks.cli import loading, planning
        from mmblocks.pipelines.placing import shown
        from mmblocks.pipelines.planning import plan_memory

        sizes, wanted = planning.sizes_of(devices), loading.dtype_of(dtype)
        named = planning.Named(source, block, layout, revision, subfolder, loading.arguments_of(arguments))
        found = planning.described(named)
        cast = wanted or found.dtype
        made = plan_memory(found.model, batch=batch, length=seq, dtype=cast, devices=sizes, beside=found.beside)
    if made.unknown:
        reporting.ERR.print(f"warning: no activations of some parts, since {made.unknown}", markup=False, highlight=False)
    counted = f"{batch} x {seq} tokens" + ("" if cast is None else f" in {str(cast).removeprefix('torch.')}")
    title = f"{source}: {shown(made.total)} for {counted}"
    reporting.show(planning.as_json(made, cast), as_json, *planning.tables(made, title))


Front = Annotated[str | None, typer.Option("--front", help="Prompts and settings, where the name does not tell: see the docs.")]
DType = Annotated[str | None, typer.Option("--dtype", help="Of the model, such as bfloat16.")]
Images = Annotated[list[Path] | None, typer.Option("--image", help="A picture that the prompt is about; may be repeated.")]
MaxTokens = Annotated[int | None, typer.Option("--max-tokens", help="Tokens of an answer, at most.", min=1)]
Seed = Annotated[int | None, typer.Option("--seed", help="Of all randomness.")]


@app.command()
def chat(
    source: Source,
    prompt: Annotated[str | None, typer.Argument(help="One message; without it each line typed is one.")] = None,
    image: Images = None,
    out: Annotated[Path, typer.Option("--out", help="The folder for pictures of replies.")] = Path(),
    front: Front = None,
    revision: Revision = None,
    max_tokens: MaxTokens = None,
    seed: Seed = None,
    dtype: DType = None,
    device: Device = "cpu",
) -> None:
    """Talk with a model, about pictures too."""
    with reporting.one_sentence():
        from mmblocks.cli import conversing

        pictures = conversing.check_pictures(image or [])
        if not out.is_dir():
            raise FileNotFoundError(f"--out is {out}; accepted: a folder that is there")
        pipe = conversing.load(source, front, revision, dtype, device)
        conversing.converse(pipe, conversing.typed(prompt), pictures, out, {"max_tokens": max_tokens, "seed": seed})


@app.command()
def draw(
    source: Source,
    prompt: Annotated[str, typer.Argument(help="What is to be seen.")],
    out: Annotated[Path, typer.Option("--out", help="The picture to write; of several, a number is added.", parser=_path)],
    image: Images = None,
    size: Annotated[str | None, typer.Option("--size", help="WIDTHxHEIGHT in pixels.")] = None,
    num_images: Annotated[int, typer.Option("--num-images", min=1)] = 1,
    front: Front = None,
    revision: Revision = None,
    max_tokens: MaxTokens = None,
    seed: Seed = None,
    dtype: DType = None,
    device: Device = "cpu",
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Pictures of a text; with --image, of pictures and a text."""
    with reporting.one_sentence():
        from mmblocks.cli import conversing
        from mmblocks.cli.pictures import save

        files = conversing.check_out(out, num_images, force)
        pictures, wanted = conversing.check_pictures(image or []), conversing.size_of(size)
        pipe = conversing.load(source, front, revision, dtype, device)
        options: dict[str, Any] = {"size": wanted, "num_images": num_images, "max_tokens": max_tokens, "seed": seed}
        made = pipe.edit(pictures, prompt, **options) if pictures else pipe.generate_image(prompt, **options)
        for picture, file in zip(made, files, strict=False):
            save(picture, file)
        if len(made) < num_images:
            raise ValueError(f"{len(made)} of {num_images} pictures were finished; accepted: more tokens, with --max-tokens")
    written = [str(file) for file in files]
    reporting.show({"files": written} if as_json else "\n".join(written), as_json)


@app.command()
def demo(
    source: Source,
    port: Annotated[int | None, typer.Option("--port", min=1, max=65535, help="By default the first free one.")] = None,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page.")] = True,
    front: Front = None,
    revision: Revision = None,
    dtype: DType = None,
    device: Device = "cpu",
) -> None:
    """A page in the browser, for this machine alone: chat, draw, edit. Ctrl-C ends it."""
    with reporting.one_sentence():
        from mmblocks.cli import conversing, page

        page.check_installed()
        pipe = conversing.load(source, front, revision, dtype, device)
        page.serve(page.page(pipe, f"mmblocks: {source}"), port, typer.echo, open_browser=browser)


def _count(number: int | None) -> str | None:
    return None if number is None else f"{number / 1e6:,.1f}M"
