"""Build the core with hatchling, and fill its extra `all` with the plugins that lie beside it.

Left out are those that bring a service's client.

What is built (wheel or sdist) is meant to travel: it names the plugins by version range, never by
path. pip asks for the metadata before it builds; to that question a checkout answers with the
plugin folders themselves, so `pip install ".[all]"` takes every plugin from here and none from the
index. HATBUS_RELEASE=1 makes that answer name ranges too.

hatchling defines no `prepare_metadata_*` when pip asks: a build hook could still change what it
had answered. Here that difference is wanted, and it is the only one.
"""

import os
from pathlib import Path
from typing import Any

from hatchling.build import (
    build_editable,
    build_sdist,
    build_wheel,
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    get_requires_for_build_wheel,
)
from hatchling.builders.wheel import WheelBuilder
from hatchling.metadata.plugin.interface import MetadataHookInterface

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]


WITH_CLIENTS = ("hatbus-mlflow", "hatbus-optuna", "hatbus-trackio", "hatbus-wandb")
"""Those that bring a service's client, and dozens of packages with it: asked for by name."""


def plugin_folders(root: str) -> list[Path]:
    """Return the plugins of a checkout that `all` means; of an unpacked sdist, none."""
    found = (path.parent for path in Path(root).glob("plugins/*/pyproject.toml"))
    return sorted(folder for folder in found if folder.name not in WITH_CLIENTS)


class PluginRanges(MetadataHookInterface):
    """Adds `optional-dependencies`; an unpacked sdist has them in PKG-INFO, and never runs this."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Name every patch version that fits this core, beside the extras of pyproject.toml."""
        major, minor = metadata["version"].split(".")[:2]
        plugins = [f"{path.name}~={major}.{minor}.0" for path in plugin_folders(self.root)]
        metadata["optional-dependencies"] = {**self.config["extras"], "all": plugins}


def prepare_metadata_for_build_wheel(
    metadata_directory: str,
    config_settings: dict[str, Any] | None = None,  # noqa: ARG001 - PEP 517's signature
) -> str:
    """Answer what an installation from this folder needs."""
    builder = WheelBuilder(str(Path.cwd()))
    folders = plugin_folders(builder.root)
    if folders and os.environ.get("HATBUS_RELEASE") != "1":
        # pip takes "name-word" at the end of an address for a name with a version, and keeps what
        # it built from there for ever; with "/." at the end it builds a changed folder anew.
        siblings = [f"{path.name} @ {path.as_uri()}/." for path in folders]
        builder.metadata.core.optional_dependencies["all"] = siblings
    answer = Path(metadata_directory, f"{builder.artifact_project_id}.dist-info")
    answer.mkdir(exist_ok=True)
    text = builder.config.core_metadata_constructor(builder.metadata)
    (answer / "METADATA").write_text(text, encoding="utf-8")
    return answer.name


prepare_metadata_for_build_editable = prepare_metadata_for_build_wheel
