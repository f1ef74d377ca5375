"""Presets: functions that return a whole job. A new one is a function and a line in `PRESETS`."""

from collections.abc import Callable
from dataclasses import replace

from flyball.controllers.learn import LearnConfig, paper_settings
from flyball.controllers.networks import ControllerConfig
from flyball.datapaths.c3d import small_c3d
from flyball.datapaths.data import DataConfig
from flyball.datapaths.dynconv.config import DynConvConfig
from flyball.datapaths.dynconv.hourglass import small_hourglass
from flyball.datapaths.dynconv.resnet import cifar_resnet
from flyball.datapaths.dynconv.sparsity import SparsityConfig
from flyball.datapaths.errors import unknown_name
from flyball.datapaths.family_config import FamilyConfig
from flyball.datapaths.phase1 import Phase1Config
from flyball.datapaths.vgg import small_vgg, vgg_d
from flyball.envs.reward import RewardConfig
from flyball.platform.job import ComputeConfig, Job

__all__ = [
    "PRESETS",
    "cifar10_dynconv",
    "cifar10_vgg",
    "digit_clips",
    "digit_clips_context",
    "digits",
    "digits_paper",
    "figures_pose",
    "folder_family",
    "preset",
]


def digits() -> Job:
    """scikit-learn's 1,797 handwritten digits on a small VGG-W: no download, about a minute."""
    return Job(
        name="digits",
        data=DataConfig(name="digits", fractions=(0.4, 0.25, 0.15, 0.2)),
        path=small_vgg(stages=((16,), (32,)), hidden=64, in_channels=1, image_size=8),
        phase1=Phase1Config(epochs=20, batch_size=64),
        reward=RewardConfig(account="net"),
        controller=ControllerConfig(kind="context_head"),
        learn=LearnConfig(updates=1000),
        compute=ComputeConfig(threads=1),
    )


def digits_paper() -> Job:
    """The digits with the controller learned exactly as published: to compare, not to use.

    TNN section 4.5 and Algorithm 1: the controller sees the image; epsilon-greedy, -log pi r
    without baseline or correction; RMSprop at 1e-7, batches of 15, 10 epochs; cost is gross.
    """
    return replace(
        digits(),
        name="digits_paper",
        reward=RewardConfig(),
        controller=ControllerConfig(kind="image_cnn"),
        learn=paper_settings(updates=300),
    )


def cifar10_vgg() -> Job:
    """CIFAR-10 on the paper's VGG-D cut, GroupNorm in every component; set data.root to the data.

    The short schedule takes about an hour on two cores; on a GPU give --set phase1.epochs=100.
    """
    return Job(
        name="cifar10_vgg",
        data=DataConfig(name="cifar10"),
        path=vgg_d(norm="group"),
        phase1=Phase1Config(epochs=6, middle_arms=1, augment=True, precision="bfloat16"),
        reward=RewardConfig(account="net"),
        controller=ControllerConfig(kind="context_head"),
        learn=LearnConfig(),
    )


def cifar10_dynconv() -> Job:
    """CIFAR-10 on a ResNet-20 whose blocks run on the pixels of a mask; set data.root to the data.

    u is the share of the conditional MACs, budgets are drawn in training and calibrated on held-out
    images (DynConv sections 3 and 4.1). The short schedule takes about half an hour on a CPU core.
    """
    return Job(
        name="cifar10_dynconv",
        data=DataConfig(name="cifar10"),
        path=DynConvConfig(network=cifar_resnet(20), sparsity=SparsityConfig(bounds_end=0.5)),
        phase1=Phase1Config(
            epochs=12, batch_size=128, learning_rate=0.1, augment=True, precision="bfloat16"
        ),
        reward=RewardConfig(gamma2=8.0, account="net"),
        controller=ControllerConfig(kind="context_head"),
        learn=LearnConfig(),
        compute=ComputeConfig(threads=1),
    )


def figures_pose() -> Job:
    """Drawn people with 16 key points on a small hourglass that looks where the person is.

    Pose estimation in miniature, no download (DynConv section 4.2): what is right is the share of
    key points within half a head (PCKh@0.5). About half an hour on two cores.
    """
    return Job(
        name="figures_pose",
        data=DataConfig(
            name="figures", image_size=96, limit=1500, fractions=(0.7, 0.12, 0.06, 0.12)
        ),
        path=DynConvConfig(
            network=small_hourglass(features=32, image_size=96),
            sparsity=SparsityConfig(alpha=0.1, bounds_end=0.5),
            calibration_samples=720,
            sigma=1.5,
        ),
        phase1=Phase1Config(
            epochs=20,
            batch_size=16,
            optimizer="adam",
            learning_rate=2e-3,
            weight_decay=0.0,
            augment=True,
            precision="bfloat16",
        ),
        reward=RewardConfig(gamma2=8.0, account="net"),
        controller=ControllerConfig(kind="context_head"),
        learn=LearnConfig(),
        compute=ComputeConfig(threads=1),
    )


def folder_family() -> Job:
    """Your own class folders on torchvision's ResNet-18, -34 and -50, one model an arm.

    Set data.root to the images, and path.weights=imagenet for pretrained models; Phase 1 trains
    the last layer of each.
    """
    return Job(
        name="folder_family",
        data=DataConfig(name="folder", image_size=64),
        path=FamilyConfig(image_size=64),
        phase1=Phase1Config(epochs=20),
        reward=RewardConfig(account="net"),
        controller=ControllerConfig(kind="context_head"),
        learn=LearnConfig(updates=1000),
    )


def digit_clips() -> Job:
    """Moving, growing and turning digits on a narrow C3D-W with the paper's C3D controller.

    Gestures in miniature, no download (TNN section 4.4). The controller costs a third of this
    data path, and published gammas keep it at the lowest arm, so a wrong answer costs more here.
    About half an hour on two cores.
    """
    return Job(
        name="digit_clips",
        data=DataConfig(name="digit_clips"),
        path=small_c3d(),
        phase1=Phase1Config(epochs=12, batch_size=64, middle_arms=1),
        reward=RewardConfig(gamma2=8.0),
        controller=ControllerConfig(kind="c3d", width=4, layers=2),
        learn=LearnConfig(batch_size=64, updates=800),
        compute=ComputeConfig(threads=1),
    )


def digit_clips_context() -> Job:
    """The same clips and data path with a controller that reads the lowest arm's features."""
    return replace(
        digit_clips(),
        name="digit_clips_context",
        reward=RewardConfig(gamma2=8.0, account="net"),
        controller=ControllerConfig(kind="context_head"),
        learn=LearnConfig(updates=1500),
    )


PRESETS: dict[str, Callable[[], Job]] = {
    "digits": digits,
    "digits_paper": digits_paper,
    "folder_family": folder_family,
    "cifar10_vgg": cifar10_vgg,
    "cifar10_dynconv": cifar10_dynconv,
    "figures_pose": figures_pose,
    "digit_clips": digit_clips,
    "digit_clips_context": digit_clips_context,
}


def preset(name: str) -> Job:
    """The job of a name.

    Raises:
        UnknownName: there is no such preset; suggests the nearest.
    """
    if name not in PRESETS:
        raise unknown_name("preset", name, PRESETS, advice="`flyball presets` describes them.")
    return PRESETS[name]()
