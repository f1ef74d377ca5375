"""What a comparison of gates trains and measures; `comparison` does it."""

from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from flyball.datapaths.errors import InvalidSetting, unknown_name
from flyball.datapaths.gates import checked_utilization
from flyball.datapaths.learned_gates.config import GateConfig
from flyball.datapaths.schedules import Phase1Config

__all__ = ["METHODS", "ComparisonConfig", "Method", "short_comparison"]

Method = Literal["nested", "independent", "reinforce", "concrete", "contextual", "contextual_fine"]
METHODS: tuple[Method, ...] = get_args(Method)

_TENTHS = tuple(k / 10 for k in range(1, 11))


@dataclass(frozen=True)
class ComparisonConfig:
    """The methods of TNN Fig. 3 and the schedule of each.

    Attributes:
        phase1: of both data paths, nested and independent; u uniform for every example.
        reinforce, concrete: of the blind gates.
        contextual: of the gate that sees the image, data path frozen.
        contextual_fine: of the gate that is trained jointly with the data path.
        methods: which to run, in this order.
        utilizations: measured, each in [0, 1].
        draws: of random independent gates for every test image.
        train_images, test_images: at most so many, drawn once by a fixed seed; None: all.
        threads: of torch while it runs; None: as they are.
        seed: of initial weights and of random gates.

    Raises:
        InvalidSetting: a value breaks its rule.
        UnknownName: there is no such method.
    """

    phase1: Phase1Config = field(default_factory=lambda: Phase1Config(schedule="uniform"))
    reinforce: GateConfig = field(default_factory=GateConfig)
    concrete: GateConfig = field(default_factory=lambda: GateConfig(estimator="concrete", draws=1))
    contextual: GateConfig = field(
        default_factory=lambda: GateConfig(gate="contextual", estimator="concrete", draws=1)
    )
    contextual_fine: GateConfig = field(
        default_factory=lambda: GateConfig(
            gate="contextual", estimator="concrete", draws=1, joint=True
        )
    )
    methods: tuple[Method, ...] = METHODS
    utilizations: tuple[float, ...] = _TENTHS
    draws: int = 3
    train_images: int | None = None
    test_images: int | None = None
    threads: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for method in self.methods:
            if method not in METHODS:
                raise unknown_name("gating method", method, METHODS)
        if not self.methods or len(set(self.methods)) < len(self.methods):
            raise InvalidSetting(
                f"Methods are compared once each, and at least one; they are {self.methods}."
            )
        if self.phase1.schedule == "sandwich":
            raise InvalidSetting(
                "Nested and independent data paths are compared under one schedule, and the "
                "sandwich cannot train independent gates. Set --set phase1.schedule=uniform."
            )
        for u in self.utilizations:
            checked_utilization(u)
        if not self.utilizations:
            raise InvalidSetting("A comparison has at least one utilization; none was given.")
        for name in ("draws", "train_images", "test_images", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InvalidSetting(f"{name} is at least 1; it is {value}.")
        expected: list[tuple[Method, dict[str, Any]]] = [
            ("reinforce", {"gate": "blind", "estimator": "reinforce", "joint": False}),
            ("concrete", {"gate": "blind", "estimator": "concrete", "joint": False}),
            ("contextual", {"gate": "contextual", "joint": False}),
            ("contextual_fine", {"gate": "contextual", "joint": True}),
        ]
        for method, settings in expected:
            own = getattr(self, method)
            for name, value in settings.items():
                if getattr(own, name) != value:
                    raise InvalidSetting(
                        f"The method {method} has {name} = {value!r}; it was given "
                        f"{getattr(own, name)!r}. Set --set {method}.{name}={value}."
                    )


def short_comparison(
    *,
    phase1_epochs: int = 10,
    gate_epochs: int = 3,
    train_images: int | None = 20_000,
    test_images: int | None = 2_000,
    precision: Literal["float32", "bfloat16"] = "float32",
    **changes: Any,
) -> ComparisonConfig:
    """A schedule for one core and about a quarter of an hour with a network of 12 M MACs.

    Far below the paper's, so what it tells is the order of the methods, not their best accuracy.
    REINFORCE draws four gates a sample: four forward passes cost what one forward and one backward
    pass of Concrete do, or little more.

    Args:
        phase1_epochs: of each of the two data paths.
        gate_epochs: of each of the four learned gates.
        train_images, test_images, changes: fields of `ComparisonConfig`.
        precision: of the data path's arithmetic everywhere.
    """
    defaults = ComparisonConfig()
    rates = {"reinforce": 2e-2, "concrete": 1e-2, "contextual": 3e-3, "contextual_fine": 3e-3}
    made = {
        method: replace(
            getattr(defaults, method),
            epochs=gate_epochs,
            batch_size=64,
            learning_rate=rate,
            precision=precision,
        )
        for method, rate in rates.items()
    }
    made["reinforce"] = replace(made["reinforce"], draws=4)
    phase1 = Phase1Config(
        schedule="uniform",
        epochs=phase1_epochs,
        batch_size=64,
        learning_rate=0.1,
        warmup_epochs=0.5,
        precision=precision,
    )
    settings: dict[str, Any] = {
        "phase1": phase1,
        "train_images": train_images,
        "test_images": test_images,
        "draws": 2,
        **made,
        **changes,
    }
    return ComparisonConfig(**settings)
