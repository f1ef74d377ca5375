"""Packed layers equal the plain torch operators, and pack once for an input size."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from flyball.kernels import PackedConv, group_norm_relu, pack_conv, pack_linear

ONEDNN = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
needs_onednn = pytest.mark.skipif(not ONEDNN, reason="this torch has no oneDNN")


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """One and two threads; as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def plain(
    x: Tensor, w: Tensor, b: Tensor | None, *, stride: int = 1, padding: int = 0, groups: int = 1
) -> Tensor:
    """In float64."""
    convolve = F.conv2d if w.ndim == 4 else F.conv3d
    bias = None if b is None else b.double()
    return convolve(x.double(), w.double(), bias, stride, padding, 1, groups)


def assert_equal_to(got: Tensor, reference: Tensor) -> None:
    """Equal to 1e-5 of the largest value: float32 against float64, in another order."""
    assert got.dtype == torch.float32
    assert got.shape == reference.shape
    assert torch.isfinite(got).all()
    difference = (got.double() - reference).abs().max()
    assert difference <= 1e-5 * max(1.0, float(reference.abs().max()))


# B, C_in, C_out, size, kernel, stride, padding, groups
CASES = [
    (64, 3, 20, (32, 32), 3, 1, 1, 1),
    (5, 7, 13, (11, 9), 3, 2, 1, 1),
    (1, 20, 28, (16, 16), 3, 1, 1, 1),
    (2, 16, 1, (5, 5), 1, 1, 0, 1),
    (3, 1, 8, (7, 8), 5, 3, 2, 1),
    (4, 12, 12, (9, 9), 3, 1, 1, 12),
    (32, 24, 36, (8, 8), 3, 2, 1, 12),
    (1, 4, 4, (1, 1), 1, 1, 0, 1),
    (2, 3, 6, (4, 9, 7), 3, 1, 1, 1),
    (1, 8, 8, (3, 5, 5), 3, 2, 1, 4),
]


@pytest.mark.parametrize(("has_bias", "relu"), [(True, True), (False, False)])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_packed_convolution_is_the_plain_one(
    case: tuple[int, int, int, tuple[int, ...], int, int, int, int],
    has_bias: bool,
    relu: bool,
    threads: int,
) -> None:
    batch, inputs, outputs, size, kernel, stride, padding, groups = case
    weight = drawn(outputs, inputs // groups, *(kernel,) * len(size), seed=1)
    bias = drawn(outputs, seed=2) if has_bias else None
    x = drawn(batch, inputs, *size)
    packed = pack_conv(weight, bias, stride=stride, padding=padding, groups=groups, relu=relu)
    reference = plain(x, weight, bias, stride=stride, padding=padding, groups=groups)
    reference = F.relu(reference) if relu else reference
    last = torch.channels_last if len(size) == 2 else torch.channels_last_3d
    with torch.inference_mode():
        assert_equal_to(packed(x), reference)
        assert_equal_to(packed(x.contiguous(memory_format=last)), reference)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("shape", [(1, 9, 5), (64, 520, 300), (1, 1100, 700), (33, 4096, 10)])
def test_a_packed_linear_layer_is_the_plain_one(
    shape: tuple[int, int, int], relu: bool, threads: int
) -> None:
    batch, inputs, outputs = shape
    x, weight, bias = drawn(batch, inputs), drawn(outputs, inputs, seed=1), drawn(outputs, seed=2)
    reference = F.linear(x.double(), weight.double(), bias.double())
    reference = F.relu(reference) if relu else reference
    with torch.inference_mode():
        assert_equal_to(pack_linear(weight, bias, relu=relu)(x), reference)


def test_a_cut_view_is_packed_as_its_values() -> None:
    weight, x = drawn(32, 24, 3, 3, seed=1), drawn(16, 10, 16, 16)
    packed = pack_conv(weight[:20, :10], None, stride=1, padding=1)
    assert_equal_to(packed(x), plain(x, weight[:20, :10], None, padding=1))
    features = drawn(64, 200)
    wide = drawn(300, 260, seed=2)
    linear = pack_linear(wide[:280, :200], None)
    assert_equal_to(linear(features), features.double() @ wide[:280, :200].double().T)


def test_dimensions_may_differ_in_stride_and_padding() -> None:
    weight, x = drawn(6, 4, 3, 3, 3, seed=1), drawn(2, 4, 5, 9, 8)
    packed = pack_conv(weight, None, stride=(1, 2, 3), padding=(0, 1, 2))
    reference = F.conv3d(x.double(), weight.double(), None, (1, 2, 3), (0, 1, 2))
    assert_equal_to(packed(x), reference)


@needs_onednn
def test_packing_happens_once_for_an_input_size() -> None:
    packed = pack_conv(drawn(16, 8, 3, 3), drawn(16), stride=1, padding=1, relu=True)
    assert packed.packings == 0
    for batch in (8, 8, 26, 64, 8):
        packed(drawn(batch, 8, 32, 32))
    assert packed.packings == 1
    packed(drawn(8, 8, 16, 16))
    packed(drawn(1, 8, 32, 32))
    assert packed.packings == 3
    linear = pack_linear(drawn(1024, 1024), None)
    for batch in (64, 3, 1, 1, 64):
        linear(drawn(batch, 1024))
    assert linear.packings == 2


@needs_onednn
def test_small_inputs_are_left_to_torch_and_say_why() -> None:
    conv = pack_conv(drawn(16, 8, 3, 3), None, stride=1, padding=1)
    assert conv.implementation.name == "onednn"
    assert conv.implementation_for((64, 8, 32, 32)).name == "onednn"
    small = conv.implementation_for((1, 8, 8, 8))
    assert small.name == "torch"
    assert "small" in small.why
    conv(drawn(1, 8, 8, 8))
    assert conv.packings == 0
    linear = pack_linear(drawn(10, 64), None)
    assert linear.implementation_for((64, 64)).name == "torch"


def test_equal_shapes_give_equal_bits_whatever_came_before() -> None:
    weight, bias, x = drawn(28, 20, 3, 3), drawn(28), drawn(26, 20, 16, 16)

    def fresh() -> PackedConv:
        return pack_conv(weight, bias, stride=1, padding=1, relu=True)

    used = fresh()
    used(drawn(1, 20, 16, 16))
    used(drawn(64, 20, 16, 16))
    first = fresh()(x)
    assert torch.equal(used(x), first)
    assert torch.equal(used(x.contiguous(memory_format=torch.channels_last)), first)
    with torch.inference_mode():
        assert torch.equal(fresh()(x), first)


def test_what_was_packed_in_inference_mode_runs_outside() -> None:
    packed, x = pack_conv(drawn(16, 8, 3, 3), None, stride=1, padding=1), drawn(8, 8, 32, 32)
    with torch.inference_mode():
        inside = packed(x)
    assert torch.equal(packed(x), inside)


def test_an_empty_batch_gives_an_empty_answer() -> None:
    assert pack_conv(drawn(6, 4, 3, 3), None, stride=2, padding=1)(drawn(0, 4, 9, 9)).shape == (
        0,
        6,
        5,
        5,
    )
    assert pack_linear(drawn(6, 4), drawn(6))(drawn(0, 4)).shape == (0, 6)


def test_other_dtypes_and_devices_run_plain_torch_and_say_why() -> None:
    weight, x = drawn(6, 4, 3, 3).double(), drawn(2, 4, 5, 5).double()
    packed = pack_conv(weight, None, stride=1, padding=1)
    assert packed.implementation.name == "torch"
    assert "float64" in packed.implementation.why
    assert torch.equal(packed(x), F.conv2d(x, weight, None, 1, 1))
    linear = pack_linear(drawn(600, 520).to("meta"), None)
    assert linear.implementation.name == "torch"
    assert "meta" in linear.implementation.why


@needs_onednn
def test_without_onednn_plain_torch_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, x = drawn(16, 8, 3, 3), drawn(8, 8, 32, 32)
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    packed = pack_conv(weight, None, stride=1, padding=1)
    linear = pack_linear(drawn(600, 520), None)
    assert_equal_to(packed(x), plain(x, weight, None, padding=1))
    assert linear(drawn(64, 520)).shape == (64, 600)
    assert packed.implementation.name == linear.implementation.name == "torch"
    assert packed.packings == linear.packings == 0


@needs_onednn
def test_bfloat16_is_packed_where_the_processor_multiplies_it() -> None:
    weight, x = drawn(16, 8, 3, 3).bfloat16(), drawn(8, 8, 32, 32).bfloat16()
    packed = pack_conv(weight, None, stride=1, padding=1)
    can = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    assert packed.implementation.name == ("onednn" if can else "torch")
    got = packed(x)
    assert got.dtype == torch.bfloat16
    reference = plain(x, weight, None, padding=1)
    # bfloat16 has 8 bits: the result is rounded once, to 2^-9 of its size.
    torch.testing.assert_close(got.double(), reference, rtol=2**-8, atol=2**-6)


@pytest.mark.parametrize(
    ("x", "told"),
    [
        (torch.zeros(2, 5, 8, 8), "(2, 5, 8, 8)"),
        (torch.zeros(2, 4, 8), "(2, 4, 8)"),
        (torch.zeros(2, 4, 8, 8, dtype=torch.float64), "torch.float64"),
        (torch.zeros(2, 4, 8, 8, device="meta"), "on meta"),
    ],
)
def test_an_input_that_does_not_fit_is_refused(x: Tensor, told: str) -> None:
    packed = pack_conv(drawn(6, 4, 3, 3), None, stride=1, padding=1)
    with pytest.raises(ValueError, match=r"take inputs of \(B, 4, pixels, pixels\)") as raised:
        packed(x)
    assert told in str(raised.value)
    with pytest.raises(ValueError, match=r"take inputs of \(B, 9\)"):
        pack_linear(drawn(6, 9), None)(x)


def test_parts_that_do_not_fit_together_are_refused() -> None:
    weight = drawn(6, 4, 3, 3)
    with pytest.raises(ValueError, match="2 or 3 dimensions"):
        pack_conv(drawn(6, 4, 3), None, stride=1, padding=1)
    with pytest.raises(ValueError, match="one value for each output"):
        pack_conv(weight, drawn(5), stride=1, padding=1)
    with pytest.raises(ValueError, match="one value for each output"):
        pack_linear(drawn(6, 4), drawn(6).double())
    with pytest.raises(ValueError, match="share the outputs equally"):
        pack_conv(weight, None, stride=1, padding=1, groups=4)
    with pytest.raises(ValueError, match="stride is a number >= 1"):
        pack_conv(weight, None, stride=0, padding=1)
    with pytest.raises(ValueError, match="padding is a number >= 0, or 2"):
        pack_conv(weight, None, stride=1, padding=(1, 1, 1))
    with pytest.raises(ValueError, match="Use pack_conv"):
        pack_linear(weight, None)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize(
    ("shape", "groups"),
    [
        ((16, 32, 8, 8), 32),
        ((16, 36, 9, 7), 9),
        ((3, 64, 16, 16), 8),
        ((1, 8, 2, 2), 4),
        ((8, 16, 3, 8, 8), 8),
        ((64, 4, 32, 32), 2),
    ],
)
def test_group_norm_is_torchs_in_every_memory_format(
    shape: tuple[int, ...], groups: int, relu: bool
) -> None:
    x = drawn(*shape) * 2 + 1
    weight, bias = drawn(shape[1], seed=1), drawn(shape[1], seed=2)
    reference = F.group_norm(x.double(), groups, weight.double(), bias.double())
    reference = F.relu(reference) if relu else reference
    last = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
    for given in (x, x.contiguous(memory_format=last)):
        kept = given.clone()
        assert_equal_to(group_norm_relu(given, groups, weight, bias, relu=relu), reference)
        assert torch.equal(given, kept)


def test_groups_share_the_channels() -> None:
    with pytest.raises(ValueError, match="3 groups for 8 channels"):
        group_norm_relu(drawn(2, 8, 4, 4), 3, drawn(8), drawn(8))
