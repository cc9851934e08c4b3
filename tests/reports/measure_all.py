"""Makes the tables of tests/reports but those of choices.md.

Run it in a folder with all .npy files, also those for crossvalidate.py, and MIT-BIH's folder:

    python tests/reports/measure_all.py

Takes four to five hours on two cores. A stopped script resumes when it is started again. Writes
what the scripts write, below results/.
"""

import subprocess
import sys
from pathlib import Path

COMMANDS = ["measure.py mitbih ptbxl_seeds", "measure_cross.py", "detectors.py",
            "crossvalidate.py cnn", "crossvalidate.py lstm", "crossvalidate.py mlp"]


def main():
    for command in COMMANDS:
        script, *arguments = command.split()
        print(f"\n== {command}", flush=True)
        path = Path(__file__).resolve().parent / script
        code = subprocess.run([sys.executable, path, *arguments], check=False).returncode
        if code:
            raise SystemExit(f"{command} failed with exit status {code}: see its last line above")


if __name__ == "__main__":
    main()
