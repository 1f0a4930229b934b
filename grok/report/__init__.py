"""Reports: pictures and words made from a run's record."""
