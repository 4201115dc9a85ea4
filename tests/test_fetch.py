"""A run whose experts are missing says how to make them, or makes them."""

import pathlib

import pytest

from configs import cifar10_merge, imagenet32_merge
from jaxmerge.experts import io
from jaxmerge.tasks import experts
from tests import public
from tests.conversion import PICKLE


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """The section `experts` of the CIFAR-10 config, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(pathlib.Path(__file__).parent.parent))
    return cifar10_merge.get_config().experts


def test_missing_experts_are_named_with_the_commands_that_make_them(asked):
    with pytest.raises(ValueError, match=r"vdm_cifar10 and .*edm_cifar10; make it with") as refusal:
        experts.provide(asked)
    for words in (
        "python -m checkpoints_convert vdm-cifar10 checkpoints/vdm_cifar10",
        "python -m checkpoints_convert edm-cifar10-32x32-uncond-vp checkpoints/edm_cifar10",
        "--config.experts.fetch=True",
    ):
        assert words in str(refusal.value)


def test_a_missing_expert_without_a_public_source_is_refused():
    asked = imagenet32_merge.get_config().experts
    with pytest.raises(
        ValueError, match=r"no expert at checkpoints/edm_imagenet32, and the config names no public"
    ):
        experts.provide(asked)


def test_fetching_makes_the_missing_expert_and_keeps_the_others(asked, tmp_path):
    asked.low, asked.high, asked.fetch = "digits_vdm", str(tmp_path / "new" / "edm"), True
    asked.high_source = str(public.FIXTURES / PICKLE)
    experts.provide(asked)
    assert io.load_expert(asked.high).shape == (8, 8, 3)
    assert experts.missing(asked) == []
    asked.high_source = "nowhere"
    experts.provide(asked)


def test_a_source_that_cannot_be_fetched_ends_the_run(asked, tmp_path):
    asked.low, asked.high, asked.fetch = "digits_vdm", str(tmp_path / "edm"), True
    asked.high_source = str(tmp_path / "nothing.pkl")
    with pytest.raises(ValueError, match="could not be made"):
        experts.provide(asked)


@pytest.mark.parametrize("config", [cifar10_merge, imagenet32_merge])
def test_configs_of_public_experts_have_no_other_variants(config):
    with pytest.raises(ValueError, match=r"no variants|has the variant 'smoke' only"):
        config.get_config("small")
