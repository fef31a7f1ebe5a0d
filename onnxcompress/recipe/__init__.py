"""Recipes: everything that can be asked for, from TOML, the command line or Python."""

from onnxcompress.recipe.recipe import Recipe

__all__ = ["Recipe"]
