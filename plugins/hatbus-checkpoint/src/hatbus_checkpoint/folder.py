"""A folder of checkpoints: their names, the newest good one, writing one, and removing old ones."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any, Final, NamedTuple

from hatbus.errors import CheckpointError, SaveError
from hatbus.log import log
from hatbus.runs import run_folder
from hatbus_checkpoint import durable, finite_file, manifest
from hatbus_checkpoint.stream import Chunks

BEST: Final = "best"
MARKS: Final = ("last", BEST)
"""What a pointer may say of a checkpoint, beside ``best-<name>`` of a further metric."""
_MARK: Final = re.compile(rf"last|{BEST}(-\w+)?")
JOB_FILE: Final = "job.json"
"""What a run's folder is known by."""
Verify = Callable[[Path], dict[str, Any]]
_NAME: Final = r"checkpoint-(epoch|step)-(\d+)(-[0-9a-f]{8})?(\.\d+)?"
_ANY: Final = re.compile(rf"(.*?){_NAME}")


class Entry(NamedTuple):
    """One committed checkpoint; ``fault`` says why its manifest cannot be read, else empty."""

    path: Path
    manifest: dict[str, Any]
    fault: str = ""

    @property
    def age(self) -> tuple[int, int, str, str]:
        """Grows with the run: the line of runs in this folder, then the step, then the time."""
        if self.fault:
            number = self.path.name.rpartition("checkpoint-")[2].split("-")[1][:15]
            return (1 << 62, int(number), "", "")
        step = self.manifest["progress"]["global_step"]
        return (self.manifest["lineage"], step, f"{self.manifest.get('saved_at')}", self.path.name)


class CheckpointFolder:
    """The checkpoints of one prefix in one folder.

    A folder inside it that has a checkpoint's name is one: it got the name when it was complete.

    Args:
        path: of the folder.
        prefix: of the names; others' files are never touched.

    Attributes:
        passed_over: those that ``latest`` found to be damaged.
        has_links: whether ``probe`` could give a file there a second name.
    """

    def __init__(self, path: Path, prefix: str = "") -> None:
        self.path, self.prefix = path, prefix
        self.passed_over: set[Path] = set()
        self.has_links = False
        self._run_of: dict[str, str] = {}
        self._is_mine = re.compile(re.escape(prefix) + _NAME).fullmatch
        self._is_left = re.compile(
            rf"\.(tmp|trash)-{re.escape(prefix)}(checkpoint|weights|probe).*"
        ).match

    # ---- reading ------------------------------------------------------------------------------

    def entries(self) -> list[Entry]:
        """Every checkpoint, newest first; those whose manifest cannot be read come before."""
        return sorted(map(entry_of, self._paths()), key=lambda e: e.age, reverse=True)

    def of_run(self, run: str) -> list[Entry]:
        """The checkpoints of one run whose manifests can be read, in no order.

        A manifest that is another run's is read once: nobody changes a checkpoint.

        Args:
            run: id of the run.
        """
        found = []
        for path in self._paths():
            if self._run_of.get(path.name, run) == run:
                entry = entry_of(path)
                if not entry.fault:
                    self._run_of[path.name] = entry.manifest["run"]
                    found += [entry] * (entry.manifest["run"] == run)
        return found

    def latest(self, verify: Verify = finite_file.verify) -> Entry | None:
        """The newest checkpoint whose bytes are right and weights finite; others are told.

        Args:
            verify: finds that out.

        Returns:
            None when there is no checkpoint at all.

        Raises:
            CheckpointError: there are some, but none is good.
        """
        found = self.entries()
        for entry in found:
            try:
                return Entry(entry.path, verify(entry.path))
            except CheckpointError as error:
                self.passed_over.add(entry.path)
                log.warning("checkpoint %r is passed over: %s", entry.path.name, error)
        if found:
            raise CheckpointError(
                f"none of the {len(found)} checkpoints in {str(self.path)!r} can be used "
                f"(newest: {_why(found[0])}); see `hatbus checkpoints {self.path} verify`; "
                "to start anew, choose another save_dir"
            )
        return None

    def pointed(self, kind: str) -> str:
        """The name in the pointer ``kind``, which is a hint; empty where there is none."""
        try:
            found = json.loads((self.path / f"{self.prefix}checkpoint-{kind}.json").read_bytes())
        except (OSError, ValueError, RecursionError):
            return ""
        name = found.get("path") if isinstance(found, dict) else None
        return name if isinstance(name, str) and self._is_mine(name) else ""

    def _paths(self) -> Iterator[Path]:
        with suppress(FileNotFoundError), os.scandir(self.path) as entries:
            for entry in entries:
                if self._is_mine(entry.name) and (entry.is_dir() or entry.is_symlink()):
                    yield Path(entry.path)

    # ---- writing ------------------------------------------------------------------------------

    def probe(self) -> None:
        """Finds out whether a checkpoint could be written here.

        Raises:
            SaveError: it could not.
        """
        probe = self.path / f".tmp-{self.prefix}probe-{os.getpid()}"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            os.mkdir(probe)  # noqa: PTH102 - every call goes through `os`
            durable.write_file(probe / "file", [b"hatbus"])
            os.rename(probe / "file", probe / "renamed")  # noqa: PTH104
            durable.sync_folder(probe)
            self.has_links = _has_links(probe / "renamed")
            durable.remove_folder(probe)
        except OSError as error:
            raise SaveError(
                f"save_dir {str(self.path)!r} cannot be written: {error.strerror or error}; "
                "choose another save_dir, or make it writable"
            ) from error

    def sweep(self) -> None:
        """Removes what a killed run left behind; only under the lock."""
        with os.scandir(self.path) as entries:
            left = [e for e in entries if self._is_left(e.name)]
        for entry in left:
            log.info("removing %r, left by a run that was killed", entry.name)
            with suppress(OSError):
                if entry.is_dir(follow_symlinks=False):
                    durable.remove_folder(Path(entry.path))
                else:
                    os.unlink(entry.path)  # noqa: PTH108

    def write(
        self,
        stem: str,
        files: Mapping[str, Chunks],
        fields: Mapping[str, Any],
        *,
        hashed: bool,
        begun: Path | None = None,
        linked: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> Entry:
        """Writes and commits one checkpoint of a run of one process.

        Args:
            stem: of its name, such as ``"checkpoint-step-100"``.
            files: relative path to what gives its bytes.
            fields: of the manifest.
            hashed: put the content's hash into the name.
            begun: what ``begin`` has made already.
            linked: relative path to size and sha256 of files that are in it already.

        Raises:
            OSError: the disk failed; nothing of it is left, or the next ``sweep`` removes it.
            SaveError: a state cannot be stored; as before.
        """
        try:
            temporary = begun or self.begin(stem)
            table = self.fill(temporary, files, linked)
            return self.finish(temporary, stem, table, fields, hashed=hashed)
        except BaseException:
            self.abandon(stem)
            raise

    def begin(self, stem: str) -> Path:
        """Makes the folder that becomes a checkpoint.

        Raises:
            OSError: the disk failed.
        """
        temporary = self._temporary(stem)
        with suppress(FileNotFoundError):
            durable.remove_folder(temporary)
        os.mkdir(temporary)  # noqa: PTH102
        return temporary

    def fill(
        self,
        temporary: Path,
        files: Mapping[str, Chunks],
        linked: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> dict[str, Mapping[str, Any]]:
        """Writes files into it, durably. Several processes may do so.

        Args:
            temporary: the folder.
            files: as in ``write``.
            linked: as in ``write``.

        Returns:
            Sizes and hashes of both.

        Raises:
            OSError: the disk failed.
            SaveError: a state cannot be stored.
        """
        return _write_files(temporary, files, linked or {})

    def finish(
        self,
        temporary: Path,
        stem: str,
        table: Mapping[str, Mapping[str, Any]],
        fields: Mapping[str, Any],
        *,
        hashed: bool,
    ) -> Entry:
        """Commits it.

        Args:
            temporary: the folder.
            stem: of the name.
            table: everything in it, from ``fill``.
            fields: of the manifest.
            hashed: as in ``write``.

        Raises:
            OSError: the disk failed.
        """
        content = manifest.content_hash(table)
        text = manifest.write({**fields, "files": table, "content": content})
        durable.write_file(temporary / manifest.NAME, [text])
        durable.sync_folder(temporary)
        final = self._free(f"{self.prefix}{stem}" + (f"-{content[:8]}" if hashed else ""))
        durable.commit(temporary, final)
        self.passed_over.discard(final)  # a damaged one of this name was removed by hand
        return Entry(final, json.loads(text))

    def abandon(self, stem: str) -> None:
        """Removes what there is of one that is not to be."""
        with suppress(OSError):
            durable.remove_folder(self._temporary(stem))

    def point(self, kind: str, name: str, **more: Any) -> None:
        """Writes a hint, ``checkpoint-<kind>.json``: for people and scripts; no run trusts it."""
        text = json.dumps({"path": name, **more}, indent=1) + "\n"
        durable.replace_file(self.path / f"{self.prefix}checkpoint-{kind}.json", [text.encode()])

    def remove(self, path: Path) -> None:
        """Un-commits a checkpoint, then removes its files; of a link to one the link alone."""
        if path.is_symlink():
            os.unlink(path)  # noqa: PTH108
            durable.sync_folder(self.path)
            return
        trash = path.with_name(f".trash-{path.name}")
        with suppress(FileNotFoundError):
            durable.remove_folder(trash)
        os.rename(path, trash)  # noqa: PTH104
        durable.sync_folder(self.path)
        durable.remove_folder(trash)

    def _temporary(self, stem: str) -> Path:
        return self.path / f".tmp-{self.prefix}{stem}-{os.getpid()}"

    def _free(self, name: str) -> Path:
        """The path of this name, numbered when an earlier run has it."""
        path, number = self.path / name, 2
        while os.path.lexists(path):
            path, number = self.path / f"{name}.{number}", number + 1
        return path


def is_mark(word: object) -> bool:
    """Whether a word may be the mark of a checkpoint."""
    return isinstance(word, str) and _MARK.fullmatch(word) is not None


def prefixes_in(path: Path) -> list[str]:
    """The name prefixes of the checkpoints in a folder."""
    found = (_ANY.fullmatch(p.name) for p in path.iterdir() if p.is_dir() or p.is_symlink())
    return sorted({m[1] for m in found if m and not m[1].startswith((".tmp-", ".trash-"))})


def save_dir_in(path: Path) -> Path:
    """The folder itself; or the one folder in it that holds checkpoints, when it holds none.

    Of a folder with runs that is the newest's.

    Raises:
        CheckpointError: there are several.
    """
    path = run_folder(path)
    if prefixes_in(path):
        return path
    below = [p for p in sorted(path.iterdir()) if p.is_dir() and prefixes_in(p)]
    if len(below) > 1:
        names = ", ".join(repr(str(p)) for p in below)
        raise CheckpointError(
            f"{str(path)!r} holds several folders of checkpoints, {names}; give one"
        )
    return below[0] if below else path


def newest_run(place: Path) -> Path | None:
    """The folder itself when it is a run's; of a folder with runs in it, the newest one's."""
    newest = run_folder(place)
    if (newest / JOB_FILE).is_file():
        return newest
    dated: list[tuple[int, Path]] = []
    for file in place.glob(f"*/{JOB_FILE}"):
        with suppress(OSError):
            dated.append((file.stat().st_mtime_ns, file.parent))
    return max(dated)[1] if dated else None


def entry_of(path: Path) -> Entry:
    """A checkpoint folder with its manifest, or with what is wrong with that."""
    try:
        return Entry(path, manifest.read(path))
    except CheckpointError as error:
        return Entry(path, {}, str(error))


def _write_files(
    folder: Path, files: Mapping[str, Chunks], linked: Mapping[str, Mapping[str, Any]]
) -> dict[str, Mapping[str, Any]]:
    """Writes all files, then brings the folders in between to the disk."""
    table, names = dict(linked), (*files, *linked)
    below = sorted({str(p) for n in names for p in PurePosixPath(n).parents} - {"."})
    for name in below:
        durable.make_folder(folder / name)
    written = durable.write_files({folder / name: chunks for name, chunks in files.items()})
    table |= {name: one._asdict() for name, one in zip(files, written, strict=True)}
    for name in below:
        durable.sync_folder(folder / name)
    return table


def _has_links(file: Path) -> bool:
    try:
        durable.link_file(file, file.with_name("linked"))
    except OSError:
        return False
    return True


def _why(entry: Entry) -> str:
    try:
        finite_file.verify(entry.path)
    except CheckpointError as error:
        return f"{entry.path.name}: {error}"
    return entry.path.name
