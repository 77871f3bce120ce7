"""Each known mistake planted in our own modules (tests/plants.py), and what diagnose.py says of it.

    python bench/confusion_table.py

Exit status 1 if a mistake is not named, or anything else is.
"""

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.plants import PLANTS, diagnose_planted


def main() -> None:
    n_right = 0
    with tempfile.TemporaryDirectory() as folder:
        for (one,), findings in diagnose_planted(
            Path(folder), [((one,), one.edition) for one in PLANTS]
        ):
            said = [f"{f.component}: {f.detail}" for f in findings if not f.is_correct]
            n_right += said == [one.mistake.id]
            print(f"{one.mistake.id}  ->  {'; '.join(said) or 'all correct'}")
    print(f"{n_right} of {len(PLANTS)} planted mistakes are named, and nothing else is")
    sys.exit(n_right < len(PLANTS))


if __name__ == "__main__":
    main()
