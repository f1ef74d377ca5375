"""The throttleable detector: its cost, its gates, its answers, its training, on drawn shapes."""

import copy
import functools
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.models import resnet18
from torchvision.models.detection.image_list import ImageList

from flyball.datapaths.atlas import OutcomeAtlas
from flyball.datapaths.cost import executed_macs, measured_macs
from flyball.datapaths.detection.atlas import build_detection_atlas, map_at_every_arm
from flyball.datapaths.detection.average_precision import detections_of, mean_average_precision
from flyball.datapaths.detection.bodies import BodyConfig, make_halves
from flyball.datapaths.detection.boxes import overlaps
from flyball.datapaths.detection.calibration import calibrate_norms
from flyball.datapaths.detection.detection_set import NOTHING, DetectionSet
from flyball.datapaths.detection.detector import (
    DetectorConfig,
    HalfGates,
    ThrottleableDetector,
)
from flyball.datapaths.detection.drawn import SHAPES, drawn_shapes
from flyball.datapaths.detection.path import DetectorPath
from flyball.datapaths.detection.spec import DetectorSpec
from flyball.datapaths.detection.training import DetectorTraining, train_detector
from flyball.datapaths.errors import (
    BadInput,
    CorruptArtifact,
    DataError,
    ForeignArtifact,
    FrozenPathChanged,
    InvalidSetting,
    NotFinite,
    ShapeMismatch,
)
from flyball.datapaths.execution import Masked, Sliced
from flyball.datapaths.gates import nested_mask
from flyball.datapaths.outcomes import OutcomesConfig
from flyball.datapaths.splits import PATH_TRAIN

SIZE = 48
ARMS = (0.25, 0.5, 1.0)
MEAN, STD = (0.3, 0.3, 0.3), (0.2, 0.2, 0.2)
CONFIG = DetectorConfig(
    body=BodyConfig(name="resnet18", width=8, components=4),
    classes=len(SHAPES),
    image_size=SIZE,
    roi_size=4,
    proposals=8,
    detections=6,
    least_score=0.01,
)
THRESHOLD = 0.3
QUICK = DetectorTraining(steps=3, batch_size=4, learning_rate=0.01, warmup_steps=1)


@functools.cache
def drawn_detector(config: DetectorConfig, seed: int) -> ThrottleableDetector:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ThrottleableDetector(config)


def make_detector(config: DetectorConfig = CONFIG, seed: int = 1) -> ThrottleableDetector:
    """A detector of its own with drawn weights."""
    return copy.deepcopy(drawn_detector(config, seed))


@pytest.fixture(scope="module")
def data() -> DetectionSet:
    return drawn_shapes(40, image_size=SIZE)


@pytest.fixture(scope="module")
def path() -> DetectorPath:
    """Untrained: its answers mean nothing, and differ from arm to arm."""
    spec = DetectorSpec(CONFIG, ARMS, SHAPES, MEAN, STD, THRESHOLD)
    return DetectorPath(make_detector(), spec)


@pytest.fixture(scope="module")
def echoed(data: DetectionSet, path: DetectorPath) -> DetectionSet:
    """The same images, their true boxes being what the whole detector finds in them."""
    images = torch.from_numpy(np.array(data.images)).float() / 255.0
    found = detections_of(path(images, 1.0).output.numpy(), least_score=THRESHOLD)
    counts = [len(own.scores) for own in found]
    return replace(
        data,
        first=np.concatenate([[0], np.cumsum(counts)]),
        boxes=np.concatenate([own.boxes for own in found]).astype(np.float32),
        box_classes=np.concatenate([own.classes for own in found]),
        is_difficult=np.zeros(sum(counts), np.bool_),
        fingerprint="echoed",
    )


@pytest.fixture(scope="module")
def images(data: DetectionSet) -> torch.Tensor:
    return torch.from_numpy(np.array(data.images[:6])).float() / 255.0


def test_drawn_boxes_hold_what_is_drawn_in_them(data: DetectionSet) -> None:
    assert len(data.boxes) > 40
    for row in range(len(data)):
        truth = data.truth_of(row)
        assert (truth.boxes >= 0).all()
        assert (truth.boxes <= SIZE).all()
        between = overlaps(truth.boxes.astype(float), truth.boxes.astype(float))
        assert (between[~np.eye(len(truth.boxes), dtype=bool)] <= 0.05).all()
        image = data.images[row].astype(float)
        for x1, y1, x2, y2 in truth.boxes.astype(int):
            inside = image[:, (y1 + y2) // 2 + 1 : y2 - 2, (x1 + x2) // 2 - 1 : (x1 + x2) // 2 + 1]
            ground = np.median(image, axis=(1, 2)) if len(truth.boxes) == 1 else None
            if ground is not None and (x2 - x1) < SIZE // 3:
                assert (inside.mean(axis=(1, 2)) > ground + 10).all()
    assert drawn_shapes(40, image_size=SIZE).fingerprint == data.fingerprint
    assert drawn_shapes(40, image_size=SIZE, seed=1).fingerprint != data.fingerprint


@pytest.mark.parametrize("u", [0.0, *ARMS])
def test_its_cost_is_what_torch_counts_while_it_runs(path: DetectorPath, u: float) -> None:
    detector = path.detector
    gates = detector.gates(detector.counts_at(u))
    one = torch.zeros(1, *path.input_shape)
    with torch.no_grad():
        assert path.macs_at(u) == measured_macs(lambda: detector.detect(one, gates))


def test_every_arm_costs_more_than_the_one_below(path: DetectorPath) -> None:
    assert list(path.arm_macs) == sorted(set(path.arm_macs))
    assert path.arm_macs[-1] == path.full_macs
    assert path.context_macs == path.arm_macs[0]
    linear = [path.macs_at(u, cost_model="linear") for u in ARMS]
    assert linear[-1] == path.full_macs
    assert all(a > b for a, b in zip(linear[:-1], path.arm_macs[:-1], strict=True))


@pytest.mark.parametrize("u", ARMS)
def test_both_halves_run_sliced_as_they_run_masked(u: float) -> None:
    detector = make_detector().double().eval()
    counts, cut = detector.counts_at(u), len(detector.features.components)
    gates = detector.gates(counts)
    pairs = zip(counts, detector.components, strict=True)
    one_mask = [nested_mask(torch.tensor([count]), n).double() for count, n in pairs]
    x = torch.randn(2, *detector.input_shape, dtype=torch.float64)
    with torch.no_grad():
        sliced = detector.features.run(x, gates.features).logits
        masks = [mask.expand(2, -1) for mask in one_mask[:cut]]
        masked = detector.features.run(x, Masked(masks)).logits
        active = sliced.shape[1]
        torch.testing.assert_close(sliced, masked[:, :active], rtol=1e-9, atol=1e-9)
        assert not masked[:, active:].any()
        rois = torch.randn(3, detector.channels, 4, 4, dtype=torch.float64)
        vectors = detector.classifier.run(rois, gates.classifier).logits
        masks = [mask.expand(3, -1) for mask in one_mask[cut:]]
        expected = detector.classifier.run(rois, Masked(masks)).logits
    torch.testing.assert_close(vectors, expected, rtol=1e-9, atol=1e-9)


def test_places_left_over_for_proposals_change_nothing(path: DetectorPath) -> None:
    # 3 x 3 cells of 12 anchors cannot fill 200 places
    config = replace(CONFIG, proposals=200)
    detector = make_detector(config)
    detector.load_state_dict(path.detector.state_dict())
    detector.eval()
    x = torch.randn(2, *detector.input_shape, generator=torch.Generator().manual_seed(0))
    gates = detector.gates(detector.counts_at(0.5))
    with torch.no_grad():
        found = detector.detect(x, gates)
        features = {"0": detector.features.run(x, gates.features).logits}
        listed = ImageList(x, [(SIZE, SIZE)] * 2)
        proposals, _ = detector.model.rpn(listed, features)
        assert max(len(own) for own in proposals) < 200
        plain, _ = detector.model.roi_heads(features, proposals, listed.image_sizes)
    for row, own in enumerate(plain):
        kept = found.boxes[row][found.boxes[row, :, 5] >= 0]
        torch.testing.assert_close(kept[:, :4], own["boxes"])
        torch.testing.assert_close(kept[:, 4], own["scores"])
        assert torch.equal(kept[:, 5].long(), own["labels"] - 1)


def test_boxes_lie_in_the_image_with_falling_scores(
    path: DetectorPath, images: torch.Tensor
) -> None:
    answer = path(images, 1.0)
    assert answer.output.shape == (6, CONFIG.detections, 6)
    assert answer.macs.tolist() == [path.full_macs] * 6
    is_found = answer.output[..., 5] >= 0
    assert is_found.any()
    assert not answer.output[~is_found][:, :5].any()
    boxes, scores = answer.output[is_found][:, :4], answer.output[..., 4]
    assert (boxes >= 0).all()
    assert (boxes <= SIZE).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert (scores.diff(dim=1) <= 0).all()


def test_an_answer_does_not_hang_on_its_batch(path: DetectorPath, images: torch.Tensor) -> None:
    together = path(images, 0.5).output
    for row in range(len(images)):
        assert torch.equal(path(images[row : row + 1], 0.5).output[0], together[row])
    loose = path(images, 0.5, fixed_shape=False).output
    torch.testing.assert_close(loose[..., 4], together[..., 4], rtol=1e-4, atol=1e-4)


def test_every_image_may_have_its_own_utilization(path: DetectorPath, images: torch.Tensor) -> None:
    wanted = torch.tensor([0.25, 1.0, 0.5, 0.25, 1.0, 0.5])
    mixed = path(images, wanted)
    for row, u in enumerate(wanted.tolist()):
        alone = path(images[row : row + 1], u)
        assert torch.equal(mixed.output[row], alone.output[0])
        assert mixed.macs[row] == alone.macs[0]


def test_utilizations_that_serve_alike_run_together(
    path: DetectorPath, images: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = path.with_arms(ARMS)
    batches: list[int] = []
    detect = own.detector.detect

    def counted(x: torch.Tensor, gates: HalfGates) -> object:
        batches.append(len(x))
        return detect(x, gates)

    monkeypatch.setattr(own.detector, "detect", counted)
    many = torch.rand(64, generator=torch.Generator().manual_seed(0))
    settings = {own.detector.counts_at(u) for u in many.tolist()}
    answer = own(images[torch.arange(64) % 6], many, fixed_shape=False)
    assert len(batches) == len(settings) < 64
    assert sum(batches) == 64
    assert answer.macs.tolist() == [own.macs_at(u) for u in many.tolist()]


@pytest.mark.parametrize("wrong", [float("nan"), 1.1, -0.1])
def test_a_wrong_utilization_is_found_before_any_image_runs(
    path: DetectorPath, images: torch.Tensor, wrong: float
) -> None:
    before = path.forwards
    with pytest.raises(InvalidSetting, match="a number in"):
        path(images, torch.tensor([0.25, 0.5, 1.0, 0.25, 0.5, wrong]))
    assert path.forwards == before


def test_a_detector_in_use_can_be_copied(path: DetectorPath, images: torch.Tensor) -> None:
    answer = path(images, 0.5).output
    for copied in (copy.deepcopy(path), pickle.loads(pickle.dumps(path))):
        assert torch.equal(copied(images, 0.5).output, answer)
    copy.deepcopy(path.detector)


def test_the_context_is_what_the_lowest_arm_saw(path: DetectorPath, images: torch.Tensor) -> None:
    features, lowest = path.context(images)
    assert features.shape == (6, path.context_size)
    assert torch.isfinite(features).all()
    assert torch.equal(lowest.output, path(images, ARMS[0]).output)
    highest = features[:, path.detector.channels + len(SHAPES)]
    torch.testing.assert_close(highest, lowest.output[:, 0, 4])


def test_what_is_saved_answers_alike(
    path: DetectorPath, images: torch.Tensor, tmp_path: Path
) -> None:
    path.save(tmp_path / "path")
    loaded = DetectorPath.load(tmp_path / "path")
    assert loaded.fingerprint == path.fingerprint
    assert (loaded.arms, loaded.classes) == (ARMS, (*SHAPES, NOTHING))
    for u in ARMS:
        assert torch.equal(loaded(images, u).output, path(images, u).output)
    fewer = loaded.with_arms((0.5, 1.0))
    assert fewer.arm_macs == path.arm_macs[1:]
    assert fewer.fingerprint == path.fingerprint
    stricter = path.with_threshold(0.9)
    assert torch.equal(stricter(images, 0.5).output, path(images, 0.5).output)
    assert stricter.fingerprint != path.fingerprint


def test_an_altered_file_is_refused(path: DetectorPath, tmp_path: Path) -> None:
    path.save(tmp_path)
    spec = tmp_path / "path.json"
    text = spec.read_text()
    spec.write_text(text.replace('"score_threshold": 0.3', '"score_threshold": 0.4'))
    with pytest.raises(CorruptArtifact, match="altered"):
        DetectorPath.load(tmp_path)
    spec.write_text(text.replace('"width": 8', '"width": 16'))
    with pytest.raises(ShapeMismatch):
        DetectorPath.load(tmp_path)
    spec.write_text(text.replace('"kind": "detector"', '"kind": "vgg"'))
    with pytest.raises(CorruptArtifact, match="is not the specification"):
        DetectorPath.load(tmp_path)


def test_a_frozen_detector_refuses_training_and_what_does_not_fit(
    path: DetectorPath, images: torch.Tensor
) -> None:
    with pytest.raises(FrozenPathChanged):
        path.train()
    with pytest.raises(FrozenPathChanged):
        path.requires_grad_()
    with pytest.raises(DataError, match="48"):
        path(torch.zeros(1, 3, 32, 32), 0.5)
    for u in (float("nan"), -0.1, 1.1):
        with pytest.raises(InvalidSetting):
            path(images, u)
    with pytest.raises(InvalidSetting, match="one for each"):
        path(images, torch.tensor([0.5]))


@pytest.mark.parametrize(
    "change",
    [
        {"classes": 0},
        {"image_size": 50},
        {"image_size": 16},
        {"roi_size": 1},
        {"anchor_sizes": (0.0,)},
        {"aspect_ratios": ()},
        {"proposals": 0},
        {"least_score": 1.0},
        {"overlap": 0.0},
    ],
)
def test_a_detector_that_cannot_be_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(InvalidSetting, match=rf"detector\.{next(iter(change))}"):
        replace(CONFIG, **change)  # type: ignore[arg-type]


@pytest.mark.parametrize("schedule", ["uniform", "incremental", "sandwich"])
def test_training_repeats_itself_and_leaves_the_global_generator_alone(
    data: DetectionSet, schedule: str
) -> None:
    config = replace(QUICK, schedule=schedule)  # type: ignore[arg-type]
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one, two = make_detector(), make_detector()
    first = train_detector(one, data, config, mean=MEAN, std=STD)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(6)
    second = train_detector(two, data, config, mean=MEAN, std=STD)
    assert first.losses == second.losses
    assert first.forwards == 3 * 4 * (3 if schedule == "sandwich" else 1)
    for mine, other in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_training_sees_path_train_alone(data: DetectionSet) -> None:
    blotted = np.array(data.images)
    blotted[np.setdiff1d(np.arange(len(data)), data.rows(PATH_TRAIN))] = 0
    other = replace(data, images=blotted)
    runs = [train_detector(make_detector(), d, QUICK, mean=MEAN, std=STD) for d in (data, other)]
    assert runs[0].losses == runs[1].losses


def test_a_few_steps_on_the_same_images_lower_the_loss() -> None:
    four = drawn_shapes(8, image_size=SIZE, seed=1)
    assert len(four.rows(PATH_TRAIN)) == 4
    config = replace(QUICK, steps=20, learning_rate=0.03, flip=False)
    losses = train_detector(make_detector(), four, config, mean=MEAN, std=STD).losses
    assert np.mean(losses[-4:]) < 0.75 * np.mean(losses[:4]), losses


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_an_interrupted_training_ends_with_the_same_weights(
    data: DetectionSet, tmp_path: Path, optimizer: str
) -> None:
    config = replace(QUICK, steps=4, checkpoint_seconds=0.0, optimizer=optimizer)  # type: ignore[arg-type]
    whole = make_detector()
    train_detector(whole, data, config, mean=MEAN, std=STD)

    def stop(progress: object) -> None:
        if getattr(progress, "done", 0) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_detector(
            make_detector(), data, config, mean=MEAN, std=STD, folder=tmp_path, report=stop
        )
    resumed = make_detector(seed=9)
    result = train_detector(resumed, data, config, mean=MEAN, std=STD, folder=tmp_path)
    assert result.resumed_from == 2
    assert len(result.losses) == 4
    for mine, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(mine, other)
    other_plan = replace(config, seed=1)
    with pytest.raises(ForeignArtifact):
        train_detector(make_detector(), data, other_plan, mean=MEAN, std=STD, folder=tmp_path)


def test_a_loss_without_value_stops_the_training(data: DetectionSet) -> None:
    detector = make_detector()
    with torch.no_grad():
        detector.model.roi_heads.box_predictor.cls_score.bias.fill_(float("nan"))
    with pytest.raises(NotFinite, match="step 0 of 3"):
        train_detector(detector, data, QUICK, mean=MEAN, std=STD)


def test_training_refuses_data_that_do_not_fit(data: DetectionSet) -> None:
    small = drawn_shapes(8, image_size=32)
    with pytest.raises(DataError, match="32"):
        train_detector(make_detector(), small, QUICK, mean=MEAN, std=STD)
    two = make_detector(replace(CONFIG, classes=2))
    with pytest.raises(DataError, match="classes=3"):
        train_detector(two, data, QUICK, mean=MEAN, std=STD)
    hard = replace(data, is_difficult=np.ones_like(data.is_difficult))
    with pytest.raises(DataError, match="none of the"):
        train_detector(make_detector(), hard, QUICK, mean=MEAN, std=STD)
    with pytest.raises(BadInput, match=r"training\.steps"):
        replace(QUICK, steps=0)


def test_the_atlas_holds_what_every_arm_found(
    path: DetectorPath, echoed: DetectionSet, tmp_path: Path
) -> None:
    config = OutcomesConfig(shard_size=7)
    atlas = build_detection_atlas(path, echoed, tmp_path / "one", config)
    sizes = {"path_train": 0, "controller_train": 10, "controller_val": 4, "test": 6}
    assert atlas.split_sizes() == sizes
    assert atlas.header.classes == (*SHAPES, NOTHING)
    assert OutcomeAtlas.open(tmp_path / "one").header == atlas.header
    np.testing.assert_array_equal(atlas.label, echoed.labels[atlas.sample])
    np.testing.assert_array_equal(atlas.macs[0], path.arm_macs)
    assert (atlas.correct[:, -1] == 1.0).all()  # it finds what it finds
    lower = set(np.unique(atlas.correct[:, :-1]))
    assert min(lower) >= 0.0
    assert lower - {0.0, 1.0}  # graded
    for arm, u in enumerate(path.arms):
        row = int(atlas.sample[3])
        image = torch.from_numpy(np.array(echoed.images[row : row + 1])).float() / 255.0
        judged = path.judge(path(image, u).output, (echoed.truth_of(row),))
        assert float(judged.correct[0]) == float(atlas.correct[3, arm])
        assert float(judged.confidence[0]) == float(atlas.confidence[3, arm])
        assert int(judged.answer[0]) == int(atlas.answer[3, arm])
    again = build_detection_atlas(path, echoed, tmp_path / "two", replace(config, shard_size=20))
    for name in ("correct", "confidence", "answer", "context"):
        np.testing.assert_array_equal(getattr(again, name), getattr(atlas, name))


def test_map_of_an_arm_is_that_of_its_detections(path: DetectorPath, echoed: DetectionSet) -> None:
    tables = map_at_every_arm(path, echoed, "test", rule="eleven_points")
    assert tables[-1].mean == 1.0
    assert tables[0].mean < 1.0
    rows = echoed.rows("test")
    images = torch.from_numpy(np.asarray(echoed.images[rows])).float() / 255.0
    found = detections_of(path(images, ARMS[0]).output.numpy())
    truths = echoed.truth_rows(rows)
    again = mean_average_precision(found, truths, 3, rule="eleven_points")
    np.testing.assert_array_equal(again.by_class, tables[0].by_class)
    other = replace(echoed, classes=("a", "b", "c"))
    with pytest.raises(DataError, match="a, b, c"):
        map_at_every_arm(path, other, "test")
    with pytest.raises(DataError, match="a, b, c"):
        build_detection_atlas(path, other, Path("never"))


def test_batch_norm_keeps_statistics_for_every_arm(data: DetectionSet, tmp_path: Path) -> None:
    body = replace(CONFIG.body, norm="batch")
    detector = make_detector(replace(CONFIG, body=body))
    spec = DetectorSpec(detector.config, ARMS, SHAPES, MEAN, STD, THRESHOLD)
    with pytest.raises(InvalidSetting, match="never calibrated"):
        DetectorPath(copy.deepcopy(detector), spec)
    weights = [parameter.clone() for parameter in detector.parameters()]
    calibrate_norms(detector, data, ARMS, mean=MEAN, std=STD, batches=2, batch_size=4)
    for before, after in zip(weights, detector.parameters(), strict=True):
        assert torch.equal(before, after)
    assert not detector.training
    path = DetectorPath(detector, spec)
    stem = detector.features.norms[0]
    # what enters the stem does not depend on u, and arm 1 keeps its first half of the channels
    torch.testing.assert_close(stem.running_mean[2, :4], stem.running_mean[0, :4])
    x = torch.from_numpy(np.array(data.images[data.rows(PATH_TRAIN)])).float() / 255.0
    seen = torch.nn.functional.conv2d(
        (x - 0.3) / 0.2, dict(detector.features.named_modules())["body.conv1"].weight, None, 2, 3
    )
    assert (stem.running_mean[0] - seen.mean(dim=(0, 2, 3))).abs().max() < 0.5 * seen.std()
    path.save(tmp_path)
    images = x[:2]
    for u in ARMS:
        assert torch.equal(DetectorPath.load(tmp_path)(images, u).output, path(images, u).output)
    with pytest.raises(InvalidSetting, match="never calibrated"):
        path.with_arms((0.75, 1.0))


def test_a_body_takes_torchvisions_weights_and_no_others() -> None:
    body = BodyConfig(name="resnet18", norm="batch")
    model = resnet18(weights=None).eval()
    with torch.no_grad():
        model.bn1.running_mean.normal_()
    halves = make_halves(body, 64, 4, model.state_dict())
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        gates = Sliced(halves.features.components)
        found = halves.features.eval().run(x, gates).logits
        expected = model.layer1(model.maxpool(model.relu(model.bn1(model.conv1(x)))))
        expected = model.layer3(model.layer2(expected))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        vectors = halves.classifier.eval().run(found, Sliced(halves.classifier.components)).logits
        pooled = model.avgpool(model.layer4(expected)).flatten(1)
        torch.testing.assert_close(vectors, pooled, rtol=1e-4, atol=1e-4)
    for wrong in (resnet18(weights=None, norm_layer=lambda c: torch.nn.GroupNorm(8, c)), None):
        state = {"conv1.weight": torch.zeros(1)} if wrong is None else wrong.state_dict()
        with pytest.raises(ShapeMismatch, match="resnet18"):
            make_halves(body, 64, 4, state)


@pytest.mark.parametrize(
    "change",
    [
        {"name": "vgg16"},
        {"norm": "layer"},
        {"components": 1},
        {"components": 3},
        {"name": "resnet50", "width": 32},
        {"name": "densenet169"},
    ],
)
def test_a_body_that_cannot_be_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(BadInput):
        BodyConfig(**change)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["resnet50", "resnext50", "densenet169"])
def test_the_papers_bodies_are_cut_at_stride_16(name: str) -> None:
    with torch.device("meta"):
        halves = make_halves(BodyConfig(name, components=16, norm="batch"), 64, 4)  # type: ignore[arg-type]
    channels, width = {"densenet169": (1280, 1664)}.get(name, (1024, 2048))
    assert (halves.channels, halves.width) == (channels, width)
    one = torch.empty(1, 3, 64, 64, device="meta")
    features = halves.features.run(one, Sliced(halves.features.components)).logits
    assert features.shape == (1, channels, 4, 4)
    assert halves.classifier.classes == width
    lowest, full = (
        executed_macs(half.layer_costs(), half.counts_at(u))
        for half, u in ((halves.features, 0.25), (halves.features, 1.0))
    )
    assert lowest < 0.35 * full


def test_gates_of_the_whole_network_switch_everything_on() -> None:
    detector = make_detector()
    assert detector.counts_at(1.0) == detector.components
    assert isinstance(detector.gates(detector.components), HalfGates)
