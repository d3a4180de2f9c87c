"""The page of ``mmblocks demo``: chat, draw and edit in a browser, as far as the model does them."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from PIL.Image import Image as PILImage

from mmblocks.cli.conversing import size_of
from mmblocks.pipelines.pipeline import Pipeline
from mmblocks.pipelines.wishes import Edit, GenerateImage, Settings

if TYPE_CHECKING:
    import gradio

MOST_IMAGES = 8
MAX_FILE_SIZE = "32mb"


def page(pipe: Pipeline, title: str) -> "gradio.Blocks":
    """The page, not served yet.

    Raises:
        ImportError: gradio is not installed.
        ValueError: a model that neither chats nor draws.
    """
    gr = _gradio()
    tabs = {"chat": ("Chat", _chat), "generate_image": ("Draw", _draw), "edit": ("Edit", _edit)}
    shown = [tabs[ability] for ability in tabs if ability in pipe.abilities]
    if not shown:
        raise ValueError(f"the model can {', '.join(pipe.abilities) or 'nothing'}; accepted: one of {', '.join(tabs)}")
    with gr.Blocks(title=title, analytics_enabled=False) as made:
        gr.Markdown(f"## {title}")
        for name, build in shown:
            with gr.Tab(name):
                build(gr, pipe)
    return made.queue(default_concurrency_limit=1)  # one model, which serves one request at a time


def serve(made: "gradio.Blocks", port: int | None, started: Callable[[str], None], *, open_browser: bool = False) -> None:
    """Serves a page to this machine alone, until Ctrl-C.

    Args:
        made: the page.
        port: None for the first that is free from 7860 on.
        started: called with the address.
        open_browser: whether to show it.
    """
    gr = _gradio()
    _, address, _ = made.launch(
        server_name="127.0.0.1",
        server_port=port,
        share=False,
        inbrowser=open_browser,
        prevent_thread_lock=True,
        quiet=True,
        max_file_size=MAX_FILE_SIZE,
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),  # others are fetched
    )
    try:
        started(address)
        made.block_thread()
    finally:
        made.close(verbose=False)


def check_installed() -> None:
    """Refuses to go on without gradio, before a model is loaded.

    Raises:
        ImportError: it is not installed.
    """
    _gradio()


def message_of(said: Mapping[str, Any]) -> dict[str, Any]:
    """A message as the chat of the page keeps it, as pipelines take it."""
    content = said["content"]
    pieces = [content] if isinstance(content, str) else list(content)
    return {"role": said["role"], "content": [_piece(one) for one in pieces] or [" "]}


def _piece(piece: str | Mapping[str, Any]) -> str | Path:
    if isinstance(piece, str):
        return piece
    file = piece.get("file") or piece.get("path")
    if isinstance(file, Mapping):
        file = file["path"]
    return str(piece["text"]) if file is None else Path(file)


def _chat(gr: ModuleType, pipe: Pipeline) -> None:
    def answer(asked: dict[str, Any], history: list[dict[str, Any]], max_tokens: float | None, seed: float | None) -> Iterator[Any]:
        content = [*map(Path, asked.get("files") or []), *([asked["text"]] if asked.get("text") else [])]
        messages = [*map(message_of, history), {"role": "user", "content": content}]
        said: list[Any] = []
        with _shown_errors(gr):
            for piece in pipe.chat(messages, stream=True, **_settings(max_tokens, seed)):
                if isinstance(piece, str) and said and isinstance(said[-1], str):
                    said[-1] += piece
                else:
                    said.append(piece if isinstance(piece, str) else gr.Image(_still(piece)))
                yield list(said)

    inputs = [gr.Number(label="Tokens at most", precision=0, value=None), gr.Number(label="Seed", precision=0, value=None)]
    hint = "Ask, with pictures if you like"
    box = gr.MultimodalTextbox(placeholder=hint, elem_id="question", file_types=["image"], file_count="multiple")
    gr.ChatInterface(answer, multimodal=True, textbox=box, additional_inputs=inputs)


def _draw(gr: ModuleType, pipe: Pipeline) -> None:
    def make(prompt: str, size: str, count: float, seed: float | None) -> Iterator[list[PILImage]]:
        with _shown_errors(gr):
            wish = GenerateImage(prompt, size_of(size.strip() or None), int(count), settings=Settings(**_settings(None, seed)))
            yield from _pictures(pipe, wish)

    prompt = gr.Textbox(label="Prompt", elem_id="prompt", lines=2)
    with gr.Row():
        options = _options(gr, "size")
    button = gr.Button("Draw", variant="primary", elem_id="draw")
    gallery = gr.Gallery(label="Pictures", elem_id="drawn", format="png", interactive=False)
    gr.on([button.click, prompt.submit], make, [prompt, *options], gallery)


def _edit(gr: ModuleType, pipe: Pipeline) -> None:
    def make(pictures: list[Any] | None, prompt: str, size: str, count: float, seed: float | None) -> Iterator[list[PILImage]]:
        with _shown_errors(gr):
            settings = Settings(**_settings(None, seed))
            shown = [one[0] if isinstance(one, tuple) else one for one in pictures or []]
            yield from _pictures(pipe, Edit(shown, prompt, size_of(size.strip() or None), int(count), settings))

    given = gr.Gallery(label="Pictures to edit", type="pil", interactive=True, elem_id="given")
    prompt = gr.Textbox(label="What is to become of them", lines=2)
    with gr.Row():
        options = _options(gr, "edit_size")
    button = gr.Button("Edit", variant="primary")
    gallery = gr.Gallery(label="Pictures", format="png", interactive=False)
    gr.on([button.click, prompt.submit], make, [given, prompt, *options], gallery)


def _options(gr: ModuleType, name: str) -> list[Any]:
    return [
        gr.Textbox(label="Size", elem_id=name, placeholder="WIDTHxHEIGHT, or nothing for the model's own"),
        gr.Slider(1, MOST_IMAGES, value=1, step=1, label="How many"),
        gr.Number(label="Seed", precision=0, value=None),
    ]


def _pictures(pipe: Pipeline, wish: GenerateImage | Edit) -> Iterator[list[PILImage]]:
    """Pictures as they come, those that are not finished too."""
    found: dict[int, PILImage] = {}
    for event in pipe.stream([wish], previews=True):
        if not isinstance(event.content, str):
            found[event.sample] = _still(event.content)
            yield [found[sample] for sample in sorted(found)]


def _still(content: PILImage | list[PILImage]) -> PILImage:
    return content[0] if isinstance(content, list) else content


def _settings(max_tokens: float | None, seed: float | None) -> dict[str, Any]:
    given = {"max_tokens": max_tokens, "seed": seed}
    return {name: int(value) for name, value in given.items() if value is not None}


@contextmanager
def _shown_errors(gr: ModuleType) -> Iterator[None]:
    """What a pipeline refuses is shown on the page, in its own words."""
    try:
        yield
    except (ValueError, TypeError, OSError) as error:
        raise gr.Error(str(error), print_exception=False) from error


def _gradio() -> ModuleType:
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        import gradio
    except ImportError as error:
        raise ImportError("the page needs gradio; install it with: pip install 'mmblocks[page]'") from error
    return gradio
