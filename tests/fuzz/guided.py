"""The same targets under atheris, which looks for inputs that reach new lines: `pip install atheris`, and then

python tests/fuzz/guided.py npz -max_total_time=60

with a name of test_fuzz_data.NAMES and options of libFuzzer.
"""

import sys
import tempfile
import warnings
from contextlib import suppress
from pathlib import Path

import atheris

sys.path.append(str(Path(__file__).parents[1]))
with atheris.instrument_imports(include=["capscore.data"]):
    from test_fuzz_data import targets

from capscore.errors import DataError


def main(name: str, *options: str) -> None:
    """Fuzz a format until libFuzzer ends it, from the sound files of `targets`."""
    warnings.simplefilter("ignore")
    folder = Path(tempfile.mkdtemp())
    read, seeds = targets(folder)[name]
    (folder / "seeds").mkdir()
    for i, seed in enumerate(seeds):
        (folder / "seeds" / str(i)).write_bytes(seed)

    def one(content: bytes) -> None:
        with suppress(DataError):
            read(content)

    atheris.Setup([sys.argv[0], *options, str(folder / "seeds")], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
