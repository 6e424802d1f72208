"""Write the recipes of the published runs: one TOML file a run, inside the package of its method.

`published.py` in a plugin's folder holds its papers' tables, outside the package that is installed. `make recipes`
writes all recipes anew, and removes files that no table has any longer; what is written by hand, without the first line
of the others, is left alone.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

PLUGINS = Path(__file__).resolve().parent
WRITTEN = "# Written by `make recipes`"


def main(root: Path) -> None:
    """Write every file below `root`, which has the folders of plugins/."""
    for table in sorted(PLUGINS.glob("*/published.py")):
        name = table.parent.name
        folder = root / name / "src" / f"augury_{name}" / "recipes"
        folder.mkdir(parents=True, exist_ok=True)
        # Run as a file: it imports `recipe_rows`, which lies beside this script.
        rows = list(runpy.run_path(str(table))["rows"]())
        texts = {f"{row.name}.toml": row.text(f"plugins/{name}/published.py") for row in rows}
        assert len(texts) == len(rows), f"{name}: two rows of one name"
        for path in folder.glob("*.toml"):
            if path.name not in texts and path.read_text(encoding="utf-8").startswith(WRITTEN):
                path.unlink()
        for file, text in texts.items():
            (folder / file).write_text(text, encoding="utf-8")
        print(f"{name}: {len(rows)} recipes")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else PLUGINS)
