"""Pictures, tables and the summary that the examples leave behind."""

import json
from pathlib import Path

import matplotlib
from torch import Tensor

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def show(rows: list[list[Tensor]], file: Path, titles: list[list[str]] | None = None, row_names: list[str] | None = None) -> None:
    """Draws a sheet of images (3, H, W), each with a title if there are titles."""
    columns = max(len(row) for row in rows)
    height = 1.4 if titles else 0.7
    figure, axes = plt.subplots(len(rows), columns, figsize=(columns * (1.6 if titles else 0.7), len(rows) * height), squeeze=False)
    for r, line in enumerate(axes):
        for c, cell in enumerate(line):
            cell.set_xticks([])
            cell.set_yticks([])
            if c < len(rows[r]):
                cell.imshow(rows[r][c].permute(1, 2, 0).clamp(0, 1).numpy())
            else:
                cell.axis("off")
            if titles and c < len(rows[r]):
                cell.set_title(titles[r][c], fontsize=7)
        if row_names:
            line[0].set_ylabel(row_names[r], rotation=0, ha="right", va="center", fontsize=8)
    figure.tight_layout(pad=0.3)
    figure.savefig(file, dpi=120)
    plt.close(figure)


def show_curves(curves: dict[str, list[float]], file: Path) -> None:
    """Draws losses over training steps."""
    figure, axes = plt.subplots(1, len(curves), figsize=(4 * len(curves), 3), squeeze=False)
    for cell, (name, values) in zip(axes[0], curves.items(), strict=True):
        cell.plot(values, linewidth=0.8)
        cell.set_title(name)
        cell.set_xlabel("step")
        cell.set_yscale("log")
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    plt.close(figure)


def report(section: str, figures: dict[str, object], folder: Path) -> None:
    """Notes an example's figures in ``summary.json`` and prints all that is there as a table."""
    file = folder / "summary.json"
    summary = json.loads(file.read_text()) if file.is_file() else {}
    summary[section] = figures
    file.write_text(json.dumps(summary, indent=2) + "\n")
    for title, entries in summary.items():
        print(f"\n{title}")
        for name, value in entries.items():
            print(f"  {name:<62} {value}")
    print(f"\nPictures and summary.json are in {folder}/")
