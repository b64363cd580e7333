"""Pairs with optimizers: torch's own and those of other packages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hatbus import hookimpl
from works_with.pair import Pair
from works_with.small import Plain, Stack

KIND = "Optimizers"
Make = Callable[[nn.Module], Any]


class Closure:
    """Gives the optimizer's step a function that computes the step's loss and gradients again."""

    @hookimpl
    def optimizer_step(self, ctx: Any) -> bool:
        @torch.enable_grad()
        def closure() -> torch.Tensor:
            ctx.optimizer.zero_grad()
            inputs, target = ctx.batch
            loss = nn.functional.mse_loss(ctx.model(inputs), target)
            loss.backward()
            return loss

        closure()
        ctx.optimizer.step(closure)
        return True


class Sparse(nn.Module):
    """Tables whose gradients are sparse."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.EmbeddingBag(16, 4, sparse=True)
        self.weights = nn.EmbeddingBag(16, 1, sparse=True)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        index = inputs.abs().mul(5).long().clamp(max=15)
        return self.rows(index).sum(1, keepdim=True) + self.weights(index)


class Matrices(nn.Sequential):
    """A model with matrices only."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(8, 16, bias=False), nn.Tanh(), nn.Linear(16, 1, bias=False))


def using(
    make: Make, *plugins: type, model: Callable[[], nn.Module] = Stack, **more: Any
) -> Callable[[Path], dict[str, Any]]:
    """The usual run with this optimizer."""
    return lambda _: {"model": model(), "make": make, "plugins": [p() for p in plugins], **more}


def of_torch() -> list[Pair]:
    """Every optimizer of torch."""
    usual: dict[str, dict[str, Any]] = {
        "AdamW": {"fused": True},
        "Adam": {"amsgrad": True},
        "Adadelta": {},
        "Adafactor": {},
        "Adagrad": {},
        "Adamax": {"foreach": True},
        "ASGD": {},
        "NAdam": {},
        "RAdam": {},
        "RMSprop": {"momentum": 0.9, "centered": True},
        "Rprop": {},
        "SGD": {"lr": 0.01, "momentum": 0.9, "nesterov": True},
    }

    def plain(name: str) -> Make:
        return lambda model: getattr(torch.optim, name)(model.parameters(), **usual[name])

    def add(name: str, make: Make, *plugins: type, note: str = "", **more: Any) -> Pair:
        return Pair(KIND, "torch", name, using(make, *plugins, **more), note=note)

    tensor = {"lr": torch.tensor(0.01)}
    return [
        *(add(name, plain(name)) for name in usual),
        add("Muon", lambda m: torch.optim.Muon(m.parameters()), model=Matrices),
        add("SparseAdam", lambda m: torch.optim.SparseAdam(m.parameters()), model=Sparse),
        add("a tensor as lr", lambda m: torch.optim.AdamW(m.parameters(), **clones(tensor))),
        add(
            "AdamW in two param groups",
            lambda m: torch.optim.AdamW(
                [{"params": m[0].parameters(), "lr": 0.1}, {"params": m[4].parameters()}]
            ),
        ),
        add("LBFGS", lbfgs, Closure, note=CLOSURE, model=Plain),
        Pair(
            KIND,
            "torch",
            "LBFGS without a closure",
            using(lbfgs, model=Plain),
            note="it evaluates the loss itself",
            refused="LBFGS",
        ),
    ]


CLOSURE = "with an `optimizer_step` that gives it a closure"


def clones(options: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    return {name: value.clone() for name, value in options.items()}


def lbfgs(model: nn.Module) -> Any:
    return torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)


BITS = (
    *("AdamW8bit", "Adam8bit", "Lion8bit", "Adagrad8bit", "RMSprop8bit", "SGD8bit", "LAMB8bit"),
    *("AdEMAMix8bit", "AdamW", "Lion", "SGD", "RMSprop", "AdEMAMix", "LAMB"),
)


def of_bitsandbytes() -> list[Pair]:
    """On the CPU."""

    def make(name: str) -> Make:
        def made(model: nn.Module) -> Any:
            import bitsandbytes

            more = {"momentum": 0.9} if name.startswith("SGD") else {}
            more = {**more, **({"min_8bit_size": 1024} if name.endswith("8bit") else {})}
            kind = getattr(bitsandbytes.optim, name)
            return kind(model.parameters(), lr=1e-3, **more)

        return made

    return [
        Pair(KIND, "bitsandbytes", name, using(make(name), model=lambda: Plain(hidden=1024)))
        for name in BITS
    ]


TIMM = """
    adabelief adadelta adafactor adafactorbv adafactorbvc adagrad adam adamax adamc adamp adamuon
    adamw adamwlegacy adan adanw adopt adoptc adoptw cadafactor cadafactorbv cadafactorbvc cadamc
    cadamp cadamw cadan cadanw cadopt cadoptc cadoptw clamb clambw claprop clion clionc cmars
    cnadamc cnadamw crmsproptf csgdc csgdp csgdw kron kronw lamb lambc lambcd lambcw lambw
    laprop lapropc larc lars lion lionc madgrad madgradw mars momentum muon nadam nadamc nadamlegacy
    nadamuon nadamw nesterov nesterovw nlarc nlars nmuon novograd novogradc novogradw radabelief
    radam radamlegacy radamw rmsprop rmsproptf rmsproptfc rmsproptfw sgd sgdc sgdp sgdw
    lookahead_adamw lookahead_sgd"""


def of_timm() -> list[Pair]:
    """By name, as ``create_optimizer_v2`` makes them."""

    def make(name: str) -> Make:
        def made(model: nn.Module) -> Any:
            from timm.optim import create_optimizer_v2

            return create_optimizer_v2(model, opt=name, lr=1e-3, weight_decay=0.01)

        return made

    return [Pair(KIND, "timm", name, using(make(name))) for name in TIMM.split()]


def of_torchao() -> list[Pair]:
    """Whose states are tensors made of others."""

    def make(name: str) -> Make:
        def made(model: nn.Module) -> Any:
            import torchao.optim

            torch.compiler.set_stance("force_eager")  # a compilation takes a minute
            return getattr(torchao.optim, name)(model.parameters(), lr=1e-3)

        return made

    names = ("Adam8bit", "Adam4bit", "AdamFp8", "AdamW8bit", "AdamW4bit", "AdamWFp8")
    note = "their state is tensors made of others, which only their package can put together"
    return [
        Pair(
            KIND,
            "torchao",
            name,
            using(make(name), model=lambda: Plain(hidden=1024)),
            note=note,
            refused=f"optimizer {name} cannot be saved",
            after=1,
        )
        for name in names
    ]


PYTORCH_OPTIMIZER = """
    a2grad accsgd adabelief adabound adadelta adafactor adagc adago adai adalite adam adamax adamc
    adamg adammini adamod adamp adams adamuon adamw adamwsn adan adanorm adapnm adashift adasmooth
    adatam ademamix adopt aggmo aida alice alig amos ano apollo apollodqn asgd avagrad bcos bsam
    came dadaptadagrad dadaptadam dadaptadan dadaptlion dadaptsgd dash diffgrad dualadam emofact
    emolynx emonavi exadam fadam fira flashadamw focus fromage ftrl galore grams gravity
    grokfastadamw kate kron lamb laprop lars lbfgs lion lorarite madgrad magma mars msvag muon
    muonclip nadam nero normuon novograd padam pid pnm prodigy qhadam qhm racs radam ranger ranger21
    rmsprop rose sara schedulefreeadamw schedulefreeradam schedulefreesgd scion scionlight sgd sgdp
    sgdsai sgdw shampoo signsgd simplifiedademamix sm3 soap spam spectralsphere splus srmm
    stableadamw stablespam swats tam tiger vsgd yogi"""
OBJECTS = {"conda": "projector", "scalableshampoo": "pre_conditioner"}
WITH_CLOSURE = {"alig", "bsam", "lbfgs"}
BY_KIND = {"adago", "adamuon", "muon", "muonclip", "normuon"}
MORE: dict[str, dict[str, Any]] = {"bsam": {"num_data": 24}, "ranger21": {"num_iterations": 24}}
NOT_RUN = {"adalomo", "lomo", "adahessian", "sophiah", "demo", "distributedmuon"}
"""Without a step(), with gradients of gradients, or of several processes."""


def of_pytorch_optimizer() -> list[Pair]:
    """All of ``load_optimizer``, and the wrappers."""
    library = "pytorch_optimizer"

    def make(name: str) -> Make:
        def made(model: nn.Module) -> Any:
            import pytorch_optimizer

            given: Any = model if name == "adammini" else list(model.parameters())
            if name in BY_KIND:
                kinds = [(True, [p for p in given if p.ndim == 2])]
                kinds += [(False, [p for p in given if p.ndim != 2])]
                given = [{"params": found, "use_muon": is_matrix} for is_matrix, found in kinds]
            options = {"lr": 1e-3, **MORE.get(name, {})}
            return pytorch_optimizer.load_optimizer(name)(given, **options)

        return made

    found = []
    for name in PYTORCH_OPTIMIZER.split():
        plugins = [Closure] if name in WITH_CLOSURE else []
        model: Any = Matrices if name == "spectralsphere" else Plain
        note = CLOSURE if plugins else ""
        found.append(Pair(KIND, library, name, using(make(name), *plugins, model=model), note))
    for name, part in OBJECTS.items():
        found.append(
            Pair(
                KIND,
                library,
                name,
                using(make(name), model=Plain),
                note="their state holds objects of the package; nothing but data is stored",
                refused=f"cannot be saved: state at '.*{part}' is a pytorch_optimizer",
                after=1,
            )
        )
    return found + wrappers()


def wrappers() -> list[Pair]:
    """Optimizers that have another one inside."""

    def of(name: str, inner: Make, **more: Any) -> Make:
        def made(model: nn.Module) -> Any:
            import pytorch_optimizer

            return getattr(pytorch_optimizer, name)(inner(model), **more)

        return made

    def sam(model: nn.Module) -> Any:
        import pytorch_optimizer

        return pytorch_optimizer.SAM(model.parameters(), torch.optim.SGD, lr=0.01, momentum=0.9)

    def adamw(model: nn.Module) -> Any:
        return torch.optim.AdamW(model.parameters())

    def sgd(model: nn.Module) -> Any:
        return torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)

    pulled = of("Lookahead", sgd, k=4, pullback_momentum="pullback")
    made = {
        "Lookahead": using(of("Lookahead", adamw, k=4)),
        "Lookahead with momentum": using(pulled),
        "OrthoGrad": using(of("OrthoGrad", adamw)),
        "ScheduleFreeWrapper": using(of("ScheduleFreeWrapper", sgd)),
        "TRAC": using(of("TRAC", adamw)),
    }
    return [
        *(Pair(KIND, "pytorch_optimizer", name, parts) for name, parts in made.items()),
        Pair(KIND, "pytorch_optimizer", "SAM", using(sam, Closure, model=Plain), note=CLOSURE),
    ]


def of_small_packages() -> list[Pair]:
    """lion-pytorch, prodigyopt, schedulefree, and the Adafactor of transformers."""

    def lion(model: nn.Module) -> Any:
        import lion_pytorch

        return lion_pytorch.Lion(model.parameters(), lr=1e-3, weight_decay=0.01)

    def prodigy(**more: Any) -> Make:
        def made(model: nn.Module) -> Any:
            import prodigyopt

            return prodigyopt.Prodigy(model.parameters(), **more)

        return made

    def free(name: str) -> Make:
        def made(model: nn.Module) -> Any:
            import schedulefree

            if name == "ScheduleFreeWrapper":
                return schedulefree.ScheduleFreeWrapper(torch.optim.SGD(model.parameters(), 0.01))
            plain = name.startswith("R") or name.endswith("Reference")
            more = {} if plain else {"warmup_steps": 5}
            return getattr(schedulefree, name)(model.parameters(), lr=0.01, **more)

        return made

    def adafactor(model: nn.Module) -> Any:
        from transformers.optimization import Adafactor

        return Adafactor(model.parameters())

    frees = ("SGDScheduleFree", "AdamWScheduleFree", "RAdamScheduleFree", "ScheduleFreeWrapper")
    frees += ("AdamWScheduleFreeReference",)
    closed = [f"{kind}ScheduleFreeClosure" for kind in ("SGD", "AdamW", "RAdam")]
    return [
        Pair(KIND, "lion-pytorch", "Lion", using(lion)),
        Pair(KIND, "prodigyopt", "Prodigy", using(prodigy())),
        Pair(KIND, "prodigyopt", "Prodigy with slice_p", using(prodigy(slice_p=11))),
        Pair(KIND, "prodigyopt", "Prodigy with beta3", using(prodigy(beta3=0.9, growth_rate=1.02))),
        *(Pair(KIND, "schedulefree", name, using(free(name))) for name in frees),
        *(
            Pair(KIND, "schedulefree", name, using(free(name), Closure, model=Plain), note=CLOSURE)
            for name in closed
        ),
        Pair(KIND, "transformers", "Adafactor", using(adafactor)),
    ]


PAIRS = [
    *of_torch(),
    *of_bitsandbytes(),
    *of_timm(),
    *of_torchao(),
    *of_pytorch_optimizer(),
    *of_small_packages(),
]
