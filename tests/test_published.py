import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from studybook import data, provenance, published, sweep


@pytest.fixture
def small(monkeypatch, tmp_path):
    """A manifest of two sets whose files are in a folder, which the environment names."""
    folder = tmp_path / "published"
    (folder / "tables").mkdir(parents=True)
    contents = {"a.csv": b"model,top1\nm1,0.5\nm2,0.75\n", "b.json": b"[3, 1, 2]"}
    np.save(folder / "tables" / "c.npy", np.arange(6).reshape(2, 3))
    contents["c.npy"] = (folder / "tables" / "c.npy").read_bytes()
    for name, content in contents.items():
        (folder / "tables" / name).write_bytes(content)
    files = {
        name.partition(".")[0]: {
            "local": f"tables/{name}",
            "sha256": hashlib.sha256(content).hexdigest(),
            "source": f"someone/something/0123/{name}",
        }
        for name, content in contents.items()
    }
    manifest = {
        "three": {"home": "https://example.org", "files": files},
        "one": {"home": "https://example.org", "files": {"a": {k: files["a"][k] for k in ("local", "sha256")}}},
    }
    monkeypatch.setattr(published, "_sets", lambda: manifest)
    monkeypatch.setenv("STUDYBOOK_DATA", str(folder))
    monkeypatch.setenv("STUDYBOOK_CACHE", str(tmp_path / "cache"))
    return folder


def test_files_are_read_as_what_they_are(small):
    assert published.table("one")["top1"].tolist() == [0.5, 0.75]
    assert published.table("three", "a", index_col=0).index.tolist() == ["m1", "m2"]
    assert published.tensor("three", "b").tolist() == [3, 1, 2]
    torch.testing.assert_close(published.tensor("three", "c"), torch.arange(6).view(2, 3))


def test_unknown_names_are_told_what_there_is(small):
    with pytest.raises(ValueError, match="no published set is called 'two'; there are three, one"):
        published.table("two")
    with pytest.raises(ValueError, match="has no file 'd'; it has a, b, c"):
        published.tensor("three", "d")
    with pytest.raises(ValueError, match="has no file ''; it has a, b, c"):
        published.table("three")


def test_a_changed_file_is_refused_and_found_again_when_mended(small):
    before, good = published.fingerprint("one"), (small / "tables" / "a.csv").read_bytes()
    (small / "tables" / "a.csv").write_bytes(good.replace(b"0.5", b"0.6"))
    with pytest.raises(ValueError, match="a.csv is damaged or another version: its SHA-256"):
        published.table("one")
    (small / "tables" / "a.csv").write_bytes(good + b"")
    assert published.fingerprint("one") == before


def test_a_missing_file_is_fetched_once_from_the_pinned_commit(small, monkeypatch):
    asked = []

    def retrieve(url, known_hash, name, folder, progressbar):
        asked.append((url, known_hash))
        (folder / name).write_bytes((small / "tables" / "b.json").read_bytes())

    monkeypatch.setattr("pooch.retrieve", retrieve)
    monkeypatch.delenv("STUDYBOOK_DATA")
    assert published.tensor("three", "b").tolist() == [3, 1, 2]
    assert published.tensor("three", "b").tolist() == [3, 1, 2]
    pinned = hashlib.sha256(b"[3, 1, 2]").hexdigest()
    assert asked == [("https://raw.githubusercontent.com/someone/something/0123/b.json", f"sha256:{pinned}")]
    kept = data.cache_folder() / "published" / "tables" / "b.json"
    kept.write_bytes(b"[3, 1")  # cut short: fetched again
    assert published.tensor("three", "b").tolist() == [3, 1, 2]
    assert len(asked) == 2


def test_a_set_that_is_nowhere_names_every_place_and_the_remedy(small, monkeypatch):
    def retrieve(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr("pooch.retrieve", retrieve)
    (small / "tables" / "a.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"no file .*a\.csv; and https://example.org .* \(no route to host\)"):
        published.table("three", "a")
    with pytest.raises(FileNotFoundError, match=r"no commit is known .*; put the file into a folder as tables/a\.csv"):
        published.table("one")


def test_a_download_with_other_bytes_is_refused(small, monkeypatch, tmp_path):
    monkeypatch.delenv("STUDYBOOK_DATA")
    source = tmp_path / "someone" / "something" / "0123"
    source.mkdir(parents=True)
    (source / "b.json").write_bytes(b"[9]")
    monkeypatch.setattr(published, "_RAW", tmp_path.as_uri())
    with pytest.raises(FileNotFoundError, match="did not give it"):
        published.tensor("three", "b")
    assert not (data.cache_folder() / "published" / "tables" / "b.json").exists()


def top(case):
    """What a notebook's `measure` may look like."""
    if case["set"] == "generated":
        return {"top1": 0.25}
    return {"top1": published.table(case["set"])["top1"].max()}


def test_a_sweep_over_a_published_set_is_keyed_by_its_bytes(small):
    with pytest.raises(ValueError, match="must name the sets"):
        sweep.run(top, [{"set": "one"}])
    table = sweep.run(top, [{"set": "one"}], data="one")
    assert table["top1"].tolist() == [0.75]
    assert table.attrs["sweep"]["data"] == {"one": published.fingerprint("one")}
    assert sweep.run(top, [{"set": "one"}], data="one").attrs["sweep"]["stored"] == 1
    generated = sweep.run(top, [{"set": "generated"}], data=())  # says that it loads nothing
    assert generated["top1"].tolist() == [0.25]
    assert generated.attrs["sweep"]["data"] == {}
    assert not provenance.data_moved({"sweeps": [table.attrs["sweep"]]})
    assert provenance.data_moved({"sweeps": [{"data": {"one": "another"}}]})


def test_mark_knows_sets_of_both_kinds(small):
    assert published.mark("one") == published.fingerprint("one")
    assert published.mark("digits") == data.fingerprint("digits")


# ---------------------------------------------------------------- the real sets


def test_the_manifest_pins_every_file():
    manifest = json.loads(Path(published.__file__).with_suffix(".json").read_text())
    assert list(manifest) == published.names()
    for name, about in manifest.items():
        assert list(about["files"]) == published.files(name)
        for file, entry in about["files"].items():
            assert len(entry["sha256"]) == 64
            assert not entry["local"].startswith("/")
            if "source" in entry:
                assert len(entry["source"].split("/")[2]) == 40, f"{name}/{file} is not pinned to a commit"


def test_the_real_files_hold_what_the_sets_promise(real_data):
    for name in published.names():
        assert len(published.fingerprint(name)) == 16
    testbed = published.table("imagenet-testbed", index_col=0)
    assert testbed.shape == (338, 213)
    assert (testbed.notna().sum(axis=1) > 200).sum() == 200
    votes = published.tensor("cifar10h")
    assert votes.shape == (10_000, 10)
    assert published.tensor("cifar10.1", "v4-labels").shape == (2021,)
    assert published.tensor("cifar10.1", "v4/wrn_28_10").shape == (2021,)
    probs = published.tensor("label-errors", "cifar10-probabilities").float()
    torch.testing.assert_close(probs.sum(-1), torch.ones(10_000), atol=1e-2, rtol=0)
    assert len(published.table("timm-results", "imagenet-a")) == 1_556
    assert published.table("ssl-risk", header=[0, 1], index_col=0).dropna(how="all").shape[0] == 169
