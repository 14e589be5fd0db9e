import lightning.pytorch as L
import pytest
import torch
from fit_parts import Poison, small
from torch import nn

from patchloom.data.modules import ShapesData
from patchloom.train.callbacks.guard import Guard, NonFinite, first_bad_layer, gradient_norm, tensors
from patchloom.train.classify import Classify


@pytest.mark.parametrize(
    ("what", "says"),
    [
        (
            "gradient",
            r"the gradient of model\.backbone\.\S+ is infinite at step 6 \(epoch 1, batch 1\); lower the learning rate",
        ),
        (
            "layer",
            r"the loss is nan: backbone\.\S+ \(Linear\) gives (nan|infinite) values of finite ones at step 6 \(epoch 1",
        ),
        ("image", r"the loss is nan: the batch holds bad numbers already at step 6"),
    ],
)
def test_the_run_stops_and_the_place_is_named(tmp_path, what, says):
    data = ShapesData(train_length=32, val_length=8, batch_size=8, workers=0)
    trainer = L.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        callbacks=[Poison(6, what), Guard()],
        num_sanity_val_steps=0,
    )
    with pytest.raises(NonFinite, match=says):
        trainer.fit(Classify(small()), data)
    assert trainer.global_step == 5


def test_the_norm_is_that_of_all_gradients():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    model(torch.randn(5, 3)).square().sum().backward()
    optimizer = torch.optim.SGD([{"params": model[0].parameters()}, {"params": model[1].parameters()}], 0.1)
    expected = torch.cat([p.grad.flatten() for p in model.parameters()]).norm()
    torch.testing.assert_close(gradient_norm(optimizer), expected)
    model[0].bias.grad[2] = torch.nan
    assert torch.isnan(gradient_norm(optimizer))
    assert gradient_norm(torch.optim.SGD(nn.Linear(2, 2).parameters(), 0.1)) == 0


def test_the_first_bad_layer_is_named():
    class Module(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = nn.Sequential(nn.Linear(3, 3), nn.Identity(), nn.Linear(3, 3), nn.GELU())

    module, batch = Module(), (torch.ones(2, 3), torch.zeros(2, dtype=torch.long))
    assert "arises in the loss function" in first_bad_layer(module, batch)
    handle = module.model[2].register_forward_hook(lambda layer, inputs, output: output / 0)
    assert first_bad_layer(module, batch).startswith("2 (Linear) gives infinite values")
    assert not any(layer._forward_hooks for i, layer in enumerate(module.model) if i != 2)
    handle.remove()
    assert first_bad_layer(module, (torch.full((2, 3), torch.inf), batch[1])) == "the batch holds bad numbers already"


def test_tensors_are_found_in_nested_values():
    a, b = torch.ones(1), torch.zeros(2)
    assert list(tensors(({"x": a}, [b, torch.ones(1, dtype=torch.long)], "no"))) == [a, b]
