"""The loader: its order, its state, its processes, and what it does with unreadable pictures."""

import random
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from patchloom.data.folders import Files
from patchloom.data.loader import Batch, Loader, Order
from patchloom.data.pictures import Pictures
from patchloom.data.read import UnreadableImage
from patchloom.data.transforms import Jostle, evaluation_pipeline

CFG = {"input_size": (3, 16, 16), "crop_pct": 1.0, "interpolation": "bilinear"}


class Keys:
    """Hands the keys back, with a draw from every generator that a careless data set might use."""

    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length

    def __getitems__(self, keys):
        return Batch(torch.tensor(keys), torch.tensor([i for _, i in keys]), {})


def passes(loader, count):
    return [[tuple(k) for images, _ in loader for k in images.tolist()] for _ in range(count)]


def order(length, batch_size, **more):
    return Order(length, batch_size, **{"shuffle": False, "seed": 0, "even": False, **more})


@pytest.mark.parametrize("workers", [0, 2])
def test_each_pass_is_an_epoch_in_its_own_order(workers):
    loader = Loader(Keys(20), 4, shuffle=True, even=True, workers=workers)
    first, second = passes(loader, 2)
    assert {e for e, _ in first} == {0}
    assert {e for e, _ in second} == {1}
    assert sorted(i for _, i in first) == sorted(i for _, i in second) == list(range(20))
    assert [i for _, i in first] != [i for _, i in second]
    again = Loader(Keys(20), 4, shuffle=True, even=True)
    assert passes(again, 2) == [first, second]
    assert passes(Loader(Keys(20), 4, shuffle=True, even=True, seed=1), 1)[0] != first
    loader.close()


def test_set_epoch_counts_when_it_comes_after_iter():
    loader = Loader(Keys(8), 4, shuffle=True, even=True)
    iterator = iter(loader)
    loader.sampler.set_epoch(5)
    assert next(iterator)[0][0, 0] == 5
    assert passes(loader, 1)[0][0][0] == 6  # and goes on from there


@pytest.mark.parametrize("before", [0, 2])
@pytest.mark.parametrize("after", [0, 2])
@pytest.mark.parametrize("stop", [0, 1, 3, 5, 7])
def test_resume_anywhere_with_any_number_of_workers(before, after, stop):
    """stop batches, of 5 an epoch, in one loader; the rest in another."""
    whole = [k for p in passes(Loader(Keys(20), 4, shuffle=True, even=True), 3) for k in p]
    loader, got = Loader(Keys(20), 4, shuffle=True, even=True, workers=before), []
    while len(got) < stop * 4:
        for images, _ in loader:
            got += [tuple(k) for k in images.tolist()]
            if len(got) == stop * 4:
                break
    state = loader.state_dict()
    loader.close()
    other = Loader(Keys(20), 4, shuffle=True, even=True, workers=after)
    other.load_state_dict(state)
    assert other.state_dict() == state
    while len(got) < 60:
        got += passes(other, 1)[0]
    assert got == whole
    other.close()


def test_state_is_plain_and_small(tmp_path):
    loader = Loader(Keys(20), 4, shuffle=True, even=True)
    next(iter(loader))
    torch.save(loader.state_dict(), tmp_path / "s")
    assert torch.load(tmp_path / "s", weights_only=True) == loader.state_dict()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"batch_size": 5}, "batch size x processes was 4 and is 5"),
        ({"seed": 3}, "seed was 0 and is 3"),
        ({"length": 24}, "number of training pictures was 20 and is 24"),
    ],
)
def test_resume_within_an_epoch_needs_the_same_data(arguments, says):
    def make(length=20, batch_size=4, seed=0):
        return Loader(Keys(length), batch_size, shuffle=True, even=True, seed=seed)

    loader = make()
    iterator = iter(loader)
    next(iterator)
    with pytest.raises(ValueError, match=says):
        make(**arguments).load_state_dict(loader.state_dict())
    list(iterator)
    changed = make(**arguments)
    changed.load_state_dict(loader.state_dict())  # at the end of an epoch all of that may change
    assert passes(changed, 1)[0][0][0] == 1


def test_the_models_generators_are_not_touched():
    for workers in (0, 2):
        random.seed(0), np.random.seed(0), torch.manual_seed(0)
        before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
        loader = Loader(Keys(20), 4, shuffle=True, workers=workers)
        passes(loader, 2)
        loader.close()
        assert random.getstate() == before[0]
        assert np.random.get_state()[1].tolist() == before[1]
        assert torch.equal(torch.get_rng_state(), before[2])


def test_no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        passes(Loader(Keys(8), 4), 1)


# several processes


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 23])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_evaluation_sees_every_picture_once(length, world):
    got = [i for rank in range(world) for batch in order(length, 4, world=world, rank=rank) for _, i in batch]
    assert sorted(got) == list(range(length))
    for rank in range(world):
        o = order(length, 4, world=world, rank=rank)
        assert len(o) == len(list(o))


@pytest.mark.parametrize("length", [1, 2, 7, 16, 23])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_training_gives_all_processes_equally_many_steps(length, world):
    orders = [order(length, 4, world=world, rank=rank, even=True, shuffle=True) for rank in range(world)]
    batches = [list(o) for o in orders]
    assert {len(b) for b in batches} == {len(o) for o in orders} == {max(length // (4 * world), 1)}
    assert len({tuple(map(len, b)) for b in batches}) == 1
    got = [i for b in batches for batch in b for _, i in batch]
    if length >= 4 * world:
        assert len(got) == len(set(got))  # none twice
    else:
        assert set(got) == set(range(length))


def test_a_step_over_two_processes_is_a_step_of_one():
    one = list(order(24, 8, even=True, shuffle=True))
    two = [list(order(24, 4, even=True, shuffle=True, world=2, rank=rank)) for rank in range(2)]
    for step, batch in enumerate(one):
        assert sorted(batch) == sorted(two[0][step] + two[1][step])


def test_wrong_numbers():
    with pytest.raises(ValueError, match="batch_size = 0"):
        Loader(Keys(4), 0)
    with pytest.raises(ValueError, match="workers = -1"):
        Loader(Keys(4), 1, workers=-1)


# unreadable pictures


@pytest.fixture
def folder(tmp_path):
    for i in range(12):
        Image.new("RGB", (16, 16), (i * 20, 0, 0)).save(tmp_path / f"{i:02}.png")
    (tmp_path / "03.png").write_bytes(b"\x89PNG broken")
    (tmp_path / "07.png").write_bytes(b"")
    return tmp_path


@pytest.mark.parametrize("workers", [0, 2])
def test_stop_names_the_file_in_one_line(folder, workers):
    loader = Loader(Pictures(Files(folder), evaluation_pipeline(CFG)), 4, workers=workers)
    with pytest.raises(UnreadableImage, match=r"03\.png: not an image.*on_error: skip") as error:
        list(loader)
    assert "\n" not in str(error.value)
    loader.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_skipped_ones_are_counted_in_the_main_process_and_reported(folder, workers, caplog):
    loader = Loader(Pictures(Files(folder), evaluation_pipeline(CFG), on_error="skip"), 4, workers=workers)
    with caplog.at_level("WARNING", "patchloom.data"):
        iterator = iter(loader)
        targets = [next(iterator)[1].tolist() for _ in range(len(loader))]  # as Lightning does: never one more than len
    assert targets == [[0, 1, 2], [4, 5, 6], [8, 9, 10, 11]]
    assert loader.skipped.keys() == {str(folder / "03.png"), str(folder / "07.png")}
    assert loader.skipped[str(folder / "07.png")] == "the file is empty"
    assert caplog.records[0].getMessage().startswith("skipped 2 unreadable images in epoch 0: ")
    again = Loader(Pictures(Files(folder), evaluation_pipeline(CFG), on_error="skip"), 4)
    again.load_state_dict(loader.state_dict())
    assert again.skipped == loader.skipped  # the count outlives a restart
    loader.close()


def test_training_batches_keep_their_size(folder):
    pictures = Pictures(Files(folder), Jostle(padding=1).pipeline(CFG), on_error="skip", refill=True)
    loader = Loader(pictures, 4, shuffle=True, even=True)
    assert [len(images) for images, _ in loader] == [4, 4, 4]
    assert len(loader.skipped) == 2


def test_a_batch_without_any_readable_picture_is_left_out(folder):
    for i in range(4):
        (folder / f"{i:02}.png").write_bytes(b"x")
    loader = Loader(Pictures(Files(folder), evaluation_pipeline(CFG), on_error="skip"), 4)
    assert [t.tolist() for _, t in loader] == [[4, 5, 6], [8, 9, 10, 11]]
    for file in folder.iterdir():
        file.write_bytes(b"x")
    refilled = Pictures(Files(folder), Jostle().pipeline(CFG), on_error="skip", refill=True)
    with pytest.raises(UnreadableImage, match="so are all the others"):
        list(Loader(refilled, 4))
