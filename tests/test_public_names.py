"""Names that are imported at their first use, and those that are where the pages say."""

import pytest

import wavemamba
from wavemamba.models.registry import library_families


@pytest.mark.parametrize("name", ["DiMSUM", "DiT", "ZigMa", "DiffuSSM"])
def test_a_family_is_reached_by_the_name_of_its_class(name):
    model = getattr(wavemamba.models, name)
    assert model is library_families()[name.casefold()].load()
    assert getattr(wavemamba.models, f"{name}Config") is model.config_class


def test_every_family_is_reached():
    for family in library_families().values():
        assert getattr(wavemamba.models, family.load().__name__) is family.load()


def test_where_things_are_reached():
    from wavemamba.blocks import MapBlock, SpatialMambaBlock
    from wavemamba.data import register_source
    from wavemamba.models.dimsum.released import load_released

    assert wavemamba.register_source is register_source
    assert wavemamba.models.checkpoints.load_released is load_released
    assert issubclass(SpatialMambaBlock, MapBlock)


def test_all_names_are_there_and_others_are_not():
    for module in (wavemamba, wavemamba.models, wavemamba.blocks, wavemamba.ops):
        assert [name for name in module.__all__ if not hasattr(module, name)] == []
        with pytest.raises(AttributeError, match=f"module '{module.__name__}' has no attribute 'DiP'"):
            module.DiP  # noqa: B018  # looking it up is what is tested
