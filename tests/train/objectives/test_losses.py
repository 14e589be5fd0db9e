import pytest
import torch
from torch import nn
from torch.nn import functional as F

from patchloom.train.objectives.losses import Binary, Counts, CrossEntropy, Distil
from patchloom.train.objectives.mixing import Mixer, Mixing

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


@pytest.fixture
def batch():
    g = torch.Generator().manual_seed(0)
    return torch.randn(6, 4, generator=g), torch.tensor([0, 1, 2, 3, 3, 3]), torch.randn(6, 3, 8, 8, generator=g)


def counts(*n):
    return lambda: Counts(sum(n), torch.tensor(n))


def test_smoothing_is_the_formula_and_timms(batch):
    from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy

    logits, target, _ = batch
    loss = CrossEntropy(smoothing=0.1)
    torch.testing.assert_close(loss(logits, target), LabelSmoothingCrossEntropy(0.1)(logits, target))
    soft = F.one_hot(target, 4) * 0.7 + F.one_hot(target.flip(0), 4) * 0.3
    torch.testing.assert_close(loss(logits, soft), SoftTargetCrossEntropy()(logits, soft * 0.9 + 0.1 / 4))


def test_a_one_hot_target_costs_what_its_number_costs_also_weighted(batch):
    logits, target, _ = batch
    loss = CrossEntropy(smoothing=0.0, weights=[1.0, 2.0, 3.0, 0.5])
    torch.testing.assert_close(loss(logits, F.one_hot(target, 4).float()), loss(logits, target))
    torch.testing.assert_close(
        loss(logits, target), F.cross_entropy(logits, target, torch.tensor([1.0, 2.0, 3.0, 0.5]))
    )


def test_balanced_weights_make_every_class_weigh_the_same(batch):
    loss = CrossEntropy(weights="balanced")
    loss.setup(4, counts(10, 20, 0, 70), IMAGENET)
    torch.testing.assert_close(loss.weights * torch.tensor([10.0, 20, 0, 70]), torch.tensor([25.0, 25, 0, 25]))
    assert "weights" not in loss.state_dict()


@pytest.mark.parametrize("loss", [CrossEntropy(weights=[1.0, 2.0]), Binary(weights=[1.0, 2.0])])
def test_as_many_weights_as_classes(loss):
    with pytest.raises(ValueError, match="2 entries, the data has 4 classes"):
        loss.setup(4, counts(1, 1, 1, 1), IMAGENET)


def test_binary_of_one_label_is_timms(batch):
    from timm.loss import BinaryCrossEntropy

    logits, target, _ = batch
    ours, theirs = Binary("one", smoothing=0.1), BinaryCrossEntropy(smoothing=0.1)
    torch.testing.assert_close(ours(logits, target), theirs(logits, target))
    soft = F.one_hot(target, 4) * 0.7 + F.one_hot(target.flip(0), 4) * 0.3
    hard = Binary("one", threshold=0.2)(logits, soft)
    torch.testing.assert_close(hard, F.binary_cross_entropy_with_logits(logits, (soft > 0.2).float()))


def test_binary_of_many_labels(batch):
    logits, *_ = batch
    target = (logits.flip(0) > 0).long()
    loss = Binary(weights="balanced")
    loss.setup(4, lambda: Counts(100, torch.tensor([50, 25, 10, 0])), IMAGENET)
    torch.testing.assert_close(loss.weights, torch.tensor([1.0, 3.0, 9.0, 1.0]))
    torch.testing.assert_close(
        loss(logits, target), F.binary_cross_entropy_with_logits(logits, target.float(), pos_weight=loss.weights)
    )
    with pytest.raises(ValueError, match="use CrossEntropy"):
        Binary("one", weights="balanced")


class Teacher(nn.Module):
    num_classes, default_cfg = 4, {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}

    def __init__(self):
        super().__init__()
        self.fc, self.seen = nn.Linear(3, 4), None

    def forward(self, image):
        self.seen = image
        return self.fc(image.mean((2, 3)))


def test_distillation_is_deits(batch):
    logits, target, image = batch
    distilled, teacher = logits.flip(1), Teacher()
    judged = teacher(image)
    base = F.cross_entropy(logits, target)
    hard = Distil(teacher, "hard", 0.5, base=nn.CrossEntropyLoss())((logits, distilled), target, image)
    torch.testing.assert_close(hard, (base + F.cross_entropy(distilled, judged.argmax(1))) / 2)
    soft = Distil(teacher, "soft", 0.3, temperature=2.0, base=nn.CrossEntropyLoss())((logits, distilled), target, image)
    p, q = (judged / 2).softmax(1), (distilled / 2).softmax(1)
    torch.testing.assert_close(soft, 0.7 * base + 0.3 * 4 * (p * (p / q).log()).sum() / distilled.numel())
    plain = Distil(teacher, "hard", 1.0)(logits, target, image)
    torch.testing.assert_close(plain, F.cross_entropy(logits, judged.argmax(1)))


def test_the_teacher_sees_its_own_preprocessing_and_stays_out_of_the_checkpoint(batch):
    _, _, image = batch
    teacher = Teacher()
    loss = Distil(teacher)
    loss.setup(4, counts(1, 1, 1, 1), IMAGENET)
    loss(torch.randn(6, 4, requires_grad=True), torch.zeros(6, dtype=torch.long), image).backward()
    mean, std = (torch.tensor(IMAGENET[k]).view(3, 1, 1) for k in ("mean", "std"))
    torch.testing.assert_close(teacher.seen, (image * std + mean - 0.5) / 0.5)
    assert not list(loss.parameters())
    assert not loss.state_dict()
    assert all(not p.requires_grad and p.grad is None for p in teacher.parameters())
    loss.to(torch.float64)
    assert teacher.fc.weight.dtype == torch.float64  # goes where the loss goes
    with pytest.raises(ValueError, match="teacher tells 4 classes apart, the data has 5"):
        loss.setup(5, counts(1, 1, 1, 1, 1), IMAGENET)


@pytest.mark.parametrize("spec", [Mixing(), Mixing(mixup=0), Mixing(cutmix=0, mode="elem"), Mixing(mode="pair")])
def test_mixing_repeats_by_its_draw_and_leaves_the_rest_alone(spec):
    import numpy as np

    mixer = Mixer(spec, 4, many=False)
    image, target = torch.randn(5, 3, 16, 16), torch.tensor([0, 1, 2, 3, 0])
    kept, state = image.clone(), np.random.get_state()[1].copy()
    a, b, other = (
        mixer(image, target, (7, 0, 3, 0)),
        mixer(image, target, (7, 0, 3, 0)),
        mixer(image, target, (7, 0, 4, 0)),
    )
    assert torch.equal(a[0], b[0])
    assert torch.equal(a[1], b[1])
    assert not torch.equal(a[1], other[1])
    assert torch.equal(image, kept)
    assert (np.random.get_state()[1] == state).all()
    torch.testing.assert_close(a[1].sum(1), torch.ones(5))
    assert torch.equal(a[0][4], image[4])
    assert a[1][4].tolist() == [1, 0, 0, 0]


def test_mixing_of_many_labels():
    mixer = Mixer(Mixing(cutmix=0), 3, many=True)
    target = torch.tensor([[1, 0, 1], [0, 0, 1], [1, 1, 0], [0, 0, 0]])
    _, soft = mixer(torch.zeros(4, 3, 8, 8), target, (1, 2))
    share = soft[0, 0]  # 1 * share + 0 * (1 - share)
    torch.testing.assert_close(soft, target * share + target.flip(0) * (1 - share))


def test_mixing_needs_something_to_mix():
    with pytest.raises(ValueError, match="one of them must be above 0"):
        Mixer(Mixing(mixup=0, cutmix=0), 4, many=False)
