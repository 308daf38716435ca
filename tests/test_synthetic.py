import torch

from studybook import calibration, synthetic


def test_calibrated_logits_are_calibrated_and_a_temperature_breaks_them():
    logits, labels = synthetic.calibrated(50_000, 10, seed=0)
    right, broken = (calibration.ece(calibration.reliability(z.softmax(-1), labels)) for z in (logits, 3 * logits))
    assert right < 0.01
    assert broken > 0.1


def test_blobs_stand_around_the_same_centers_at_any_size_and_noise():
    small, few = synthetic.blobs(6, 3, 5, 0.0, seed=4)
    large, many = synthetic.blobs(600, 3, 5, 0.0, seed=4)
    for label in range(3):
        torch.testing.assert_close(small[few == label][0], large[many == label][0])
        torch.testing.assert_close(large[many == label][0].norm(), torch.tensor(1.0))


def test_blobs_are_balanced():
    _, labels = synthetic.blobs(99, 3, 5, 0.1, seed=0)
    assert labels.bincount().tolist() == [33, 33, 33]
