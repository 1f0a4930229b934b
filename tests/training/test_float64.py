"""Every true precision trains and evaluates, continuous columns included."""

import pytest
import torch
from tiny import SquaredError, make_module, train


@pytest.mark.parametrize("precision", ["64-true", "bf16-true"])
def test_tokens_and_continuous_columns_train_in_true_precisions(tmp_path, sums, precision):
    for module, data in ((make_module(), None), (make_module(sums, objective=SquaredError()), sums)):
        trainer = train(tmp_path, module, steps=3, data=data, precision=precision)
        expected = {"64-true": torch.float64, "bf16-true": torch.bfloat16}[precision]
        assert {weight.dtype for weight in module.net.parameters()} == {expected}
        assert trainer.global_step == 3
        assert all(score.loss > 0 for score in module.scores.values())
