"""The study of Grad-CAM: its own functions, on maps and mosaics whose right answer is known."""

import pytest
import torch
from conftest import method

STUDY = "explanations/grad-cam"


@pytest.fixture(scope="module")
def own():
    return method(STUDY, MOSAICS=2, SHUFFLED=2)


def test_shares_are_of_quarters_row_by_row(own):
    found = torch.zeros(2, 4, 4)
    found[0, 0, 3], found[0, 3, 0] = 3.0, 1.0
    assert own["shares"](found).tolist() == [[0, 0.75, 0.25, 0], [0.25] * 4]


def test_a_mosaic_has_its_photos_in_its_quarters(own):
    x, y = own["mosaics"]("packaged", 2)
    small, labels = own["photographs"]("packaged")
    assert x.shape == (2, 3, 224, 224)
    for one, classes in zip(x, y, strict=True):
        assert len(set(classes.tolist())) == 4
        for i, label in enumerate(classes.tolist()):
            down, right = 112 * (i // 2), 112 * (i % 2)
            photo = small[labels.tolist().index(label)]
            assert one[:, down : down + 112, right : right + 112].equal(photo)


def test_joined_digits_stand_where_they_were_put(own):
    quarters = torch.arange(4.0)[None, :, None, None].expand(1, 4, 2, 2)
    assert own["joined"](quarters)[0, 0].tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]


def test_digits_for_learning_have_one_digit_and_mosaics_four_different_ones(own):
    x, y, four, labels = own["digits"]("mnist5k", 30, 5)
    quarters = x[:, 0].unflatten(-1, (2, 28)).unflatten(-3, (2, 28)).sum((-3, -1)).flatten(1)
    assert ((quarters > 0).sum(1) == 1).all()
    assert x.shape == (30, 1, 56, 56)
    assert len(y) == 30
    assert four.shape == (5, 1, 56, 56)
    assert all(len(set(row)) == 4 for row in labels.tolist())


def test_a_network_that_sees_one_quarter_per_class_is_asked_rightly(own):
    class Quarters(torch.nn.Module):
        """Logit c is the mean of quarter c, of one map."""

        def __init__(self):
            super().__init__()
            self.maps = torch.nn.Identity()
            self.places = torch.zeros(4, 1, 8, 8)
            for i in range(4):
                self.places[i, 0, 4 * (i // 2) : 4 * (i // 2) + 4, 4 * (i % 2) : 4 * (i % 2) + 4] = 1

        def forward(self, x):
            return (self.maps(x.mean(1, keepdim=True).relu())[:, None] * self.places).mean((2, 3, 4))

    x = torch.ones(3, 3, 8, 8)
    y = torch.arange(4).expand(3, 4)
    found = own["asked"](Quarters(), x, y, "maps", ["gradients", "guided backprop"])
    assert found.shape == (2, 3, 4, 8, 8)
    assert own["shares"](found).diagonal(dim1=-2, dim2=-1).tolist() == torch.ones(2, 3, 4).tolist()


def test_cam_and_grad_cam_are_the_same_but_for_a_factor(own):
    gap = own["proportional"]({"photos": "packaged", "count": 2})["gap"]
    assert gap.shape == (2,)
    assert gap.max() < 1e-4


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("PHOTOS", "cats", "PHOTOS must be packaged or imagenet-samples, got 'cats'"),
        ("DIGITS", "digits", "DIGITS must be mnist5k or mnist, got 'digits'"),
        ("MOSAICS", 40, "MOSAICS must be 2 to 15 for packaged photos, got 40"),
        ("SHUFFLED", 1, "SHUFFLED must be 2 to MOSAICS=3, got 1"),
        ("LAYERS", "blocks.1", "LAYERS must be two or more and end with bn2"),
    ],
)
def test_wrong_parameters_are_refused(name, value, words):
    from studybook import studies

    source = studies.notebook(studies.find("grad-cam").source)
    cells = [cell["source"] for cell in source["cells"] if cell["cell_type"] == "code"][:2]
    names = {}
    exec(cells[0], names)
    names[name] = value
    with pytest.raises(ValueError, match=words):
        exec(cells[1], names)
