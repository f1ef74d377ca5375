"""A family of models as a data path: its arms are the models' costs, its answers their own."""

import io
import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from flyball.datapaths.data import ImageSet
from flyball.datapaths.errors import (
    CorruptArtifact,
    DataError,
    ForeignArtifact,
    FrozenPathChanged,
    InvalidArms,
    InvalidSetting,
    NotFinite,
    PickleRefused,
    ShapeMismatch,
    UnknownName,
)
from flyball.datapaths.family import ModelFamily
from flyball.datapaths.family_config import FamilyConfig
from flyball.datapaths.family_models import check_name, make_model, measure
from flyball.datapaths.family_spec import FamilySpec
from flyball.datapaths.family_training import measure_family, train_family
from flyball.datapaths.family_weights import check_models, with_weights
from flyball.datapaths.files import read_tensors, write_tensors
from flyball.datapaths.frozen import FrozenDataPath, PathSpec
from flyball.datapaths.outcomes import build_atlas
from flyball.datapaths.paths import open_path
from flyball.datapaths.phase1 import batches
from flyball.datapaths.progress import Progress
from flyball.datapaths.schedules import Phase1Config
from flyball.datapaths.splits import SPLITS
from flyball.datapaths.vgg import ThrottleableVgg, small_vgg

CLASSES = ("dark", "grey", "bright")
SHAPE = (2, 8, 8)
NAMES = ("own_models:Tiny", "own_models:Small", "own_models:Wide")

# 8 x 8 pixels x 9 taps x 2 channels x width, and width x 3 classes
MACS = tuple(64 * 9 * 2 * width + 3 * width for width in (4, 8, 16))

OWN = '''
from torch import nn

class Tiny(nn.Module):
    width = 4

    def __init__(self, num_classes, in_channels=3):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(in_channels, self.width, 3, padding=1), nn.BatchNorm2d(self.width), nn.ReLU(),
            nn.Dropout(0.1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )
        self.head = nn.Linear(self.width, num_classes)

    def forward(self, x):
        return self.head(self.body(x))

class Small(Tiny):
    width = 8

class Wide(Tiny):
    width = 16

class Headless(Tiny):
    """Its last layer is none that can be seen."""

    def forward(self, x):
        return self.body(x) @ self.head.weight.T

class Squashed(Tiny):
    """Something comes after its last layer."""

    def forward(self, x):
        return super().forward(x).relu()

class Picky(Tiny):
    def __init__(self, depth):
        super().__init__(depth)

def function(num_classes):
    return Tiny(num_classes)
'''


@pytest.fixture(autouse=True)
def own_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A module of a user's own models, importable while a test runs."""
    (tmp_path / "user").mkdir()
    (tmp_path / "user" / "own_models.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path / "user")
    yield
    sys.modules.pop("own_models", None)


def family(names: tuple[str, ...] = NAMES, seed: int = 0) -> ModelFamily:
    torch.manual_seed(seed)
    models = [make_model(name, classes=3, in_channels=2) for name in names]
    for model in models:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean = torch.rand(module.num_features)
    return ModelFamily(models, FamilySpec(names, CLASSES, SHAPE, (0.4, 0.5), (0.2, 0.3)))


def config(**changes: object) -> FamilyConfig:
    return replace(
        FamilyConfig(NAMES, image_size=8, in_channels=2, classes=3),
        **changes,  # type: ignore[arg-type]
    )


def examples(count: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Noise of three brightnesses."""
    labels = np.arange(count) % 3
    noise = np.random.default_rng(0).integers(0, 80, (count, *SHAPE))
    return (noise + 80 * labels[:, None, None, None]).astype(np.uint8), labels.astype(np.int64)


def trained(settings: FamilyConfig, folder: Path | None = None, **phase1: object) -> ModelFamily:
    images, labels = examples()
    schedule = Phase1Config(**{"epochs": 4, "batch_size": 16, **phase1})  # type: ignore[arg-type]
    done = train_family(
        settings,
        schedule,
        images,
        labels,
        classes=CLASSES,
        mean=(0.4, 0.5),
        std=(0.2, 0.3),
        folder=folder,
    )
    return done.family


def accuracies(path: ModelFamily) -> list[float]:
    images, labels = examples()
    x = torch.from_numpy(images).float() / 255
    return [float((path(x, u).output.argmax(dim=1).numpy() == labels).mean()) for u in path.arms]


def test_the_arms_are_the_models_shares_of_the_dearest_ones_macs() -> None:
    path = family()
    assert path.arm_macs == MACS
    assert path.arms == (0.25, 0.5, 1.0)
    assert (path.full_macs, path.context_macs) == (MACS[-1], MACS[0])
    assert [path.macs_at(u) for u in path.arms] == list(MACS)
    assert path.macs_at(0.5, cost_model="linear") == MACS[1]


@pytest.mark.parametrize(("name", "giga"), [("resnet50", 4.089), ("vit_b_32", 4.409)])
def test_torchvisions_models_cost_what_torchvision_says(name: str, giga: float) -> None:
    # torchvision's model cards, in 10^9 multiply-accumulates with three decimals
    model = make_model(name, classes=1000, in_channels=3)
    assert measure(model, name, (3, 224, 224), 1000).macs / 1e9 == pytest.approx(giga, abs=5e-4)


def test_an_arm_answers_as_its_model_does() -> None:
    path, images = family(), torch.rand(5, *SHAPE)
    x = (images - torch.tensor((0.4, 0.5)).view(-1, 1, 1)) / torch.tensor((0.2, 0.3)).view(-1, 1, 1)
    for arm, u in enumerate(path.arms):
        alone = path.models[arm](x)
        # float32 in another batch shape: rounding of a few units in the last place
        torch.testing.assert_close(path(images, u).output, alone, rtol=1e-5, atol=1e-5)


def test_a_samples_bits_do_not_depend_on_its_batch() -> None:
    path, images = family(), torch.rand(130, *SHAPE)
    whole = path(images, 1.0).output
    assert torch.equal(torch.cat([path(images[i : i + 1], 1.0).output for i in range(130)]), whole)
    order = torch.randperm(130)
    assert torch.equal(path(images[order], 1.0).output, whole[order])
    context = path.context(images)[0]
    assert torch.equal(path.context(images[order])[0], context[order])


def test_a_mixed_batch_gives_every_sample_its_own_model() -> None:
    path, images = family(), torch.rand(30, *SHAPE)
    u = torch.tensor([0.25, 0.5, 1.0]).repeat(10)
    mixed = path(images, u)
    for arm, value in enumerate(path.arms):
        rows = (u == value).nonzero().flatten()
        assert torch.equal(mixed.output[rows], path(images[rows], value).output)
        assert mixed.macs[rows].unique().tolist() == [MACS[arm]]


def test_between_two_arms_the_dearer_model_answers() -> None:
    path, images = family(), torch.rand(4, *SHAPE)
    for u, arm in ((0.0, 0), (0.1, 0), (0.26, 1), (0.5, 1), (0.51, 2), (1.0, 2)):
        answer = path(images, u)
        assert answer.macs.tolist() == [MACS[arm]] * 4
        assert torch.equal(answer.output, path(images, path.arms[arm]).output)
    # an arm that went through float32 is still that arm
    exact = ModelFamily(list(path.models), replace(path.spec, macs=(1, 3, 10**9)))
    as_float = torch.tensor(exact.arms, dtype=torch.float32)
    assert exact(images[:3], as_float).macs.tolist() == [1, 3, 10**9]


def test_the_context_is_what_the_lowest_model_saw_and_said() -> None:
    path, images = family(), torch.rand(7, *SHAPE)
    context, lowest = path.context(images)
    assert context.shape == (7, path.context_size) == (7, 4 + 3 + 2)
    assert torch.equal(lowest.output, path(images, path.arms[0]).output)
    head = path.models[0].head
    assert isinstance(head, nn.Linear)
    torch.testing.assert_close(head(context[:, :4]), lowest.output)
    probabilities = torch.softmax(lowest.output, dim=1)
    torch.testing.assert_close(context[:, -2], probabilities.amax(dim=1))
    torch.testing.assert_close(context[:, -1], torch.special.entr(probabilities).sum(dim=1))
    before = path.forwards
    path.context(images)
    assert path.forwards - before == 7


def test_where_a_last_layer_cannot_be_seen_the_context_is_the_answer_alone() -> None:
    path = family(("own_models:Headless", "own_models:Wide"))
    context, lowest = path.context(torch.rand(3, *SHAPE))
    assert context.shape == (3, path.context_size) == (3, 3 + 2)
    assert torch.equal(context[:, :3], torch.log_softmax(lowest.output, dim=1))


def test_models_out_of_order_or_of_equal_cost_are_refused() -> None:
    with pytest.raises(InvalidArms, match=r"own_models:Tiny takes 4,620 .* own_models:Wide's 18,4"):
        family((NAMES[2], NAMES[0]))
    with pytest.raises(InvalidArms, match="Leave one of the two out"):
        family((NAMES[0], "own_models:Squashed"))
    with pytest.raises(InvalidArms, match=r"path\.models=own_models:Tiny,own_models:Wide"):
        measure_family(config(models=(NAMES[2], NAMES[0])))


def test_a_family_is_served_at_its_own_arms() -> None:
    path = family()
    assert path.with_arms([0.25, 0.5, 1]) is path
    with pytest.raises(InvalidArms, match=r"its models'.*Tiny 0\.25.*0\.5, 1 came"):
        path.with_arms((0.5, 1.0))


def test_bad_questions_are_refused() -> None:
    path = family()
    with pytest.raises(DataError, match=r"shape \(2, 8, 8\).*these are \(3, 8, 8\)"):
        path(torch.rand(2, 3, 8, 8), 1.0)
    for u in (float("nan"), -0.1, 1.1):
        with pytest.raises(InvalidSetting, match=r"in \[0, 1\], not"):
            path(torch.rand(2, *SHAPE), u)
    with pytest.raises(InvalidSetting, match="one for each of the 2 samples"):
        path(torch.rand(2, *SHAPE), torch.tensor([0.5]))
    with pytest.raises(InvalidSetting, match="3 models and 1 names"):
        ModelFamily(list(path.models), replace(path.spec, models=("a",)))
    spec = replace(path.spec, classes=(*CLASSES, "white"), macs=())
    with pytest.raises(InvalidSetting, match=r"gives logits \(samples, 4\)"):
        ModelFamily(list(path.models), spec)


def test_it_refuses_to_be_trained() -> None:
    path = family()
    with pytest.raises(FrozenPathChanged, match="cannot be trained"):
        path.train()
    with pytest.raises(FrozenPathChanged, match="no gradients"):
        path.requires_grad_(True)
    assert not any(module.training for module in path.modules())
    assert not any(parameter.requires_grad for parameter in path.parameters())


def test_it_comes_back_from_disk_with_the_same_answers(tmp_path: Path) -> None:
    path, images = family(), torch.rand(6, *SHAPE)
    path.save(tmp_path / "path")
    state = torch.random.get_rng_state()
    again = open_path(tmp_path / "path")
    assert torch.equal(torch.random.get_rng_state(), state)
    assert isinstance(again, ModelFamily)
    assert (again.fingerprint, again.arms, again.spec) == (path.fingerprint, path.arms, path.spec)
    for u in path.arms:
        assert torch.equal(again(images, u).output, path(images, u).output)
    assert torch.equal(again.context(images)[0], path.context(images)[0])
    assert sorted(file.name for file in (tmp_path / "path").iterdir()) == [
        *(f"model-{arm}.safetensors" for arm in range(3)),
        "path.json",
    ]
    with torch.no_grad():
        next(path.models[1].parameters())[0] += 1e-3
    assert ModelFamily(list(path.models), path.spec).fingerprint != again.fingerprint


def test_models_that_no_name_makes_are_given_to_be_filled(tmp_path: Path) -> None:
    def make() -> list[nn.Module]:
        return [
            nn.Sequential(
                nn.Conv2d(2, w, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(w, 3)
            )
            for w in (2, 5)
        ]

    spec = FamilySpec(("two", "five"), CLASSES, SHAPE, (0.4, 0.5), (0.2, 0.3))
    path, images = ModelFamily(make(), spec), torch.rand(4, *SHAPE)
    path.save(tmp_path / "path")
    again = ModelFamily.load(tmp_path / "path", models=make())
    assert torch.equal(again(images, 1.0).output, path(images, 1.0).output)
    with pytest.raises(UnknownName, match="no model 'two'"):
        open_path(tmp_path / "path")


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    family().save(tmp_path / "path")

    def damaged(name: str) -> Path:
        shutil.copytree(tmp_path / "path", tmp_path / name)
        return tmp_path / name

    spec = json.loads((tmp_path / "path" / "path.json").read_text())
    folder = damaged("altered")
    (folder / "path.json").write_text(json.dumps({**spec, "mean": [0.4, 0.6]}))
    with pytest.raises(CorruptArtifact, match="a file was altered"):
        open_path(folder)
    folder = damaged("strange")
    (folder / "path.json").write_text(json.dumps({**spec, "macs": [1]}))
    with pytest.raises(CorruptArtifact, match="not the specification of a family"):
        open_path(folder)
    (folder / "path.json").write_text(json.dumps({**spec, "kind": "famly"}))
    with pytest.raises(UnknownName, match="Did you mean 'family'"):
        open_path(folder)
    (folder / "path.json").write_text("[]")
    with pytest.raises(CorruptArtifact, match="not the specification of a data path"):
        open_path(folder)
    folder = damaged("pickle")
    torch.save({"a": torch.zeros(1)}, folder / "model-1.safetensors")
    with pytest.raises(PickleRefused):
        open_path(folder)
    folder = damaged("swapped")
    shutil.copy(folder / "model-2.safetensors", folder / "model-1.safetensors")
    with pytest.raises(ShapeMismatch, match=r"model-1\.safetensors: body\.0"):
        open_path(folder)


def test_a_network_and_a_family_are_told_apart_on_disk(tmp_path: Path) -> None:
    settings = small_vgg(in_channels=1, image_size=8)
    spec = PathSpec(settings, (), tuple("0123456789"), (0.3,), (0.4,))
    network = FrozenDataPath(ThrottleableVgg(settings), spec)
    network.save(tmp_path / "network")
    family().save(tmp_path / "family")
    assert open_path(tmp_path / "network").fingerprint == network.fingerprint
    assert isinstance(open_path(tmp_path / "network"), FrozenDataPath)
    assert isinstance(open_path(tmp_path / "family"), ModelFamily)


def test_only_models_are_ever_made_from_a_name() -> None:
    for name, message in (
        ("os:system", "is a class of torch.nn.Module"),
        ("own_models:function", "register a function"),
        ("own_models:Nothing", "cannot be imported"),
        ("no_such_package:Model", "PYTHONPATH"),
    ):
        with pytest.raises(InvalidSetting, match=message):
            check_name(name)
    with pytest.raises(InvalidSetting, match=r"Picky.*cannot be made with.*num_classes"):
        make_model("own_models:Picky", classes=3, in_channels=3)
    with pytest.raises(UnknownName, match="Did you mean 'resnet18'"):
        check_name("resnet81")
    with pytest.raises(UnknownName, match="no model 'fasterrcnn_resnet50_fpn'"):
        check_name("fasterrcnn_resnet50_fpn")


@pytest.mark.parametrize("train", ["head", "all"])
def test_every_model_learns(train: str) -> None:
    path = trained(config(train=train), epochs=12)
    # three brightnesses and noise that never makes one the other
    assert min(accuracies(path)) > 0.9
    assert path.spec.mean == (0.4, 0.5)
    assert set(path.spec.provenance["losses"]) == set(NAMES)


def test_a_probe_leaves_all_but_the_last_layer_as_it_was() -> None:
    torch.manual_seed(0 + 1)  # the seed of Phase 1 and the arm
    fresh = make_model(NAMES[1], classes=3, in_channels=2).state_dict()
    probed = trained(config()).models[1].state_dict()
    changed = {name for name in fresh if not torch.equal(fresh[name], probed[name])}
    assert changed == {"head.weight", "head.bias"}


def test_one_seed_gives_one_family_and_touches_no_global_generator() -> None:
    state = torch.random.get_rng_state()
    settings = config(models=NAMES[:2], train="all")
    first, again = trained(settings), trained(settings)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert first.fingerprint == again.fingerprint
    assert trained(settings, seed=1).fingerprint != first.fingerprint


def test_a_training_that_was_interrupted_goes_on_at_the_next_model(tmp_path: Path) -> None:
    images, labels = examples()

    def train(report: object = None) -> tuple[int, int, str]:
        done = train_family(
            config(),
            Phase1Config(epochs=2, batch_size=16),
            images,
            labels,
            classes=CLASSES,
            mean=(0.4, 0.5),
            std=(0.2, 0.3),
            folder=tmp_path / "checkpoint",
            report=report or (lambda progress: None),  # type: ignore[arg-type]
        )
        return done.resumed_from, done.forwards, done.family.fingerprint

    def interrupt(progress: Progress) -> None:
        if progress.note.startswith(NAMES[1]):
            raise KeyboardInterrupt

    whole = trained(config(), epochs=2)
    with pytest.raises(KeyboardInterrupt):
        train(interrupt)
    assert train() == (1, 2 * len(labels), whole.fingerprint)
    with pytest.raises(ForeignArtifact, match="another training"):
        trained(config(), tmp_path / "checkpoint", epochs=3)


def test_weights_come_from_a_folder_and_are_fitted_at_both_ends(tmp_path: Path) -> None:
    torch.manual_seed(5)
    saved = [make_model(name, classes=7, in_channels=1) for name in NAMES]
    save_file(saved[0].state_dict(), tmp_path / "Tiny.safetensors")
    torch.save(saved[1].state_dict(), tmp_path / "Small.pth")
    given = config(models=NAMES[:2], weights=str(tmp_path))
    check_models(given)
    for name, theirs in zip(given.models, saved[:2], strict=True):
        ours = with_weights(given, name)
        # one grey channel becomes two of half its weight: equal channels excite it as before
        stem, grey = next(ours.parameters()), next(theirs.parameters())
        torch.testing.assert_close(stem, grey.expand(-1, 2, -1, -1) / 2)
        assert ours.state_dict()["head.weight"].shape[0] == 3
    assert min(accuracies(trained(given, epochs=12))) > 0.9
    with pytest.raises(InvalidSetting, match=r"7 classes apart, the images have 3.*train=head"):
        with_weights(replace(given, train="none"), NAMES[0])
    with pytest.raises(DataError, match=r"neither Wide\.safetensors nor Wide\.pth"):
        check_models(replace(given, models=NAMES))
    shutil.copy(tmp_path / "Tiny.safetensors", tmp_path / "Wide.safetensors")
    with pytest.raises(ShapeMismatch, match=r"Wide\.safetensors: body"):
        with_weights(given, NAMES[2])
    (tmp_path / "Wide.safetensors").unlink()
    torch.save(saved[2], tmp_path / "Wide.pth")
    with pytest.raises(PickleRefused, match="save_file"):
        with_weights(given, NAMES[2])
    with pytest.raises(InvalidSetting, match="torchvision has no weights of own_models:Tiny"):
        check_models(config(weights="imagenet"))


def test_weights_that_fit_are_taken_as_they_are(tmp_path: Path) -> None:
    torch.manual_seed(5)
    saved = make_model(NAMES[0], classes=3, in_channels=2)
    save_file(saved.state_dict(), tmp_path / "Tiny.safetensors")
    path = trained(config(models=NAMES[:1], weights=str(tmp_path), train="none"))
    for name, tensor in saved.state_dict().items():
        assert torch.equal(path.models[0].state_dict()[name], tensor), name
    assert path.arms == (1.0,)


def test_settings_that_cannot_be_trained_are_refused() -> None:
    with pytest.raises(InvalidSetting, match="cannot be augmented"):
        trained(config(), augment=True)
    with pytest.raises(InvalidSetting, match=r"Squashed does not end in a linear layer"):
        trained(config(models=("own_models:Squashed",)))
    with pytest.raises(NotFinite, match=r"own_models:Tiny became .* epoch 0, step"):
        trained(config(train="all"), learning_rate=1e38, warmup_epochs=0, clip_norm=1e30)
    for changes, message in (
        ({"models": ()}, "at least one model"),
        ({"models": "resnet18"}, "at least one model"),
        ({"models": ("resnet18", "resnet18")}, "names one twice"),
        ({"image_size": 0}, "path.image_size is 1 or more"),
        ({"mean": (0.5,)}, "a number for each of 2 channels"),
        ({"std": (0.5, 0.0)}, "path.std divides"),
    ):
        with pytest.raises(InvalidSetting, match=message):
            config(**changes)
    with pytest.raises(UnknownName, match="Did you mean 'head'"):
        config(train="heads")
    with pytest.raises(InvalidSetting, match=r"vit_b_32 cannot take inputs of shape \(3, 8, 8\)"):
        measure_family(FamilyConfig(("vit_b_32",), image_size=8))


def test_a_last_batch_of_one_joins_the_one_before() -> None:
    assert [len(part) for part in batches(np.arange(9), 4)] == [4, 5]
    assert [len(part) for part in batches(np.arange(10), 4)] == [4, 4, 2]
    assert [len(part) for part in batches(np.arange(1), 4)] == [1]
    assert np.concatenate(batches(np.arange(9), 4)).tolist() == list(range(9))


def test_clips_are_inputs_too() -> None:
    settings = FamilyConfig(("r3d_18",), image_size=16, frames=4, classes=3)
    assert settings.input_shape == (3, 4, 16, 16)
    (found,) = measure_family(settings)
    assert found.features == 512


def test_an_atlas_holds_what_the_models_answer(tmp_path: Path) -> None:
    path = family()
    pixels, labels = examples()
    split = (np.arange(60) % len(SPLITS)).astype(np.int8)
    images = ImageSet(pixels, labels, CLASSES, split, "noise", "noise-60")
    atlas = build_atlas(path, images, tmp_path / "atlas")
    x = torch.from_numpy(pixels[atlas.sample]).float() / 255
    for arm, u in enumerate(path.arms):
        judged = path.judge(path(x, u).output, torch.from_numpy(labels[atlas.sample]))
        np.testing.assert_array_equal(atlas.answer[:, arm], judged.answer.numpy())
        np.testing.assert_array_equal(atlas.correct[:, arm], judged.correct.numpy())
        assert (atlas.macs[:, arm] == MACS[arm]).all()
    assert atlas.context is not None
    np.testing.assert_array_equal(atlas.context, path.context(x)[0].numpy())
    assert atlas.header.full_macs == MACS[-1]


def test_safetensors_are_no_pickle_whatever_their_first_bytes(tmp_path: Path) -> None:
    # they open with the length of their header: 640 bytes are 80 02, as a pickle of protocol 2
    for note in range(640):
        write_tensors(tmp_path / "a.safetensors", {"a": np.ones(2)}, metadata="n" * note)
        if (tmp_path / "a.safetensors").read_bytes()[:2] == b"\x80\x02":
            break
    else:
        pytest.fail("no header of this length")
    assert read_tensors(tmp_path / "a.safetensors")["a"].tolist() == [1, 1]


def test_a_state_dict_that_is_none_is_told(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save(torch.zeros(3), buffer)
    (tmp_path / "Tiny.pth").write_bytes(buffer.getvalue())
    with pytest.raises(CorruptArtifact, match="is no state dict"):
        with_weights(config(weights=str(tmp_path)), NAMES[0])
    (tmp_path / "Tiny.pth").write_bytes(b"nothing")
    with pytest.raises(PickleRefused, match="does not load as tensors alone"):
        with_weights(config(weights=str(tmp_path)), NAMES[0])
