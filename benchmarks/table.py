"""Renders docs/benchmarks.md from the records in benchmarks/records: no figure stands in the docs without its record.

    python -m benchmarks.table

The latest record of each comparison on each device counts.
"""

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent
PAGE = ROOT.parent / "docs" / "benchmarks.md"

HEAD = """# Benchmarks

Made by `make bench-table` from `benchmarks/records/`; not to be edited by hand. Each row is one comparison: the same work on
the same weights in one process, turn by turn. "Times as fast" is the median over the turns, with the least and the greatest
behind it; on a CPU it is of processor time, which says more than the clock where other programs run too. Memory is what a first
step takes at most above what was held before, in a process of its own. A figure below 1 means that ours is slower.
"""


def records() -> list[dict[str, Any]]:
    """The latest of each comparison on each device, in the order of the files and of their lines."""
    latest: dict[tuple[str, str], dict[str, Any]] = {}
    for path in sorted((ROOT / "records").glob("*.jsonl")):
        for line in path.read_text().splitlines():
            record = json.loads(line)
            key = (record["device"], record["benchmark"])
            if key not in latest or record["date"] >= latest[key]["date"]:
                latest[key] = record
    return list(latest.values())


def rows(record: dict[str, Any]) -> list[str]:
    """One line of the table for each rival."""
    first = record.get("first_step", {})
    ours = next(iter(first or record.get("wall_seconds", {"ours": 0})))
    ratios = record.get("cpu_ratio") or record.get("wall_ratio") or {"": None}
    lines = []
    for other, ratio in ratios.items():
        fast = f"**{ratio['median']:.2f}** ({ratio['min']:.2f} to {ratio['max']:.2f})" if ratio else "-"
        memory = " / ".join(f"{first[side]['extra_bytes'] / 2**20:,.0f}" for side in (ours, other) if side in first) or "-"
        note = record["difference"] + (f"; {_once(first[ours])}" if not ratio else "")
        target = f"{record['target']:g}" if record.get("target") else "-"
        lines.append(f"| {record['title']} | {other or '-'} | {fast} | {target} | {memory} | {note} |")
    return lines


def _once(step: dict[str, Any]) -> str:
    """Of a side that has no rival."""
    return f"{step['seconds']:.0f} s, {step['peak_bytes'] / 2**20:,.0f} MiB in all"


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for device in dict.fromkeys(record["device"] for record in records()):
        of_device = [record for record in records() if record["device"] == device]
        about = sorted({f"torch {r['torch']}, {r['threads']} thread{'s' * (r['threads'] != 1)}, {r['date']}" for r in of_device})
        parts.append(f"## {device}\n\n{'; '.join(about)}.\n")
        table = ["| what | beside | times as fast | target | MiB, ours / theirs | result |", "|---|---|---|---|---|---|"]
        parts.append("\n".join([*table, *(line for record in of_device for line in rows(record))]) + "\n")
    if not any("NVIDIA" in record["device"] for record in records()):
        parts.append("## GPU\n\nNot measured yet: `benchmarks/gpu/README.md` lists what is run where a GPU is at hand.\n")
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page())
