"""The networks that isl has, by name."""

from isl.models.concordance import CONCORDANCE
from isl.models.fovea import FOVEA
from isl.models.plan import TowerSpec

NETWORKS: dict[str, TowerSpec] = {spec.name: spec for spec in (CONCORDANCE, FOVEA)}
