"""Pairs with loaders and data sets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import (
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    WeightedRandomSampler,
)

from hatbus.callbacks import Validation
from hatbus.data import loader
from works_with.pair import Pair
from works_with.small import Rows

KIND = "Loaders"
FORKSERVER: dict[str, Any] = {
    "num_workers": 1,
    "multiprocessing_context": "forkserver",
    "persistent_workers": True,
}
Data = Callable[[Path], Any]
SIZE = 4
NO_VALIDATION = "a training's place is kept by the loader itself: give the validation its own"


class OfRecords(nn.Module):
    """A model that is given a whole batch, a mapping, and computes its loss."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Dropout(0.1), nn.Linear(16, 1))

    def forward(self, batch: Any) -> torch.Tensor:
        return nn.functional.mse_loss(self.rows(batch["inputs"]), batch["target"])


def records() -> list[dict[str, torch.Tensor]]:
    """24 samples as mappings."""
    data = Rows()
    return [{"inputs": data[i][0], "target": data[i][1]} for i in range(len(data))]


def of(library: str, name: str, data: Data, **more: Any) -> Pair:
    """A pair with this loader, and more of the pair or the trainer."""
    trainer = {k: more.pop(k) for k in ("model", "loss", "accumulate", "steps") if k in more}
    validated = more.pop("validated", False)

    def parts(path: Path) -> dict[str, Any]:
        given = {k: v() if k == "model" else v for k, v in trainer.items()}
        made = data(path)
        plugins = [Validation(made, val_interval=3, interval_by="step")] if validated else []
        return {"data": made, "plugins": plugins, **given}

    return Pair(KIND, library, name, parts, **more)


def several(library: str, name: str, data: Data, **more: Any) -> list[Pair]:
    """A loader with a place of its own: in mid-epoch, at an epoch's end, and validated on."""
    return [
        of(library, name, data, **more),
        of(library, f"{name}, saved in an epoch's last step", data, saved_every=6, **more),
        of(
            library,
            f"{name}, validated on too",
            data,
            validated=True,
            refused="validation",
            note=NO_VALIDATION,
            **more,
        ),
    ]


class Counting(IterableDataset[Any]):
    """Samples one after the other."""

    def __iter__(self) -> Iterator[Any]:
        data = Rows()
        info = torch.utils.data.get_worker_info()
        first, step = (0, 1) if info is None else (info.id, info.num_workers)
        return (data[i] for i in range(first, len(data), step))


def of_torch() -> list[Pair]:
    """torch's DataLoader, and hatbus's over the same data."""
    noisy = {"noise": 0.1}

    def plain(**options: Any) -> Data:
        data = options.pop("data", noisy)
        return lambda _: DataLoader(Rows(**data), SIZE, **{"shuffle": True, **options})

    def own(**options: Any) -> Data:
        return lambda _: loader(Rows(**noisy), SIZE, **options)

    def weighted(_: Path) -> Any:
        sampler = WeightedRandomSampler(list(range(1, 25)), 24)
        return DataLoader(Rows(**noisy), SIZE, sampler=sampler)

    def seeded(_: Path) -> Any:
        generator = torch.Generator().manual_seed(7)
        return DataLoader(Rows(**noisy), SIZE, shuffle=True, generator=generator)

    def add(name: str, data: Data, **more: Any) -> Pair:
        return of("torch", name, data, **more)

    persists = plain(num_workers=2, persistent_workers=True)
    silent = plain(num_workers=2, persistent_workers=True, data={})
    races = plain(num_workers=2, in_order=False, data={})
    counted = plain(shuffle=False)
    return [
        add("DataLoader", plain()),
        add("DataLoader, saved in an epoch's last step", plain(), saved_every=6),
        add("DataLoader, validated on too", plain(), validated=True),
        add("DataLoader without shuffle", counted),
        add("DataLoader with 2 workers", plain(num_workers=2)),
        add("DataLoader with 2 workers that persist", silent),
        add(
            "DataLoader with random augmentation in workers that persist",
            persists,
            limit="random in workers that persist",
            note="give hatbus.data.loader the data set, or leave persistent_workers out",
        ),
        add(
            "DataLoader with in_order=False",
            races,
            limit="in_order=False lets the workers race",
            differs=None,
            note="the workers race: leave it out",
        ),
        add("DataLoader with a generator", seeded),
        add("DataLoader with WeightedRandomSampler", weighted),
        add("DataLoader of an IterableDataset", lambda _: DataLoader(Counting(), SIZE)),
        add("hatbus.data.loader", own()),
        add("hatbus.data.loader, saved in an epoch's last step", own(), saved_every=6),
        add("hatbus.data.loader with 2 workers", own(num_workers=2)),
        add(
            "hatbus.data.loader with workers of a fork server",
            own(**FORKSERVER),
        ),
        add(
            "hatbus.data.loader, two batches a step",
            lambda _: loader(Rows(**noisy), 2),
            accumulate=2,
        ),
    ]


def of_torchdata() -> list[Pair]:
    """StatefulDataLoader and nodes."""
    library = "torchdata"

    def stateful(noise: float = 0.0, **options: Any) -> Data:
        def made(_: Path) -> Any:
            from torchdata.stateful_dataloader import StatefulDataLoader

            return StatefulDataLoader(Rows(noise=noise), SIZE, **{"shuffle": True, **options})

        return made

    def nodes(sampler: Callable[[Any], Any]) -> Data:
        def made(_: Path) -> Any:
            from torch.utils.data import default_collate
            from torchdata import nodes as tn

            rows = tn.MapStyleWrapper(Rows(), sampler(Rows()))
            return tn.Loader(tn.Mapper(tn.Batcher(rows, SIZE), default_collate))

        return made

    def by_epoch(data: Any) -> Any:
        return DistributedSampler(data, num_replicas=1, rank=0, seed=5)

    def by_chance(data: Any) -> Any:
        return RandomSampler(data, generator=torch.Generator().manual_seed(5))

    def fed(_: Path) -> Any:
        from torch.utils.data import default_collate
        from torchdata import nodes as tn

        data = Rows()
        rows = tn.IterableWrapper([data[i] for i in range(len(data))])
        batches = tn.ParallelMapper(tn.Batcher(rows, SIZE), default_collate, 2, method="thread")
        return tn.Loader(tn.Prefetcher(batches, prefetch_factor=3))

    note = "what is random in its workers is not in its state: hatbus.data.loader goes on exactly"
    return [
        *several(library, "StatefulDataLoader", stateful()),
        of(library, "StatefulDataLoader with 2 workers", stateful(num_workers=2)),
        of(
            library,
            "StatefulDataLoader with random augmentation in 2 workers",
            stateful(0.1, num_workers=2),
            limit="random in its workers",
            note=note,
        ),
        *several(library, "nodes.Loader of DistributedSampler", nodes(by_epoch)),
        of(
            library,
            "nodes.Loader of RandomSampler",
            nodes(by_chance),
            limit="torchdata.nodes saves how many samples RandomSampler gave, and not their order",
            note="its order is not saved: use a sampler with set_epoch, such as DistributedSampler",
        ),
        *several(library, "nodes.Loader with prefetching", fed),
    ]


def of_litdata() -> list[Pair]:
    """StreamingDataLoader over chunks on the disk."""

    def write(path: Path) -> None:
        from litdata.streaming.writer import BinaryWriter

        writer = BinaryWriter(str(path / "chunks"), chunk_size=6)
        for number, one in enumerate(records()):
            writer[number] = one
        writer.done()
        writer.merge()

    def streamed(size: int = SIZE, **options: Any) -> Data:
        def made(path: Path) -> Any:
            from litdata import StreamingDataLoader, StreamingDataset

            rows = StreamingDataset(str(path / "chunks"), shuffle=True, seed=42)
            return StreamingDataLoader(rows, batch_size=size, **options)

        return made

    more = {"prepare": write, "model": OfRecords, "loss": None}
    return [
        *several("litdata", "StreamingDataLoader", streamed(), **more),
        of("litdata", "StreamingDataLoader, two batches a step", streamed(2), accumulate=2, **more),
        of("litdata", "StreamingDataLoader with 2 workers", streamed(num_workers=2), **more),
    ]


def of_mosaic() -> list[Pair]:
    """StreamingDataset and its loader."""

    def write(path: Path) -> None:
        from streaming import MDSWriter

        columns = {"inputs": "ndarray:float32:8", "target": "ndarray:float32:1"}
        with MDSWriter(out=str(path / "shards"), columns=columns, size_limit=400) as writer:
            for one in records():
                writer.write({name: value.numpy() for name, value in one.items()})

    def streamed(size: int = SIZE) -> Data:
        def made(path: Path) -> Any:
            from streaming import StreamingDataLoader, StreamingDataset
            from streaming.base.util import clean_stale_shared_memory

            clean_stale_shared_memory()  # a killed run leaves some
            rows = StreamingDataset(
                local=str(path / "shards"), shuffle=True, shuffle_seed=3, batch_size=size
            )
            return StreamingDataLoader(rows, batch_size=size)

        return made

    more = {"prepare": write, "model": OfRecords, "loss": None}
    name, library = "StreamingDataLoader", "mosaicml-streaming"
    return [
        *several(library, name, streamed(), **more),
        of(library, f"{name}, two batches a step", streamed(2), accumulate=2, **more),
    ]


def of_webdataset() -> list[Pair]:
    """Tar files."""

    def write(path: Path) -> None:
        import webdataset

        with webdataset.TarWriter(str(path / "rows.tar")) as writer:
            for number, one in enumerate(records()):
                parts = {f"{name}.pth": value for name, value in one.items()}
                writer.write({"__key__": f"{number:03}", **parts})

    def streamed(*, seed: int | None = 0, shuffled: bool = True) -> Data:
        def made(path: Path) -> Any:
            import webdataset

            rows = webdataset.WebDataset(str(path / "rows.tar"), shardshuffle=False)
            if shuffled:
                rows = rows.shuffle(10, **({} if seed is None else {"seed": seed}))
            rows = rows.decode().rename(inputs="inputs.pth", target="target.pth")
            return webdataset.WebLoader(rows, batch_size=SIZE)

        return made

    more = {"prepare": write, "model": OfRecords, "loss": None}
    return [
        of("webdataset", "WebLoader", streamed(shuffled=False), **more),
        of("webdataset", "WebLoader with a shuffle that has a seed", streamed(), **more),
        of(
            "webdataset",
            "WebLoader with a shuffle without a seed",
            streamed(seed=None),
            limit="webdataset's shuffle has no seed",
            note="another order each time: give it seed=, or use detshuffle",
            **more,
        ),
    ]


def of_datasets() -> list[Pair]:
    """Data sets of Hugging Face."""

    def table() -> Any:
        from datasets import Dataset

        columns = {name: [one[name].tolist() for one in records()] for name in records()[0]}
        return Dataset.from_dict(columns).with_format("torch")

    def plain(_: Path) -> Any:
        return DataLoader(table(), SIZE, shuffle=True)

    def own(_: Path) -> Any:
        return loader(table(), SIZE)

    def iterable(buffer: int | None = None) -> Data:
        def made(_: Path) -> Any:
            from torchdata.stateful_dataloader import StatefulDataLoader

            rows = table().to_iterable_dataset(num_shards=3)
            if buffer is not None:
                rows = rows.shuffle(seed=0, buffer_size=buffer)
            return StatefulDataLoader(rows, batch_size=SIZE)

        return made

    def batched(_: Path) -> Any:
        return table().to_iterable_dataset(num_shards=3).batch(SIZE)

    more = {"model": OfRecords, "loss": None}
    name = "IterableDataset in torchdata's StatefulDataLoader"
    return [
        of("datasets", "Dataset in a DataLoader", plain, **more),
        of("datasets", "Dataset in hatbus.data.loader", own, **more),
        *several("datasets", name, iterable(), **more),
        *several("datasets", "IterableDataset.batch()", batched, **more),
        of(
            "datasets",
            "IterableDataset with a shuffle buffer",
            iterable(5),
            limit="datasets does not save its shuffle buffer",
            note="samples of the buffer are lost: give a Dataset to hatbus.data.loader",
            **more,
        ),
    ]


PAIRS = [
    *of_torch(),
    *of_torchdata(),
    *of_litdata(),
    *of_mosaic(),
    *of_webdataset(),
    *of_datasets(),
]
