"""The page of a comparison, its table, plots and advice."""
