"""`extract` and `FeatureStore` under one name, as scripts use them."""

from infodisent.data.extraction import extract
from infodisent.data.store import FeatureStore

__all__ = ["FeatureStore", "extract"]
