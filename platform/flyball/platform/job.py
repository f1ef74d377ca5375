"""A job: all that one run of the main job does, as one typed value; nothing here does it."""

import re
from dataclasses import dataclass, field
from typing import Any

from flyball.controllers.evaluate import EvaluationConfig
from flyball.controllers.learn import LearnConfig
from flyball.controllers.networks import ControllerConfig
from flyball.datapaths.arms import default_arms, validated_arms
from flyball.datapaths.data import DataConfig
from flyball.datapaths.errors import InvalidSetting
from flyball.datapaths.outcomes import OutcomesConfig
from flyball.datapaths.schedules import Phase1Config, check_schedule
from flyball.envs.reward import RewardConfig

__all__ = ["ComputeConfig", "Job", "StorageConfig", "TrackingConfig"]


@dataclass(frozen=True)
class StorageConfig:
    """Where a job writes.

    Attributes:
        root: the one folder under which everything goes.
        least_free_mb: free space there that must be left before work starts, in 10^6 bytes.
    """

    root: str = "runs"
    least_free_mb: int = 500


@dataclass(frozen=True)
class TrackingConfig:
    """Where MLflow keeps runs and models.

    Attributes:
        uri: tracking server or database; None takes $MLFLOW_TRACKING_URI, else a sqlite database
            under the storage root.
        experiment: name of the MLflow experiment.
        model: name of the registered model; None: "flyball-" and the job's name.
    """

    uri: str | None = None
    experiment: str = "flyball"
    model: str | None = None


@dataclass(frozen=True)
class ComputeConfig:
    """What a job runs on.

    Attributes:
        device: torch device of Phase 1 and the atlas; "auto": a CUDA device where there is one.
        ray_address: of a running cluster; None takes $RAY_ADDRESS, else starts Ray locally.
        threads: of torch on the CPU; 0 leaves torch its own choice. Small networks run fastest on
            one. Bits of results can differ between numbers of threads.
        atlas_workers: workers of Ray that build the atlas; 0 builds it in this process. None: as
            many as a joined cluster has room for, and 0 without one.
        gpus_per_worker: GPUs of each of them, as a share where several use one; 0: they compute
            on CPUs. None: 1 where `device` is a CUDA device.
        env_runners: RLlib env runners beside the local one, when learning from runners.
        learners: processes in which RLlib computes gradients, each on its share of a batch; 0: in
            this one.
        gpus_per_learner: GPUs of each learner, as a share where several use one.
    """

    device: str = "auto"
    ray_address: str | None = None
    threads: int = 0
    atlas_workers: int | None = None
    gpus_per_worker: float | None = None
    env_runners: int = 0
    learners: int = 0
    gpus_per_learner: float = 0.0

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
            InvalidSetting: the device is not one, a count is negative, or a process is to use more
                than one GPU and a fraction.
        """
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise InvalidSetting(
                f"compute.device is auto, cpu, cuda or cuda:N, not {self.device!r}. "
                "Leave it out to take the GPU where there is one."
            )
        for name in ("threads", "atlas_workers", "env_runners", "learners"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise InvalidSetting(
                    f"compute.{name} is at least 0, not {value}. Set --set compute.{name}=0."
                )
        for name in ("gpus_per_worker", "gpus_per_learner"):
            gpus = getattr(self, name)
            if gpus is not None and not (0 <= gpus <= 1 or (gpus > 1 and gpus == int(gpus))):
                raise InvalidSetting(
                    f"compute.{name} is 0, a share of a GPU up to 1, or whole GPUs; not {gpus}. "
                    f"Set for example --set compute.{name}=0.5."
                )

    @property
    def gpus_of_a_worker(self) -> float:
        """GPUs that each worker of the atlas uses."""
        if self.gpus_per_worker is not None:
            return self.gpus_per_worker
        return 1.0 if self.device.startswith("cuda") else 0.0


@dataclass(frozen=True)
class Job:
    """One run of the main job, from images to a registered controller.

    Attributes:
        name: of the preset it came from.
        data: images and their splits.
        path: structure of the data path; a configuration that `networks` knows.
        phase1: how the data path is trained.
        arms: utilizations it is served at, increasing, in (0, 1].
        outcomes: how the atlas is built.
        reward: what an answer is worth.
        controller: structure of the controller.
        learn: how the controller is trained.
        evaluation: intervals of the ladder.
        storage, tracking, compute: where it writes, logs and runs; none of them changes a figure.
    """

    name: str
    data: DataConfig
    path: Any
    phase1: Phase1Config
    arms: tuple[float, ...] = field(default_factory=default_arms)
    outcomes: OutcomesConfig = field(default_factory=OutcomesConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    controller: ControllerConfig = field(default_factory=ControllerConfig)
    learn: LearnConfig = field(default_factory=LearnConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    storage: StorageConfig = field(default_factory=StorageConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)

    def __post_init__(self) -> None:
        """Checks what no single part can.

        Raises:
            InvalidArms: the arms are out of order, repeated, or outside (0, 1].
            InvalidSetting: the schedule does not suit the gates.
        """
        object.__setattr__(self, "arms", validated_arms(self.arms))
        check_schedule(self.phase1, self.path)

    @property
    def model_name(self) -> str:
        """Name under which the governor is registered."""
        return self.tracking.model or f"flyball-{self.name.replace('_', '-')}"
