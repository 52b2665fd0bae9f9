"""`make chaos CHAOS_ARGS="--seconds 600 --seed 7"`: chaos for as long as wanted."""

import argparse
import os
import random
import sys
import tempfile
from pathlib import Path

from tests.chaos.run import run_chaos
from tests.s3.servers import seaweedfs


def main() -> int:
    parser = argparse.ArgumentParser(prog="chaos", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=None, help="default: another one each time")
    options = parser.parse_args()
    seed = random.randrange(1 << 31) if options.seed is None else options.seed
    sys.stdout.write(f"chaos: --seconds {options.seconds:g} --seed {seed}\n")
    sys.stdout.flush()
    with tempfile.TemporaryDirectory(prefix="cachefs-") as folder:
        server_folder = Path(folder) / "s3"
        server_folder.mkdir()
        with seaweedfs(server_folder) as server:
            os.environ.update(server.environment())
            sys.stdout.write(run_chaos(server, Path(folder), options.seconds, seed) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
