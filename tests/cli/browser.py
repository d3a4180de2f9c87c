"""Drives a page in a headless Chromium, in a process of its own: ``python browser.py ADDRESS``, with steps as JSON on the input.

A step is JavaScript whose value has to become true; the next one begins then. The last value is printed as JSON.
"""

import json
import sys

from PyQt6.QtCore import QTimer, QUrl
from PyQt6.QtWebEngineWidgets import QWebEngineView
from PyQt6.QtWidgets import QApplication

SECONDS = 60


def main(address: str, steps: list[str]) -> int:
    application = QApplication([sys.argv[0], "--no-sandbox", "--disable-gpu"])
    view = QWebEngineView()
    view.resize(1000, 900)
    waiting = list(steps)

    def look() -> None:
        view.page().runJavaScript(waiting[0], seen)

    def seen(value: object) -> None:
        if value:
            waiting.pop(0)
        if waiting:
            QTimer.singleShot(100, look)
        else:
            sys.stdout.write(json.dumps(value) + "\n")
            sys.stdout.flush()
            application.exit(0)

    def late() -> None:
        sys.stderr.write(f"after {SECONDS} s still waiting for: {waiting[0]}\n")
        application.exit(1)

    view.loadFinished.connect(lambda loaded: look() if loaded else application.exit(2))
    QTimer.singleShot(SECONDS * 1000, late)
    view.load(QUrl(address))
    view.show()
    return application.exec()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], json.load(sys.stdin)))
