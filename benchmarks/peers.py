"""Everything public beside what a user would otherwise take: forward, and forward and backward, at three sizes each.

    python benchmarks/peers.py
    python benchmarks/peers.py --only "op*" --rounds 3 --threads 1
    python benchmarks/peers.py --markdown             # no timing: docs/performance.md from the last results

What both sides compute is compared before it is timed, with the gradient of the first input. Where they compute
different functions, a DiMSUM block and a DiT's for example, what is compared is the time of a GFLOP of matrix products.
Both take their inputs in the layout that their own users have. A peer that is not installed is skipped, and named:
`pip install mambapy transformers` brings those that the library's own extras do not.
"""

from __future__ import annotations

import argparse
import dataclasses
import fnmatch
import json
import math
import re
import time
from pathlib import Path
from typing import Any

import torch
from beside import blocks_and_models, diffusion, files_and_training, layers, transforms_and_ops
from beside.contest import Contest, Run, Side
from common import RESULTS, report, time_cases

import wavemamba
from wavemamba import ops

ROOMS = (transforms_and_ops, layers, blocks_and_models, diffusion, files_and_training)
LEAST_SECONDS = 3e-3  # of what the clock measures at once
MOST_SECONDS = 12.0  # of one size; slow peers get fewer rounds
PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
BEGIN, END = "<!-- peers: begin -->", "<!-- peers: end -->"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="*", help="names to measure, as a shell pattern")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--name", default="cpu-peers", help="of the JSON under benchmarks/results")
    parser.add_argument("--markdown", action="store_true", help="write the page's table from the results, and stop")
    options = parser.parse_args()

    if options.markdown:
        write_page(json.loads((RESULTS / f"{options.name}.json").read_text()))
        return
    setup = wavemamba.set_up_cpu(options.threads, restart=True)  # for both sides: freed memory stays here
    ops.warm_up()
    rows, skipped = measure(select(options.only), options.rounds)
    report(options.name, rows, rounds=options.rounds, set_up=dataclasses.asdict(setup), skipped=skipped)


def select(pattern: str) -> list[Contest]:
    contests = [contest for room in ROOMS for contest in room.CONTESTS if fnmatch.fnmatch(contest.name, pattern)]
    if not contests:
        raise SystemExit(f"--only: expected a pattern of names, got {pattern!r}, which none has")
    return contests


def measure(contests: list[Contest], rounds: int) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Rows of the table, and the contests that had no peer with the reason."""
    rows: list[dict[str, Any]] = []
    skipped: dict[str, str] = {}
    for contest in contests:
        for size in contest.sizes:
            torch.manual_seed(0)
            try:
                ours, peer = contest.make(*size)
            except ImportError as error:
                skipped[f"{contest.name} beside {contest.peer}"] = str(error)
                print(f"{contest.name}: skipped, {error}", flush=True)
                break
            rows += held(contest, size, ours, peer, rounds)
    return rows, skipped


def held(contest: Contest, size: tuple[Any, ...], ours: Side, peer: Side, rounds: int) -> list[dict[str, Any]]:
    """One size of a contest: checked, timed, and its rows."""
    error = None if contest.per_gflop else contest.check(ours, peer)
    whats = ("forward", "step") if contest.trains else ("forward",)
    runs: dict[tuple[str, str], Run] = {}
    for who, side in (("ours", ours), ("peer", peer)):
        runs[who, "forward"] = side.forward()
        if contest.trains:
            runs[who, "step"] = side.step()
    flops = {key: ours.flops(run) if key[0] == "ours" else peer.flops(run) for key, run in runs.items()}
    repeats = {what: repeats_of(runs["peer", what]) for what in whats}
    cases = {key: repeated(run, repeats[key[1]]) for key, run in runs.items()}
    once = sum(once_through(case) for case in cases.values())
    seconds = time_cases(cases, rounds=max(2, min(rounds, round(MOST_SECONDS / (2 * once)))), warm=True)
    rows = []
    for what in whats:
        own, other = (seconds[who, what] / repeats[what] for who in ("ours", "peer"))
        ratio = own / other
        if contest.per_gflop:
            ratio *= flops["peer", what] / flops["ours", what]
        row = {"name": contest.name, "peer": contest.peer, "size": " x ".join(map(str, size)), "what": what}
        row |= {"ours, ms": own * 1e3, "peer, ms": other * 1e3, "ratio": ratio}
        row |= {"by the GFLOP": True} if contest.per_gflop else {"error": error}
        print(f"{row['name']} | {row['peer']} | {row['size']} | {what} | {ratio:.2f}", flush=True)
        rows.append(row)
    return rows


def repeats_of(run: Run) -> int:
    """How often a call is repeated for the clock to measure it."""
    run()
    return max(1, math.ceil(LEAST_SECONDS / once_through(run)))


def once_through(run: Run) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def repeated(run: Run, times: int) -> Run:
    def calls() -> None:
        for _ in range(times):
            run()

    return calls


def write_page(results: dict[str, Any]) -> None:
    """Put the table of the results between its marks on the page."""
    text = PAGE.read_text()
    if BEGIN not in text or END not in text:
        raise SystemExit(f"{PAGE}: expected the marks {BEGIN} and {END}")
    PAGE.write_text(re.sub(f"(?s){BEGIN}.*{END}", lambda _: f"{BEGIN}\n{markdown(results)}\n{END}", text))
    print(f"written: {PAGE}")


def markdown(results: dict[str, Any]) -> str:
    """A line for a contest: its three sizes, and the ratios at each."""
    groups: dict[tuple[str, str, bool], dict[str, dict[str, float]]] = {}
    for row in results["rows"]:
        key = (row["name"], row["peer"], row.get("by the GFLOP", False))
        groups.setdefault(key, {}).setdefault(row["size"], {})[row["what"]] = row["ratio"]
    lines = ["| ours | beside | sizes | forward | forward + backward |", "|---|---|---|---|---|"]
    for (name, peer, by_gflop), sizes in groups.items():
        ratios = {
            what: " / ".join(_bold(found[what]) for found in sizes.values() if what in found)
            for what in ("forward", "step")
        }
        peer = f"{peer}, by the GFLOP" if by_gflop else peer
        lines.append(f"| {name} | {peer} | {'; '.join(sizes)} | {ratios['forward']} | {ratios['step']} |")
    described = results["machine"]
    head = f"{described['processor']}, {described['threads']} threads of {described['cores']} cores, torch "
    return f"{head}{described['torch']}, {results['settings']['rounds']} rounds.\n\n" + "\n".join(lines)


def _bold(ratio: float) -> str:
    return f"**{ratio:.2f}**" if ratio > 1.005 else f"{ratio:.2f}"


if __name__ == "__main__":
    main()
