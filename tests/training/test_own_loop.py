"""A training loop of one's own, as README has it."""

from __future__ import annotations

import pytest
import torch

import infodisent
from infodisent.backbones.preprocess import transform_config, transform_from
from infodisent.data.images import load_image, scan_folder
from infodisent.explanations.prototypes import find_prototypes


def test_a_loop_learns_and_explains(image_folder, store, tiny):
    transform = transform_from(transform_config(tiny))
    images = [torch.stack([transform(load_image(f)) for f in store.files])]
    labels = store.labels
    optimizer = torch.optim.AdamW(tiny.head.param_groups(lr=0.05, rotation_lr=0.01))
    scale = tiny.head.pool(tiny.forward_features(images[0])).pos.mean().item()
    losses = []
    for _ in range(30):
        loss = torch.nn.functional.cross_entropy(tiny(images[0]), labels)
        loss = loss + tiny.head.penalty_term(feature_scale=scale)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        tiny.head.after_step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert torch.all(tiny.head.fc.weight >= 0)
    assert next(tiny.backbone.parameters()).grad is None
    why = infodisent.explain(tiny.eval(), store.files[0], classes=scan_folder(image_folder).classes)
    assert why.class_name in ("green", "red")
    prototypes = find_prototypes(tiny.head, store, k=2, progress=False)
    assert prototypes.k == 2


def test_the_penalty_is_that_of_the_trainer(tiny):
    whole = 0.1 * 0.5 / 2 * tiny.head.class_weights().sum()
    assert torch.equal(tiny.head.penalty_term(0.1, feature_scale=0.5), whole)
    pulled = tiny.head.penalty_term(0.1, feature_scale=0.5, class_counts=[30, 10])
    rows = tiny.head.class_weights().sum(1) * torch.tensor([1.5, 0.5])
    torch.testing.assert_close(pulled, 0.1 * 0.5 / 2 * rows.sum())
    with pytest.raises(ValueError, match="must be 2 numbers >= 0"):
        tiny.head.penalty_term(class_counts=[1, 2, 3])
    assert tiny.head.penalty_term(0) == 0
