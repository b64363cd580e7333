"""``PluginProject``: plugins installed for the length of a test, as pip would leave them."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from textwrap import dedent
from typing import Final

from hatbus import discovery

_INFO: Final = (
    "Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nRequires-Dist: {requires}\n"
)


class PluginProject:
    """A folder on ``sys.path`` into which distributions are put.

    Args:
        site: the folder.
    """

    def __init__(self, site: Path) -> None:
        self.site = site
        site.mkdir(parents=True, exist_ok=True)
        sys.path.insert(0, str(site))

    def install(
        self,
        name: str,
        entry_points: Mapping[str, str],
        modules: Mapping[str, str],
        *,
        version: str = "1.0",
        requires: str = "hatbus",
        commands: Mapping[str, str] | None = None,
    ) -> None:
        """Installs a distribution.

        Args:
            name: of the distribution.
            entry_points: plugin name to ``"module:Class"``.
            modules: file name such as ``"acme/hats.py"`` to source.
            version: of the distribution.
            requires: what it needs, such as ``"hatbus>=0.1,<0.2"``.
            commands: command to ``"module:function"``.
        """
        info = self.site / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        text = _INFO.format(name=name, version=version, requires=requires)
        (info / "METADATA").write_text(text, "utf-8")
        lines = []
        for group, offered in (
            (discovery.GROUP, entry_points),
            (discovery.COMMAND_GROUP, commands or {}),
        ):
            lines += [f"[{group}]", *(f"{point} = {value}" for point, value in offered.items())]
        (info / "entry_points.txt").write_text("\n".join(lines), "utf-8")
        for file, source in modules.items():
            target = self.site / file
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(dedent(source), "utf-8")
        discovery.forget()

    def remove(self) -> None:
        """Takes the folder off the path, and its modules out of ``sys.modules``."""
        if str(self.site) in sys.path:
            sys.path.remove(str(self.site))
        for name, module in list(sys.modules.items()):
            if str(getattr(module, "__file__", "") or "").startswith(str(self.site)):
                del sys.modules[name]
        discovery.forget()
