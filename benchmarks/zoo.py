"""How exact, how near the limit and how fast is pruning on every network of the zoo?

    python -m benchmarks.zoo --out zoo.csv                      # all light networks at 30, 50, 70 and 90 %
    python -m benchmarks.zoo --out zoo.csv --only yolo/ --heavy --numerical

Each network has its own process at one thread, with a time limit for each ratio. Rows are appended to the CSV as they
come, a second run goes on where the first was stopped, and a Markdown table is written beside it. Run it from the root
of the repository. With `--numerical` what the pruned network executes in convolutions and linear layers is held to the
limit that no rule has counted (`over_numerical`), too.
"""

from __future__ import annotations

import argparse
import csv
import json
import queue
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RATIOS = (0.3, 0.5, 0.7, 0.9)
TOLERANCE = 1e-10
REASONS_SHOWN = 3
FIELDS = (
    "name", "ratio", "status", "capture_s", "analysis_s", "rewrite_s", "error", "macs_before", "macs_after",
    "macs_limit", "over_limit", "limit_share", "numerical_share", "over_numerical", "note", "pieces", "cpu_s",
)  # fmt: skip
Row = dict[str, Any]


def main() -> None:
    options = _options()
    if options.child:
        for ratio in options.ratios:
            print(json.dumps(measured(options.child, ratio, options.mode, options.numerical)), flush=True)
        return
    from tests.zoo import ZOO

    names = [entry.name for entry in ZOO if options.only in entry.name and (options.heavy or not entry.heavy)]
    kept = [row for row in read_rows(options.out) if row["status"] == "ok" or not options.retry]
    done = {(row["name"], float(row["ratio"])) for row in kept}
    started = time.monotonic()
    for i, name in enumerate(names, 1):
        ratios = [ratio for ratio in options.ratios if (name, ratio) not in done]
        for row in rows_of(name, ratios, options):
            append_row(options.out, row)
            passed = time.monotonic() - started
            print(f"[{i}/{len(names)} {passed:5.0f} s] {one_line(row)}", flush=True)
    options.out.with_suffix(".md").write_text(markdown(read_rows(options.out)), encoding="utf-8")


def measured(name: str, ratio: float, mode: str, numerical: bool) -> Row:
    """One row: the network `name` with `ratio` of its channels dead, pruned and compared in float64."""
    import torch

    import l1rr_fx
    from l1rr_fx.testing import executed_macs, numerical_limit
    from tests.oracle import fresh_input, is_alive, relative_error, zeroed_case
    from tests.zoo import by_name

    torch.set_num_threads(1)
    entry = by_name(name)
    case = zeroed_case(entry, ratio)
    row: Row = {"name": name, "ratio": ratio}
    if not is_alive(case):
        return row | {"status": "dead", "note": "zeroing killed the network"}
    started = time.process_time()
    pruned = l1rr_fx.prune(case.model, case.args, case.kwargs, mode=mode, verify=False)
    row["cpu_s"] = round(time.process_time() - started, 1)
    args = fresh_input(case.args, seed=7)
    with torch.no_grad():
        error = relative_error(pruned.module(*args, **case.kwargs), case(args))
    report = pruned.report
    row |= {f"{phase}_s": round(report.accounts.seconds[phase], 3) for phase in ("capture", "analysis", "rewrite")}
    row |= {"status": "ok" if error <= TOLERANCE else "differs", "error": f"{error:.1e}", "note": reasons(report)}
    row |= {f"macs_{when}": getattr(report, when).macs for when in ("before", "after", "limit")}
    row["pieces"] = len(report.pieces)
    row |= {"over_limit": round(report.macs_over_limit, 4)}
    row |= {"limit_share": round(report.limit.macs / max(report.before.macs, 1), 4)}
    if numerical and not entry.whole:
        limit = numerical_limit(case.model, case.args, case.kwargs, samples=2, strict=True)
        row["numerical_share"] = round(limit.macs / max(limit.dense, 1), 4)
        after = executed_macs(pruned.module, case.args, case.kwargs)
        row["over_numerical"] = round(after / max(limit.macs, 1), 4)
    return row


def reasons(report: Any) -> str:
    """The costliest reasons why work above the limit is left, with their share of the limit."""
    macs: defaultdict[str, int] = defaultdict(int)
    for kept in report.accounts.kept:
        macs[kept.reason] += kept.macs
    worst = sorted(macs.items(), key=lambda item: -item[1])[:REASONS_SHOWN]
    return "; ".join(f"{reason}: {100 * cost / max(report.limit.macs, 1):.2f} %" for reason, cost in worst if cost)


def rows_of(name: str, ratios: list[float], options: argparse.Namespace) -> Iterator[Row]:
    """The rows of one network, from a process of its own; one that fails or takes too long costs one row."""
    while ratios:
        lines = child_lines(name, ratios, options)
        for line in lines:
            if not isinstance(line, str):
                yield {"name": name, "ratio": ratios[0], **line}
            else:
                yield json.loads(line)
            ratios = ratios[1:]


def child_lines(name: str, ratios: Iterable[float], options: argparse.Namespace) -> Iterator[str | Row]:
    """JSON lines of a child process; then, if it did not get through, what happened."""
    command = [sys.executable, "-m", "benchmarks.zoo", "--child", name, "--mode", options.mode]
    command += ["--ratios", *map(str, ratios)] + ["--numerical"] * options.numerical
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        lines: queue.Queue[str | None] = queue.Queue()
        errors: list[str] = []
        readers = [
            threading.Thread(target=_read_rows, args=(child.stdout, lines), daemon=True),
            threading.Thread(target=lambda: errors.extend(child.stderr or ()), daemon=True),
        ]
        for reader in readers:
            reader.start()
        while True:
            try:
                line = lines.get(timeout=options.limit)
            except queue.Empty:
                child.kill()
                yield {"status": "timeout", "note": f"over {options.limit:.0f} s"}
                return
            if line is None:
                break
            yield line
        readers[1].join()
    if child.returncode:
        yield {"status": "error", "note": last_words(errors)}


def _read_rows(stream: Any, lines: queue.Queue[str | None]) -> None:
    for line in stream:
        if line.startswith("{"):
            lines.put(line)
    lines.put(None)


def last_words(errors: list[str]) -> str:
    """The exception's own lines at the end of a traceback, on one line."""
    start = max((i for i, line in enumerate(errors) if line.startswith("  ")), default=-1) + 1
    return " ".join(line.strip() for line in errors[start:] or errors[-3:])[:400]


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV, the last one of each network and ratio; none if there is no such file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list({(row["name"], row["ratio"]): row for row in csv.DictReader(file)}.values())


def append_row(path: Path, row: Row) -> None:
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS)
        if new:
            writer.writeheader()
        writer.writerow(row)


def one_line(row: Row) -> str:
    seconds = sum(row.get(f"{phase}_s", 0.0) for phase in ("capture", "analysis", "rewrite"))
    numbers = f"error {row.get('error', '-'):>8} over limit {row.get('over_limit', '-'):>7} {seconds:6.1f} s"
    return f"{row['name']:<42} {row['ratio']:.0%} {row['status']:<8} {numbers}  {row.get('note', '')}"


def markdown(rows: list[dict[str, str]]) -> str:
    """One line for each network: by ratio MACs over the limit and the error, or what went wrong; then the reasons."""
    counts: defaultdict[str, int] = defaultdict(int)
    by_name: defaultdict[str, dict[float, dict[str, str]]] = defaultdict(dict)
    for row in rows:
        counts[row["status"]] += 1
        by_name[row["name"]][float(row["ratio"])] = row
    ratios = sorted({ratio for found in by_name.values() for ratio in found})
    lines = [["network", *(f"{ratio:.0%}" for ratio in ratios), "why above the limit"], ["---"] * (len(ratios) + 2)]
    for name, found in by_name.items():
        lines.append([name, *(_cell(found.get(ratio)) for ratio in ratios), _why(found[max(found)])])
    summary = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
    return f"{len(rows)} rows: {summary}.\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(row: dict[str, str] | None) -> str:
    if row is None:
        return ""
    if row["status"] in ("ok", "differs"):
        return f"{float(row['over_limit']):.3f}, {row['error']}" + " (differs)" * (row["status"] == "differs")
    return row["status"]


def _why(row: dict[str, str]) -> str:
    """The reasons with the most channels dead, or what went wrong."""
    return row["note"].replace("|", "\\|") if row["status"] != "ok" or float(row["over_limit"]) > 1.001 else ""


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("zoo.csv"), help="CSV to append to (default: %(default)s)")
    parser.add_argument("--only", default="", help="networks whose name contains this")
    parser.add_argument("--heavy", action="store_true", help="the heavy networks too")
    parser.add_argument(
        "--numerical", action="store_true", help="estimate the limit from activations and gradients too"
    )
    parser.add_argument("--retry", action="store_true", help="run again what was not ok the last time")
    parser.add_argument("--ratios", type=float, nargs="+", default=list(RATIOS))
    parser.add_argument("--mode", default="recombine", choices=("recombine", "union", "exclude"))
    parser.add_argument("--limit", type=float, default=300.0, help="seconds for one ratio (default: %(default)s)")
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
