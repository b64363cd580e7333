"""Hostile checkpoints and files: each entry changes a good checkpoint, or writes a bad file."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import socket
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from mutations import seal

from hatbus_checkpoint import manifest

Make = Callable[[Path], None]


class Runs:
    """A pickle that touches a file named by the environment when it is loaded."""

    def __init__(self, *words: Any) -> None:
        self.words = words

    def __reduce__(self) -> Any:
        return self.words[0], self.words[1:]


def touch() -> str:
    """The marker; it exists when something was run."""
    return os.environ["HATBUS_TEST_MARKER"]


def evil(protocol: int = 2) -> bytes:
    return pickle.dumps(Runs(os.system, f"touch {touch()}"), protocol)


def written(make: Callable[[], bytes]) -> Make:
    return lambda path: path.write_bytes(make()) and None


def torch_file(whole: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(whole, file, **options)
    return file.getvalue()


def zipped(pickled: bytes, compression: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", "3\n")
    return file.getvalue()


def evil_keys() -> bytes:
    weights = OrderedDict(w=torch.ones(2))
    weights["x"] = Runs(eval, f"open({touch()!r}, 'w')")
    return torch_file({"state_dict": weights})


def laughs() -> bytes:
    """A pickle whose lists double a thousand times."""
    text = b"\x80\x02]q\x00"
    for _ in range(1000):
        text += b"h\x00h\x00\x86q\x00"
    return text + b"."


PICKLES: dict[str, Make] = {
    "command": written(lambda: evil()),
    "command, first protocol": written(lambda: evil(0)),
    "command, newest protocol": written(lambda: evil(5)),
    "command in torch's file": written(
        lambda: torch_file({"state_dict": {}, "x": Runs(os.system, f"touch {touch()}")})
    ),
    "command in torch's old file": written(
        lambda: torch_file(
            {"state_dict": Runs(os.system, f"touch {touch()}")},
            _use_new_zipfile_serialization=False,
        )
    ),
    "evaluated key": written(evil_keys),
    "opened file": written(lambda: zipped(pickle.dumps(Runs(open, touch(), "w"), 2))),
    "command in a bare archive": written(lambda: zipped(evil())),
    "named by hand": written(
        lambda: zipped(b"cposix\nsystem\n(S'touch " + touch().encode() + b"'\ntR.")
    ),
    "import": written(lambda: zipped(b"cthis\ns\n.")),
    "doubling lists": written(lambda: zipped(laughs())),
    "packed zeros": written(lambda: zipped(b"\x80\x02" + bytes(20 << 20), zipfile.ZIP_DEFLATED)),
    "deep pickle": written(lambda: zipped(b"\x80\x02" + b"(" * 100_000 + b".")),
}
"""Files that are given as HAT's."""


def text_in(name: str, make: Callable[[], bytes]) -> Make:
    """Puts bytes into a file of the checkpoint and seals it."""

    def change(path: Path) -> None:
        (path / name).write_bytes(make())
        seal(path)

    return change


def tree_in(name: str, value: Any) -> Make:
    return text_in(name, lambda: json.dumps(value).encode())


def manifest_of(make: Callable[[dict[str, Any]], bytes]) -> Make:
    def change(path: Path) -> None:
        file = path / manifest.NAME
        file.write_bytes(make(json.loads(file.read_bytes())))

    return change


def naming(name: str) -> Make:
    """A sealed manifest that names an empty file of this name."""

    def make(whole: dict[str, Any]) -> bytes:
        files = {**whole["files"], name: {"size": 0, "sha256": EMPTY}}
        kept = {k: v for k, v in whole.items() if k not in ("sha256", "format")}
        content = manifest.content_hash(files)
        return manifest.write({**kept, "files": files, "content": content})

    return manifest_of(make)


def sealed(**more: Any) -> Make:
    def make(whole: dict[str, Any]) -> bytes:
        kept = {k: v for k, v in whole.items() if k not in ("sha256", "format")}
        return manifest.write({**kept, **more})

    return manifest_of(make)


def tensors(head: bytes, size: int | None = None, rest: bytes = b"") -> Make:
    """A file of weights with this head."""
    length = struct.pack("<Q", len(head) if size is None else size)
    return text_in("model.safetensors", lambda: length + head + rest)


def in_place_of(name: str, make: Make) -> Make:
    def change(path: Path) -> None:
        (path / name).unlink()
        make(path / name)

    return change


def linked_folder(path: Path) -> None:
    outside = path.parent / "elsewhere"
    (path / "plugins").rename(outside)
    (path / "plugins").symlink_to(outside)


def a_socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # a socket's name may not be long
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(path.name)
    os.chdir(here)


def head_of(**entries: Any) -> bytes:
    return json.dumps(entries).encode()


def one_tensor(**changes: Any) -> bytes:
    return head_of(w={"dtype": "F32", "shape": [1], "data_offsets": [0, 4], **changes})


EMPTY = hashlib.sha256(b"").hexdigest()
DEEP = b"[" * 100_000
LONG = "n" * 100_000
CHECKPOINTS: dict[str, Make] = {
    "pickle in place of weights": text_in("model.safetensors", evil),
    "pickle in place of a state": text_in("optim.json", evil),
    "name above": naming("../outside"),
    "name of the system": naming("/etc/passwd"),
    "name that climbs": naming("plugins/../../../outside"),
    "name with a backslash": naming("..\\outside"),
    "name with a null": naming("a\x00b"),
    "name of the manifest": naming(manifest.NAME),
    "no name": naming(""),
    "name of the folder": naming("."),
    "name of 100 kB": naming(LONG),
    "name with a line end": naming("a\nb"),
    "plugin that climbs": text_in("plugins/..%2F..%2Foutside.json", lambda: b"{}"),
    "link to a file": in_place_of("optim.json", lambda p: p.symlink_to("/etc/passwd")),
    "link to nothing": in_place_of("optim.json", lambda p: p.symlink_to(p.with_name("outside"))),
    "manifest is a link": in_place_of(manifest.NAME, lambda p: p.symlink_to("/etc/passwd")),
    "folder is a link": linked_folder,
    "pipe": in_place_of("progress.json", os.mkfifo),
    "manifest is a pipe": in_place_of(manifest.NAME, os.mkfifo),
    "socket": in_place_of("progress.json", a_socket),
    "folder": in_place_of("progress.json", Path.mkdir),
    "deep manifest": manifest_of(lambda w: DEEP),
    "deep state": text_in("progress.json", lambda: DEEP),
    "wide manifest": manifest_of(lambda w: b"[" + b"{}," * 600_000 + b"{}]"),
    "huge manifest": manifest_of(lambda w: bytes(80 << 20)),
    "huge number": manifest_of(lambda w: b'{"format": 1' + b"0" * 1_000_000 + b"}"),
    "huge exponent": sealed(lineage=1, progress={"epoch": 0, "step": 0, "global_step": 1e308}),
    "key twice": manifest_of(lambda w: b'{"format": 1, "format": 1}'),
    "other text": manifest_of(lambda w: json.dumps(w).encode("utf-16")),
    "half a character": manifest_of(lambda w: b'{"format": "\\ud800"}'),
    "negative size": sealed(files={"a": {"size": -1, "sha256": "0"}}),
    "many plugins": sealed(plugins=[{}] * 100_000),
    "value of 100 kB": sealed(settings={"seed": LONG}),
    "key of 100 kB": sealed(settings={LONG: 1}),
    "endless head": tensors(b"", size=(1 << 63) - 1),
    "negative head": tensors(b"", size=(1 << 64) - 1),
    "no head": tensors(b"", size=0),
    "deep head": tensors(DEEP),
    "tensor of 100 kB name": tensors(json.dumps({LONG: {}}).encode()),
    "tensor that climbs": tensors(
        json.dumps({"../../x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode(),
        rest=bytes(4),
    ),
    "huge tensor": tensors(one_tensor(shape=[1 << 40]), rest=bytes(4)),
    "overflowing tensor": tensors(one_tensor(shape=[1 << 33, 1 << 33, 4]), rest=bytes(4)),
    "offsets behind the end": tensors(one_tensor(data_offsets=[0, 1 << 40]), rest=bytes(4)),
    "offsets in reverse": tensors(one_tensor(data_offsets=[4, 0]), rest=bytes(4)),
    "unknown type": tensors(one_tensor(dtype="OBJECT"), rest=bytes(4)),
    "call": tree_in("progress.json", {"$call": ["os.system", "true"]}),
    "object": tree_in("progress.json", {"__reduce__": ["os.system", "true"]}),
    "huge state": tree_in(
        "progress.json", {"$tensor": {"dtype": "F32", "shape": [1 << 50], "data": "AAAAAA=="}}
    ),
    "strides outside": tree_in(
        "progress.json",
        {"$tensor": {"dtype": "F32", "shape": [1], "data": "AAAAAA==", "stride": [1 << 40]}},
    ),
    "negative strides": tree_in(
        "progress.json",
        {"$tensor": {"dtype": "F32", "shape": [1], "data": "AAAAAA==", "stride": [-1]}},
    ),
    "alias of itself": tree_in("model.json", {"aliases": {"a": "a"}, "extra": {}}),
    "random state of another length": tree_in("rank-0.json", {"rng": {}, "data": {}}),
}
"""Checkpoints that are resumed from, listed and exported."""
