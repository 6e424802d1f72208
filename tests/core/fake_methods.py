"""Throw-away distributions with methods, and registers that list them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from augury.errors import UsageError
from augury.listing import Found
from augury.registry import Register, default_user_file

ROOT = Path(__file__).resolve().parents[2]


FIRST_PARTY = {
    "agmax": "augury_agmax:AgMax",
    "augmix": "augury_augmix:AugMix",
    "cutmix": "augury_cutmix:CutMix",
    "dcutmix": "augury_dcutmix:DCutMix",
    "distill": "augury_distill:Distill",
    "focal": "augury_focal:Focal",
    "isda": "augury_isda:ISDA",
    "mixup": "augury_mixup:Mixup",
    "resmooth": "augury_resmooth:ReSmooth",
    "supcon": "augury_supcon:SupCon",
    "swa": "augury_swa:SWA",
}
METHOD = """
import augury

class M(augury.Method):
    contract = "2.0"

    @augury.hookimpl
    def {hook}(self, {parameters}):
        pass
"""


GOOD = METHOD.format(hook="post_epoch", parameters="run")


Install = Callable[..., str]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Put throw-away distributions on the path; give a name, get the name of its distribution."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AUGURY_CONFIG", str(tmp_path / "config"))

    def put(
        name: str,
        source: str = GOOD,
        *,
        dist: str = "",
        version: str = "1.0",
        target: str = "",
        at: str = "site",
        origin: object = None,
    ):
        dist = dist or f"fake-{name}"
        module = dist.replace("-", "_")
        folder = tmp_path / at
        info = folder / f"{module}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {dist}\nVersion: {version}\nSummary: Says {name}\n"
        )
        (info / "entry_points.txt").write_text(f"[augury.methods]\n{name} = {target or f'{module}:M'}\n")
        (folder / f"{module}.py").write_text(source)
        if origin is not None:
            (info / "direct_url.json").write_text(origin if isinstance(origin, str) else json.dumps(origin))
        if str(folder) not in sys.path:
            monkeypatch.syspath_prepend(str(folder))
        return dist

    yield put
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


def user_lists(*names: str, extra: str = "", **changes: str) -> None:
    """Write the user's register, which lists the fakes of these names."""
    lines = [extra]
    for name in names:
        module = f"fake_{name}"
        values = {"distribution": f"fake-{name}", "entry_point": f"{module}:M", "versions": ">=1,<2"} | changes
        lines += [f"[methods.{name}]", *(f'{key} = "{value}"' for key, value in values.items())]
    default_user_file().parent.mkdir(exist_ok=True)
    default_user_file().write_text("\n".join(lines))


def found(register: Register, name: str) -> Found:
    return next(found for found in register.methods() if found.name == name)


def refusal(register: Register, name: str) -> str:
    """The one line with which a method is refused."""
    with pytest.raises(UsageError) as caught:
        register.load_class(name)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


# What was made in a folder


def from_folder(folder: Path, *, editable: bool = True) -> dict[str, object]:
    """What an installer writes down of a project's folder."""
    return {"url": folder.as_uri(), "dir_info": {"editable": True} if editable else {}}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The folder of a project; its name has to be quoted, in a URL and on a command line."""
    folder = tmp_path / "my projects" / "alphä"
    folder.mkdir(parents=True)
    return folder
