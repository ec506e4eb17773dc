"""Addition problems `a+b=c` with four-digit operands, without repeated pairs, drawn from a seed.

    python addition_data_generation.py --n 10000 --seed 1 --out problems.txt --exclude data/addition_test.txt
"""

from __future__ import annotations

from engine import start

start.begin(__name__)

import sys
from pathlib import Path

import numpy as np

from engine.io.files import atomic_path, check_writable
from tasks import cli
from tasks.addition.problems import pair_number, problem_text, read_problems, sample_problems
from tasks.settings import count, input_file, seed_number


def generate_addition_data(n: int, seed: int | None = None, excluded: np.ndarray | None = None) -> list[str]:
    """n problems as strings `a+b=c`; see `sample_problems`. Without a seed, different at each call."""
    return _text(n, seed, excluded).decode("ascii").split("\n") if n else []


def _text(n: int, seed: int | None, excluded: np.ndarray | None) -> bytes:
    seed = int(np.random.default_rng().integers(2**62)) if seed is None else seed
    return problem_text(*sample_problems(n, seed, excluded))


def generate_dataset(
    n: int, filename: str, save_dir: str = "data", seed: int | None = None, excluded: np.ndarray | None = None
) -> None:
    """Writes n problems to `save_dir/filename`, one per line, and prints where."""
    Path(save_dir).mkdir(parents=True, exist_ok=True)
    _write(n, _text(n, seed, excluded), Path(save_dir) / filename)


def _write(n: int, text: bytes, path: Path) -> None:
    with atomic_path(path) as temporary:
        temporary.write_bytes(text)
    print(f"{n} data points saved to {path}")


def main(argv: list[str] | None = None) -> int:
    """Writes a file of problems; bad input ends in one line and exit code 2."""
    parser = cli.new_parser("addition_data_generation.py", __doc__.split("\n")[0])
    parser.add_argument("--n", type=count, required=True, help="how many problems")
    parser.add_argument("--seed", type=seed_number, default=1337, help="seed of the draw")
    parser.add_argument("--out", required=True, help="file to write")
    parser.add_argument("--exclude", nargs="*", type=input_file, default=[], help="files whose problems are not drawn")
    args = parser.parse_args(argv)

    def prepare() -> cli.Work:
        out = check_writable(args.out)
        excluded = [pair_number(*read_problems(path)) for path in args.exclude]
        text = _text(args.n, args.seed, np.concatenate(excluded) if excluded else None)
        return lambda: _write(args.n, text, out)

    return cli.carry_out("addition_data_generation.py", prepare)


if __name__ == "__main__":
    sys.exit(main())
