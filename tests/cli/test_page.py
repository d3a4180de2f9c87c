"""``mmblocks demo``: the page itself in a headless Chromium, and what is refused before it is served."""

import base64
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from mmblocks.cli import app as commands
from tests.shared.tiny_pipelines import pipeline

HEADLESS = {"QT_QPA_PLATFORM": "offscreen", "QTWEBENGINE_CHROMIUM_FLAGS": "--no-sandbox --disable-gpu"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Emu3.5's: it chats, draws and edits."""
    made = tmp_path_factory.mktemp("pipelines") / "emu35"
    pipeline("3.5").save_pretrained(made)
    return made


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    pytest.importorskip("gradio")
    pytest.importorskip("PyQt6.QtWebEngineCore", exc_type=ImportError)
    command = [sys.executable, "-m", "mmblocks.cli", "demo", str(folder), "--no-browser"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None and server.stderr is not None
        line = server.stdout.readline().strip()
        assert line.startswith("http://127.0.0.1:"), server.stderr.read()
        yield line
        server.send_signal(signal.SIGINT)
        server.communicate(timeout=60)


def visit(address: str, *steps: str) -> object:
    """The value of the last of several pieces of JavaScript, each of which is awaited."""
    browser = [sys.executable, str(Path(__file__).with_name("browser.py")), address]
    seen = subprocess.run(browser, input=json.dumps(steps), capture_output=True, text=True, env={**os.environ, **HEADLESS})
    assert seen.returncode == 0, seen.stderr[-2000:]
    return json.loads(seen.stdout.splitlines()[-1])


def tab(name: str) -> tuple[str, str]:
    found = f"[...document.querySelectorAll('[role=tab]')].find(tab => tab.textContent.trim() === '{name}')"
    return f"!!{found}", f"{found}.click() || true"


def typed(box: str, text: str) -> str:
    """Types into a box, as soon as it is there."""
    write = f"box.value = {json.dumps(text)}; box.dispatchEvent(new Event('input')); return true"
    return f"(() => {{ const box = document.querySelector({json.dumps(box)}); if (!box) return false; {write} }})()"


def test_a_picture_is_drawn(address: str) -> None:
    size = "one && one.naturalWidth && [one.naturalWidth, one.naturalHeight]"
    found = f"(() => {{ const one = document.querySelector('#drawn img'); return {size} }})()"
    click = "document.querySelector('#draw').click() || true"
    assert visit(address, *tab("Draw"), typed("#prompt textarea", "a red bicycle"), click, found) == [8, 6]


def test_what_the_model_refuses_is_said_on_the_page(address: str) -> None:
    click = "document.querySelector('#draw').click() || true"
    said = "(document.body.innerText.match(/.*accepted: WIDTHxHEIGHT.*/) || [''])[0]"
    steps = [typed("#prompt textarea", "a cat"), typed("#size input, #size textarea", "huge"), click, said]
    assert visit(address, *tab("Draw"), *steps) == "--size is 'huge'; accepted: WIDTHxHEIGHT in pixels, such as 720x720"


def test_a_picture_is_uploaded_and_talked_about(address: str) -> None:
    content = io.BytesIO()
    Image.new("RGB", (12, 8), (200, 0, 0)).save(content, "PNG")
    upload = f"""(() => {{
        const input = document.querySelector('#question input[type=file]');
        if (!input) return false;
        const bytes = Uint8Array.from(atob('{base64.b64encode(content.getvalue()).decode()}'), one => one.charCodeAt(0));
        const files = new DataTransfer();
        files.items.add(new File([bytes], 'red.png', {{ type: 'image/png' }}));
        input.files = files.files;
        input.dispatchEvent(new Event('change', {{ bubbles: true }}));
        return true;
    }})()"""
    shown = "document.querySelectorAll('#question img').length > 0"
    send = "(() => { const one = document.querySelector('#question button.submit-button'); return one && (one.click() || true) })()"
    answered = "[...document.querySelectorAll('.bot.message')].some(one => one.innerText.trim().length > 0)"
    asked = typed("#question textarea", "what is this?")
    assert visit(address, *tab("Chat"), upload, shown, asked, send, answered) is True


def test_messages_of_the_page_are_messages_of_a_pipeline() -> None:
    from mmblocks.cli.page import message_of

    assert message_of({"role": "user", "content": "hello"}) == {"role": "user", "content": ["hello"]}
    parts = [{"type": "text", "text": "what?"}, {"type": "file", "file": {"path": "/tmp/cat.png"}}]
    assert message_of({"role": "user", "content": parts}) == {"role": "user", "content": ["what?", Path("/tmp/cat.png")]}
    assert message_of({"role": "assistant", "content": []}) == {"role": "assistant", "content": [" "]}


def test_a_page_of_nothing_is_refused() -> None:
    pytest.importorskip("gradio")
    from mmblocks.cli.page import page

    pipe = pipeline("chat")
    pipe.front = object()
    with pytest.raises(ValueError, match="the model can nothing; accepted: one of chat, generate_image, edit"):
        page(pipe, "nothing")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "Missing argument 'SOURCE'"),
        ([""], 2, "it is empty"),
        (["FOLDER", "--port", "0"], 2, "Invalid value for '--port'"),
        (["FOLDER", "--port", "65536"], 2, "Invalid value for '--port'"),
        (["FOLDER", "--port", "many"], 2, "Invalid value for '--port'"),
        (["FOLDER", "--dtype", "float4"], 1, "float4"),
        (["FOLDER", "--device", "toaster"], 1, "toaster"),
        (["FOLDER", "--front", "nobody"], 1, "nobody"),
        (["FOLDER/missing"], 1, "missing"),
        (["FOLDER/model"], 1, "no front is known"),
        (["FOLDER", "--out", "x"], 2, "No such option"),
    ],
)
def test_wrong_uses_are_one_sentence(arguments: list[str], code: int, said: str, folder: Path) -> None:
    pytest.importorskip("gradio")
    given = [one.replace("FOLDER", str(folder)) for one in arguments]
    result = CliRunner().invoke(commands.app, ["demo", *given], terminal_width=300)
    assert result.exit_code == code, result.output
    assert said in result.stderr and "Traceback" not in result.stderr
