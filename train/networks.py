"""Write the table of networks anew: `python train/networks.py`, or `make networks`.

Every network that the installed timm and ours have is built and tried on torch's meta device, which takes half an hour;
the table says of which timm it is. tests/train/test_catalogue.py holds it against the networks.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from augury_train.catalogue import asked, table

FILE = Path(__file__).parent / "src/augury_train/catalogue" / table.FILE


def main() -> None:
    """Build, and write the file."""
    found = []
    for backbone in asked.collect().values():
        (size,) = asked.measure([backbone.name]).values()
        if size is None:
            print(f"{backbone.name} cannot be built", file=sys.stderr)
        found.append(replace(backbone, size=size))
    FILE.write_text(table.render(asked.installed(), found), encoding="utf-8")
    print(f"{len(found)} networks")


if __name__ == "__main__":
    main()
