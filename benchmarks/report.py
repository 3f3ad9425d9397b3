"""Render a run of messages.py as the table of docs/explanation/performance.md.

    python benchmarks/report.py benchmarks/messages.json [--write docs/explanation/performance.md]

With --write the text between the two markers of that page is replaced.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- begin figures -->", "<!-- end figures -->"


def figure(value: float, unit: str) -> str:
    """Return one figure as a person reads it."""
    if unit == "us":
        return f"{value:.1f} us"
    return f"{value / 1e6:.2f} M/s" if value >= 1e6 else f"{value / 1e3:.1f} k/s"


def row_of(row: dict[str, Any]) -> str:
    """Return one line of the table."""
    unit = row["unit"]
    ordered = sorted(row["values"].items(), key=lambda item: item[1] if unit == "us" else -item[1])
    ours = "<br>".join(f"**{name} {figure(value, unit)}**" for name, value in ordered if name.startswith("smartipc"))
    peers = [f"{name} {figure(value, unit)}" for name, value in ordered if not name.startswith("smartipc")]
    peers += [f"{name}: missing ({reason})" for name, reason in row["missing"].items()]
    sign = "≤" if unit == "us" else "≥"
    verdicts = []
    for one in row["targets"]:
        if one["ratio"] is None:
            verdicts.append(f"{one['ours']} against {one['against']}: not measured")
            continue
        mark = "reached" if one["reached"] else "**not reached**"
        verdicts.append(f"{one['ours']} {one['ratio']:.2f} x {one['against']}, target {sign} {one['target']}: {mark}")
    return f"| {row['title']} | {ours} | {'<br>'.join(peers)} | {'<br>'.join(verdicts)} |"


def table(run: dict[str, Any]) -> str:
    """Return the whole table."""
    machine = run["machine"]
    lines = [
        (
            f"Runs on {machine['cpus']} cores, {machine['system']}, Python {machine['python']}, "
            "medians over interleaved rounds."
        ),
        "",
        "| case | smartipc | peers | ratio and target |",
        "|---|---|---|---|",
    ]
    return "\n".join([*lines, *(row_of(row) for row in run["rows"])])


def main() -> None:
    """Print the table or put it into a page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="+", help="JSON of messages.py; rows of later files replace those of earlier ones")
    parser.add_argument("--write", default="")
    options = parser.parse_args()
    runs = [json.loads(Path(name).read_text()) for name in options.run]
    rows: dict[str, Any] = {}
    for run in runs:
        rows |= {row["row"]: row for row in run["rows"]}
    text = table({"machine": runs[-1]["machine"], "rows": list(rows.values())})
    if not options.write:
        print(text)
        return
    page = Path(options.write)
    before, _, rest = page.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")


if __name__ == "__main__":
    main()
