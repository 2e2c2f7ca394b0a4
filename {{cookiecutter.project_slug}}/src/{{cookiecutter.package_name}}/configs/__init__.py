"""The Hydra configuration tree; it lies in the package so that an installed wheel runs from any folder."""
