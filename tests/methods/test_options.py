"""Options of all methods: one number changed alone contradicts none of the others' defaults."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from guidedgen.runs import composition, config

LEAVES = sorted(path.stem for path in (Path(config.CONF) / "method").glob("*.yaml"))


@pytest.mark.parametrize("leaf", LEAVES)
def test_one_count_can_be_changed_alone(leaf: str) -> None:
    """method.num_iterations=3 is no mistake because distill_iterations, which is not set, is 10."""
    node = composition.composed([f"method={leaf}"]).method
    for name in [name for name, value in node.items() if isinstance(value, int) and not isinstance(value, bool)]:
        for count in (1, 2, 3, 1000):
            changed = OmegaConf.merge(node, {name: count})
            assert getattr(config.build(changed, "method", []), name) == count
