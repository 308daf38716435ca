import hashlib
import io
import json

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
    with pytest.raises(ValueError, match=r"test\.parquet is damaged or no image set \(UnidentifiedImageError"):
        data.load("cifar10", "test")


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
