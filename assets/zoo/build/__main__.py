"""Build the zoo: `python -m assets.zoo.build --work DIR` from the repository's root."""

import argparse
import os
import sys
import time
from pathlib import Path

from . import draw, evaluate, finetune, mixture, pretrain, publish
from .sources import SourceError

STAGES = {
    "draw": draw.draw,
    "pretrain": pretrain.pretrain,
    "finetune": finetune.finetune_all,
    "publish": publish.publish,
    "mixture": mixture.publish_mixture,
    "evaluate": lambda _: evaluate.evaluate(),
}


def main() -> int:
    """Run the stages that are not done; a stage that ran leaves a mark in the working folder."""
    parser = argparse.ArgumentParser(prog="python -m assets.zoo.build", description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for downloads and intermediate files (2 GB)")
    parser.add_argument("--from", dest="first", choices=STAGES, help="run again from this stage on")
    options = parser.parse_args()
    work = options.work.resolve()
    (work / "done").mkdir(parents=True, exist_ok=True)
    # Idle threads must sleep, not spin: there is one process per core.
    os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}
    again = False
    for name, run in STAGES.items():
        again = again or name == options.first
        mark = work / "done" / name
        if mark.exists() and not again:
            continue
        again = True
        print(f"{name} ...", flush=True)
        started = time.perf_counter()
        try:
            run(work)
        except SourceError as error:
            print(error, file=sys.stderr)
            return 1
        mark.touch()
        print(f"{name}: {time.perf_counter() - started:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
