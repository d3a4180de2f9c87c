"""The figures of the documentation come from records, and the benchmarks' command line works."""

import json
import os
import subprocess
import sys

from benchmarks import table


def test_the_page_of_figures_is_rendered_from_the_records() -> None:
    assert table.PAGE.read_text() == table.page(), "run `make bench-table`"


def test_every_record_names_what_its_figures_depend_on() -> None:
    needed = {"benchmark", "title", "difference", "device", "commit", "torch", "threads", "date"}
    assert all(needed <= set(record) for record in table.records())


def test_a_comparison_writes_times_memory_and_differences(tmp_path) -> None:
    script = tmp_path / "sums.py"
    script.write_text(
        "import torch\n"
        "from benchmarks.measure import Comparison, main\n"
        "x = torch.ones(1000)\n"
        "def sums(device):\n"
        "    sides = {'ours': lambda: lambda: x.sum(), 'rival': lambda: lambda: sum(x.tolist())}\n"
        "    return Comparison('a sum', sides, lambda: 'none', target=1)\n"
        "if __name__ == '__main__':\n"
        "    main('sums', {'sums': sums}, None)\n"
    )
    figures = tmp_path / "figures.jsonl"
    command = [sys.executable, "-m", "sums", "--repeats", "2", "--threads", "1", "--json", str(figures)]
    here = str(table.ROOT.parent)
    subprocess.run(command, check=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": f"{tmp_path}:{here}"}, capture_output=True)
    (record,) = map(json.loads, figures.read_text().splitlines())
    assert record["benchmark"] == "sums sums"
    assert record["wall_ratio"]["rival"]["min"] <= record["wall_ratio"]["rival"]["max"]
    assert set(record["first_step"]) == {"ours", "rival"}
    assert table.rows(record)[0].startswith("| a sum | rival | **")
