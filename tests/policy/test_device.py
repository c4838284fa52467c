import pytest
import torch

from visuomotor.errors import ConfigError
from visuomotor.policy.device import choose_device


def test_the_processor_is_always_there() -> None:
    assert choose_device("cpu") == "cpu"
    assert choose_device("auto") in ("cpu", "cuda", "mps")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"device: expected one of \['auto', 'cpu'.*got cuda"):
        choose_device("cuda")
